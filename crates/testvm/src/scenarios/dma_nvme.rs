//! A user-space driver of an NVMe controller on the fast path: its queues in an arena, its data in
//! pieces of the arena and in a memfd.

use std::{os::unix::fs::FileExt, time::Duration};

use anyhow::{Context, Result, ensure};
use berth_dma::{AddressSpace, Arena, IovaChoice, Piece};
use berth_uapi::{Device, MappedRegion, PtId, RegionIndex, VfioContainer};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::dma::{PAGE, RW};
use crate::{
    guest::{Ctx, Outcome, Scenario, edu::pattern, eventually, nvme::BLOCK, probe, sysfs},
    topology::NVME1,
    wire::Capability::{Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("dma_nvme_iommufd", &[Iommufd, Cdev, Intremap], iommufd),
    Scenario::new("dma_nvme_type1", &[Type1, Intremap], type1),
];

const CONFIGURATION: u64 = 0x14;
const STATUS: u64 = 0x1c;
/// `CSTS.CFS`: nothing is completed any more.
const FATAL: u32 = 1 << 1;
const ADMIN_ATTRIBUTES: u64 = 0x24;
const ADMIN_SUBMISSIONS: u64 = 0x28;
const ADMIN_COMPLETIONS: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;
/// Entries of each queue; more than any scenario gives commands.
const ENTRIES: u32 = 32;
const PATIENCE: Duration = Duration::from_secs(60);

struct Queue {
    number: u32,
    submissions: Piece,
    completions: Piece,
    given: u32,
}

/// A controller, with one queue for blocks beside that for administration.
struct Nvme {
    registers: MappedRegion,
    admin: Queue,
    blocks: Queue,
}

#[derive(Default)]
struct Command {
    opcode: u32,
    namespace: u32,
    /// Where the controller finds or puts data: at most a page.
    data: u64,
    dwords: [u32; 3],
}

impl Queue {
    fn new(arena: &Arena<&AddressSpace>, number: u32) -> Result<Self> {
        let page = usize::try_from(PAGE)?;
        let (submissions, completions) = (arena.take(page)?, arena.take(page)?);
        Ok(Self { number, submissions, completions, given: 0 })
    }
}

impl Nvme {
    fn start(device: &Device, arena: &Arena<&AddressSpace>) -> Result<Self> {
        device.set_bus_master(true)?;
        let registers = device.map_region(RegionIndex(0))?;
        let (admin, blocks) = (Queue::new(arena, 0)?, Queue::new(arena, 1)?);
        let mut nvme = Self { registers, admin, blocks };
        nvme.set(CONFIGURATION, 0)?;
        nvme.until_ready(false)?;
        nvme.set(ADMIN_ATTRIBUTES, ((ENTRIES - 1) << 16) | (ENTRIES - 1))?;
        nvme.set_address(ADMIN_SUBMISSIONS, nvme.admin.submissions.iova())?;
        nvme.set_address(ADMIN_COMPLETIONS, nvme.admin.completions.iova())?;
        // 64 bytes a submission, 16 a completion, on.
        nvme.set(CONFIGURATION, (4 << 20) | (6 << 16) | 1)?;
        nvme.until_ready(true)?;
        let size = ((ENTRIES - 1) << 16) | 1;
        let (submissions, completions) =
            (nvme.blocks.submissions.iova(), nvme.blocks.completions.iova());
        let make = |opcode, data, flags| Command {
            opcode,
            data,
            dwords: [size, flags, 0],
            ..Command::default()
        };
        nvme.administer(make(5, completions, 1))?;
        nvme.administer(make(1, submissions, (1 << 16) | 1))?;
        Ok(nvme)
    }

    fn set(&self, register: u64, value: u32) -> Result<()> {
        Ok(self.registers.write_u32(register, value)?)
    }

    fn set_address(&self, register: u64, iova: u64) -> Result<()> {
        self.set(register, u32::try_from(iova & 0xffff_ffff)?)?;
        self.set(register + 4, u32::try_from(iova >> 32)?)
    }

    fn until_ready(&self, ready: bool) -> Result<()> {
        let is = || self.registers.read_u32(STATUS).is_ok_and(|s| (s & 1 == 1) == ready);
        eventually(&format!("the nvme to be ready: {ready}"), PATIENCE, is)
    }

    fn administer(&mut self, command: Command) -> Result<()> {
        run(&self.registers, &mut self.admin, &command)
    }

    /// Tells who it is: 4096 bytes to `data`.
    fn identify(&mut self, data: u64) -> Result<()> {
        self.administer(Command { opcode: 6, data, dwords: [1, 0, 0], ..Command::default() })
    }

    fn transfer(&mut self, opcode: u32, block: u32, data: u64, length: usize) -> Result<()> {
        let last = u32::try_from(length / BLOCK)? - 1;
        let command = Command { opcode, namespace: 1, data, dwords: [block, 0, last] };
        run(&self.registers, &mut self.blocks, &command)
    }
}

/// Gives one command and waits for its completion.
fn run(registers: &MappedRegion, queue: &mut Queue, command: &Command) -> Result<()> {
    let (at, id) = (usize::try_from(queue.given)?, queue.given + 1);
    ensure!(id < ENTRIES, "the queue has no room for another command");
    queue.given = id;
    let mut bytes = [0; 64];
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    put(0, &(command.opcode | (id << 16)).to_le_bytes());
    put(4, &command.namespace.to_le_bytes());
    put(24, &command.data.to_le_bytes());
    for (at, dword) in (40..).step_by(4).zip(command.dwords) {
        put(at, &dword.to_le_bytes());
    }
    queue.submissions.write(at * 64, &bytes)?;
    // Doorbells are 8 bytes a queue: of its submissions, of its completions.
    registers.write_u32(DOORBELLS + u64::from(queue.number) * 8, id)?;
    let (mut last, mut failed) = ([0; 4], false);
    let done = || {
        let read = queue.completions.read(at * 16 + 12, &mut last);
        failed = registers.read_u32(STATUS).is_ok_and(|status| status & FATAL != 0);
        failed || read.is_ok() && u32::from_le_bytes(last) & (1 << 16) != 0
    };
    eventually("the nvme to complete a command", PATIENCE, done)?;
    ensure!(
        !failed,
        "the nvme failed for good (CSTS.CFS), as one does that can't reach its queues"
    );
    let status = u32::from_le_bytes(last);
    ensure!(status & 0xffff == id, "a completion of another command: {status:#x}");
    ensure!(status >> 17 == 0, "command {:#x} failed: status {:#x}", command.opcode, status >> 17);
    Ok(())
}

fn drive(ctx: &Ctx, space: &AddressSpace, device: &Device) -> Result<()> {
    let arena = Arena::new(space, 256 << 10)?;
    let mut nvme = Nvme::start(device, &arena)?;
    let page = usize::try_from(PAGE)?;
    let data = arena.take(page)?;
    nvme.identify(data.iova())?;
    let mut serial = [0; 20];
    data.read(4, &mut serial)?;
    ctx.say(format!("the controller says it is {:?}", String::from_utf8_lossy(&serial)));
    ensure!(serial.starts_with(b"berth-nvme1"), "another controller, or none: {serial:?}");

    // From the arena to the disk, and from there to a memfd.
    let mut from = arena.take(page)?;
    let bytes = pattern(11, page);
    from.write(0, &bytes)?;
    nvme.transfer(1, 8, from.iova(), page)?;
    let memfd = std::fs::File::from(memfd_create("blocks", MemfdFlags::CLOEXEC)?);
    ftruncate(&memfd, 4 * PAGE)?;
    let file = space.map_file(IovaChoice::Any, &memfd, PAGE, 2 * PAGE, RW)?;
    nvme.transfer(2, 8, file + PAGE, page)?;
    let mut back = vec![0; page];
    memfd.read_exact_at(&mut back, 2 * PAGE)?;
    ensure!(back == bytes, "the disk gave something else");
    memfd.write_all_at(&pattern(12, page), PAGE)?;
    nvme.transfer(1, 16, file, page)?;
    nvme.transfer(2, 16, data.iova(), page)?;
    data.read(0, &mut back)?;
    ensure!(back == pattern(12, page), "the disk gave something else than the file had");
    nvme.set(CONFIGURATION, 0)?;
    nvme.until_ready(false)?;
    space.unmap(file, 2 * PAGE)?;
    ctx.say(format!("{} commands, {:?}", nvme.admin.given + nvme.blocks.given, space.stats()));
    Ok(())
}

fn iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    sysfs::to_vfio(NVME1)?;
    let probed = probe::bind_cdev(NVME1).context("bind the cdev")?;
    let ioas = probed.context.ioas_alloc()?;
    probed.device.attach_pt(PtId::Ioas(ioas))?;
    let space = AddressSpace::iommufd(probed.context.try_clone()?, ioas);
    drive(ctx, &space, probed.device.device())?;
    drop((space, probed));
    sysfs::to_host(NVME1, Some("nvme"))?;
    Ok(Outcome::Pass)
}

fn type1(ctx: &mut Ctx) -> Result<Outcome> {
    sysfs::to_vfio(NVME1)?;
    let group = probe::open_group(NVME1).context("open the group")?;
    let container = VfioContainer::open()?;
    group.set_container(&container)?;
    container.set_iommu_type1v2()?;
    let device = group.get_device_fd(NVME1, None)?;
    let space = AddressSpace::type1(container);
    drive(ctx, &space, &device)?;
    drop((device, space, group));
    sysfs::to_host(NVME1, Some("nvme"))?;
    Ok(Outcome::Pass)
}
