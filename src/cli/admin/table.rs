//! Columns for people.

use crate::shown::escaped;

/// What stands for no number.
const NONE: &str = "-";

/// Rows under their headings, each column as wide as its widest cell; columns of numbers stand to the right.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| escaped(cell).into_owned()).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
    };
    let is_number = |cell: &str| !cell.is_empty() && cell.bytes().all(|byte| byte.is_ascii_digit());
    let columns: Vec<(usize, bool)> = (0..headings.len())
        .map(|column| {
            let mut cells = rows.iter().map(|row| row[column].as_str()).filter(|cell| *cell != NONE).peekable();
            (width(column), cells.peek().is_some() && cells.all(is_number))
        })
        .collect();
    let line = |cells: &[String]| {
        let cells = cells.iter().zip(&columns).map(|(cell, (width, right))| match right {
            true => format!("{cell:>width$}"),
            false => format!("{cell:<width$}"),
        });
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let headings: Vec<String> = headings.iter().map(|heading| heading.to_uppercase()).collect();
    std::iter::once(line(&headings)).chain(rows.iter().map(|row| line(row))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_they_hold() {
        let rows = [vec!["per-user".to_owned(), "7".to_owned()], vec!["ai".to_owned(), "1000".to_owned()]];
        assert_eq!(table(&["rule", "used"], &rows), "RULE      USED\nper-user     7\nai        1000\n");
        assert_eq!(table(&["rule"], &[]), "RULE\n");
        assert_eq!(table(&["rule"], &[vec!["a\n\u{1b}b".to_owned()]]), "RULE\na\\n\\u{1b}b\n", "a cell is no row");
        let some = [["10".to_owned(), "-".to_owned()].to_vec(), ["-".to_owned(), "-".to_owned()].to_vec()];
        assert_eq!(table(&["used", "left"], &some), "USED  LEFT\n  10  -\n   -  -\n");
    }
}
