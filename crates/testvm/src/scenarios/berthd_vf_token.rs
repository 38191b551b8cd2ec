//! A physical function on vfio-pci, and virtual ones for who binds, or opens, by himself and for who
//! doesn't: opened by the secret that Berth made, and by nothing else. Decided by the errnos that the
//! kernel has for root, who asks beside Berth, and by registers that the holder reads.

use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf};

use anyhow::{Context, Result, ensure};
use berth_uapi::{
    Cdev as OpenCdev, Device, Errno, Iommufd as Iommu, VfToken, VfioContainer, VfioGroup,
};
use serde_json::Value;

use super::{
    berthd_handed::becomes,
    berthd_tools::{Before, reserve, text},
};
use crate::{
    guest::{
        Ctx, Outcome, Scenario, daemon::Daemon, holder::Holder, probe, sysfs, unpriv::HOLDER_UID,
    },
    topology::IGB,
    wire::Capability::{self, Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_vf_token_iommufd", IOMMUFD, iommufd).within(300),
    Scenario::new("berthd_vf_token_type1", TYPE1, type1).within(300),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap];
const ENABLE: &str = "/sys/module/vfio_pci/parameters/enable_sriov";
const OTHER: VfToken = VfToken([0xa5; 16]);
const IOVA: u64 = 0x40_0000;
/// Intel's 82576: its virtual functions, by VFIO's word, as their own configuration space has none.
const VF_IDS: (u16, u16) = (0x8086, 0x10ca);

fn iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    on(ctx, "iommufd", "unbound")
}

fn type1(ctx: &mut Ctx) -> Result<Outcome> {
    on(ctx, "type1", "node")
}

/// A device that root opened beside Berth, and what keeps it open.
struct Probe {
    device: Device,
    _group: Option<(VfioGroup, VfioContainer)>,
    _context: Option<Iommu>,
}

/// Opens a device with a token or without, as root and without Berth.
fn opens(backend: &str, address: &str, token: Option<&VfToken>) -> Result<Probe, Errno> {
    if backend == "iommufd" {
        let path = probe::cdev_path(address).ok_or(Errno::NOENT)?;
        let context = Iommu::open().map_err(|error| error.errno())?;
        let cdev = OpenCdev::open(&path, address).map_err(|error| error.errno())?;
        let bound = cdev.bind_iommufd(&context, token).map_err(|failed| failed.error.errno())?;
        let device = Device::from_fd(bound.into_fd(), address);
        return Ok(Probe { device, _group: None, _context: Some(context) });
    }
    let group = probe::open_group(address)?;
    let container = VfioContainer::open().map_err(|error| error.errno())?;
    group.set_container(&container).map_err(|error| error.errno())?;
    container.set_iommu_type1v2().map_err(|error| error.errno())?;
    let text = token.map(VfToken::text);
    let device = group.get_device_fd(address, text.as_deref()).map_err(|error| error.errno())?;
    Ok(Probe { device, _group: Some((group, container)), _context: None })
}

fn is_closed(backend: &str, address: &str, token: Option<&VfToken>) -> Result<()> {
    let found = opens(backend, address, token).map(drop);
    ensure!(found == Err(Errno::ACCESS), "{address} with {token:?}: {found:?}, not EACCES");
    Ok(())
}

/// The virtual functions that the kernel links to.
fn functions() -> Result<[String; 2]> {
    let link = |name: &str| -> Result<String> {
        let target = fs::read_link(sysfs::device_dir(IGB).join(name))?;
        let name = target.file_name().and_then(|name| name.to_str());
        Ok(name.context("an odd link")?.to_owned())
    };
    Ok([link("virtfn0")?, link("virtfn1")?])
}

fn on(ctx: &mut Ctx, backend: &str, delivery: &str) -> Result<Outcome> {
    let before = Before::of(IGB);
    sysfs::to_vfio(IGB)?;
    fs::write(ENABLE, "1")?;
    let mut daemon = Daemon::start(ctx)?;
    daemon.cli(&["sriov", "set", IGB, "2"])?.ok()?;
    let [red, blue] = functions()?;
    let common = ["--policy", "exclusive", "--backend", backend];
    let words = [&["--device", &red, "--delivery", delivery][..], &common].concat();
    let red_id = reserve(&daemon, &words)?;
    let words = [&["--device", &blue, "--delivery", "bound"][..], &common].concat();
    let blue_id = reserve(&daemon, &words)?;

    // Berth's own use: with a token that the kernel didn't know before.
    daemon.cli(&["attach", &blue_id])?.ok()?;
    is_closed(backend, IGB, None)?;
    is_closed(backend, IGB, Some(&OTHER))?;

    // Who opens by itself is told it, and nothing else opens what it has.
    let mut holder = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    let fetched = holder.fetch(&red_id)?;
    let token = shown(&fetched, &red)?;
    is_closed(backend, &red, None)?;
    is_closed(backend, &red, Some(&OTHER))?;
    let closed = Errno::ACCESS.raw_os_error();
    for wrong in [None, OTHER.text().into()] {
        let errno = gets(&mut holder, &red, &fetched, wrong.as_deref())?;
        ensure!(errno == closed, "{red} with {wrong:?}: errno {errno}, not EACCES");
        holder.close()?;
        holder.fetch(&red_id)?;
    }
    works(&mut holder, &red, &fetched, &token)?;
    becomes(ctx, &daemon, &red_id, "HELD")?;

    // The token outlives the daemon: the physical function takes no other now.
    daemon.kill()?;
    daemon.start_again()?;
    becomes(ctx, &daemon, &red_id, "HELD")?;
    answers(&mut holder, &red)?;
    daemon.cli(&["attach", &blue_id])?.ok()?;
    is_closed(backend, IGB, None)?;
    holder.kill()?;
    becomes(ctx, &daemon, &red_id, "RESERVED")?;
    let mut next = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    let fetched = next.fetch(&red_id)?;
    ensure!(shown(&fetched, &red)? == token, "another token than before the restart");
    works(&mut next, &red, &fetched, &token)?;
    next.kill()?;
    becomes(ctx, &daemon, &red_id, "RESERVED")?;

    daemon.cli(&["detach", &blue_id])?.ok()?;
    set_by_another(&daemon, backend, &blue_id, &blue)?;
    is_kept_secret(&daemon, &token)?;
    for id in [&red_id, &blue_id] {
        daemon.cli(&["release", id])?.ok()?;
    }
    daemon.cli(&["sriov", "set", IGB, "0"])?.ok()?;
    fs::write(ENABLE, "0")?;
    sysfs::to_host(IGB, before.driver())?;
    before.is_back()?;
    Ok(Outcome::Pass)
}

/// The token that an answer has for a device.
fn shown(fetched: &Value, device: &str) -> Result<String> {
    let tokens = fetched["vfTokens"].as_array().context("no token")?;
    let [told] = tokens.as_slice() else { anyhow::bail!("tokens: {fetched}") };
    ensure!(told["address"] == device, "{fetched}");
    text(told, "vfToken")
}

/// Opens a device as it was handed over, and gives the errno.
fn gets(holder: &mut Holder, device: &str, fetched: &Value, token: Option<&str>) -> Result<i32> {
    if fetched["delivery"] == "unbound" {
        return holder.bind_by(device, token);
    }
    let nodes = fetched["nodes"].as_array().context("no nodes")?;
    let path = |node: &Value| text(node, "path").map(PathBuf::from);
    holder.open_by(device, nodes.iter().map(path).collect::<Result<_>>()?, token)
}

fn works(holder: &mut Holder, device: &str, fetched: &Value, token: &str) -> Result<()> {
    let errno = gets(holder, device, fetched, Some(token))?;
    ensure!(errno == 0, "{device} by its token: errno {errno}");
    answers(holder, device)?;
    let memory = holder.memory(1)?;
    holder.map(memory, IOVA)?;
    holder.unmap(IOVA, 4096)
}

fn answers(holder: &mut Holder, device: &str) -> Result<()> {
    let (vendor, id, status) = holder.registers(device)?;
    ensure!((vendor, id) == VF_IDS, "{device} is a {vendor:04x}:{id:04x}");
    ensure!(status != u32::MAX, "the registers of {device} don't answer");
    Ok(())
}

/// Somebody who has the physical function open sets another token: an attach is refused with whose it
/// is, and goes on once nobody has it.
fn set_by_another(daemon: &Daemon, backend: &str, id: &str, function: &str) -> Result<()> {
    let physical = opens(backend, IGB, None).map_err(|errno| anyhow::anyhow!("{errno}"))?;
    physical.device.set_vf_token(&OTHER)?;
    let answer = daemon.cli(&["attach", id])?;
    ensure!(answer.code == Some(3), "exit code {:?}: {}", answer.code, answer.stderr);
    for word in ["KERNEL_REFUSED", function, IGB, "vfio-pci", "VF token", "EACCES"] {
        ensure!(answer.stderr.contains(word), "nothing about {word}: {}", answer.stderr);
    }
    drop(physical);
    daemon.cli(&["attach", id])?.ok()?;
    is_closed(backend, IGB, Some(&OTHER))
}

/// It is in the store, which is nobody else's to read, and in nothing that is told.
fn is_kept_secret(daemon: &Daemon, token: &str) -> Result<()> {
    for words in
        [&["reservation", "list"][..], &["device", "show", IGB], &["history"], &["snapshot"]]
    {
        let told = daemon.cli(words)?.ok()?.to_string();
        ensure!(!told.contains(token), "{words:?} tells the token");
    }
    ensure!(!daemon.log().contains(token), "the log tells the token");
    let state = daemon.dir().join("state");
    let mut stored =
        fs::read_dir(&state)?.flatten().filter_map(|entry| fs::read(entry.path()).ok());
    let has = |bytes: Vec<u8>| bytes.windows(token.len()).any(|part| part == token.as_bytes());
    ensure!(stored.any(has), "the token isn't in {}", state.display());
    for name in ["berth.db", "berth.db-wal"] {
        let mode = fs::metadata(state.join(name))?.mode() & 0o777;
        ensure!(mode == 0o600, "{name} has mode {mode:o}");
    }
    Ok(())
}
