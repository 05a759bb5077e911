//! Text that Redis sent, as the log and callers may see it: short, on one line, and without characters that a terminal obeys.

use std::sync::Arc;

use crate::shown::is_control;

/// The longest text of Redis that weir shows, in bytes.
const LONGEST: usize = 200;
/// What stands for the rest.
const CUT: char = '…';

/// Cuts a text of Redis to 200 bytes and escapes what does not print. Every text of Redis passes through here once, where it enters.
pub(crate) fn shown(text: &str) -> Arc<str> {
    let mut shown = String::with_capacity(text.len().min(LONGEST));
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        let before = shown.len();
        if is_hidden(letter) {
            shown.extend(letter.escape_default())
        } else {
            shown.push(letter)
        }
        let is_last = letters.as_str().is_empty();
        if shown.len() > if is_last { LONGEST } else { LONGEST - CUT.len_utf8() } {
            shown.truncate(before);
            shown.push(CUT);
            break;
        }
    }
    Arc::from(shown)
}

/// What a name may not have, and what takes no room.
fn is_hidden(letter: char) -> bool {
    is_control(letter)
        || matches!(letter,
            '\u{ad}' | '\u{180e}' | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_redis_is_short_and_cannot_forge_a_line() {
        assert_eq!(&*shown("ERR wrong: it's 5 °C"), "ERR wrong: it's 5 °C");
        assert_eq!(&*shown("ERR a\r\n\u{1b}[31mb\0"), "ERR a\\r\\n\\u{1b}[31mb\\u{0}");
        assert_eq!(&*shown("a\u{202e}b\u{2028}c\u{9b}d"), "a\\u{202e}b\\u{2028}c\\u{9b}d");
        for letter in ["x", "\u{1b}", "é", "\u{202e}", "🦀"] {
            let long = shown(&letter.repeat(100_000));
            assert!(long.len() <= LONGEST && long.len() > LONGEST - 10 && long.ends_with('…'), "{} bytes: {long}", long.len());
            assert_eq!(shown(&long), long, "it is cut once");
        }
    }
}
