//! Berth as Debian's package: installed, upgraded while devices move bytes, removed, installed again
//! and purged. Decided by dpkg, systemd, the devices and what is left on the disk.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};

use super::{
    berthd_tools::{self, Before, is_free, reserve},
    systemd::uid_of,
    systemd_store::{self, Heart, claims, register, shared_domain},
};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        holder::Holder,
        kmsg::Kmsg,
        sysfs,
        systemd::{BERTHD, Installed, run, show, systemctl},
        unpriv::{HOLDER_UID, STRANGER_UID},
        wait_for,
    },
    topology::{EDU_ROOT, PAIR_A, PAIR_B, PAIR_BRIDGE},
    wire::Capability::{self, Intremap, Shpchp, Systemd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario::new("systemd_package", NEEDS, package).within(420)];

const NEEDS: &[Capability] = &[Capability::Daemon, Systemd, Type1, Intremap];
const BERTH: &str = "berth";
const PLUGIN: &str = "berth-kubelet-plugin";
const CONFIG: &str = "/etc/berth/berthd.toml";
const STATE: &str = "/var/lib/berth";
/// What an administrator wrote.
const SITE: &str = "[timeouts]\nact_ms = 120000\n";
const UNITS: &[&str] = &[
    BERTHD,
    "berthd.socket",
    "berthd-http.socket",
    "berthd-handover.socket",
    "berthd-page.socket",
    "berth-helper.socket",
    "berth-kubelet-plugin.service",
];
const IOVA: u64 = 0x40_0000;
/// A table of the next release, see `daemon/examples/next_release`.
const NEXT_TABLE: &[u8] = b"CREATE TABLE next_release";

fn package(ctx: &mut Ctx) -> Result<Outcome> {
    let packages = ctx.config.bin_dir.join("packages");
    let (Some(now), Some(next)) = (deb(&packages, "now", BERTH), deb(&packages, "next", BERTH))
    else {
        return Ok(Outcome::Skip("no packages were made; the host said why".to_owned()));
    };
    let plugin = deb(&packages, "now", PLUGIN).context("no package of the plugin")?;
    // Scenarios that install by hand come later: dpkg is to find a machine without Berth.
    ensure!(!Path::new("/usr/sbin/berthd").exists(), "Berth is installed already");
    println!("Debian {}", fs::read_to_string("/etc/debian_version")?.trim());
    let before = [EDU_ROOT, PAIR_A, PAIR_B, PAIR_BRIDGE].map(Before::of);
    let empty = files()?;

    let said = dpkg(&["-i", &now, &plugin])?;
    ensure!(said.contains("systemctl enable --now berthd"), "no word of what comes next: {said}");
    is_installed_and_quiet()?;

    fs::write(CONFIG, SITE)?;
    systemctl(&["enable", "--now", BERTHD])?;
    let berth = Installed::watched(ctx)?;
    upgrade(ctx, &berth, &next)?;
    before.iter().try_for_each(Before::is_back)?;

    let id = reserve(&berth, &["--device", EDU_ROOT, "--policy", "exclusive"])?;
    berth.cli(&["release", &id])?.ok()?;
    before[0].is_back()?;
    remove(&berth, &next, &id)?;
    purge(&empty)?;
    Ok(Outcome::Pass)
}

/// The package of a release.
fn deb(packages: &Path, release: &str, name: &str) -> Option<String> {
    let start = format!("{name}_");
    let entries = fs::read_dir(packages.join(release)).ok()?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    let is_it = |path: &PathBuf| {
        path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&start))
    };
    Some(paths.find(is_it)?.display().to_string())
}

fn try_dpkg(words: &[&str]) -> Result<Output> {
    println!("# dpkg {}", words.join(" "));
    let mut command = Command::new("dpkg");
    // The disk is memory, which no loss of power leaves.
    command.arg("--force-unsafe-io").args(words).env("DEBIAN_FRONTEND", "noninteractive");
    let output = command.output().context("start dpkg")?;
    let said = [output.stdout.clone(), output.stderr.clone()].concat();
    println!("{}", String::from_utf8_lossy(&said));
    Ok(output)
}

/// Runs dpkg to its end, and gives what it said.
fn dpkg(words: &[&str]) -> Result<String> {
    let output = try_dpkg(words)?;
    let said = String::from_utf8([output.stdout, output.stderr].concat())?;
    ensure!(output.status.success(), "dpkg {}: {}: {said}", words.join(" "), output.status);
    Ok(said)
}

/// All that a package has is there as it was packed, its programs run, and nothing was enabled or
/// started.
fn is_installed_and_quiet() -> Result<()> {
    let wrong = dpkg(&["--verify", BERTH, PLUGIN])?;
    ensure!(wrong.is_empty(), "not as it was packed: {wrong}");
    for program in ["/usr/bin/berth", "/usr/sbin/berthd", "/usr/sbin/berth-kubelet-plugin"] {
        let version = run(Command::new(program).arg("--version"))?;
        println!("{}", String::from_utf8_lossy(&version.stdout).trim());
    }
    run(Command::new("/usr/sbin/berthd").arg("--check-config"))?;
    ensure!(uid_of("berth")? != 0, "the user berth is root");
    for unit in UNITS {
        let (file, active) = (show(unit, "UnitFileState")?, show(unit, "ActiveState")?);
        ensure!(file == "disabled", "{unit} is {file}");
        ensure!(active == "inactive", "{unit} is {active}");
    }
    ensure!(!Path::new(STATE).join("berth.db").exists(), "there is a record already");
    Ok(())
}

/// While two devices are held by `berthd` and one by its holder, the next release takes over.
fn upgrade(ctx: &Ctx, berth: &Installed, next: &str) -> Result<()> {
    let shpchp = ctx.has(Shpchp) && sysfs::driver(PAIR_BRIDGE).is_some();
    if shpchp {
        berth.cli(&["kernel-dma", "release", PAIR_BRIDGE])?.ok()?;
    }
    let bound =
        reserve(berth, &["--device", EDU_ROOT, "--policy", "exclusive", "--backend", "type1"])?;
    berth.cli(&["attach", &bound])?.ok()?;
    let mut holder = Holder::start(ctx, HOLDER_UID, berth.handover())?;
    holder.fetch(&bound)?;
    let mapped = holder.memory(1)?;
    holder.map(mapped, IOVA)?;
    berthd_tools::moves(&mut holder, EDU_ROOT, mapped, IOVA, 17)?;

    let (first, second) = shared_domain(berth, "type1")?;
    let mut client = Holder::start(ctx, STRANGER_UID, berth.handover())?;
    let registered = client.memory(2)?;
    register(&mut client, &second, registered, 2 * berthd_tools::PAGE)?;
    let mut kmsg = Kmsg::from_now()?;
    let heart = Heart::starts(client, registered);
    heart.beats_on(ctx)?;
    let ids = [bound.as_str(), first.as_str(), second.as_str()];
    let (held, epochs) = (claims(berth, &ids)?, epochs(berth, &ids)?);
    let pid = berth.pid()?;

    refuses_removal(berth, &ids, pid)?;

    let at = heart.count();
    dpkg(&["-i", next])?;
    let now = berth.wait_for_another(pid)?;
    ensure!(heart.count() > at, "no heartbeat while berthd {pid} became {now}");
    heart.beats_on(ctx)?;
    let program = fs::read_link(format!("/proc/{now}/exe"))?;
    ensure!(program == Path::new("/usr/sbin/berthd"), "it is {}", program.display());
    ensure!(claims(berth, &ids)? == held, "the claims are others now");
    ensure!(self::epochs(berth, &ids)? == epochs, "the epochs are others now");
    ensure!(has_next_table()?, "the next release's migration was not made");
    ensure!(fs::read_to_string(CONFIG)? == SITE, "the administrator's configuration is gone");
    berthd_tools::moves(&mut holder, EDU_ROOT, mapped, IOVA, 18)?;
    let faults = kmsg.dma_faults();
    ensure!(faults.is_empty(), "DMA was blocked: {faults:?}");
    let (mut client, beats) = heart.ends()?;
    ctx.say(format!("berthd {pid} -> {now}, {beats} beats, none without its bytes"));

    holder.close()?;
    client.kill()?;
    for id in ids {
        berth.cli(&["release", id])?.ok()?;
        let released = || {
            let shown = berth.cli(&["reservation", "show", id]).ok()?.ok().ok()?;
            (shown["state"] == "RELEASED").then_some(())
        };
        wait_for("the release", ctx.patience(), released)?;
    }
    ensure!(systemd_store::stored()? == 0, "descriptors are still stored");
    if !shpchp {
        is_free(PAIR_A)?;
    } else if sysfs::driver(PAIR_BRIDGE).is_none() {
        berth.cli(&["kernel-dma", "set", PAIR_BRIDGE])?.ok()?;
    }
    Ok(())
}

fn epochs(berth: &Installed, ids: &[&str]) -> Result<Vec<String>> {
    let of = |id: &&str| Ok(berth.cli(&["reservation", "show", id])?.ok()?["epoch"].to_string());
    ids.iter().map(of).collect()
}

/// Whether the schema has the next release's table: in the database, or in the log beside it.
fn has_next_table() -> Result<bool> {
    for name in ["berth.db", "berth.db-wal"] {
        let path = Path::new(STATE).join(name);
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        if bytes.windows(NEXT_TABLE.len()).any(|window| window == NEXT_TABLE) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// With devices in use the package stays, says which, and berthd goes on.
fn refuses_removal(berth: &Installed, ids: &[&str], pid: u32) -> Result<()> {
    let output = try_dpkg(&["-r", BERTH])?;
    ensure!(!output.status.success(), "it was removed while devices were in use");
    let said = String::from_utf8([output.stdout, output.stderr].concat())?;
    for word in ids.iter().chain(&["vm1", "/run/berth/remove-anyway", "berth release"]) {
        ensure!(said.contains(word), "nothing about {word}: {said}");
    }
    ensure!(berth.pid()? == pid, "berthd was restarted or stopped for it");
    let status = run(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Abbrev}", BERTH]))?;
    let status = String::from_utf8(status.stdout)?;
    ensure!(status.trim() == "ii" || status.trim() == "ri", "the package is {status:?}");
    Ok(())
}

/// Removed, nothing of it runs, and its state stays: installed again it knows what it knew, and is
/// enabled as the administrator left it.
fn remove(berth: &Installed, deb: &str, id: &str) -> Result<()> {
    dpkg(&["-r", BERTH])?;
    ensure!(!Path::new("/usr/sbin/berthd").exists(), "the program is still there");
    for unit in UNITS.iter().filter(|unit| !unit.starts_with(PLUGIN)) {
        let (loaded, active) = (show(unit, "LoadState")?, show(unit, "ActiveState")?);
        ensure!(loaded == "not-found" && active == "inactive", "{unit} is {loaded}, {active}");
    }
    ensure!(!Path::new("/run/berth").exists(), "there are sockets of nobody");
    ensure!(fs::read_to_string(CONFIG)? == SITE, "the configuration is gone");
    ensure!(Path::new(STATE).join("berth.db").exists(), "the record is gone");

    dpkg(&["-i", deb])?;
    ensure!(show(BERTHD, "UnitFileState")? == "enabled", "it was enabled before");
    ensure!(show(BERTHD, "ActiveState")? == "inactive", "it was started behind one's back");
    systemctl(&["start", BERTHD])?;
    let shown = berth.cli(&["reservation", "show", id])?.ok()?;
    ensure!(shown["state"] == "RELEASED", "what was is forgotten: {shown}");
    Ok(())
}

/// Purged, it leaves nothing but its user.
fn purge(empty: &BTreeSet<String>) -> Result<()> {
    dpkg(&["-P", BERTH, PLUGIN])?;
    let now = files()?;
    let left: Vec<&String> = now.difference(empty).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    let gone: Vec<&String> = empty.difference(&now).collect();
    ensure!(gone.is_empty(), "taken along: {gone:?}");
    uid_of("berth").context("the user is gone, and its uid anybody's")?;
    ensure!(!Path::new("/run/berth").exists(), "there are sockets of nobody");
    Ok(())
}

/// All files of the root file system, but for what others write at any time.
fn files() -> Result<BTreeSet<String>> {
    const OTHERS: &[&str] = &[
        "/var/lib/dpkg/",
        "/var/log/",
        "/var/cache/",
        "/var/tmp/",
        "/tmp/",
        "/var/lib/systemd/timers/",
        "/etc/passwd",
        "/etc/group",
        "/etc/shadow",
        "/etc/gshadow",
        "/etc/.pwd.lock",
    ];
    let output = run(Command::new("find").args(["/", "-xdev"]))?;
    let all = String::from_utf8(output.stdout)?;
    let counts = |path: &&str| !OTHERS.iter().any(|others| path.starts_with(others));
    Ok(all.lines().filter(counts).map(str::to_owned).collect())
}
