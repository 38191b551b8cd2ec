//! The page, in a headless browser.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};
use berth_testvm::host::packages::{self, Tool};

use super::{daemon::Daemon, webdriver::Browser};
use crate::{check::root, tally::Tally};

const TOOLS: &[Tool] = &[
    Tool { package: "chromium", proof: "chromium" },
    Tool { package: "chromium-driver", proof: "chromedriver" },
];

/// What the page must show, on which simulated host.
const SHOWN: &[(&str, &[&str])] = &[
    ("sim:small", &["simulated host small", "0000:02:01.0", "kernel"]),
    ("sim:gpu-server", &["simulated host gpu-server", "0000:1b:00.0", "NVIDIA"]),
];

pub(super) fn run() -> Result<Tally> {
    let root = root()?;
    packages::ensure(TOOLS)?;
    let program = |name| packages::find_program(name).with_context(|| format!("find {name}"));
    let browser = Browser::start(&program("chromedriver")?, &program("chromium")?)?;
    crate::run::build(&root)?;
    let mut tally = Tally::default();
    for (host, words) in SHOWN {
        tally += one_host(&root, &browser, host, words)?;
    }
    Ok(tally)
}

fn one_host(root: &Path, browser: &Browser, host: &str, words: &[&str]) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut told = |what: &str, seen: bool| {
        println!("web {host}: {what} ... {}", if seen { "ok" } else { "FAILED" });
        tally += Tally::one(seen);
    };
    let daemon = Daemon::start(root, host)?;
    browser.open(daemon.page())?;
    for word in words {
        told(&format!("shows {word:?}"), shows(browser, word)?);
    }
    // A change that the command line makes appears by itself: the stream of events is alive.
    let device = words.get(1).copied().unwrap_or_default();
    let reserved = Command::new(root.join("target/debug/berth"))
        .env("BERTH_ENDPOINT", daemon.endpoint())
        .args(["reserve", "--holder", "vm-live", "--device", device, "--policy", "group"])
        .output()
        .context("run berth reserve")?;
    told("a device can be reserved meanwhile", reserved.status.success());
    told("shows the new reservation without a reload", shows(browser, "vm-live")?);
    let foreign = "return performance.getEntriesByType('resource').every(\
                   entry => entry.name.startsWith(location.origin))";
    told("asks no other server", browser.becomes_true(foreign)?);
    let file = root.join(format!("target/web/{}.png", host.replace(':', "-")));
    save(browser, &file)?;
    println!("web {host}: screenshot {}", file.display());
    Ok(tally)
}

fn shows(browser: &Browser, text: &str) -> Result<bool> {
    browser.becomes_true(&format!("return document.body.innerText.includes({text:?})"))
}

fn save(browser: &Browser, file: &Path) -> Result<()> {
    let folder = file.parent().context("a screenshot needs a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let picture = decode(&browser.picture()?).context("a screenshot is base64")?;
    fs::write(file, picture).with_context(|| format!("write {}", file.display()))
}

/// Base64, as the protocol has it: standard alphabet, padded.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for letter in text.bytes().filter(|letter| *letter != b'=') {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from((bits >> held) & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn decodes_base64() {
        assert_eq!(decode("aGVsbG8="), Some(b"hello".to_vec()));
        assert_eq!(decode("a!"), None);
    }
}
