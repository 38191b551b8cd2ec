//! How answers look: tables and blocks for people, the message itself as JSON.

pub(crate) mod device;
pub(crate) mod doctor;
pub(crate) mod domain;
pub(crate) mod event;
pub(crate) mod explain;
pub(crate) mod group;
pub(crate) mod health;
pub(crate) mod host;
mod narrow;
pub(crate) mod quota;
pub(crate) mod reservation;
pub(crate) mod sriov;
pub(crate) mod web;
pub(crate) mod what_if;
pub(crate) mod writes;

use std::io::{IsTerminal as _, Write as _};

use berth_proto::v1;
use comfy_table::{Cell, Color, ColumnConstraint, ContentArrangement, Table, Width, presets};
use serde::Serialize;
use tonic::Code;

use crate::{args::Format, error::CliError};

/// Where and how to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    format: Format,
    /// The same is printed again and again.
    watched: bool,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format, watched: false }
    }

    /// For what is printed again and again: on a terminal in its place, as JSON a line each time.
    pub(crate) fn watched(self) -> Self {
        Self { watched: true, ..self }
    }

    /// Before each time.
    pub(crate) fn begin_again(self) -> Result<(), CliError> {
        match self.format {
            Format::Table if std::io::stdout().is_terminal() => write(CLEAR),
            Format::Table => write("\n"),
            Format::Json => Ok(()),
        }
    }

    /// Prints an answer.
    pub(crate) fn show<T: Serialize>(
        &self,
        message: &T,
        people: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        match self.format {
            Format::Table => write_line(&people(message)),
            Format::Json if self.watched => self.line(message, people),
            Format::Json => write_line(
                &serde_json::to_string_pretty(message)
                    .map_err(|error| CliError::failed(format!("write JSON: {error}")))?,
            ),
        }
    }

    /// Prints a reservation that was recorded, or would be.
    pub(crate) fn recorded(&self, made: &v1::Reservation, dry_run: bool) -> Result<(), CliError> {
        if dry_run {
            self.remark("dry run: nothing was changed; this is what would be recorded");
        }
        self.show(made, reservation::block)
    }

    /// Prints a reservation that would be recorded, and what would be written to sysfs for it.
    pub(crate) fn planned(&self, planned: &v1::Reservation) -> Result<(), CliError> {
        let text = "dry run: nothing was changed; this is what would be recorded, and written";
        self.remark(text);
        self.show(planned, |it| {
            format!("{}\n\n{}", reservation::block(it), writes::plan(&it.writes))
        })
    }

    /// Prints what would be written to sysfs.
    pub(crate) fn tried<T: Serialize>(
        &self,
        answer: &T,
        plan: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        self.remark("dry run: nothing was changed; this is what would be written");
        self.show(answer, plan)
    }

    /// Prints one of a stream of answers, a line each.
    pub(crate) fn line<T: Serialize>(
        &self,
        message: &T,
        people: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        match self.format {
            Format::Table => write_line(&people(message)),
            Format::Json => self.json_line(message),
        }
    }

    /// Prints a message as JSON on a line of its own, whatever else is asked for.
    pub(crate) fn json_line<T: Serialize>(&self, message: &T) -> Result<(), CliError> {
        let text = serde_json::to_string(message)
            .map_err(|error| CliError::failed(format!("write JSON: {error}")))?;
        write_line(&text)
    }

    /// Says on standard error that the host isn't real.
    pub(crate) fn note_simulated(&self, topology: Option<String>) {
        if let Some(name) = topology {
            self.remark(&format!("simulated host {name}"));
        }
    }

    /// A remark for people, on standard error.
    pub(crate) fn remark(&self, text: &str) {
        if self.format == Format::Table {
            eprintln!("berth: {text}");
        }
    }
}

/// The terminal's screen is empty, and writing begins at its top (ECMA-48: ED, CUP).
const CLEAR: &str = "\u{1b}[2J\u{1b}[H";

fn write_line(text: &str) -> Result<(), CliError> {
    write(&format!("{text}\n"))
}

fn write(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => {
            result.map_err(|error| CliError::failed(format!("write to standard output: {error}")))
        }
    }
}

/// Colour is used on a terminal and never with `NO_COLOR`.
fn coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// What a cell means, where that deserves a colour.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Meaning {
    Good,
    Used,
    Bad,
    Plain,
}

pub(crate) fn cell(text: impl Into<String>, meaning: Meaning) -> Cell {
    let cell = Cell::new(text.into());
    match meaning {
        Meaning::Good if coloured() => cell.fg(Color::Green),
        Meaning::Used if coloured() => cell.fg(Color::Cyan),
        Meaning::Bad if coloured() => cell.fg(Color::Red),
        Meaning::Good | Meaning::Used | Meaning::Bad | Meaning::Plain => cell,
    }
}

/// The same as a text that stands by itself.
pub(crate) fn paint(text: &str, meaning: Meaning) -> String {
    let code = match meaning {
        Meaning::Good => 32,
        Meaning::Used => 36,
        Meaning::Bad => 31,
        Meaning::Plain => 0,
    };
    if coloured() { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// A table as wide as the terminal, or as `COLUMNS` says. Where not every word has its place beside the
/// others, each row is a block.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<Cell>>) -> String {
    let rows: Vec<Vec<Cell>> = rows.into_iter().collect();
    let width_of = |(index, name): (usize, &&str)| {
        let cells = rows.iter().filter_map(|row| row.get(index));
        let words = cells.map(|cell| narrow::longest_word(&cell.content()));
        words.max().unwrap_or(0).max(narrow::longest_word(name))
    };
    let widths: Vec<usize> = header.iter().enumerate().map(width_of).collect();
    let least = widths.iter().sum::<usize>() + widths.len().saturating_sub(1);
    let terminal = narrow::width();
    if terminal.is_some_and(|width| width < least) {
        return rows.iter().map(|row| row_block(header, row)).collect::<Vec<_>>().join("\n\n");
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if let Some(width) = terminal.and_then(|width| u16::try_from(width + 1).ok()) {
        // The last column's padding is cut off again.
        table.set_width(width);
    }
    table.set_header(header.iter().map(|text| Cell::new(*text)));
    for row in rows {
        table.add_row(row);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 1));
        let least = widths.get(index).and_then(|width| u16::try_from(width + 1).ok());
        column.set_constraint(match least {
            // The id is there to be copied: what is beside it gives way first.
            Some(least) if index > 0 => ColumnConstraint::LowerBoundary(Width::Fixed(least)),
            _ => ColumnConstraint::ContentWidth,
        });
    }
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

fn row_block(header: &[&str], row: &[Cell]) -> String {
    let names = header.iter().copied();
    let fields: Vec<(&str, String)> = names.zip(row.iter().map(Cell::content)).collect();
    block(&fields)
}

/// Lines of `name  value`, names padded to one width.
pub(crate) fn block(fields: &[(&str, String)]) -> String {
    let shown = || fields.iter().filter(|(_, value)| !value.is_empty());
    let width = shown().map(|(name, _)| name.len()).max().unwrap_or(0);
    shown()
        .map(|(name, value)| {
            let value = value.replace('\n', &format!("\n{}", " ".repeat(width + 2)));
            let text = format!("{name:width$}  {value}");
            let Some(terminal) = narrow::width() else { return text };
            let lines = text.lines().map(|line| narrow::fold(line, terminal, width + 2));
            lines.collect::<Vec<_>>().join("\n")
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// `HELD` as people read it: `held`.
pub(crate) fn word(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

/// The owner in one line.
pub(crate) fn owner_line(owner: &v1::Owner) -> String {
    let mut parts = vec![word(owner.kind().as_str_name())];
    for (name, value) in [
        ("holder", &owner.holder),
        ("label", &owner.label),
        ("reservation", &owner.reservation),
        ("domain", &owner.domain),
    ] {
        if !value.is_empty() {
            parts.push(format!("{name} {value}"));
        }
    }
    if owner.claims > 0 {
        parts.push(format!("claims {}", owner.claims));
    }
    parts.extend(owner.processes.iter().map(process));
    parts.join(", ")
}

/// A process in a few words.
pub(crate) fn process(process: &v1::Process) -> String {
    let unit = match process.unit.as_str() {
        "" => String::new(),
        unit => format!(" in {unit}"),
    };
    if process.what.is_empty() {
        format!("pid {} {}{unit}", process.pid, process.name)
    } else {
        format!("pid {} {} ({}){unit}", process.pid, process.name, process.what)
    }
}

/// A gRPC code as it is written in the specification.
pub(crate) fn code_name(code: Code) -> String {
    let name = format!("{code:?}");
    let mut text = String::new();
    for (at, letter) in name.chars().enumerate() {
        if at > 0 && letter.is_ascii_uppercase() {
            text.push('_');
        }
        text.push(letter.to_ascii_uppercase());
    }
    text
}
