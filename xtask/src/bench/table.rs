//! The table of results, on the terminal and in the documents.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::workspace;

/// One line, as `berth-bench` gives it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Row {
    name: String,
    case: String,
    ours: f64,
    peer: f64,
    unit: String,
    ratio: f64,
    low: f64,
    high: f64,
    itself: f64,
    target: String,
    holds: String,
    notes: Vec<String>,
}

const HEAD: &str = "| bench | ours / peer | ours | peer | unit | ratio [95%] | peer / peer | \
                    target | |\n| --- | --- | ---: | ---: | --- | --- | --- | --- | --- |";
const BEGIN: &str = "<!-- written by cargo xtask bench --write-docs -->";
const END: &str = "<!-- end of what is written -->";

/// The table in Markdown, and the notes below it.
pub(super) fn render(rows: &[Row]) -> String {
    let mut text = HEAD.to_owned();
    for row in rows {
        text.push('\n');
        text.push_str(&line(row));
    }
    for note in rows.iter().flat_map(|row| row.notes.iter().map(|note| (&row.name, note))) {
        text.push_str(&format!("\n\n`{}`: {}.", note.0, note.1));
    }
    text
}

fn line(row: &Row) -> String {
    let Row { name, case, unit, target, holds, .. } = row;
    let digits = if row.ours.min(row.peer) < 1000.0 { 1 } else { 0 };
    // Close to 1 two would not tell whether a few hundredths more are too many.
    let fine = if (0.9..1.2).contains(&row.ratio) { 3 } else { 2 };
    format!(
        "| `{name}` | {case} | {:.digits$} | {:.digits$} | {unit} | {:.fine$}x [{:.fine$}, {:.fine$}] \
         | {:.2} | {target} | {holds} |",
        row.ours, row.peer, row.ratio, row.low, row.high, row.itself,
    )
}

/// Puts it into the documents: the fast path has one of its own. Lines of benches that did not run
/// stay, and of those that did the lines of other machines: this one is a machine, and so is a guest with
/// each back end.
pub(super) fn write(rows: &[Row]) -> Result<()> {
    let (dma, others): (Vec<Row>, Vec<Row>) =
        rows.iter().cloned().partition(|row| super::is_dma(&row.name));
    write_to(super::DMA_DOCUMENT, &dma)?;
    write_to(super::DOCUMENT, &others)
}

fn write_to(document: &str, rows: &[Row]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let path = workspace::root().join(document);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let (before, table, after) = parts(&text).with_context(|| document.to_owned())?;
    let merged = merge(table, rows);
    let text = format!("{before}{BEGIN}\n\n{merged}\n\n{END}{after}");
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

/// The table within the text of a document.
pub(super) fn written(text: &str) -> Result<&str> {
    Ok(parts(text)?.1)
}

fn parts(text: &str) -> Result<(&str, &str, &str)> {
    let (before, rest) = text.split_once(BEGIN).context("there is no mark for the table")?;
    let (table, after) = rest.split_once(END).context("there is no end mark of the table")?;
    Ok((before, table, after))
}

/// On which machine a case was measured, or a note made.
fn machine(text: &str) -> &'static str {
    ["iommufd", "type1"]
        .into_iter()
        .find(|backend| text.contains(&format!("{backend}, Linux ")))
        .unwrap_or_default()
}

fn merge(table: &str, rows: &[Row]) -> String {
    let fresh: BTreeSet<(String, &str)> =
        rows.iter().map(|row| (format!("`{}`", row.name), machine(&row.case))).collect();
    let kept = table.lines().filter(|line| {
        let name = line.trim_start_matches("| ").split([' ', ':']).next().unwrap_or("");
        name.starts_with('`') && !fresh.contains(&(name.to_owned(), machine(line)))
    });
    let (lines, notes): (Vec<&str>, Vec<&str>) = kept.partition(|line| line.starts_with('|'));
    let new = render(rows);
    let (mut all, mut below) = (lines, notes);
    all.extend(new.lines().skip(2).filter(|line| line.starts_with('|')));
    below.extend(new.lines().filter(|line| line.starts_with('`')));
    let mut text = format!("{HEAD}\n{}", all.join("\n"));
    for note in below {
        text.push_str("\n\n");
        text.push_str(note);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, note: &str) -> Row {
        Row {
            name: name.to_owned(),
            case: "a / b".to_owned(),
            ours: 1234.5,
            peer: 1000.0,
            unit: "calls/s".to_owned(),
            ratio: 1.23,
            low: 1.2,
            high: 1.25,
            itself: 1.0,
            target: ">= 0.80x".to_owned(),
            holds: "holds".to_owned(),
            notes: vec![note.to_owned()],
        }
    }

    #[test]
    fn lines_of_other_machines_stay() {
        let mut guest = row("one", "type1, Linux 6.12: guest's note");
        guest.case = "a / b, type1, Linux 6.12".to_owned();
        let first = render(&[row("one", "old note"), guest]);
        let merged = merge(&first, &[row("one", "new note")]);
        assert_eq!(merged.matches("| `one` |").count(), 2, "{merged}");
        assert!(merged.contains("new note") && merged.contains("guest's note"), "{merged}");
        assert!(!merged.contains("old note"), "{merged}");
    }

    #[test]
    fn lines_of_other_benches_stay() {
        let first = render(&[row("one", "old note"), row("two", "kept note")]);
        let merged = merge(&first, &[row("one", "new note")]);
        assert_eq!(merged.matches("| `one` |").count(), 1, "{merged}");
        assert_eq!(merged.matches("| `two` |").count(), 1, "{merged}");
        assert!(merged.contains("new note") && merged.contains("kept note"), "{merged}");
        assert!(!merged.contains("old note"), "{merged}");
        assert_eq!(merged.matches("| --- |").count(), HEAD.matches("| --- |").count());
    }
}
