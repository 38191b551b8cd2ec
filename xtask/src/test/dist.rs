//! What is shipped beside the programs: packages, alert rules, and the numbers that these ask for.
//!
//! Packages are made of the programs of the usual build here, by the code that makes them of others.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use berth_testvm::host::{
    cache,
    packages::{self, Tool},
    run,
};

use super::daemon::Daemon;
use crate::{check::root, dist, tally::Tally, workspace};

const PROMTOOL: &[Tool] = &[Tool { package: "prometheus", proof: "promtool" }];
const LINTIAN: &[Tool] = &[Tool { package: "lintian", proof: "lintian" }];
/// What promtool says of a name that dashboards of sites have by now.
const KNOWN: &[&str] = &["berth_timeout_ms metric names should not contain abbreviated units"];
/// Of what each package must have something at least.
const PLACES: &[&str] = &[
    "/usr/bin/berth",
    "/usr/sbin/berthd",
    "/usr/sbin/berth-kubelet-plugin",
    "/usr/libexec/berth/berth-helper",
    "/usr/lib/systemd/system/berthd.service",
    "/usr/lib/systemd/system/berthd-handover.socket",
    "/usr/lib/systemd/system/berth-helper@.service",
    "/usr/lib/systemd/system/berth-kubelet-plugin.service",
    "/usr/lib/sysusers.d/berth.conf",
    "/usr/lib/tmpfiles.d/berth.conf",
    "/usr/lib/modules-load.d/berth.conf",
    "/usr/lib/udev/rules.d/70-berth.rules",
    "/etc/berth/berthd.toml",
    "/etc/berth/kubelet-plugin.toml",
    "/usr/share/man/man1/berth.1.gz",
    "/usr/share/man/man1/berth-reserve.1.gz",
    "/usr/share/man/man8/berthd.8.gz",
    "/usr/share/man/man8/berth-helper.8.gz",
    "/usr/share/man/man8/berth-kubelet-plugin.8.gz",
    "/usr/share/bash-completion/completions/berth",
    "/usr/share/zsh/vendor-completions/_berth",
    "/usr/share/fish/vendor_completions.d/berth.fish",
    "/usr/share/doc/berth/berth.cdx.json",
    "/usr/share/doc/berth/third-party-licenses.gz",
    "/usr/share/doc/berth/copyright",
    "/usr/share/doc/berth-kubelet-plugin/berth.cdx.json",
    "/usr/share/doc/berth/examples/grafana/berth.json",
    "/usr/share/doc/berth/examples/prometheus/berth.rules.yaml",
];

pub(super) fn run() -> Result<Tally> {
    let root = root()?;
    // What is packed, as guests have it, too.
    run::build_programs(&root)?;
    let out = workspace::target().join("dist-test");
    let (first, second) = (out.join("first"), out.join("second"));
    let _ = fs::remove_dir_all(&out);
    let mut tally = Tally::default();
    let mut say = |what: &str, step: &dyn Fn() -> Result<()>| {
        let start = Instant::now();
        let done = step();
        let word = if done.is_ok() { "ok" } else { "FAILED" };
        println!("dist: {what} ... {word} ({:.1} s)", start.elapsed().as_secs_f64());
        tally += Tally::one(done.is_ok());
        if let Err(error) = done {
            println!("{error:#}");
        }
    };
    say("packages of the same are the same", &|| same_twice(&root, &first, &second));
    say("packages have what they should", &|| complete(&first));
    say("lintian finds nothing", &|| lintian(&first));
    say("scripts of RPM packages are shell", &|| scripts(&root));
    say("alert rules are rules, and their tests pass", &|| rules(&root));
    say("the numbers are what Prometheus reads", &|| numbers(&root));
    Ok(tally)
}

fn make(root: &Path, out: &Path) -> Result<Vec<PathBuf>> {
    let options = dist::Options {
        root: root.to_owned(),
        programs: workspace::target().join("debug"),
        berthd: None,
        out: out.to_owned(),
        version: dist::workspace_version(root)?,
        small: true,
    };
    let mut made = dist::debs(&options)?;
    made.extend(dist::rpms(&options)?);
    Ok(made)
}

fn same_twice(root: &Path, first: &Path, second: &Path) -> Result<()> {
    let (one, two) = (make(root, first)?, make(root, second)?);
    ensure!(one.len() == 4 && two.len() == 4, "not two packages for each: {one:?}");
    for (a, b) in one.iter().zip(&two) {
        ensure!(a.file_name() == b.file_name(), "{} and {}", a.display(), b.display());
        ensure!(fs::read(a)? == fs::read(b)?, "{} is another the second time", a.display());
    }
    Ok(())
}

/// The files in the packages of a directory with this ending.
fn with_ending(dir: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.extension().is_some_and(|it| it == ending));
    found.sort();
    Ok(found)
}

fn complete(dir: &Path) -> Result<()> {
    let mut in_debs = BTreeSet::new();
    for deb in with_ending(dir, "deb")? {
        let listed = cache::run(Command::new("dpkg-deb").arg("-c").arg(&deb))?;
        for line in listed.lines() {
            let mut words = line.split_whitespace();
            let (mode, owner) = (words.next().unwrap_or_default(), words.next());
            let path = words.last().unwrap_or_default().trim_start_matches('.');
            ensure!(owner == Some("root/root"), "{path} is {owner:?}'s");
            let right = match mode.chars().next() {
                Some('d') => mode == "drwxr-xr-x",
                _ if path.contains("bin/") || path.contains("/libexec/") => mode == "-rwxr-xr-x",
                _ => mode == "-rw-r--r--",
            };
            ensure!(right, "{path} has the mode {mode}");
            if !mode.starts_with('d') {
                in_debs.insert(path.to_owned());
            }
        }
    }
    let missing: Vec<&&str> = PLACES.iter().filter(|path| !in_debs.contains(**path)).collect();
    ensure!(missing.is_empty(), "missing: {missing:?}");
    let mut in_rpms = BTreeSet::new();
    for rpm in with_ending(dir, "rpm")? {
        in_rpms.extend(dist::files_of_rpm(&rpm)?);
    }
    let in_debs: BTreeSet<String> =
        in_debs.into_iter().map(|path| dist::path_in_rpm(&path)).collect();
    let differ: Vec<&String> = in_debs.symmetric_difference(&in_rpms).collect();
    ensure!(differ.is_empty(), "in one kind of package only: {differ:?}");
    Ok(())
}

fn lintian(dir: &Path) -> Result<()> {
    packages::ensure(LINTIAN)?;
    let mut lintian = Command::new("lintian");
    lintian.args(["--fail-on", "error,warning", "--tag-display-limit", "0", "--allow-root"]);
    cache::run(lintian.args(with_ending(dir, "deb")?)).map(drop)
}

fn scripts(root: &Path) -> Result<()> {
    let dir = root.join("deploy/rpm");
    for entry in fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))?.flatten() {
        cache::run(Command::new("sh").arg("-n").arg(entry.path()))?;
    }
    Ok(())
}

fn rules(root: &Path) -> Result<()> {
    packages::ensure(PROMTOOL)?;
    let dir = root.join("deploy/prometheus");
    let promtool = |words: &[&str]| {
        cache::run(Command::new("promtool").args(words).current_dir(&dir)).map(drop)
    };
    promtool(&["check", "rules", "--lint-fatal", "berth.rules.yaml"])?;
    promtool(&["test", "rules", "berth.test.yaml"])
}

/// What a daemon says is well formed, and its names are as the habit is.
fn numbers(root: &Path) -> Result<()> {
    packages::ensure(PROMTOOL)?;
    let daemon = Daemon::start(root, "sim:gpu-server")?;
    let page = daemon.get("/metrics")?;
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = promtool.stderr(Stdio::piped()).spawn().context("start promtool")?;
    child.stdin.take().context("promtool reads nothing")?.write_all(page.as_bytes())?;
    let output = child.wait_with_output().context("wait for promtool")?;
    let said = String::from_utf8([output.stdout, output.stderr].concat())?;
    let is_known = |line: &&str| line.is_empty() || KNOWN.contains(line);
    let new: Vec<&str> = said.lines().filter(|line| !is_known(line)).collect();
    // 3 is for names that are against the habit.
    ensure!(new.is_empty(), "promtool check metrics: {}", new.join("\n"));
    match output.status.code() {
        Some(0 | 3) => Ok(()),
        _ => bail!("promtool check metrics ended with {}", output.status),
    }
}
