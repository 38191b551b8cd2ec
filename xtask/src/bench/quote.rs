//! What the README quotes of the table in docs/benchmarks.md: lines that have a target, and of them
//! what holds on other machines, too.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use super::{DOCUMENT, table};

const BEGIN: &str = "<!-- quoted from docs/benchmarks.md by cargo xtask bench --write-docs -->";
const END: &str = "<!-- end of the quotation -->";
/// Of the table's columns: bench, ours / peer, ratio, target, verdict.
const COLUMNS: [usize; 5] = [0, 1, 5, 7, 8];

fn quote(benchmarks: &str) -> String {
    let lines = benchmarks.lines().filter(|line| line.starts_with('|')).map(columns);
    let quoted = lines.enumerate().filter_map(|(number, columns)| {
        let target = columns.get(7).copied().unwrap_or_default();
        let cells: Vec<&str> = COLUMNS.iter().filter_map(|at| columns.get(*at)).copied().collect();
        // The head and the line below it have no target.
        (number < 2 || target != "beside").then(|| format!("| {} |", cells.join(" | ")))
    });
    quoted.collect::<Vec<_>>().join("\n")
}

fn columns(line: &str) -> Vec<&str> {
    let line = line.strip_prefix('|').unwrap_or(line);
    line.strip_suffix('|').unwrap_or(line).split('|').map(str::trim).collect()
}

fn read(root: &Path, name: &str) -> Result<String> {
    fs::read_to_string(root.join(name)).with_context(|| format!("read {name}"))
}

/// The README as it is, and as it should be.
fn readme(root: &Path) -> Result<(String, String)> {
    let table = quote(table::written(&read(root, DOCUMENT)?)?);
    let text = read(root, "README.md")?;
    let (before, rest) = text.split_once(BEGIN).context("README.md has no mark")?;
    let (_, after) = rest.split_once(END).context("README.md has no end mark")?;
    let wanted = format!("{before}{BEGIN}\n\n{table}\n\n{END}{after}");
    Ok((text, wanted))
}

/// Puts the quotation into the README.
pub(super) fn write(root: &Path) -> Result<()> {
    fs::write(root.join("README.md"), readme(root)?.1).context("write README.md")
}

/// Whether the README says what the table says.
pub(crate) fn check(root: &Path) -> Result<()> {
    let (is, wanted) = readme(root)?;
    if is != wanted {
        bail!("README.md doesn't quote docs/benchmarks.md as it stands; it should have\n{wanted}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn lines_without_a_target_are_left_out() {
        let table = "\n| bench | ours / peer | ours | peer | unit | ratio [95%] | peer / peer | target | |\n\
                     | --- | --- | ---: | ---: | --- | --- | --- | --- | --- |\n\
                     | `a` | x / y | 2 | 1 | calls/s | 2.00x [1.90, 2.10] | 1.00 | >= 1.50x | holds |\n\
                     | `a` | x / z | 2 | 1 | calls/s | 2.00x [1.90, 2.10] | 1.00 | beside | beside |\n\
                     \n`a`: a note.\n";
        let wanted = "| bench | ours / peer | ratio [95%] | target |  |\n| --- | --- | --- | --- | --- |\n\
                      | `a` | x / y | 2.00x [1.90, 2.10] | >= 1.50x | holds |";
        assert_eq!(quote(table), wanted);
    }
}
