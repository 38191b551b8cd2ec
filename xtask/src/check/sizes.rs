//! No file over 800 lines; functions are measured by clippy (`too_many_lines`).

use std::path::Path;

use anyhow::{Result, bail};

use super::tree;

const MOST_LINES: usize = 800;

pub(super) fn check(root: &Path) -> Result<()> {
    let mut wrong = Vec::new();
    for name in tree::files(root, &[".rs", ".js", ".css", ".html", ".proto"])? {
        let lines = tree::read(root, &name)?.lines().count();
        if lines > MOST_LINES {
            wrong.push(format!("{name} has {lines} lines, {MOST_LINES} are the most"));
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}
