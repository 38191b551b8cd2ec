//! What fits into a terminal. Words are never broken: ids and addresses are there to be read and copied.

use comfy_table::Table;

/// How wide the terminal is, or `COLUMNS` says; nothing where neither is known.
pub(super) fn width() -> Option<usize> {
    let said = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    said.or_else(|| Table::new().width().map(usize::from)).filter(|width| *width > 0)
}

/// How wide a text is where it is broken between words only.
pub(super) fn longest_word(text: &str) -> usize {
    text.split_whitespace().map(|word| word.chars().count()).max().unwrap_or(0)
}

/// Lines that are too long for the terminal, broken between words, what follows further to the right.
pub(super) fn folded(text: &str) -> String {
    let Some(width) = width() else { return text.to_owned() };
    let line = |line: &str| {
        let lead = line.len() - line.trim_start().len();
        fold(line, width, lead + 4)
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// One line, broken between words where it is longer than `width`; what follows has `indent` spaces
/// before it. A command stays one line: it is there to be run.
pub(super) fn fold(line: &str, width: usize, indent: usize) -> String {
    let text = line.trim_start();
    let is_fix = text.starts_with("to resolve: ");
    let is_command = text.starts_with("berth ") || (is_fix && text.contains(" berth "));
    if line.chars().count() <= width || is_command {
        return line.to_owned();
    }
    let mut lines = Vec::new();
    let mut now = " ".repeat(line.len() - text.len());
    let mut is_empty = true;
    for word in text.split(' ') {
        let longer = now.chars().count() + usize::from(!is_empty) + word.chars().count();
        if !is_empty && longer > width {
            lines.push(std::mem::replace(&mut now, " ".repeat(indent)));
            is_empty = true;
        }
        if !is_empty {
            now.push(' ');
        }
        now.push_str(word);
        is_empty = false;
    }
    lines.push(now);
    lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::{fold, longest_word};

    #[test]
    fn lines_are_broken_between_words_and_commands_never() {
        let line = "  a port on the way to 0000:65:00.0 shows no ACS";
        let folded = fold(line, 24, 6);
        assert_eq!(folded, "  a port on the way to\n      0000:65:00.0 shows\n      no ACS");
        assert_eq!(fold(line, 80, 6), line);
        // What is wider by itself stays whole.
        assert_eq!(fold("r-0123456789ab it is", 8, 2), "r-0123456789ab\n  it is");
        for command in [
            "berth uncordon 65:00.0",
            "  to resolve: berth uncordon 0000:65:00.0",
            "  to resolve: umount /srv && berth kernel-dma release 0000:65:00.0",
            "  to resolve: afterwards: berth quarantine clear 0000:65:00.0 --reason TEXT",
        ] {
            assert_eq!(fold(command, 10, 2), command);
        }
        assert_eq!(longest_word("0000:65:00.0 0000:65:00.10 x"), 13);
    }
}
