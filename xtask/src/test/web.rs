//! The page, in a headless browser.
//!
//! The tests are JavaScript, in `web/test`. What they and the type checker need from the registry
//! is installed from `web/package-lock.json` into `target/web-tools`: the page itself needs nothing.

use std::{fs, path::PathBuf, process::Command, time::Instant};

use anyhow::{Context as _, Result, bail};
use berth_testvm::host::packages::{self, Tool};
use sha2::{Digest as _, Sha256};

use crate::{check::root, tally::Tally};

const TOOLS: &[Tool] = &[
    Tool { package: "chromium", proof: "chromium" },
    Tool { package: "nodejs", proof: "node" },
    Tool { package: "npm", proof: "npm" },
];

/// What runs, and where its files are.
struct Stage {
    root: PathBuf,
    /// `target/web-tools`: what npm installed.
    tools: PathBuf,
    /// `target/web`: types, pictures, results.
    out: PathBuf,
}

pub(super) fn run() -> Result<Tally> {
    packages::ensure(TOOLS)?;
    let root = root()?;
    let target = crate::workspace::target();
    let stage = Stage { tools: target.join("web-tools"), out: target.join("web"), root };
    fs::create_dir_all(&stage.out).with_context(|| format!("create {}", stage.out.display()))?;
    stage.install()?;
    crate::run::build_for_tests(&stage.root)?;
    let mut tally = Tally::default();
    for (what, script) in [("the API's types", "types.js"), ("the page's types", "check.js")] {
        let start = Instant::now();
        let passed = stage.node(&[&format!("web/test/{script}")])?;
        let word = if passed { "ok" } else { "FAILED" };
        println!("web: {what} ... {word} ({:.1} s)", start.elapsed().as_secs_f64());
        tally += Tally::one(passed);
    }
    tally += stage.tests()?;
    println!("web: pictures of every view are in {}", stage.out.display());
    Ok(tally)
}

impl Stage {
    /// Installs what the lock file says, once for each lock file.
    fn install(&self) -> Result<()> {
        let lock = self.root.join("web/package-lock.json");
        let bytes = fs::read(&lock).with_context(|| format!("read {}", lock.display()))?;
        let stamp = format!("{:x}", Sha256::digest(&bytes));
        let note = self.tools.join("installed");
        if fs::read_to_string(&note).is_ok_and(|installed| installed == stamp) {
            return Ok(());
        }
        fs::create_dir_all(&self.tools).context("create the directory of the web tools")?;
        for name in ["package.json", "package-lock.json"] {
            let from = self.root.join("web").join(name);
            fs::copy(&from, self.tools.join(name))
                .with_context(|| format!("copy {}", from.display()))?;
        }
        println!("web: installing the tools of {}", lock.display());
        let status = Command::new("npm")
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
            .current_dir(&self.tools)
            .status()
            .context("start npm")?;
        if !status.success() {
            bail!("npm ci in {} ended with {status}", self.tools.display());
        }
        fs::write(&note, stamp).context("note what is installed")
    }

    fn tests(&self) -> Result<Tally> {
        let results = self.out.join("results.tap");
        let tap = format!("--test-reporter-destination={}", results.display());
        let mut args = vec![
            "--test".to_owned(),
            "--test-reporter=spec".to_owned(),
            "--test-reporter-destination=stdout".to_owned(),
            "--test-reporter=tap".to_owned(),
            tap,
        ];
        args.extend(self.test_files()?);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let passed = self.node(&args)?;
        let text = fs::read_to_string(&results).context("read the tests' results")?;
        let mut tally = counts(&text).context("the tests' results have no counts")?;
        if !passed && tally.failed == 0 {
            tally.failed = 1;
        }
        Ok(tally)
    }

    fn test_files(&self) -> Result<Vec<String>> {
        let folder = self.root.join("web/test");
        let mut files: Vec<String> = fs::read_dir(&folder)
            .with_context(|| format!("read {}", folder.display()))?
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.ends_with(".test.js"))
            .map(|name| format!("web/test/{name}"))
            .collect();
        files.sort();
        Ok(files)
    }

    /// Runs node in the workspace; whether it succeeded.
    fn node(&self, args: &[&str]) -> Result<bool> {
        let programs = crate::workspace::target().join("debug");
        let browser = packages::find_program("chromium").context("find chromium")?;
        let status = Command::new("node")
            .args(args)
            .current_dir(&self.root)
            .env("BERTH_BIN", programs)
            .env("BERTH_CHROMIUM", browser)
            .env("BERTH_WEB_TOOLS", &self.tools)
            .env("BERTH_PICTURES", &self.out)
            .status()
            .context("start node")?;
        Ok(status.success())
    }
}

/// The closing counts of TAP: `# pass 3`.
fn counts(text: &str) -> Option<Tally> {
    let of = |name: &str| {
        let start = format!("# {name} ");
        text.lines().rev().find_map(|line| line.strip_prefix(&start)?.trim().parse().ok())
    };
    let skipped = of("skipped")?;
    Some(Tally { passed: of("pass")?, failed: of("fail")?, skipped })
}

#[cfg(test)]
mod tests {
    use super::counts;

    #[test]
    fn the_counts_of_tap_are_read() {
        let text = "ok 1 - a\n# tests 4\n# pass 2\n# fail 1\n# cancelled 0\n# skipped 1\n";
        let tally = counts(text).expect("counts");
        assert_eq!((tally.passed, tally.failed, tally.skipped), (2, 1, 1));
        assert_eq!(counts("TAP version 13\n"), None);
    }
}
