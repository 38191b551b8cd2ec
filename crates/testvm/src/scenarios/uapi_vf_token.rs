//! The secret that a physical function on vfio-pci keeps its virtual ones by.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use berth_uapi::{
    Cdev as OpenCdev, Errno, GroupNumber, IoctlError, Iommufd as Iommu, VfToken, VfioContainer,
    VfioGroup,
};

use crate::{
    guest::{Ctx, Outcome, Scenario, probe, sysfs},
    topology::{EDU_ROOT, IGB},
    wire::Capability::{Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario::new("uapi_vf_token", &[Type1, Intremap], vf_token).within(120)];

/// Whether vfio-pci makes virtual functions.
const ENABLE: &str = "/sys/module/vfio_pci/parameters/enable_sriov";
const TOKEN: VfToken = VfToken([0x5a; 16]);
const OTHER: VfToken = VfToken([0xa5; 16]);

fn is_refused<T>(what: &str, answer: Result<T, IoctlError>, errno: Errno) -> Result<()> {
    let found = answer.map(drop).map_err(|error| error.errno());
    ensure!(found == Err(errno), "{what}: {found:?}, not {errno:?}");
    Ok(())
}

fn open(address: &str) -> Result<VfioGroup> {
    let number = sysfs::group(address).and_then(|n| n.parse().ok()).context("no group")?;
    Ok(VfioGroup::open(GroupNumber(number))?)
}

fn write(attribute: &str, text: &str) -> Result<()> {
    sysfs::write(&sysfs::device_dir(IGB).join(attribute), text)
        .map_err(|errno| anyhow::anyhow!("{attribute}: {errno}"))
}

fn vf_token(ctx: &mut Ctx) -> Result<Outcome> {
    sysfs::to_vfio(IGB)?;
    fs::write(ENABLE, "1")?;
    write("sriov_drivers_autoprobe", "0")?;
    write("sriov_numvfs", "1")?;
    let link = fs::read_link(sysfs::device_dir(IGB).join("virtfn0"))?;
    let function = link.file_name().and_then(|name| name.to_str()).context("odd link")?.to_owned();
    ctx.say(format!("{function} comes with the override {:?}", sysfs::driver_override(&function)));
    sysfs::to_vfio(&function)?;
    let tried = by_group(&function).and_then(|()| by_cdev(ctx, &function));
    write("sriov_numvfs", "0")?;
    write("sriov_drivers_autoprobe", "1")?;
    fs::write(ENABLE, "0")?;
    sysfs::to_host(IGB, Some("igb"))?;
    tried.map(|()| Outcome::Pass)
}

fn by_group(function: &str) -> Result<()> {
    let container = VfioContainer::open()?;
    let [physical, group] = [open(IGB)?, open(function)?];
    physical.set_container(&container)?;
    group.set_container(&container)?;
    container.set_iommu_type1v2()?;
    is_refused("without a token", group.get_device_fd(function, None), Errno::ACCESS)?;
    physical.get_device_fd(IGB, None)?.set_vf_token(&TOKEN)?;
    // The file that it was set through is closed by now.
    is_refused("without", group.get_device_fd(function, None), Errno::ACCESS)?;
    let other = Some(OTHER.text());
    is_refused("another", group.get_device_fd(function, other.as_deref()), Errno::ACCESS)?;
    let token = Some(TOKEN.text());
    let open = group.get_device_fd(function, token.as_deref())?;
    is_refused("none has a token", open.set_vf_token(&OTHER), Errno::NOTTY)?;
    is_refused("with users", physical.get_device_fd(IGB, None), Errno::ACCESS)?;
    physical.get_device_fd(IGB, token.as_deref())?;
    drop(open);
    Ok(())
}

fn by_cdev(ctx: &Ctx, function: &str) -> Result<()> {
    if !ctx.has(Iommufd) || !ctx.has(Cdev) {
        return Ok(());
    }
    let context = Iommu::open()?;
    let path = probe::cdev_path(function).context("no cdev")?;
    let bind = |path: &Path, token: Option<&VfToken>| {
        let cdev = OpenCdev::open(path, function)?;
        cdev.bind_iommufd(&context, token).map_err(IoctlError::from)
    };
    is_refused("without", bind(&path, None), Errno::ACCESS)?;
    is_refused("another", bind(&path, Some(&OTHER)), Errno::ACCESS)?;
    drop(bind(&path, Some(&TOKEN))?);
    sysfs::to_vfio(EDU_ROOT)?;
    let edu = probe::cdev_path(EDU_ROOT).context("no cdev")?;
    let unused = bind(&edu, Some(&TOKEN));
    sysfs::to_host(EDU_ROOT, None)?;
    is_refused("one that needs none", unused, Errno::INVAL)
}
