//! Splits `{"subjects": [record, …], "tiers": […], "switches": […], "force": true}` into records while its bytes come.
//! Looks at braces, brackets and strings only; the reader of a record reports what is wrong inside it.

use super::Part;
use crate::admin::bounds::MAX_MESSAGE;
use crate::spelling::suggestion;

/// All fields of an import.
const FIELDS: [&str; 6] = ["subjects", "tiers", "switches", "next_page_token", "force", "dry_run"];

/// The longest name of a field that is told apart.
const MAX_NAME: usize = 64;

/// What a field of an import holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    List(Part),
    /// The token of an export's next page, which is passed over.
    Token,
    Force,
    DryRun,
}

impl Field {
    /// The field of this name, as the messages of the API are written in JSON.
    fn named(name: &str) -> Option<Field> {
        match name {
            "next_page_token" | "nextPageToken" => Some(Field::Token),
            "force" => Some(Field::Force),
            "dry_run" | "dryRun" => Some(Field::DryRun),
            name => Part::ALL.into_iter().find(|part| part.name() == name).map(Field::List),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Field::List(part) => part.name(),
            Field::Token => "next_page_token",
            Field::Force => "force",
            Field::DryRun => "dry_run",
        }
    }
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum Next {
    /// The brace that opens it all.
    #[default]
    Open,
    /// A field's name; after the first brace also the end.
    Name { or_end: bool },
    /// More of a field's name.
    InName,
    /// What stands between a name and its value.
    Colon,
    /// The value of this field, or null.
    Value(Field),
    /// More of the token.
    InToken,
    /// More of a null, true or false.
    InWord(&'static str, usize),
    /// A record; after the first bracket also the end of the list.
    Record { part: Part, or_end: bool },
    /// More of a record.
    InRecord(Part),
    /// What follows a record.
    CommaOrBracket(Part),
    /// What follows a field's value.
    CommaOrBrace,
    /// Nothing but white space.
    Nothing,
}

impl Next {
    /// How a problem names it.
    fn expected(self) -> &'static str {
        match self {
            Next::Open => "`{`",
            Next::Name { or_end: true } => "the name of a field, or `}`",
            Next::Name { or_end: false } => "the name of a field",
            Next::InName | Next::InToken => "the end of a string",
            Next::Colon => "`:`",
            Next::Value(Field::List(_)) => "a list, `[`",
            Next::Value(Field::Token) => "a string",
            Next::Value(Field::Force | Field::DryRun) => "`true` or `false`",
            Next::InWord("true", _) => "`true`",
            Next::InWord("false", _) => "`false`",
            Next::InWord(..) => "`null`",
            Next::Record { or_end: true, .. } => "a record, `{`, or `]`",
            Next::Record { or_end: false, .. } => "a record, `{`",
            Next::InRecord(_) => "the end of a record",
            Next::CommaOrBracket(_) => "`,` or `]`",
            Next::CommaOrBrace => "`,` or `}`",
            Next::Nothing => "nothing more",
        }
    }
}

/// Takes bytes and gives records.
#[derive(Default)]
pub(super) struct Splitter {
    next: Next,
    /// The name or the record that is being read.
    text: Vec<u8>,
    /// How many braces and brackets of the record are open.
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    /// Bytes that were taken.
    taken: u64,
    /// Records of the present list that were given.
    given: usize,
    /// Fields that came.
    fields: Vec<Field>,
    force: Option<bool>,
    dry_run: Option<bool>,
}

impl Splitter {
    /// Takes bytes until a record is whole, which [`Splitter::record`] then is, or there are no more.
    ///
    /// # Errors
    /// What was expected, and where; a record of more than [`MAX_MESSAGE`] bytes.
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<Part>, String> {
        while let Some((&byte, rest)) = bytes.split_first() {
            *bytes = rest;
            self.taken += 1;
            match self.next {
                Next::InRecord(part) => {
                    self.text.push(byte);
                    self.look_inside(byte);
                    if self.depth == 0 {
                        self.next = Next::CommaOrBracket(part);
                        self.given += 1;
                        return Ok(Some(part));
                    }
                    if self.text.len() >= MAX_MESSAGE {
                        let place = self.given;
                        return Err(format!("{}[{place}]: a record of more than {MAX_MESSAGE} bytes", part.name()));
                    }
                }
                Next::InName | Next::InToken => self.string(byte)?,
                Next::InWord(word, at) if word.as_bytes()[at] == byte => {
                    let is_whole = at + 1 == word.len();
                    self.next = if is_whole { Next::CommaOrBrace } else { Next::InWord(word, at + 1) };
                }
                Next::InWord(..) => return Err(self.unexpected()),
                _ if byte.is_ascii_whitespace() => {}
                _ => self.step(byte)?,
            }
        }
        Ok(None)
    }

    /// The text of the record that was given last.
    pub(super) fn record(&self) -> &[u8] {
        &self.text
    }

    /// Its place in its list, from 0.
    pub(super) fn place(&self) -> usize {
        self.given.saturating_sub(1)
    }

    /// Whether the import says `force`.
    pub(super) fn force(&self) -> Option<bool> {
        self.force
    }

    /// Whether the import says `dry_run`.
    pub(super) fn dry_run(&self) -> Option<bool> {
        self.dry_run
    }

    /// There are no more bytes.
    ///
    /// # Errors
    /// When there should be.
    pub(super) fn end(&self) -> Result<(), String> {
        match self.next {
            // Without a body there are no records.
            Next::Nothing => Ok(()),
            Next::Open if self.taken == 0 => Ok(()),
            next => Err(format!("the body ends at byte {}, where {} is expected", self.taken, next.expected())),
        }
    }

    /// A byte between names, values and records.
    fn step(&mut self, byte: u8) -> Result<(), String> {
        self.next = match (self.next, byte) {
            (Next::Open, b'{') => Next::Name { or_end: true },
            (Next::Name { .. }, b'"') => {
                self.text.clear();
                Next::InName
            }
            (Next::Name { or_end: true } | Next::CommaOrBrace, b'}') => Next::Nothing,
            (Next::Colon, b':') => self.value()?,
            (Next::Value(_), b'n') => Next::InWord("null", 1),
            (Next::Value(Field::List(part)), b'[') => {
                self.given = 0;
                Next::Record { part, or_end: true }
            }
            (Next::Value(Field::Token), b'"') => Next::InToken,
            (Next::Value(Field::Force), b't' | b'f') => {
                self.force = Some(byte == b't');
                Next::InWord(word(byte), 1)
            }
            (Next::Value(Field::DryRun), b't' | b'f') => {
                self.dry_run = Some(byte == b't');
                Next::InWord(word(byte), 1)
            }
            (Next::Record { part, .. }, b'{') => {
                self.text.clear();
                self.text.push(byte);
                self.depth = 1;
                Next::InRecord(part)
            }
            (Next::Record { or_end: true, .. } | Next::CommaOrBracket(_), b']') => Next::CommaOrBrace,
            (Next::CommaOrBracket(part), b',') => Next::Record { part, or_end: false },
            (Next::CommaOrBrace, b',') => Next::Name { or_end: false },
            _ => return Err(self.unexpected()),
        };
        Ok(())
    }

    /// A byte of a name or a token.
    fn string(&mut self, byte: u8) -> Result<(), String> {
        let is_name = self.next == Next::InName;
        if byte == b'"' && !self.is_escaped {
            self.next = if is_name { Next::Colon } else { Next::CommaOrBrace };
            return Ok(());
        }
        self.is_escaped = byte == b'\\' && !self.is_escaped;
        if is_name {
            self.text.push(byte);
            if self.text.len() > MAX_NAME {
                return Err(self.unknown());
            }
        }
        Ok(())
    }

    /// What the value of the field may be whose name was read.
    fn value(&mut self) -> Result<Next, String> {
        let name = std::str::from_utf8(&self.text).ok().and_then(Field::named);
        let field = name.ok_or_else(|| self.unknown())?;
        if self.fields.contains(&field) {
            return Err(format!("the body has `{}` twice", field.name()));
        }
        self.fields.push(field);
        Ok(Next::Value(field))
    }

    /// Follows strings, braces and brackets through a record.
    fn look_inside(&mut self, byte: u8) {
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' if self.in_string => self.is_escaped = true,
            b'"' => self.in_string = !self.in_string,
            _ if self.in_string => {}
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth -= 1,
            _ => {}
        }
    }

    fn unexpected(&self) -> String {
        format!("byte {} of the body: {} is expected", self.taken, self.next.expected())
    }

    fn unknown(&self) -> String {
        let name = String::from_utf8_lossy(&self.text);
        let near = suggestion(&name, FIELDS.into_iter());
        format!("{name}: there is no such field{near} (fields: {})", FIELDS.join(", "))
    }
}

fn word(first: u8) -> &'static str {
    if first == b't' { "true" } else { "false" }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The records of a text that comes in pieces of this length, with their parts and places.
    fn split(text: &str, piece: usize) -> Result<Vec<(Part, usize, String)>, String> {
        let (mut splitter, mut records) = (Splitter::default(), Vec::new());
        for mut bytes in text.as_bytes().chunks(piece) {
            while let Some(part) = splitter.next(&mut bytes)? {
                records.push((part, splitter.place(), String::from_utf8(splitter.record().to_vec()).unwrap()));
            }
        }
        splitter.end().map(|()| records)
    }

    #[test]
    fn records_are_found_however_they_are_cut() {
        let text = r#" { "subjects" : [ {"a": "}]\"\\"} , {"b":[{},[1]]}], "switches": null,"next_page_token":"\"x",
            "tiers":[{}],"force":false,"dryRun" : true } "#;
        let expected =
            [(Part::Subjects, 0, r#"{"a": "}]\"\\"}"#), (Part::Subjects, 1, r#"{"b":[{},[1]]}"#), (Part::Tiers, 0, "{}")];
        let expected = expected.map(|(part, place, text)| (part, place, text.to_owned())).to_vec();
        for piece in 1..=text.len() {
            assert_eq!(split(text, piece).as_ref(), Ok(&expected), "pieces of {piece}");
        }
        let mut splitter = Splitter::default();
        let mut bytes = text.as_bytes();
        while splitter.next(&mut bytes).unwrap().is_some() {}
        assert_eq!((splitter.force(), splitter.dry_run()), (Some(false), Some(true)));
        assert_eq!([split("", 1), split("{}", 1), split(r#"{"subjects":[]}"#, 3)], [const { Ok(Vec::new()) }; 3]);
    }

    #[test]
    fn what_is_no_import_is_said_with_its_place() {
        for (text, expected) in [
            ("[]", "byte 1 of the body: `{` is expected"),
            (" ", "the body ends at byte 1, where `{` is expected"),
            ("{", "the body ends at byte 1, where the name of a field, or `}` is expected"),
            (
                r#"{"subjetcs": []}"#,
                "subjetcs: there is no such field; did you mean `subjects`? (fields: subjects, tiers, switches, \
                 next_page_token, force, dry_run)",
            ),
            (r#"{"subjects": [], "subjects": []}"#, "the body has `subjects` twice"),
            (r#"{"dry_run": true, "dryRun": true}"#, "the body has `dry_run` twice"),
            (r#"{"force": 1}"#, "byte 11 of the body: `true` or `false` is expected"),
            (r#"{"force": tru}"#, "byte 14 of the body: `true` is expected"),
            (r#"{"subjects": {}}"#, "byte 14 of the body: a list, `[` is expected"),
            (r#"{"subjects": [5]}"#, "byte 15 of the body: a record, `{`, or `]` is expected"),
            (r#"{"subjects": [{},]}"#, "byte 18 of the body: a record, `{` is expected"),
            (r#"{"subjects": [{} {}]}"#, "byte 18 of the body: `,` or `]` is expected"),
            (r#"{"subjects": [{}}"#, "byte 17 of the body: `,` or `]` is expected"),
            (r#"{"subjects": nul }"#, "byte 17 of the body: `null` is expected"),
            (r#"{"subjects": [{"a": 1"#, "the body ends at byte 21, where the end of a record is expected"),
            (r#"{"subjects": []} {"#, "byte 18 of the body: nothing more is expected"),
            (r#"{"next_page_token": 5}"#, "byte 21 of the body: a string is expected"),
        ] {
            assert_eq!(split(text, 4), Err(expected.to_owned()), "{text}");
        }
        let of = |length: usize| format!(r#"{{"subjects": [{{}}, {{"a": "{}"}}]}}"#, "x".repeat(length - 9));
        assert!(split(&of(MAX_MESSAGE), 1_000).is_ok());
        let too_long = "subjects[1]: a record of more than 65536 bytes";
        assert_eq!(split(&of(MAX_MESSAGE + 1), 1_000), Err(too_long.to_owned()));
        let name = format!(r#"{{"{}": []}}"#, "n".repeat(1 << 20));
        assert!(split(&name, 1 << 20).unwrap_err().len() < 200);
    }
}
