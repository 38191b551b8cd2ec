//! The real host of `berth-host` on the real kernel: discovery, holds, both contexts, baselines.

use std::{process::Command, sync::Arc};

use anyhow::{Context as _, Result, bail, ensure};
use berth_dma::{AddressSpace, DmaBuffer, DmaPerms, IovaChoice};
use berth_host::{
    Act, ActOutcome, AttachedDevice, BackendKind, Context, DeviceFacts, DmaKind, GroupingCode,
    Host, Inventory, PciAddress, ResetOutcome,
    linux::{Direct, LinuxConfig, LinuxHost},
};
use berth_uapi::{Device, Errno};

use crate::{
    guest::{
        Ctx, Outcome, Scenario, disk,
        edu::{Edu, pattern},
        kmsg::Kmsg,
        probe, sysfs,
    },
    topology::{
        EDU_ROOT, EDU_SPARE, IGB, MIXED_BRIDGE, MIXED_EDU, MIXED_NIC, NVME1, PAIR_A, PAIR_B,
        PAIR_BRIDGE, SEATS,
    },
    wire::Capability::{Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("host_discovery", &[], discovery),
    Scenario::new("host_features", &[], features),
    Scenario::new("host_hold", &[Type1, Intremap], hold),
    Scenario::new("host_attach_iommufd", &[Iommufd, Cdev, Intremap], attach_iommufd),
    Scenario::new("host_attach_type1", &[Type1, Intremap], attach_type1),
    Scenario::new("host_pair_iommufd", &[Iommufd, Cdev, Intremap], pair_iommufd),
    Scenario::new("host_pair_type1", &[Type1, Intremap], pair_type1),
    Scenario::new("host_restore", &[], restore),
    Scenario::new("host_uses_mount", &[], uses_mount),
];

const PAGE: u64 = 4096;
const IOVA: u64 = 0x30_0000;

fn host() -> LinuxHost {
    let privileged = Arc::new(Direct::new("/"));
    LinuxHost::new(LinuxConfig { root: "/".into(), privileged })
}

fn at(address: &str) -> Result<PciAddress> {
    Ok(address.parse()?)
}

fn facts(inventory: &Inventory, address: &str) -> Result<DeviceFacts> {
    let address = at(address)?;
    let found = inventory.devices.iter().find(|facts| facts.address == address);
    found.cloned().with_context(|| format!("{address} was not found"))
}

fn group_of(address: &str) -> Result<u32> {
    Ok(sysfs::group(address).context("no group")?.parse()?)
}

fn bind(host: &LinuxHost, address: &str) -> Result<()> {
    let bind = Act::Bind { device: at(address)?, driver: "vfio-pci".into() };
    host.perform(&bind)?;
    ensure!(sysfs::driver(address).as_deref() == Some("vfio-pci"), "{address} is not on vfio-pci");
    Ok(())
}

fn restore_to(host: &LinuxHost, address: &str, driver: Option<&str>) -> Result<()> {
    let driver = driver.map(str::to_owned);
    let wanted = driver.clone();
    host.perform(&Act::Restore { device: at(address)?, driver, driver_override: None })?;
    ensure!(sysfs::driver(address) == wanted, "{address} is on {:?}", sysfs::driver(address));
    ensure!(sysfs::driver_override(address).is_none(), "{address} still has an override");
    Ok(())
}

fn discovery(ctx: &mut Ctx) -> Result<Outcome> {
    let host = host();
    let inventory = host.scan()?;
    ensure!(inventory.devices.len() == sysfs::devices()?.len(), "not every function was found");
    for seat in SEATS {
        let found = facts(&inventory, seat.address)?;
        ensure!((found.vendor, found.device) == seat.ids, "{}: {found:?}", seat.address);
        ensure!(found.group == Some(group_of(seat.address)?), "{}: another group", seat.address);
        ensure!(found.driver == sysfs::driver(seat.address), "{}: driver", seat.address);
        ensure!(host.device(found.address)? == found, "{}: read alone, it differs", seat.address);
    }
    for address in [PAIR_BRIDGE, PAIR_A, PAIR_B] {
        let grouping = facts(&inventory, address)?.grouping;
        ctx.say(format!("{address}: {}", grouping.text));
        ensure!(grouping.code == GroupingCode::BridgeAlias, "{address}: {grouping:?}");
        ensure!(grouping.cause == Some(at(PAIR_BRIDGE)?), "{address}: {grouping:?}");
    }
    ensure!(facts(&inventory, PAIR_A)?.reset_set == [at(PAIR_B)?], "the pair's reset set");
    ensure!(facts(&inventory, EDU_ROOT)?.grouping.code == GroupingCode::Alone, "edu-root");
    ensure!(facts(&inventory, EDU_ROOT)?.reset_methods.is_empty(), "edu-root resets");
    let igb = facts(&inventory, IGB)?;
    ensure!(igb.sriov_total == 7 && igb.dma == DmaKind::Kernel, "{igb:?}");
    ensure!(igb.reset_methods.iter().any(|method| method == "flr"), "{igb:?}");
    let nvme = facts(&inventory, NVME1)?;
    ensure!(nvme.serial.as_deref() == Some("berth-nvme1"), "nvme serial: {:?}", nvme.serial);
    ensure!(facts(&inventory, PAIR_BRIDGE)?.bridge, "the bridge is one");
    for group in &inventory.groups {
        let members = sysfs::group_members(&group.number.to_string())?;
        let found: Vec<String> = group.members.iter().map(PciAddress::to_string).collect();
        ensure!(found == members, "group {}: {found:?}, not {members:?}", group.number);
        ensure!(!group.iommu_type.is_empty(), "group {} has no type", group.number);
    }
    ctx.say(format!("{} devices, {} groups", inventory.devices.len(), inventory.groups.len()));
    Ok(Outcome::Pass)
}

fn features(ctx: &mut Ctx) -> Result<Outcome> {
    let host = host();
    for feature in host.features() {
        ctx.say(format!("{}: {:?} ({})", feature.name, feature.answer, feature.note));
    }
    let backends = host.backends();
    let iommufd = ctx.has(Iommufd) && ctx.has(Cdev);
    ensure!(backends.contains(&BackendKind::Iommufd) == iommufd, "{backends:?}");
    ensure!(backends.contains(&BackendKind::Type1) == ctx.has(Type1), "{backends:?}");
    ensure!(host.kernel_hold() == ctx.has(Type1), "kernel hold");
    let remapped = host.features().into_iter().find(|found| found.name == "interrupt-remapping");
    let remapped = remapped.context("no such feature")?.answer == berth_host::Answer::Yes;
    ensure!(remapped == ctx.has(Intremap), "interrupt remapping");
    Ok(Outcome::Pass)
}

/// Takes the host's drivers out of the mixed group, and answers which were there.
fn clear_mixed(host: &LinuxHost) -> Result<Vec<(&'static str, String)>> {
    let mut before = Vec::new();
    for address in [MIXED_BRIDGE, MIXED_NIC] {
        if let Some(driver) = sysfs::driver(address) {
            host.perform(&Act::Unbind { device: at(address)? })?;
            before.push((address, driver));
        }
    }
    Ok(before)
}

fn hold(ctx: &mut Ctx) -> Result<Outcome> {
    let host = host();
    let group = group_of(MIXED_EDU)?;
    bind(&host, MIXED_EDU)?;
    ensure!(!host.probe_free(group)?, "free beside a host driver");
    let refused = host.hold(group, None).map(drop);
    ensure!(refused.is_err_and(|error| error.errno == Errno::PERM.raw_os_error()), "beside e1000");
    let before = clear_mixed(&host)?;
    ensure!(host.probe_free(group)?, "not free without host drivers");

    let held = host.hold(group, None)?;
    let stranger = probe::stranger(MIXED_EDU);
    ctx.say(format!("{stranger:?}"));
    ensure!(stranger.is_kept_out(), "{stranger:?}");
    ensure!(!host.probe_free(group)?, "free while it is held");
    let back = Act::Restore {
        device: at(MIXED_NIC)?,
        driver: Some("e1000".into()),
        driver_override: None,
    };
    let refused = host.perform(&back).map(drop);
    let busy = Some(Errno::BUSY.raw_os_error());
    ensure!(refused.as_ref().is_err_and(|error| error.errno() == busy), "{refused:?}");

    drop(held);
    ensure!(host.probe_free(group)?, "not free after the hold");
    restore_to(&host, MIXED_EDU, None)?;
    for (address, driver) in before {
        restore_to(&host, address, Some(&driver))?;
    }
    Ok(Outcome::Pass)
}

/// The device moves a pattern in and out, and reaches the memory no more after the unmap.
fn moves_and_stops(device: &dyn AttachedDevice, space: &AddressSpace) -> Result<()> {
    let edu = Edu::on_vfio(&Device::from_fd(device.fd()?, &device.address().to_string()))?;
    let bytes = pattern(9, usize::try_from(PAGE)?);
    let mut buffer = DmaBuffer::new(bytes.len())?;
    buffer.write(0, &bytes)?;
    space.map_buffer(IovaChoice::Fixed(IOVA), &buffer, DmaPerms::READ_WRITE)?;
    edu.copy_in(IOVA, PAGE)?;
    buffer.fill(0);
    edu.copy_out(IOVA, PAGE)?;
    ensure!(buffer.to_vec() == bytes, "the device did not bring the pattern back");
    space.unmap(IOVA, PAGE)?;
    buffer.fill(7);
    edu.copy_out(IOVA, PAGE)?;
    let untouched = buffer.to_vec().iter().all(|byte| *byte == 7);
    ensure!(untouched, "the device wrote to memory that was unmapped");
    Ok(())
}

/// The same, and the kernel reports the blocked write.
fn moves_and_faults(ctx: &Ctx, device: &dyn AttachedDevice, space: &AddressSpace) -> Result<()> {
    let mut kmsg = Kmsg::from_now()?;
    moves_and_stops(device, space)?;
    let edu = Edu::on_vfio(&Device::from_fd(device.fd()?, &device.address().to_string()))?;
    let fault = kmsg.provoke_fault(IOVA, ctx.patience(), || edu.copy_out(IOVA, PAGE))?;
    ctx.say(format!("after the unmap: {fault:?}"));
    Ok(())
}

fn attach_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    let host = host();
    let (group, address) = (group_of(EDU_SPARE)?, at(EDU_SPARE)?);
    bind(&host, EDU_SPARE)?;
    let held = if host.kernel_hold() { Some(host.hold(group, None)?) } else { None };
    let context = host.open_context(BackendKind::Iommufd)?;
    if held.is_some() {
        let refused = context.open_device(address).map(drop);
        ensure!(
            refused.as_ref().is_err_and(|error| error.errno == Errno::BUSY.raw_os_error()),
            "BIND under a hold: {refused:?}"
        );
    }
    drop(held);
    let domain = context.new_domain()?;
    let mut device = context.open_device(address)?;
    device.attach(domain)?;
    ensure!(device.bound()? && device.device_id() != 0, "not bound");
    ensure!(!context.ranges(domain)?.is_empty(), "no permitted ranges");
    ensure!(!host.probe_free(group)?, "free while it is attached");
    let busy = context.delete_domain(domain).map_err(|error| error.errno);
    ensure!(busy == Err(Errno::BUSY.raw_os_error()), "domain in use: {busy:?}");
    moves_and_faults(ctx, &*device, &context.address_space(domain)?)?;

    // A replace: what was mapped in the old domain isn't there in the new one.
    let other = context.new_domain()?;
    device.attach(other)?;
    moves_and_stops(&*device, &context.address_space(other)?)?;
    context.delete_domain(domain)?;
    let gone = device.attach(domain).map_err(|error| error.errno);
    ensure!(gone == Err(Errno::NOENT.raw_os_error()), "attach to a deleted domain: {gone:?}");
    device.detach()?;
    drop(device);
    drop(context);
    ensure!(host.probe_free(group)?, "not free at the end");
    restore_to(&host, EDU_SPARE, None)?;
    Ok(Outcome::Pass)
}

fn attach_type1(ctx: &mut Ctx) -> Result<Outcome> {
    let host = host();
    let (group, address) = (group_of(EDU_SPARE)?, at(EDU_SPARE)?);
    bind(&host, EDU_SPARE)?;
    let context = host.open_context(BackendKind::Type1)?;
    let domain = context.new_domain()?;
    let held = host.hold(group, Some(&*context))?;
    ensure!(probe::stranger(EDU_SPARE).is_kept_out(), "a stranger got in under the hold");
    let mut device = context.open_device(address)?;
    device.attach(domain)?;
    let replace = device.attach(domain).map_err(|error| error.errno);
    ensure!(replace == Err(Errno::OPNOTSUPP.raw_os_error()), "a replace: {replace:?}");
    // The device keeps the group, not the hold.
    drop(held);
    ensure!(probe::stranger(EDU_SPARE).is_kept_out(), "a stranger got in beside the device");
    ensure!(!host.probe_free(group)?, "free while it is attached");
    moves_and_faults(ctx, &*device, &context.address_space(domain)?)?;
    device.detach()?;
    drop(device);
    ensure!(host.probe_free(group)?, "not free after the device");

    // The same context takes the group again: the kernel forgot the IOMMU when it was empty.
    let mut device = context.open_device(address)?;
    device.attach(domain)?;
    moves_and_stops(&*device, &context.address_space(domain)?)?;
    drop(device);
    ensure!(host.probe_free(group)?, "not free at the end");
    restore_to(&host, EDU_SPARE, None)?;
    Ok(Outcome::Pass)
}

/// Both members of the pair, attached to one domain.
struct Pair {
    devices: Vec<Box<dyn AttachedDevice>>,
    space: AddressSpace,
    _context: Box<dyn Context>,
}

/// Opens both members of the pair in one context.
fn open_pair(host: &LinuxHost, backend: BackendKind) -> Result<Pair> {
    if sysfs::driver(PAIR_BRIDGE).is_some() {
        host.perform(&Act::Unbind { device: at(PAIR_BRIDGE)? })?;
    }
    for address in [PAIR_A, PAIR_B] {
        bind(host, address)?;
    }
    let context = host.open_context(backend)?;
    let domain = context.new_domain()?;
    let mut devices = Vec::new();
    for address in [PAIR_A, PAIR_B] {
        let mut device = context.open_device(at(address)?)?;
        device.attach(domain)?;
        devices.push(device);
    }
    let space = context.address_space(domain)?;
    Ok(Pair { devices, space, _context: context })
}

fn close_pair(host: &LinuxHost, bridge: Option<String>) -> Result<()> {
    for address in [PAIR_A, PAIR_B] {
        restore_to(host, address, None)?;
    }
    match bridge {
        Some(driver) => restore_to(host, PAIR_BRIDGE, Some(&driver)),
        None => Ok(()),
    }
}

fn pair_iommufd(_: &mut Ctx) -> Result<Outcome> {
    let host = host();
    let (group, bridge) = (group_of(PAIR_A)?, sysfs::driver(PAIR_BRIDGE));
    let Pair { mut devices, space, _context } = open_pair(&host, BackendKind::Iommufd)?;
    for device in &devices {
        moves_and_stops(&**device, &space)?;
    }
    let stranger = host.open_context(BackendKind::Iommufd)?;
    let refused = stranger.open_device(at(PAIR_B)?).map(drop).map_err(|error| error.errno);
    ensure!(refused == Err(Errno::INVAL.raw_os_error()), "another context: {refused:?}");
    let last = devices.pop().context("two devices")?;
    drop(devices);
    ensure!(!host.probe_free(group)?, "free while one is left");
    moves_and_stops(&*last, &space)?;
    drop(last);
    ensure!(host.probe_free(group)?, "not free after the last");
    close_pair(&host, bridge)?;
    Ok(Outcome::Pass)
}

fn pair_type1(_: &mut Ctx) -> Result<Outcome> {
    let host = host();
    let (group, bridge) = (group_of(PAIR_A)?, sysfs::driver(PAIR_BRIDGE));
    let Pair { mut devices, space, _context } = open_pair(&host, BackendKind::Type1)?;
    for device in &devices {
        moves_and_stops(&**device, &space)?;
    }
    let last = devices.pop().context("two devices")?;
    drop(devices);
    ensure!(!host.probe_free(group)?, "free while one is left");
    moves_and_stops(&*last, &space)?;
    drop(last);
    ensure!(host.probe_free(group)?, "not free after the last");
    close_pair(&host, bridge)?;
    Ok(Outcome::Pass)
}

/// A device leaves its host driver, is reset, and comes back as it was.
fn restore(ctx: &mut Ctx) -> Result<Outcome> {
    let host = host();
    bind(&host, NVME1)?;
    let reset = |address: &str| match host.perform(&Act::Reset { device: at(address)? })? {
        ActOutcome::Reset(outcome) => Ok(outcome),
        other => bail!("{other:?}"),
    };
    let outcome = reset(NVME1)?;
    ctx.say(format!("nvme: {outcome:?}"));
    ensure!(matches!(outcome, ResetOutcome::Verified { .. }), "{outcome:?}");
    let outcome = reset(EDU_ROOT)?;
    ctx.say(format!("edu: {outcome:?}"));
    ensure!(matches!(outcome, ResetOutcome::NotPossible { .. }), "{outcome:?}");
    restore_to(&host, NVME1, Some("nvme"))?;
    let config = host.perform(&Act::ReadConfig { device: at(NVME1)? })?;
    ensure!(matches!(config, ActOutcome::Config(bytes) if bytes.len() == 4096), "config");

    host.perform(&Act::Sriov { device: at(IGB)?, count: 2, autoprobe: false })?;
    let physical = host.device(at(IGB)?)?;
    ensure!(physical.virtual_functions.len() == 2, "{physical:?}");
    for address in &physical.virtual_functions {
        let function = host.device(*address)?;
        ctx.say(format!("{address}: {:04x}:{:04x}", function.vendor, function.device));
        ensure!((function.vendor, function.device) == (0x8086, 0x10ca), "{function:?}");
        ensure!(function.physical_function == Some(at(IGB)?), "{function:?}");
        ensure!(function.driver.is_none(), "a host driver took {address}");
    }
    ensure!(!physical.sriov_autoprobe, "{physical:?}");
    host.perform(&Act::Sriov { device: at(IGB)?, count: 0, autoprobe: true })?;
    ensure!(host.device(at(IGB)?)?.sriov_autoprobe, "host drivers aren't offered functions again");
    Ok(Outcome::Pass)
}

fn uses_mount(ctx: &mut Ctx) -> Result<Outcome> {
    let host = host();
    let disk = disk::block_device(ctx, NVME1)?;
    let dir = ctx.dir().join("mounted");
    std::fs::create_dir(&dir)?;
    run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&disk))?;
    run(Command::new("mount").arg(&disk).arg(&dir))?;
    let uses = host.uses(at(NVME1)?);
    run(Command::new("umount").arg(&dir))?;
    let uses = uses?;
    ctx.say(format!("{uses:?}"));
    let point = dir.display().to_string();
    ensure!(
        uses.iter().any(|found| found.kind == "mount" && found.detail.ends_with(&point)),
        "the mount was not found"
    );
    ensure!(host.uses(at(NVME1)?)?.is_empty(), "the mount is still found");
    Ok(Outcome::Pass)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}
