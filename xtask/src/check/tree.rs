//! What must not stand in the tree.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

/// Crates that may say `unsafe`: the two that talk to the kernel, and the guest's first process.
const UNSAFE_ALLOWED: &[&str] = &["crates/uapi/", "crates/dma/", "crates/testvm/"];

/// The files that git tracks or would track.
pub(super) fn files(root: &Path, endings: &[&str]) -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("start git ls-files")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    Ok(text
        .lines()
        .filter(|name| endings.iter().any(|ending| name.ends_with(ending)))
        .filter(|name| root.join(name).is_file())
        .map(str::to_owned)
        .collect())
}

/// `unsafe` stands only where it is allowed, and every other crate root forbids it.
pub(super) fn unsafe_code(root: &Path) -> Result<()> {
    let mut wrong = Vec::new();
    for name in files(root, &[".rs"])? {
        if UNSAFE_ALLOWED.iter().any(|allowed| name.starts_with(allowed)) {
            continue;
        }
        let text = read(root, &name)?;
        let is_root = ["src/lib.rs", "src/main.rs"].iter().any(|end| name.ends_with(end));
        if is_root && !text.contains("#![forbid(unsafe_code)]") {
            wrong.push(format!("{name} lacks #![forbid(unsafe_code)]"));
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|word| code.contains(word))
                && !code.contains('"')
            {
                wrong.push(format!("{name}:{}: unsafe", number + 1));
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

/// No absolute path of a developer's machine, no open ends.
pub(super) fn machine_traces(root: &Path) -> Result<()> {
    // Put together here so that this file doesn't find itself.
    let words = [
        ["/ro", "ot/."].concat(),
        ["/ho", "me/"].concat(),
        ["TO", "DO"].concat(),
        ["FIX", "ME"].concat(),
        ["todo", "!("].concat(),
        ["unimplemented", "!("].concat(),
        ["deb.", "debian"].concat(),
        ["crates", ".io"].concat(),
    ];
    let mut wrong = Vec::new();
    for name in files(root, &[".rs", ".toml", ".md", ".sh", ".js", ".html", ".sql", ".proto"])? {
        let text = read(root, &name)?;
        for (number, line) in text.lines().enumerate() {
            for word in words.iter().filter(|word| line.contains(word.as_str())) {
                wrong.push(format!("{name}:{}: {word}", number + 1));
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

/// `NNNN_verb_noun.sql`, without a gap.
pub(super) fn migrations(root: &Path) -> Result<()> {
    let mut names: Vec<String> = fs::read_dir(root.join("migrations"))
        .context("read migrations/")?
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.ends_with(".sql"))
        .collect();
    names.sort();
    if names.is_empty() {
        bail!("migrations/ has no .sql file");
    }
    for (index, name) in names.iter().enumerate() {
        if !name.starts_with(&format!("{:04}_", index + 1)) {
            bail!("migrations/{name} should begin with {:04}_", index + 1);
        }
    }
    Ok(())
}

pub(super) fn read(root: &Path, name: &str) -> Result<String> {
    fs::read_to_string(root.join(name)).with_context(|| format!("read {name}"))
}
