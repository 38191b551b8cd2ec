//! The clients of `docs/clients.md`, run as they stand there against a daemon on a simulated host.
//!
//! Blocks that begin with `sh client` or `python client` are run; one with `rust client` is an example
//! of `proto`, which is run.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use berth_testvm::host::packages::{self, Tool};

use super::{cargo::cargo, daemon::Daemon, python};
use crate::tally::Tally;

const DOCUMENT: &str = "docs/clients.md";
const EXAMPLE: &str = "proto/examples/list_groups.rs";
const TOOLS: &[Tool] =
    &[Tool { package: "curl", proof: "curl" }, Tool { package: "jq", proof: "jq" }];

/// A block: what runs it, the line that it begins at, and its text.
struct Block {
    language: String,
    line: usize,
    text: String,
}

pub(super) fn run(root: &Path) -> Result<Tally> {
    packages::ensure(TOOLS)?;
    let python = python::ensure(root)?;
    let path = root.join(DOCUMENT);
    let text = fs::read_to_string(&path).with_context(|| format!("read {DOCUMENT}"))?;
    let daemon = Daemon::start(root, "sim:small")?;
    let mut tally = Tally::default();
    let mut languages = Vec::new();
    for block in blocks(&text) {
        let mut command = match block.language.as_str() {
            "sh" => with(Command::new("sh"), &["-euc", &block.text]),
            "python" => match &python {
                Some(python) => with(Command::new(python), &["-c", &block.text]),
                None => {
                    tally += Tally::skipped();
                    languages.push(block.language);
                    continue;
                }
            },
            "rust" => example(root, &block)?,
            other => bail!("{DOCUMENT}:{}: nothing runs {other}", block.line),
        };
        let output = command
            .env("BERTH_GRPC", daemon.socket("berthd.sock"))
            .env("BERTH_HTTP", daemon.socket("http.sock"))
            .current_dir(root)
            .output()
            .with_context(|| format!("run {DOCUMENT}:{}", block.line))?;
        let done = output.status.success() && !output.stdout.is_empty()
            || block.language == "sh" && output.status.success();
        let word = if done { "ok" } else { "FAILED" };
        println!("{DOCUMENT}:{}: {} ... {word}", block.line, block.language);
        if !done {
            println!("{}", String::from_utf8_lossy(&output.stdout));
            println!("{}", String::from_utf8_lossy(&output.stderr));
        }
        tally += Tally::one(done);
        languages.push(block.language);
    }
    for wanted in ["sh", "python", "rust"] {
        if !languages.iter().any(|language| language == wanted) {
            bail!("{DOCUMENT} has no client in {wanted}");
        }
    }
    Ok(tally)
}

fn with(mut command: Command, args: &[&str]) -> Command {
    command.args(args);
    command
}

/// What the document shows is the example that is built.
fn example(root: &Path, block: &Block) -> Result<Command> {
    let built =
        fs::read_to_string(root.join(EXAMPLE)).with_context(|| format!("read {EXAMPLE}"))?;
    if built != block.text {
        bail!("{DOCUMENT}:{}: {EXAMPLE} is another text", block.line);
    }
    let name = Path::new(EXAMPLE).file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    Ok(with(cargo()?, &["run", "--quiet", "-p", "berth-proto", "--example", name]))
}

fn blocks(text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        let fence = line.strip_prefix("```").and_then(|rest| rest.strip_suffix(" client"));
        let Some(language) = fence else { continue };
        let inside = lines.by_ref().map(|(line, _)| line).take_while(|line| *line != "```");
        let text = inside.map(|line| format!("{line}\n")).collect();
        found.push(Block { language: language.to_owned(), line: number, text });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::blocks;

    #[test]
    fn only_what_is_marked_is_run() {
        let text = "a\n```sh\nno\n```\n```sh client\none\ntwo\n```\n```python client\nx\n```\n";
        let found = blocks(text);
        let texts: Vec<&str> = found.iter().map(|block| block.text.as_str()).collect();
        assert_eq!(texts, ["one\ntwo\n", "x\n"]);
        assert_eq!((found[0].language.as_str(), found[0].line), ("sh", 5));
    }
}
