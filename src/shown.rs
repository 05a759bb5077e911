//! Text that a person or a caller wrote, as it is shown: what would forge a line, or steer a terminal, is escaped.

use std::borrow::Cow;

/// Whether a character is shown escaped: control characters, line separators, and marks that turn the direction of text.
pub fn is_control(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// With each such character as in Rust: `\n`, `\u{1b}`.
pub fn escaped(text: &str) -> Cow<'_, str> {
    escaped_but(text, |_| false)
}

/// As [`escaped`], of text in lines.
pub fn escaped_lines(text: &str) -> Cow<'_, str> {
    escaped_but(text, |c| c == '\n')
}

/// As [`escaped`], without those that are `kept`.
pub fn escaped_but(text: &str, kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_harmful = |c: char| is_control(c) && !kept(c);
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_harmful(c) { escaped.extend(c.escape_default()) } else { escaped.push(c) }
    }
    Cow::Owned(escaped)
}

/// As a character of the same width, so that a column stays a column.
pub fn pictured(c: char) -> char {
    match u32::from(c) {
        0x09 => ' ',
        control @ 0..0x20 => char::from_u32(0x2400 + control).unwrap_or('\u{fffd}'),
        0x7f => '\u{2421}',
        _ if is_control(c) => '\u{fffd}',
        _ => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped() {
        assert_eq!(escaped("plain, é and ⏳"), "plain, é and ⏳");
        assert_eq!(escaped("a\u{1b}[31m\nb\u{202e}c\u{9b}"), "a\\u{1b}[31m\\nb\\u{202e}c\\u{9b}");
        assert_eq!(escaped_lines("a\n\rb"), "a\n\\rb");
        assert_eq!(['a', '\t', '\u{1b}', '\u{7f}', '\u{202e}'].map(pictured), ['a', ' ', '␛', '␡', '\u{fffd}']);
    }
}
