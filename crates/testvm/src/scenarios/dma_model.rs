//! The simulated address space against the kernel's, errno by errno.
//!
//! Random sequences of maps and unmaps, sensible and not, go to both; every answer must be the
//! same. The list of divergences is printed, with its length, and must be empty.
#![expect(unsafe_code, reason = "maps memory by address, also where the kernel must refuse it")]

use anyhow::{Context, Result, bail, ensure};
use berth_dma::{DmaPerms, Errno, IovaChoice, SimFlavour, SimIoas, SimLimits, Source};
use berth_uapi::{IoasId, IoctlError, Iommufd, PtId, VfioContainer};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

use crate::{
    guest::{Ctx, Outcome, Scenario, probe, sysfs},
    topology::EDU_SPARE,
    wire::Capability::{Cdev, Intremap, Iommufd as HasIommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("dma_model_iommufd", &[HasIommufd, Cdev, Intremap], iommufd),
    Scenario::new("dma_model_type1", &[Type1, Intremap], type1),
];

const SEQUENCES: u64 = 1000;
const STEPS: u64 = 24;
const PAGE: u64 = 4096;
const MEMORY_BYTES: u64 = 64 * PAGE;

/// Numbers that look random and are the same in every run (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 33) % end
    }
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Map { iova: u64, length: u64, perms: DmaPerms },
    Unmap { iova: u64, length: u64 },
    UnmapAll,
}

fn random_act(numbers: &mut Numbers) -> Act {
    // Few pages, so that ranges meet; now and then a place where something is wrong.
    let iova = match numbers.below(16) {
        0 => 0xfedf_f000 + numbers.below(3) * PAGE,
        1 => u64::MAX - PAGE + 1 - numbers.below(2) * PAGE,
        2 => (1 << 60) + numbers.below(4) * PAGE,
        3 => numbers.below(12) * PAGE + 1 + numbers.below(PAGE - 1),
        _ => numbers.below(12) * PAGE,
    };
    let length = match numbers.below(16) {
        0 => 0,
        1 => 1 + numbers.below(3 * PAGE),
        _ => (1 + numbers.below(5)) * PAGE,
    };
    let perms = DmaPerms { read: numbers.below(8) != 0, write: numbers.below(3) != 0 };
    match numbers.below(32) {
        0 => Act::UnmapAll,
        1..14 => Act::Unmap { iova, length },
        _ => Act::Map { iova, length, perms },
    }
}

/// The kernel's side.
enum Kernel {
    Iommufd(Iommufd, IoasId),
    Type1(VfioContainer),
}

impl Kernel {
    fn act(&self, act: Act, memory: u64) -> Result<u64, Errno> {
        let errno = |error: IoctlError| error.errno();
        match (self, act) {
            (Self::Iommufd(context, ioas), Act::Map { iova, length, perms }) => {
                let place = IovaChoice::Fixed(iova);
                // SAFETY: at most the memory that is mapped for the rest of the process's life,
                // into which nothing holds a reference.
                unsafe { context.map(*ioas, place, memory, length, perms) }.map_err(errno)
            }
            (Self::Type1(container), Act::Map { iova, length, perms }) => {
                // SAFETY: as above.
                unsafe { container.map_dma(iova, memory, length, perms) }.map_err(errno)?;
                Ok(iova)
            }
            (Self::Iommufd(context, ioas), Act::Unmap { iova, length }) => {
                context.unmap(*ioas, iova, length).map_err(errno)
            }
            (Self::Type1(container), Act::Unmap { iova, length }) => {
                container.unmap_dma(iova, length).map_err(errno)
            }
            (Self::Iommufd(context, ioas), Act::UnmapAll) => {
                context.unmap_all(*ioas).map_err(errno)
            }
            (Self::Type1(container), Act::UnmapAll) => container.unmap_all().map_err(errno),
        }
    }
}

fn simulate(sim: &SimIoas, act: Act, address: u64) -> Result<u64, Errno> {
    match act {
        Act::Map { iova, length, perms } => {
            sim.map(IovaChoice::Fixed(iova), length, perms, Source::Memory { address })
        }
        Act::Unmap { iova, length } => sim.unmap(iova, length),
        Act::UnmapAll => sim.unmap_all(),
    }
}

/// Memory that stays mapped for the rest of the process's life.
fn memory() -> Result<u64> {
    let (length, prot) = (usize::try_from(MEMORY_BYTES)?, ProtFlags::READ | ProtFlags::WRITE);
    // SAFETY: a new mapping at an address of the kernel's choice; it replaces nothing.
    let base = unsafe { mmap_anonymous(std::ptr::null_mut(), length, prot, MapFlags::PRIVATE) }?;
    Ok(u64::try_from(base.expose_provenance())?)
}

fn compare(ctx: &Ctx, kernel: &Kernel, sim: &SimIoas) -> Result<()> {
    let memory = memory()?;
    let (mut refused, mut done, mut divergences) = (0, 0, Vec::new());
    for seed in 1..=SEQUENCES {
        let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        kernel.act(Act::UnmapAll, memory).context("empty the kernel's table")?;
        sim.unmap_all().context("empty the simulation's table")?;
        for step in 0..STEPS {
            let act = random_act(&mut numbers);
            let (real, simulated) = (kernel.act(act, memory), simulate(sim, act, memory));
            match real {
                Ok(_) => done += 1,
                Err(_) => refused += 1,
            }
            if real != simulated {
                divergences.push(format!(
                    "sequence {seed} step {step}: {act:x?}: kernel {real:x?}, sim {simulated:x?}"
                ));
                break;
            }
        }
    }
    kernel.act(Act::UnmapAll, memory).context("empty the kernel's table")?;
    ctx.say(format!("{SEQUENCES} sequences: {done} steps done, {refused} refused"));
    ctx.say(format!("{} divergences", divergences.len()));
    for line in divergences.iter().take(40) {
        ctx.say(line);
    }
    ensure!(done > SEQUENCES && refused > SEQUENCES, "the sequences were too tame");
    ensure!(
        divergences.is_empty(),
        "{} divergences, the first: {}",
        divergences.len(),
        divergences[0]
    );
    Ok(())
}

fn iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    sysfs::to_vfio(EDU_SPARE)?;
    let probed = probe::bind_cdev(EDU_SPARE).context("bind the cdev")?;
    let ioas = probed.context.ioas_alloc()?;
    // With a device attached, as only then are there ranges and alignment to be refused by.
    probed.device.attach_pt(PtId::Ioas(ioas))?;
    let found = probed.context.iova_ranges(ioas)?;
    ctx.say(format!("{found:?}"));
    let (permitted, alignment) = (found.ranges, found.alignment);
    let limits = SimLimits { permitted, alignment, ..SimLimits::default() };
    let kernel = Kernel::Iommufd(probed.context.try_clone()?, ioas);
    compare(ctx, &kernel, &SimIoas::new(SimFlavour::Iommufd, limits))?;
    drop((kernel, probed));
    sysfs::to_host(EDU_SPARE, None)?;
    Ok(Outcome::Pass)
}

fn type1(ctx: &mut Ctx) -> Result<Outcome> {
    sysfs::to_vfio(EDU_SPARE)?;
    let group = probe::open_group(EDU_SPARE).context("open the group")?;
    let container = VfioContainer::open()?;
    group.set_container(&container)?;
    container.set_iommu_type1v2()?;
    let info = container.get_info()?;
    ctx.say(format!("{info:x?}"));
    let alignment = info.page_sizes & info.page_sizes.wrapping_neg();
    let kernel = Kernel::Type1(container);
    // This errno has changed over the years; which it is here is asked, like all features.
    let wraps = Act::Unmap { iova: u64::MAX - PAGE + 1, length: 2 * PAGE };
    let Err(type1_wrap) = kernel.act(wraps, 0) else { bail!("a range that wraps was unmapped") };
    ctx.say(format!("a range that wraps is {type1_wrap:?}"));
    ensure!([Errno::OVERFLOW, Errno::INVAL].contains(&type1_wrap), "{type1_wrap:?}");
    let permitted = info.iova_ranges;
    let limits = SimLimits { permitted, alignment, type1_wrap, ..SimLimits::default() };
    compare(ctx, &kernel, &SimIoas::new(SimFlavour::Type1, limits))?;
    drop(kernel);
    drop(group);
    sysfs::to_host(EDU_SPARE, None)?;
    Ok(Outcome::Pass)
}
