//! Named tiers: what their callers may, read once and compiled into each rule that goes by them.

use super::fields::{self, Fields, describe};
use super::keys::{self, Level};
use super::limits::{self, Burst, Draft, Drafts};
use super::plans;
use super::problem::{Path, Report};
use super::raw::{Node, Scalar, Span, Value};
use crate::limit::{Algorithm, Limit};
use crate::rules::subject::SubjectRate;
use crate::rules::tier::{Class, DEFAULT_SET, TierSource};
use crate::rules::tier_definition::TierDefinition;

/// A tier as it is written.
#[derive(Debug)]
pub(crate) struct TierDraft {
    pub(crate) name: Box<str>,
    pub(crate) priority: Option<Class>,
    /// The line of its file that it begins on.
    pub(crate) line: u32,
    /// Whether it has limits only by the calendar, or none, whatever set is asked for.
    is_rate_unlimited: bool,
    sets: Vec<(String, Vec<Draft>)>,
    quota: Vec<Draft>,
}

/// How a rule goes by tiers.
#[derive(Debug)]
pub(crate) struct TierUse {
    pub(crate) at: Span,
    pub(crate) source: TierSource,
    /// What `use` names, and where.
    set: Option<(String, Span)>,
}

impl TierUse {
    pub(crate) fn set(&self) -> &str {
        self.set.as_ref().map_or(DEFAULT_SET, |(set, _)| set)
    }

    /// Warns of a set that no tier has: each rule gets the default one then, as it would without `use`.
    pub(crate) fn warn_of_no_set(&self, tiers: &[TierDraft], path: &Path<'_>, report: &mut Report<'_>) {
        let Some((set, at)) = &self.set else { return };
        if tiers.iter().any(|tier| tier.has_set(set)) {
            return;
        }
        let message = format!("no tier has limits called `{}`: every tier's default ones are taken", fields::shorten(set));
        let problem = report.warning(*at, path.key("use"), message);
        match keys::nearest(set, tiers.iter().flat_map(TierDraft::set_names)) {
            Some(near) => problem.hint(format!("did you mean `{near}`?")),
            None => {
                problem.hint("give one of the tiers that set, as in `limits: {default: [...], write: [...]}`, or leave `use` out")
            }
        }
    }
}

impl TierDraft {
    /// What it says, whatever rules use it.
    pub(crate) fn definition(&self) -> TierDefinition {
        let rates =
            |drafts: &[Draft]| drafts.iter().map(|draft| SubjectRate { limit: draft.limit, names_algorithm: true }).collect();
        let mut sets: Vec<(Box<str>, Vec<SubjectRate>)> =
            self.sets.iter().map(|(name, drafts)| (name.as_str().into(), rates(drafts))).collect();
        if self.is_rate_unlimited && sets.iter().all(|(name, _)| **name != *DEFAULT_SET) {
            sets.push((DEFAULT_SET.into(), Vec::new()));
        }
        let quotas = self.quota.iter().map(|draft| draft.limit).collect();
        TierDefinition { priority: self.priority, sets, quotas }
    }

    /// The limits for a rule: those of the set that it names, else the tier's default set, or a message why there are none.
    pub(crate) fn limits_for(&self, wanted: &TierUse) -> Result<Vec<Draft>, String> {
        match self.set(wanted.set()).or_else(|| self.set(DEFAULT_SET)) {
            Some(limits) => Ok(limits.iter().chain(&self.quota).cloned().collect()),
            None if self.is_rate_unlimited => Ok(self.quota.clone()),
            None if wanted.set() == DEFAULT_SET => Err(format!("tier `{}` has no limits called `{DEFAULT_SET}`", self.name)),
            None => {
                let (tier, set) = (&self.name, fields::shorten(wanted.set()));
                Err(format!("tier `{tier}` has no limits called `{set}`, and none called `{DEFAULT_SET}` to take instead"))
            }
        }
    }

    /// Whether it has limits of this name. Those of an unlimited tier have every name.
    pub(crate) fn has_set(&self, name: &str) -> bool {
        self.is_rate_unlimited || self.set(name).is_some()
    }

    /// The names of its sets.
    pub(crate) fn set_names(&self) -> impl Iterator<Item = &str> {
        self.sets.iter().map(|(name, _)| &**name)
    }

    fn set(&self, name: &str) -> Option<&[Draft]> {
        self.sets.iter().find(|(set, _)| set == name).map(|(_, limits)| &**limits)
    }
}

/// Reads `tiers`.
pub(crate) fn tiers(node: &Node<'_>, default: Option<Algorithm>, path: &Path<'_>, report: &mut Report<'_>) -> Vec<TierDraft> {
    let mut tiers = Vec::new();
    for (name, node, at) in fields::entries(node, path, report) {
        if name.is_empty() {
            report.error(at, path, "the name of a tier is empty");
            continue;
        }
        tiers.extend(tier(name, node, default, &path.key(name), report).map(|tier| TierDraft { line: at.line, ..tier }));
    }
    tiers
}

fn tier(name: &str, node: &Node<'_>, default: Option<Algorithm>, path: &Path<'_>, report: &mut Report<'_>) -> Option<TierDraft> {
    let fields = Fields::read(node, Level::Tier, path, report)?;
    let unlimited = fields.get("unlimited").and_then(|node| fields::boolean(node, &path.key("unlimited"), report));
    let mut is_rate_unlimited = unlimited == Some(true);
    let mut sets: Vec<(String, Drafts)> = Vec::new();
    match fields.get("limits") {
        Some(limits) if is_rate_unlimited => {
            report.error(limits.at, path, "the tier is unlimited and has limits").hint("keep one of the two");
        }
        Some(Node { value: Value::Map(_), .. }) => {
            let node = fields.get("limits").expect("it is there");
            let path = path.key("limits");
            for (set, node, _) in fields::entries(node, &path, report) {
                sets.push((set.to_owned(), set_of(node, default, &path.key(set), report)));
            }
        }
        Some(node) => sets.push((DEFAULT_SET.to_owned(), set_of(node, default, &path.key("limits"), report))),
        None if is_rate_unlimited => {}
        None if fields.given("quota").is_some() => is_rate_unlimited = true,
        None if fields.has_unknown(Level::Tier) => {}
        None => {
            let problem = report.error(fields.at, path, format!("tier `{name}` limits nothing"));
            problem.hint("give it `limits`, a `quota`, or `unlimited: true`");
            is_rate_unlimited = true;
        }
    }
    if let Some(node) = fields.given("burst") {
        add_burst(node, &mut sets, default, path, report);
    }
    let mut quota = Drafts::default();
    if let Some(node) = fields.given("quota") {
        limits::quota(node, path, report, &mut quota);
    }
    for (_, drafts) in &sets {
        drafts.check(path, report);
        if let Some((at, _)) = drafts.blocks.first() {
            let problem = report.error(*at, path, "`block_for` does nothing in a tier");
            problem.hint("put it on the descriptor whose rule goes by the tiers");
        }
    }
    // The list form of an unlimited tier, `limits: [unlimited]`, is so for every set.
    if let [(_, drafts)] = &sets[..]
        && !matches!(fields.get("limits"), Some(Node { value: Value::Map(_), .. }))
    {
        is_rate_unlimited |= drafts.unlimited.is_some();
    }
    let priority = fields.given("priority").and_then(|node| plans::class(node, &path.key("priority"), report));
    let sets = sets.into_iter().map(|(set, drafts)| (set, drafts.limits)).collect();
    Some(TierDraft { name: name.into(), priority, line: 0, is_rate_unlimited, sets, quota: quota.limits })
}

fn set_of(node: &Node<'_>, default: Option<Algorithm>, path: &Path<'_>, report: &mut Report<'_>) -> Drafts {
    let mut drafts = Drafts::default();
    limits::list(node, default, path, report, &mut drafts);
    drafts
}

/// A tier's burst is that of the first limit of each of its sets.
fn add_burst(node: &Node<'_>, sets: &mut [(String, Drafts)], default: Option<Algorithm>, path: &Path<'_>, report: &mut Report<'_>) {
    let Some(burst) = limits::burst(node, path, report) else { return };
    if sets.iter().all(|(_, drafts)| drafts.unlimited.is_some() || drafts.written == 0) {
        report.error(node.at, path.key("burst"), "`burst` does nothing in a tier without a rate limit").hint("leave it out");
        return;
    }
    for draft in sets.iter_mut().filter_map(|(_, drafts)| drafts.limits.first_mut()) {
        match with_burst(draft, burst, default) {
            Ok(limit) => {
                limits::warn_of_no_room(&limit, node, path, report);
                draft.limit = limit;
            }
            Err(message) => {
                let problem = report.error(node.at, path.key("burst"), message);
                problem.hint("a tier's burst is that of its first limit, which must be a token_bucket or a leaky_bucket");
            }
        }
    }
}

fn with_burst(draft: &Draft, burst: Burst, default: Option<Algorithm>) -> Result<Limit, String> {
    let limit = draft.limit;
    let algorithm = match draft.algorithm {
        Some(algorithm) if !algorithm.is_bucket() => return Err(format!("{} has no burst", algorithm.name())),
        Some(algorithm) => algorithm,
        None => limits::bucket(default),
    };
    Limit::new(algorithm, limit.requests(), limit.window(), Some(burst.capacity(limit.requests())))
        .map_err(|error| error.to_string())
}

/// Reads `tier` and `use` of a `rate_limit`.
pub(crate) fn tier_use(fields: &Fields<'_, '_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<TierUse> {
    let node = fields.get("tier")?;
    let set = fields.given("use").and_then(|node| {
        let set = fields::text(node, &path.key("use"), report)?;
        if set.is_empty() {
            report.error(node.at, path.key("use"), "the name of a set of limits is empty").hint("leave `use` out for `default`");
            return None;
        }
        Some((set.to_owned(), node.at))
    });
    let path = path.key("tier");
    let source = Fields::read(node, Level::TierSource, &path, report)?;
    let key = |name: &str, report: &mut Report<'_>| {
        let node = source.get(name)?;
        let key = fields::text(node, &path.key(name), report)?;
        if key.is_empty() {
            report.error(node.at, path.key(name), "the key of an entry is empty");
        }
        Some(key.as_bytes().into())
    };
    let source = match (source.has("entry"), source.has("assigned")) {
        (true, false) => TierSource::Entry(key("entry", report)?),
        (false, true) => TierSource::Assigned(key("assigned", report)?),
        _ if source.has_unknown(Level::TierSource) => return None,
        _ => {
            let problem = report.error(node.at, path, "how is the caller's tier known? exactly one of `entry` and `assigned`");
            problem.hint("`tier: {entry: tier}`, an entry of the request, or `tier: {assigned: user_id}`, the subject that it was assigned to");
            return None;
        }
    };
    Some(TierUse { at: node.at, source, set })
}

/// The place of `default_tier` in the list.
pub(crate) fn default_tier(node: &Node<'_>, tiers: &[TierDraft], path: &Path<'_>, report: &mut Report<'_>) -> Option<usize> {
    let Node { value: Value::Scalar(Scalar { text, .. }), .. } = node else {
        report.error(node.at, path, format!("expected the name of a tier, found {}", describe(node)));
        return None;
    };
    let place = tiers.iter().position(|tier| *tier.name == **text);
    if place.is_none() {
        let problem = report.error(node.at, path, format!("no tier is called `{}`", fields::shorten(text)));
        match keys::nearest(text, tiers.iter().map(|tier| &*tier.name)) {
            Some(near) => problem.hint(format!("did you mean `{near}`?")),
            None => problem.hint("it must be one of `tiers`"),
        }
    }
    place
}
