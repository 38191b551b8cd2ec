//! What the host gives away unbound, and what it can see of it: on the real kernel.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use berth_host::{
    Act, BackendKind, Context, Host, HostError, Node, PciAddress,
    linux::{Direct, LinuxConfig, LinuxHost},
};
use berth_uapi::{Cdev, Errno, Iommufd, IovaChoice, PtId, RlimitMode};

use super::berthd_tools::is_blocked;
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        access::{self, Access},
        edu::{Edu, pattern},
        holder::Holder,
        memory::Memory,
        probe, sysfs,
        unpriv::{HOLDER_UID, STRANGER_UID},
    },
    topology::{EDU_ROOT, EDU_SPARE},
    wire::Capability::{Cdev as HasCdev, Intremap, Iommufd as HasIommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("host_unbound", &[HasIommufd, HasCdev, Intremap], unbound),
    Scenario::new("host_access_iommufd", &[HasIommufd, HasCdev], access_iommufd),
    Scenario::new("host_access_type1", &[Type1], access_type1),
];

const PAGE: u64 = 4096;
const IOVA: u64 = 0x50_0000;

fn host() -> LinuxHost {
    let privileged = Arc::new(Direct::new("/"));
    LinuxHost::new(LinuxConfig { root: "/".into(), privileged })
}

fn at(address: &str) -> Result<PciAddress> {
    Ok(address.parse()?)
}

fn group_of(address: &str) -> Result<u32> {
    Ok(sysfs::group(address).context("no group")?.parse()?)
}

/// What can be told of a device and of the context that was handed over with it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    bound: usize,
    in_use: bool,
    free: bool,
}

fn look(host: &LinuxHost, context: &dyn Context) -> Result<Seen> {
    Ok(Seen {
        bound: context.bound_devices(8)?,
        in_use: host.in_use(at(EDU_ROOT)?)?,
        free: host.probe_free(group_of(EDU_ROOT)?)?,
    })
}

/// A fresh cdev claims nothing; whoever binds it to the context that came with it is seen to, can
/// be cut off, and is seen to have closed it.
fn unbound(ctx: &mut Ctx) -> Result<Outcome> {
    let host = host();
    sysfs::to_vfio(EDU_ROOT)?;
    let context = host.open_context(BackendKind::Iommufd)?;
    let given = Iommufd::from(context.fd()?);
    ensure!(given.rlimit_mode()? == RlimitMode::Process, "memory counts by user");
    let nothing = Seen { bound: 0, in_use: false, free: true };
    ensure!(look(&host, &*context)? == nothing, "before: {:?}", look(&host, &*context)?);
    let cdev = Cdev::from_fd(host.open_cdev(at(EDU_ROOT)?)?, EDU_ROOT);
    ensure!(look(&host, &*context)? == nothing, "opened: {:?}", look(&host, &*context)?);

    // Objects of other kinds have ids of the same row.
    let spaces = [given.ioas_alloc()?, given.ioas_alloc()?, given.ioas_alloc()?];
    let bound = cdev.bind_iommufd(&given, None).map_err(|failed| failed.error)?;
    let seen = look(&host, &*context)?;
    ensure!(seen == Seen { bound: 1, in_use: true, free: false }, "bound: {seen:?}");
    ensure!(probe::stranger(EDU_ROOT).is_kept_out(), "{:?}", probe::stranger(EDU_ROOT));
    bound.attach_pt(PtId::Ioas(spaces[1]))?;
    let edu = Edu::on_vfio(bound.device())?;
    let memory = Memory::new(PAGE)?;
    memory.map_iommufd(&given, spaces[1], IovaChoice::Fixed(IOVA))?;
    let bytes = pattern(5, 4096);
    memory.write(0, &bytes)?;
    edu.copy_in(IOVA, PAGE)?;
    memory.write(0, &[0; 4096])?;
    edu.copy_out(IOVA, PAGE)?;
    ensure!(memory.read(0, 4096)? == bytes, "nothing was moved");

    let cut = context.unmap_everything()?;
    ensure!(cut == PAGE, "{cut} bytes were unmapped");
    ensure!(context.unmap_everything()? == 0, "something came again");
    memory.write(0, &[7; 4096])?;
    is_blocked(ctx, IOVA, EDU_ROOT, || edu.copy_out(IOVA, PAGE))?;
    ensure!(memory.read(0, 4096)? == [7; 4096], "it wrote after it was cut off");

    drop((edu, bound));
    let seen = look(&host, &*context)?;
    ensure!(seen == nothing, "closed: {seen:?}");
    sysfs::to_host(EDU_ROOT, None)?;
    let missing = host.open_cdev(at(EDU_ROOT)?).map(drop).map_err(|error| error.errno);
    ensure!(missing == Err(Errno::NOENT.raw_os_error()), "without a driver: {missing:?}");
    Ok(Outcome::Pass)
}

fn access_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    access(ctx, &[Node::Cdev(at(EDU_SPARE)?), Node::Iommu])
}

fn access_type1(ctx: &mut Ctx) -> Result<Outcome> {
    access(ctx, &[Node::Group(group_of(EDU_SPARE)?), Node::Container])
}

/// One user gets into a node, nobody else does, and afterwards the node is as it was.
fn access(ctx: &Ctx, nodes: &[Node]) -> Result<Outcome> {
    let host = host();
    sysfs::to_vfio(EDU_SPARE)?;
    let mut holder = Holder::start(ctx, HOLDER_UID, PathBuf::new())?;
    let mut stranger = Holder::start(ctx, STRANGER_UID, PathBuf::new())?;
    let denied = Errno::ACCESS.raw_os_error();
    for node in nodes {
        let path = PathBuf::from(host.node(*node)?);
        let before = access::of(&path)?;
        let opens = |holder: &mut Holder| -> Result<i32> {
            let errno = holder.opens(vec![path.clone()])?;
            errno.get(&path).copied().context("no answer")
        };
        let closed = if before.mode == 0o666 { 0 } else { denied };
        ensure!(opens(&mut holder)? == closed, "{node} before: {before:?}");
        let set = |uid, allow| host.perform(&Act::Access { node: *node, uid, allow });
        set(HOLDER_UID, true)?;
        let now = access::of(&path)?;
        ctx.say(format!("{node} at {}: {before:?}, then {now:?}", path.display()));
        if closed == denied {
            let users = vec![(HOLDER_UID, 6)];
            let mode = before.mode | 0o060;
            ensure!(now == Access { mode, users, listed: true, ..before.clone() }, "{now:?}");
        } else {
            ensure!(now == before, "open to all as it was, {now:?}");
        }
        ensure!(opens(&mut holder)? == 0 && opens(&mut stranger)? == closed, "{node}");
        set(STRANGER_UID, true)?;
        ensure!(opens(&mut stranger)? == 0, "{node}");
        set(HOLDER_UID, false)?;
        ensure!(opens(&mut holder)? == closed && opens(&mut stranger)? == 0, "{node}");
        set(STRANGER_UID, false)?;
        ensure!(opens(&mut stranger)? == closed, "{node}");
        ensure!(access::of(&path)? == before, "{before:?} became {:?}", access::of(&path)?);
    }
    set_gone(&host, nodes)?;
    Ok(Outcome::Pass)
}

/// A list goes with its node: the next one has none.
fn set_gone(host: &LinuxHost, nodes: &[Node]) -> Result<()> {
    let node = nodes.first().context("no node")?;
    host.perform(&Act::Access { node: *node, uid: HOLDER_UID, allow: true })?;
    sysfs::to_host(EDU_SPARE, None)?;
    let allow = host.perform(&Act::Access { node: *node, uid: HOLDER_UID, allow: true });
    let missing = matches!(&allow, Err(HostError::File { errno, .. }) if *errno == 2);
    ensure!(missing, "a node that is gone: {allow:?}");
    host.perform(&Act::Access { node: *node, uid: HOLDER_UID, allow: false })?;
    sysfs::to_vfio(EDU_SPARE)?;
    let again = access::of(&PathBuf::from(host.node(*node)?))?;
    ensure!(again.users.is_empty() && !again.listed, "{again:?}");
    sysfs::to_host(EDU_SPARE, None)
}
