//! From a domain's descriptors to its rules and the tree that finds them.

use std::collections::HashSet;

use super::fields::{self, Fields};
use super::keys::Level;
use super::limits::{self, Drafts, Naming};
use super::metadata;
use super::parse::{self, Settings};
use super::pattern;
use super::problem::{Path, Report, Severity};
use super::raw::{Node, Span};
use super::reach::{Place, Siblings};
use super::tiers::TierUse;
use crate::limit::{Algorithm, Limit};
use crate::rules::tier::{RuleTiers, TierLimits};
use crate::rules::tree::{self, Matcher};
use crate::rules::{Block, Rule, RuleId, RuleLimit};
use crate::shown::escaped;

/// Builds one domain from the descriptors of its documents.
pub(crate) struct Compiler<'c, 's> {
    pub(crate) reports: &'c mut [Report<'s>],
    settings: Settings,
    file: usize,
    tree: tree::Node,
    rules: Vec<Rule>,
    /// The top list, which several documents may add to.
    top: Siblings,
    replacements: Vec<Replacement>,
}

/// A name in `replaces`, to be looked up once all rules are known.
struct Replacement {
    file: usize,
    at: Span,
    path: String,
    name: Box<str>,
}

/// How the way to a descriptor reads: its keys with their values, and its keys alone.
#[derive(Default)]
struct Trail {
    path: String,
    layer: String,
}

impl Trail {
    fn with(&self, key: &str, matcher: &Matcher) -> Trail {
        let comma = if self.path.is_empty() { "" } else { "," };
        let value = match matcher {
            Matcher::Any => None,
            Matcher::Exact(value) => Some(value),
            Matcher::Pattern { text, .. } => Some(text),
        };
        let path = match value {
            Some(value) => format!("{}{comma}{key}={}", self.path, escaped(&String::from_utf8_lossy(value))),
            None => format!("{}{comma}{key}", self.path),
        };
        Trail { path, layer: format!("{}{comma}{key}", self.layer) }
    }
}

impl<'c, 's> Compiler<'c, 's> {
    pub(crate) fn new(settings: Settings, reports: &'c mut [Report<'s>]) -> Compiler<'c, 's> {
        Compiler {
            reports,
            settings,
            file: 0,
            tree: tree::Node::default(),
            rules: Vec::new(),
            top: Siblings::default(),
            replacements: Vec::new(),
        }
    }

    /// Adds the descriptors of a document.
    pub(crate) fn document(&mut self, file: usize, descriptors: &Node<'_>, path: &Path<'_>) {
        self.file = file;
        let (mut tree, mut top) = (std::mem::take(&mut self.tree), std::mem::take(&mut self.top));
        self.list(descriptors, &mut tree, &mut top, &Trail::default(), &path.key("descriptors"));
        (self.tree, self.top) = (tree, top);
    }

    /// What only all descriptors together can get wrong, and the result.
    pub(crate) fn finish(mut self, path: &Path<'_>, file: usize) -> (Settings, tree::Node, Vec<Rule>) {
        self.top.check(&path.key("descriptors"), self.reports);
        let names: HashSet<&str> = self.rules.iter().filter_map(|rule| rule.name.as_deref()).collect();
        for replacement in &self.replacements {
            if names.contains(&*replacement.name) {
                continue;
            }
            let message = format!("no rule of this domain is called `{}`", replacement.name);
            let near = super::keys::nearest(&replacement.name, names.iter().copied());
            let hint = match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => "give the rule to replace this `name`".to_owned(),
            };
            self.reports[replacement.file].warning(replacement.at, &replacement.path, message).hint(hint);
        }
        if let Err(error) = self.tree.seal() {
            self.reports[file].error(Span::default(), path, format!("the patterns do not compile together: {error}"));
        }
        (self.settings, self.tree, self.rules)
    }

    fn report(&mut self) -> &mut Report<'s> {
        &mut self.reports[self.file]
    }

    fn list(&mut self, list: &Node<'_>, parent: &mut tree::Node, siblings: &mut Siblings, trail: &Trail, path: &Path<'_>) {
        let Some(items) = fields::items(list, path, self.report()) else { return };
        for (item, node) in items.iter().enumerate() {
            self.descriptor(node, item, parent, siblings, trail, path);
        }
    }

    fn descriptor(
        &mut self,
        node: &Node<'_>,
        item: usize,
        parent: &mut tree::Node,
        siblings: &mut Siblings,
        trail: &Trail,
        list: &Path<'_>,
    ) {
        let path = list.item(item);
        let Some(fields) = Fields::read(node, Level::Descriptor, &path, self.report()) else { return };
        let key = self.key(&fields, &path);
        let shared = fields.get("share_threshold").is_some_and(|node| self.boolean(node, &path.key("share_threshold")));
        let matcher = pattern::matcher(fields.get("value"), shared, &path, self.report());
        if let (true, Some(Matcher::Any | Matcher::Exact(_))) = (shared, &matcher) {
            let at = fields.place("share_threshold");
            // envoyproxy/ratelimit takes an asterisk in the key for a wildcard.
            let is_kept = key.is_some_and(|key| key.contains('*'));
            let severity = if is_kept { Severity::Warning } else { Severity::Error };
            let message = "`share_threshold` needs a pattern: its matches share one counter";
            self.report().complain(severity, at, path, message).hint("write a wildcard such as `value: files/*`, or leave it out");
        }
        let below = match (key, &matcher) {
            (Some(key), Some(matcher)) => trail.with(key, matcher),
            _ => Trail::default(),
        };
        let rule = self.rule(&fields, &below, &path);
        // Where the place in the tree is not known, what is below is still read for its problems.
        let mut lost = tree::Node::default();
        let place = Place { file: self.file, item, at: node.at };
        let target = match (key, matcher) {
            (Some(key), Some(matcher)) => match siblings.add(key, &matcher, place) {
                None => parent.child(key, matcher).0,
                Some(earlier) => {
                    self.repeated(&below, place, earlier, &path);
                    &mut lost
                }
            },
            _ => &mut lost,
        };
        if let Some(rule) = rule {
            target.rule = Some(RuleId(u32::try_from(self.rules.len()).unwrap_or(u32::MAX)));
            self.rules.push(rule);
        }
        if let Some(children) = fields.given("descriptors") {
            let (mut siblings, path) = (Siblings::default(), path.key("descriptors"));
            self.list(children, target, &mut siblings, &below, &path);
            siblings.check(&path, self.reports);
        }
    }

    fn repeated(&mut self, trail: &Trail, place: Place, earlier: Place, path: &Path<'_>) {
        let line = format!("{}:{}", self.reports[earlier.file].file, earlier.at.line);
        let message = format!("`{}` is described already, at {line}", fields::shorten(&trail.path));
        self.report().error(place.at, path, message).hint("put both into one descriptor");
    }

    fn key<'n>(&mut self, fields: &Fields<'n, '_>, path: &Path<'_>) -> Option<&'n str> {
        let Some(node) = fields.get("key") else {
            if !fields.has_unknown(Level::Descriptor) {
                let problem = self.report().error(fields.at, path, "`key` is missing");
                problem.hint("every descriptor has the `key` of an entry of Envoy's descriptor");
            }
            return None;
        };
        let key = fields::text(node, &path.key("key"), self.report())?;
        if key.is_empty() {
            self.report().error(fields.place("key"), path, "the key is empty");
            return None;
        }
        if key.contains('*') {
            let message = format!("`*` is an ordinary character in a key: `{}`", fields::shorten(key));
            self.report().warning(node.at, path.key("key"), message).hint("patterns stand in `value`");
        }
        Some(key)
    }

    fn boolean(&mut self, node: &Node<'_>, path: &Path<'_>) -> bool {
        fields::boolean(node, path, self.report()).unwrap_or(false)
    }

    fn flag(&mut self, fields: &Fields<'_, '_>, key: &str, path: &Path<'_>) -> bool {
        fields.get(key).is_some_and(|node| self.boolean(node, &path.key(key)))
    }

    /// The rule that a descriptor makes, if it makes one; also read where it cannot be, for its problems.
    fn rule(&mut self, fields: &Fields<'_, '_>, trail: &Trail, path: &Path<'_>) -> Option<Rule> {
        let (mut drafts, mut naming) = (Drafts::default(), Naming::default());
        let default = self.settings.algorithm;
        self.limits(fields, default, path, &mut drafts, &mut naming);
        let name = limits::name(fields, path, self.report());
        let flags = ["allow", "deny", "shadow_mode", "quota_mode", "detailed_metric", "value_to_metric", "reserve"];
        let [allow, deny, shadow, quota, detailed, value, reserve] = flags.map(|key| self.flag(fields, key, path));
        for key in [("detailed_metric", detailed), ("value_to_metric", value)].into_iter().filter_map(|(key, on)| on.then_some(key))
        {
            let message =
                format!("`{key}` is accepted and has no effect: metrics are labelled by rule, never by a caller's values");
            self.report().warning(fields.place(key), path, message);
        }
        let own = fields.given("on_store_failure").map(|node| parse::on_store_failure(node, path, self.report()));
        let metadata = fields.given("metadata").and_then(|node| metadata::read(node, &path.key("metadata"), self.report()));
        self.effects(fields, &drafts, [allow, deny, shadow, quota], path);
        if reserve {
            self.reserve(fields, &drafts, path);
        }
        if drafts.written == 0 && !allow && !deny {
            return None;
        }
        let name: Option<Box<str>> = naming.name.or(name).map(Into::into);
        let label = name.as_deref().unwrap_or(&trail.path);
        let block = drafts.blocks.first().and_then(|(at, duration)| match Limit::penalty(*duration) {
            Ok(limit) => Some(Block::new(limit)),
            Err(error) => {
                self.report().error(*at, path.key("block_for"), error.to_string());
                None
            }
        });
        let limits = rule_limits(drafts.limits, label);
        let tiers = drafts.tier.and_then(|wanted| self.tiers(wanted, label, path));
        let replaces: Vec<Box<str>> = naming.replaces.iter().map(|(_, name)| (*name).into()).collect();
        for (at, replaced) in naming.replaces {
            if name.as_deref() == Some(replaced) {
                self.report().error(at, path.key("rate_limit").key("replaces"), format!("`{replaced}` replaces itself"));
                continue;
            }
            let path = path.key("rate_limit").key("replaces").to_string();
            self.replacements.push(Replacement { file: self.file, at, path, name: replaced.into() });
        }
        Some(Rule {
            tiers,
            reserve,
            name,
            path: trail.path.as_str().into(),
            layer: trail.layer.as_str().into(),
            limits,
            block,
            unlimited: drafts.unlimited.is_some(),
            allow,
            deny,
            shadow,
            quota,
            replaces,
            on_store_failure: own.flatten().unwrap_or(self.settings.on_store_failure),
            metadata,
            source: format!("{}:{}", self.reports[self.file].file, fields.at.line).into(),
        })
    }

    /// What each tier means for a rule.
    fn tiers(&mut self, wanted: TierUse, label: &str, path: &Path<'_>) -> Option<RuleTiers> {
        let report = &mut self.reports[self.file];
        let rate_limit = path.key("rate_limit");
        let path = rate_limit.key("tier");
        if self.settings.tiers.is_empty() {
            report
                .error(wanted.at, path, "the domain has no tiers")
                .hint("write `tiers` and `default_tier` at the top of the document");
            return None;
        }
        if !self.settings.has_default_tier {
            let problem = report.error(wanted.at, path, "`default_tier` is missing: what do callers of no known tier get?");
            problem.hint("name one of `tiers` at the top of the document");
            return None;
        }
        wanted.warn_of_no_set(&self.settings.tiers, &rate_limit, report);
        let mut limits = Vec::with_capacity(self.settings.tiers.len());
        for tier in &self.settings.tiers {
            match tier.limits_for(&wanted) {
                Ok(drafts) => limits.push(TierLimits { limits: rule_limits(drafts, label) }),
                Err(message) => {
                    report
                        .error(wanted.at, path, message)
                        .hint("give the tier limits called `default`: rules whose `use` names none of its sets take them");
                }
            }
        }
        let set = wanted.set().into();
        Some(RuleTiers { source: wanted.source, set, limits })
    }

    /// `reserve: true` needs classes, and limits that they share.
    fn reserve(&mut self, fields: &Fields<'_, '_>, drafts: &Drafts, path: &Path<'_>) {
        let has_classes = self.settings.has_priority;
        let shared = drafts.limits.iter().any(|draft| draft.limit.calendar().is_none());
        let at = fields.place("reserve");
        let report = self.report();
        if drafts.tier.is_some() {
            let problem = report.error(at, path, "`reserve` does nothing where the limits are a tier's");
            problem.hint("it is for limits that callers of several classes share");
        } else if !has_classes {
            let problem = report.error(at, path, "`reserve` does nothing in a domain without `priority`");
            problem.hint("write `priority: {entry: priority, reserve: {low: 50%}}` at the top of the document");
        } else if !shared && drafts.limits.len() == drafts.written {
            report.error(at, path, "`reserve` does nothing without a rate limit").hint("leave it out");
        } else if let Some((at, _)) = drafts.blocks.first() {
            let problem =
                report.error(*at, path.key("block_for"), "a block would hold for the classes that `reserve` keeps room for");
            problem.hint("leave `block_for` or `reserve` out");
        }
    }

    fn limits<'n>(
        &mut self,
        fields: &Fields<'n, '_>,
        default: Option<Algorithm>,
        path: &Path<'_>,
        drafts: &mut Drafts,
        naming: &mut Naming<'n>,
    ) {
        let report = &mut self.reports[self.file];
        if let Some(node) = fields.get("rate_limit") {
            *naming = limits::rate_limit(node, fields.has("limits"), default, path, report, drafts);
        }
        if let Some(node) = fields.get("limits") {
            limits::limits(node, default, path, report, drafts);
        }
        if let Some(node) = fields.given("quota") {
            limits::quota(node, path, report, drafts);
        }
        if let Some(node) = fields.given("block_for") {
            let duration = fields::duration(node, &path.key("block_for"), report);
            drafts.blocks.extend(duration.map(|duration| (fields.place("block_for"), duration)));
        }
        drafts.check(path, report);
    }

    /// Keys that do nothing on this descriptor.
    fn effects(&mut self, fields: &Fields<'_, '_>, drafts: &Drafts, flags: [bool; 4], path: &Path<'_>) {
        let [allow, deny, shadow, quota] = flags;
        let has_limits = drafts.written > 0;
        let decides = allow || deny;
        let report = self.report();
        if allow && deny {
            report.error(fields.place("deny"), path, "a rule cannot both `allow` and `deny`").hint("keep one of the two");
        }
        if decides && has_limits {
            let limits = ["limits", "rate_limit", "quota"].into_iter().find(|key| fields.has(key)).unwrap_or("limits");
            let key = if allow { "allow" } else { "deny" };
            let message = format!("`{limits}` does nothing beside `{key}: true`, which counts nothing");
            report.error(fields.place(limits), path, message).hint("keep one of the two");
        }
        let without =
            if decides || drafts.unlimited.is_some() { "where nothing is counted" } else { "on a descriptor without a limit" };
        let counted = has_limits && drafts.unlimited.is_none();
        let idle = [
            ("shadow_mode", shadow && !has_limits && !decides, Severity::Warning),
            ("quota_mode", quota && !has_limits, Severity::Warning),
            ("on_store_failure", fields.given("on_store_failure").is_some() && !counted, Severity::Error),
            ("block_for", !drafts.blocks.is_empty() && !counted, Severity::Error),
        ];
        for (key, _, severity) in idle.into_iter().filter(|(_, idle, _)| *idle) {
            let problem = report.complain(severity, fields.place(key), path, format!("`{key}` does nothing {without}"));
            problem.hint("put it on the descriptor that has the limit, or leave it out");
        }
        if !has_limits && !decides {
            for key in ["name", "metadata"].into_iter().filter(|key| fields.given(key).is_some()) {
                let message = format!("`{key}` does nothing on a descriptor without a limit");
                report.warning(fields.place(key), path, message).hint("put it on the descriptor that has the limit");
            }
        }
    }
}

/// The limits of a rule, named.
fn rule_limits(drafts: Vec<limits::Draft>, label: &str) -> Vec<RuleLimit> {
    let limits: Vec<Limit> = drafts.iter().map(|draft| draft.limit).collect();
    let drafts = drafts.into_iter().enumerate();
    let named = drafts.map(|(place, limits::Draft { charge, max_wait, .. })| {
        let named = RuleLimit::named(place, &limits, label);
        RuleLimit { charge, max_wait, ..named }
    });
    named.collect()
}
