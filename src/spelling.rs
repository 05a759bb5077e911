//! Guesses which name a misspelt one was meant to be.

/// The name that was probably meant; `None` where no name is like it.
pub fn nearest<'k>(written: &str, names: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    /// Below this likeness a guess is worth less than a list.
    const LIKE: f64 = 0.66;
    /// Comparing takes time and memory in proportion to the length, and callers choose it.
    const MAX_LENGTH: usize = 64;
    if written.len() > MAX_LENGTH {
        return None;
    }
    let plain = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect::<String>();
    let written = plain(written);
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(&written, &plain(name));
    let best = names.map(|name| (likeness(name), name)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= LIKE).then_some(best.1)
}

/// The most names that [`listed`] shows.
const LISTED: usize = 20;

/// Names for a message: at most [`LISTED`] of them, and how many more there are.
pub fn listed<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<&str> = names.collect();
    let shown = names.iter().take(LISTED).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(LISTED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// `; did you mean …?`, or nothing.
pub fn suggestion<'n>(written: &str, names: impl Iterator<Item = &'n str>) -> String {
    nearest(written, names).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut() {
        let names: Vec<String> = (0..25).map(|number| number.to_string()).collect();
        let text = listed(names.iter().map(String::as_str));
        assert!(text.starts_with("0, 1, ") && text.ends_with("19 and 5 more"), "{text}");
        assert_eq!(listed(["a", "b"].into_iter()), "a, b");
    }

    #[test]
    fn only_a_likely_name_is_suggested() {
        let names = || ["multiplier", "limits"].into_iter();
        assert_eq!(suggestion("multiplyer", names()), "; did you mean `multiplier`?");
        assert_eq!(suggestion("colour", names()), "");
        assert_eq!(nearest("header_name", ["headers"].into_iter()), None);
        assert_eq!(nearest(&"multiplier".repeat(7), names()), None, "too long to compare");
    }
}
