//! Private apt directories: packages of another suite, without touching the machine's own apt.
//!
//! The mirror is the machine's own, read from its sources; signatures are checked against the
//! Debian keyring. Nothing in this tree names a host.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};

use super::cache;

/// Package lists older than this are fetched again.
const LISTS_FRESH: Duration = Duration::from_secs(7 * 24 * 3600);

/// One archive that the machine is configured for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Base address of the archive.
    pub uri: String,
    /// Its suites.
    pub suites: Vec<String>,
    /// Its components.
    pub components: Vec<String>,
    /// The keyring or key that it is checked against, if named.
    pub signed_by: Option<String>,
}

impl Source {
    /// Whether it is of a release's archive: the release itself, its updates, its security.
    fn is_of(&self, codename: &str) -> bool {
        let of = |suite: &String| {
            let name = suite.split(['-', '/']).next();
            name == Some(codename) && !suite.ends_with("-backports")
        };
        !self.suites.is_empty() && self.suites.iter().all(of)
    }

    fn as_deb822(&self) -> String {
        let signed_by = self.signed_by.as_ref().map(|key| format!("Signed-By: {key}\n"));
        format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: {}\n{}",
            self.uri,
            self.suites.join(" "),
            self.components.join(" "),
            signed_by.unwrap_or_default()
        )
    }
}

/// Reads the one-line format (`deb [signed-by=...] URI suite component...`).
#[must_use]
pub fn parse_one_line(text: &str) -> Vec<Source> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb ").or_else(|| line.strip_prefix("deb\t")) else {
            continue;
        };
        let rest = rest.trim_start();
        let (options, rest) = match rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
            Some((options, rest)) => (options, rest),
            None => ("", rest),
        };
        let signed_by = options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(str::to_owned);
        let mut words = rest.split_whitespace().map(str::to_owned);
        if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
            let components = words.collect();
            found.push(Source { uri, suites: vec![suite], components, signed_by });
        }
    }
    found
}

/// Reads the deb822 format (`Types:`, `URIs:`, `Suites:`, `Components:`, `Signed-By:`).
#[must_use]
pub fn parse_deb822(text: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            found.extend(from_fields(&fields));
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    found
}

fn from_fields(fields: &[(String, String)]) -> Vec<Source> {
    let get = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let words = |name: &str| -> Vec<String> {
        get(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    let off = get("enabled").is_some_and(|v| matches!(v, "no" | "false" | "0"));
    if off || !words("types").iter().any(|t| t == "deb") {
        return Vec::new();
    }
    let signed_by =
        get("signed-by").filter(|v| v.starts_with('/') && !v.contains('\n')).map(str::to_owned);
    words("uris")
        .into_iter()
        .map(|uri| Source {
            uri,
            suites: words("suites"),
            components: words("components"),
            signed_by: signed_by.clone(),
        })
        .collect()
}

fn machine_sources() -> Vec<Source> {
    let mut found = Vec::new();
    if let Ok(text) = fs::read_to_string("/etc/apt/sources.list") {
        found.extend(parse_one_line(&text));
    }
    let mut files: Vec<PathBuf> = fs::read_dir("/etc/apt/sources.list.d")
        .map(|dir| dir.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    files.sort();
    for path in files {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        match path.extension().and_then(|e| e.to_str()) {
            Some("list") => found.extend(parse_one_line(&text)),
            Some("sources") => found.extend(parse_deb822(&text)),
            _ => {}
        }
    }
    found
}

/// The Debian release of this machine, by its codename.
///
/// # Errors
/// The machine is not a Debian.
pub fn codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
    };
    let id = field("ID").unwrap_or_default();
    if id != "debian" {
        bail!(
            "this machine is {id:?}, not Debian: kernels and the root for systemd are made of Debian \
             packages; a kernel image can be given by BERTH_VM_KERNEL"
        );
    }
    field("VERSION_CODENAME").context("/etc/os-release has no VERSION_CODENAME")
}

/// Where packages of this machine's release come from.
#[derive(Debug, Clone)]
pub struct Archive {
    /// Base address.
    pub uri: String,
    /// The release's codename.
    pub suite: String,
    /// What it is checked against.
    pub keyring: String,
}

/// The archive of this machine's release.
///
/// # Errors
/// The machine is no Debian, or its sources don't offer its release.
pub fn archive() -> Result<Archive> {
    let mirror = mirror()?;
    Ok(Archive { suite: codename()?, keyring: keyring(&mirror)?, uri: mirror.uri })
}

fn mirror() -> Result<Source> {
    let codename = codename()?;
    machine_sources()
        .into_iter()
        .find(|source| {
            source.suites.contains(&codename) && source.components.iter().any(|c| c == "main")
        })
        .with_context(|| format!("no source of this machine's apt offers the suite {codename}"))
}

fn keyring(source: &Source) -> Result<String> {
    let debian =
        ["gpg", "pgp"].map(|ext| format!("/usr/share/keyrings/debian-archive-keyring.{ext}"));
    source
        .signed_by
        .iter()
        .chain(&debian)
        .find(|path| Path::new(path).exists())
        .cloned()
        .context("no Debian keyring: install the package debian-archive-keyring")
}

/// An apt that knows one suite and keeps everything in a directory of its own.
#[derive(Debug)]
pub struct PrivateApt {
    dir: PathBuf,
    suite: String,
}

impl PrivateApt {
    /// Makes or reopens the directory for `suite` and fetches its lists when they are stale.
    ///
    /// # Errors
    /// The machine is no Debian, has no source to take the mirror from, or the lists were never
    /// fetched and can't be now.
    pub fn open(suite: &str) -> Result<Self> {
        let cache = cache::dir()?;
        let _lock = cache::lock(&cache, "apt")?;
        let dir = cache.join("apt").join(suite);
        for part in ["lists/partial", "archives/partial", "no-parts"] {
            fs::create_dir_all(dir.join(part))
                .with_context(|| format!("create {} in {}", part, dir.display()))?;
        }
        let mirror = mirror()?;
        let text = format!(
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\nSigned-By: {}\n",
            mirror.uri,
            keyring(&mirror)?
        );
        fs::write(dir.join("private.sources"), text)
            .with_context(|| format!("write the sources in {}", dir.display()))?;
        // What is installed here plays no part in what that suite offers.
        fs::write(dir.join("nothing"), "")?;
        let apt = Self { dir, suite: suite.to_owned() };
        apt.refresh()?;
        Ok(apt)
    }

    fn refresh(&self) -> Result<()> {
        let stamp = self.dir.join("fetched");
        let age = |path: &Path| {
            let time = fs::metadata(path).and_then(|m| m.modified()).ok()?;
            SystemTime::now().duration_since(time).ok()
        };
        let known = age(&stamp);
        if known.is_some_and(|age| age < LISTS_FRESH) {
            return Ok(());
        }
        // Error-Mode=any: without it a mirror that doesn't answer is a warning and exit status 0.
        let fetched = cache::run(self.command("apt-get").args([
            "-o",
            "APT::Update::Error-Mode=any",
            "update",
        ]));
        match (fetched, known) {
            (Ok(_), _) => fs::write(&stamp, "").context("write the time stamp of the lists"),
            (Err(error), Some(_)) => {
                eprintln!("keeping the old package lists of {}: {error:#}", self.suite);
                Ok(())
            }
            (Err(error), None) => {
                Err(error.context(format!("fetch the package lists of {}", self.suite)))
            }
        }
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        let dir = self.dir.display();
        for option in [
            format!("Dir::Etc::sourcelist={dir}/private.sources"),
            format!("Dir::Etc::sourceparts={dir}/no-parts"),
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::Cache={dir}"),
            format!("Dir::Cache::archives={dir}/archives"),
            "Acquire::Languages=none".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command.env("LC_ALL", "C");
        command
    }

    /// A query that looks at this suite alone, as if nothing were installed.
    fn query(&self, tool: &str) -> Command {
        let mut command = self.command(tool);
        command.arg("-o").arg(format!("Dir::State::status={}/nothing", self.dir.display()));
        command
    }

    /// The names of all packages that match a pattern.
    ///
    /// # Errors
    /// apt-cache fails.
    pub fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let text = cache::run(self.query("apt-cache").args(["search", "--names-only", pattern]))?;
        Ok(text.lines().filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// The version that this suite offers.
    ///
    /// # Errors
    /// The package is not in this suite.
    pub fn version(&self, package: &str) -> Result<String> {
        let text =
            cache::run(self.query("apt-cache").args(["--no-all-versions", "show", package]))?;
        text.lines()
            .find_map(|line| line.strip_prefix("Version: "))
            .map(str::to_owned)
            .with_context(|| format!("{} does not offer {package}", self.suite))
    }

    /// Downloads one package into `into` and says where the file is. apt checks its hash against
    /// the signed lists.
    ///
    /// # Errors
    /// The download fails.
    pub fn download(&self, package: &str, version: &str, into: &Path) -> Result<PathBuf> {
        let mut command = self.query("apt-get");
        command.args(["-o", "APT::Sandbox::User=root", "download"]);
        cache::run(command.arg(format!("{package}={version}")).current_dir(into))?;
        let prefix = format!("{package}_");
        fs::read_dir(into)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| {
                path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(&prefix))
            })
            .with_context(|| format!("apt-get download left no {prefix}*.deb"))
    }

    /// The commands that install packages of this suite on the machine itself, to be run as root
    /// one after the other. What the packages need comes from the machine's own suites, too.
    ///
    /// # Errors
    /// The sources can't be written.
    pub fn install_commands(&self, packages: &[&str]) -> Result<[Command; 2]> {
        let codename = codename()?;
        let own = machine_sources().into_iter().filter(|source| source.is_of(&codename));
        let text: Vec<String> = own.map(|source| source.as_deb822()).collect();
        // Root's files lie apart, where later calls as somebody else needn't write.
        let dir = self.dir.join("install");
        for part in ["parts", "lists/partial", "archives/partial"] {
            fs::create_dir_all(dir.join(part))
                .with_context(|| format!("create {part} in {}", dir.display()))?;
        }
        fs::write(dir.join("parts/machine.sources"), text.join("\n"))
            .with_context(|| format!("write the sources in {}", dir.display()))?;
        let command = || {
            let (mut command, dir) = (self.command("apt-get"), dir.display());
            for option in [
                format!("Dir::Etc::sourceparts={dir}/parts"),
                format!("Dir::State::Lists={dir}/lists"),
                format!("Dir::Cache={dir}"),
                format!("Dir::Cache::archives={dir}/archives"),
            ] {
                command.arg("-o").arg(option);
            }
            command
        };
        let (mut update, mut install) = (command(), command());
        update.args(["-o", "APT::Update::Error-Mode=any", "update"]);
        install.args(["-y", "--no-install-recommends", "-t", &self.suite, "install"]);
        install.args(packages);
        Ok([update, install])
    }
}

#[cfg(test)]
mod tests {
    use super::{parse_deb822, parse_one_line};

    #[test]
    fn one_line_sources_are_read() {
        let text = "# deb http://no.example/debian sid main\n\
                    deb-src http://a.example/debian trixie main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian trixie main contrib\n\
                    deb http://b.example/debian trixie-updates main # ours\n";
        let found = parse_one_line(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].uri, "http://a.example/debian");
        assert_eq!(found[0].suites, ["trixie"]);
        assert_eq!(found[0].components, ["main", "contrib"]);
        assert_eq!(found[0].signed_by.as_deref(), Some("/k.gpg"));
        assert_eq!(found[1].components, ["main"]);
    }

    #[test]
    fn deb822_sources_are_read() {
        let text = "# a comment\nTypes: deb deb-src\nURIs: http://a.example/debian\n\
                    Suites: bookworm\n bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n\n\
                    Types: deb-src\nURIs: http://b.example/\nSuites: bookworm\n\n\
                    Enabled: no\nTypes: deb\nURIs: http://c.example/\nSuites: bookworm\n";
        let found = parse_deb822(text);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].suites, ["bookworm", "bookworm-updates"]);
        assert_eq!(found[0].signed_by.as_deref(), Some("/k.gpg"));
    }

    #[test]
    fn a_release_is_its_suite_its_updates_and_its_security() {
        let of = |suites: &str| {
            let line = format!("deb http://a.example/ {suites} main\n");
            parse_one_line(&line)[0].is_of("trixie")
        };
        for suite in ["trixie", "trixie-updates", "trixie-security", "trixie/updates"] {
            assert!(of(suite), "{suite}");
        }
        for suite in ["trixie-backports", "bookworm", "nodistro", "cloud-sdk-trixie"] {
            assert!(!of(suite), "{suite}");
        }
        let text = "Types: deb\nURIs: http://a.example/\nSuites: trixie trixie-updates\n\
                    Components: main contrib\nSigned-By: /k.gpg\n";
        assert_eq!(parse_deb822(text)[0].as_deb822(), text);
    }

    #[test]
    fn a_key_written_into_the_sources_is_not_taken_for_a_path() {
        let text = "Types: deb\nURIs: http://a.example/\nSuites: x\nComponents: main\n\
                    Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n abc\n";
        assert_eq!(parse_deb822(text)[0].signed_by, None);
    }
}
