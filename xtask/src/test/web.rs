//! The page, in a headless browser.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use berth_testvm::host::packages::{self, Tool};

use super::daemon::Daemon;
use crate::{check::root, tally::Tally};

/// What the page must show for a simulated host, read from the document after its scripts ran.
const WANTED: &[(&str, &[&str])] = &[
    ("sim:small", &["simulated", "g-", "0000:"]),
    ("sim:gpu-server", &["simulated", "g-", "NVIDIA"]),
];

pub(super) fn run() -> Result<Tally> {
    let root = root()?;
    let browser = browser()?;
    crate::run::build(&root)?;
    let mut tally = Tally::default();
    for (host, wanted) in WANTED {
        let daemon = Daemon::start(&root, host)?;
        let document = document(&browser, daemon.page())?;
        for word in *wanted {
            let found = document.contains(word);
            println!("web {host} shows {word:?} ... {}", if found { "ok" } else { "FAILED" });
            tally += Tally::one(found);
        }
        let shot = root.join(format!("target/web/{}.png", host.replace(':', "-")));
        screenshot(&browser, daemon.page(), &shot)?;
        println!("web {host} screenshot {}", shot.display());
    }
    Ok(tally)
}

fn browser() -> Result<PathBuf> {
    let find = || {
        ["chromium", "chromium-browser", "google-chrome"]
            .into_iter()
            .find_map(packages::find_program)
    };
    if let Some(program) = find() {
        return Ok(program);
    }
    packages::ensure(&[Tool { package: "chromium", proof: "chromium" }])?;
    find().context("chromium was installed, but it isn't on the path")
}

fn document(browser: &Path, page: &str) -> Result<String> {
    // The event stream never ends, so the page's time is bounded instead of waited for.
    let output = headless(browser, &["--virtual-time-budget=8000", "--dump-dom", page])?;
    Ok(String::from_utf8_lossy(&output).into_owned())
}

fn screenshot(browser: &Path, page: &str, file: &Path) -> Result<()> {
    let folder = file.parent().context("a screenshot needs a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let target = format!("--screenshot={}", file.display());
    headless(browser, &["--virtual-time-budget=8000", "--window-size=1280,900", &target, page])?;
    if fs::metadata(file).map(|data| data.len()).unwrap_or(0) == 0 {
        bail!("{} is empty", file.display());
    }
    Ok(())
}

/// Runs the browser; one that hangs is killed after a minute.
fn headless(browser: &Path, args: &[&str]) -> Result<Vec<u8>> {
    let profile = tempfile::tempdir().context("make a browser profile")?;
    let out = profile.path().join("out");
    let mut child = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
        ])
        .arg(format!("--user-data-dir={}", profile.path().join("profile").display()))
        .args(args)
        .stdout(fs::File::create(&out).context("create the browser's output")?)
        .stderr(Stdio::null())
        .spawn()
        .context("start the browser")?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().context("wait for the browser")?.is_none() {
        if Instant::now() > deadline {
            child.kill().context("kill the browser")?;
            child.wait().context("wait for the browser")?;
            bail!("the browser did not finish within 60 s");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    fs::read(&out).context("read what the browser printed")
}
