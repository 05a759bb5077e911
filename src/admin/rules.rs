//! The rules in force as text, a line for each.

use std::fmt::Write as _;

use crate::rules::key::duration;
use crate::rules::{Domain, Rule, RuleLimit, RuleSet};

/// Domains by name, rules as they are written.
pub(super) fn text(rules: &RuleSet) -> String {
    let mut text = format!("# revision {}\n", rules.revision);
    let mut domains: Vec<_> = rules.domains.values().collect();
    domains.sort_by(|a, b| a.name.cmp(&b.name));
    for domain in domains {
        let _ = writeln!(text, "{} ({})", domain.name, domain.file);
        for rule in &domain.rules {
            let _ = writeln!(text, "  {}", line(rule, domain));
        }
    }
    text
}

/// `path=/ai,user_id (ai): 2/1s fixed_window, 10/1h fixed_window, shadow_mode`.
fn line(rule: &Rule, domain: &Domain) -> String {
    let name = rule.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let switches = [
        (rule.unlimited, "unlimited"),
        (rule.allow, "allow"),
        (rule.deny, "deny"),
        (rule.shadow, "shadow_mode"),
        (rule.quota, "quota_mode"),
        (rule.reserve, "reserve"),
    ];
    let switches = switches.into_iter().filter(|(is_on, _)| *is_on).map(|(_, name)| name.to_owned());
    let block = rule.block.as_ref().map(|block| format!("block_for {}", duration(block.limit.window())));
    let tiers = rule.tiers.iter().flat_map(|tiers| tiers.limits.iter().zip(&domain.plans.tiers)).map(|(of, tier)| {
        let limits: Vec<String> = of.limits.iter().map(limit).collect();
        format!("tier {} {}", tier.name, if limits.is_empty() { "unlimited".to_owned() } else { limits.join(" + ") })
    });
    let says: Vec<String> = rule.limits.iter().map(limit).chain(tiers).chain(block).chain(switches).collect();
    format!("{}{name}: {}", rule.path, if says.is_empty() { "nothing".to_owned() } else { says.join(", ") })
}

fn limit(limit: &RuleLimit) -> String {
    let limit = &limit.limit;
    let burst = if limit.burst() == limit.requests() { String::new() } else { format!(" burst {}", limit.burst()) };
    format!("{}/{} {}{burst}", limit.requests(), duration(limit.window()), limit.algorithm().name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LoadOptions, load_texts};

    #[test]
    fn a_line_says_what_a_rule_does() {
        let rules = "domain: api\ndescriptors:\n  - key: user\n    name: per-user\n    limits: [2/second, {window: 1h, requests: 10, algorithm: \
                     token_bucket, burst: 15}]\n    block_for: 15m\n  - key: path\n    value: /x\n    shadow_mode: true\n    deny: true\n";
        let loaded = load_texts(&[("a.yaml", rules)], &LoadOptions::default(), &RuleSet::default());
        assert!(loaded.problems.is_empty(), "{}", loaded.problems);
        let expected = "# revision 1\napi (a.yaml)\n  user (per-user): 2/1s fixed_window, 10/1h token_bucket burst 15, block_for 15m\n  \
                        path=/x: deny, shadow_mode\n";
        assert_eq!(text(&loaded.rules), expected);
    }
}
