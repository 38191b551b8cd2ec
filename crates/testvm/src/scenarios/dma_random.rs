//! Random operations on the real kernel and on the simulated one, through the same fast path: every
//! answer is the same, and so is what the device finds.
#![expect(unsafe_code, reason = "maps memory by address")]

use anyhow::{Result, ensure};
use berth_dma::{AddressSpace, DmaError, IovaChoice, SimFlavour, SimIoas, SimLimits, Source};

use super::{
    dma::{Bench, PAGE, RW},
    dma_kinds::Memory,
};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        edu::{Edu, pattern},
    },
    wire::Capability::{Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("dma_random_iommufd", &[Iommufd, Cdev, Intremap], iommufd),
    Scenario::new("dma_random_type1", &[Type1, Intremap], type1),
];

const STEPS: u64 = 200_000;
/// How often the device looks.
const PROBES: u64 = 200;
const PAGES: u64 = 32;
/// Where fixed mappings go: few places, so that they meet.
const BASE: u64 = 0x100_0000;

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }
}

struct Pair<'a> {
    real: &'a AddressSpace,
    model: AddressSpace,
    sim: SimIoas,
    memory: Memory,
    refused: u64,
}

/// What of an answer has to be the same: the place, or the errno and kind.
fn shown(answer: Result<u64, DmaError>) -> Result<u64, String> {
    answer.map_err(|error| format!("{} {:?}", error.errno(), error.kind()))
}

impl Pair<'_> {
    fn step(&mut self, numbers: &mut Numbers) -> Result<()> {
        let (page, pages) = (numbers.below(24), 1 + numbers.below(4));
        let length = pages * PAGE;
        let (real, model) = match numbers.below(9) {
            0..3 => self.map(IovaChoice::Fixed(BASE + page * PAGE), numbers, length),
            3 | 4 => self.map(IovaChoice::Any, numbers, length),
            5 => {
                let iova = BASE + page * PAGE;
                let unmap = |space: &AddressSpace| shown(space.unmap(iova, length).map(|()| 0));
                (unmap(self.real), unmap(&self.model))
            }
            6 | 7 => {
                let live = self.model.regions();
                if live.is_empty() {
                    return Ok(());
                }
                let region = live[usize::try_from(numbers.below(live.len() as u64))?];
                let unmap = |space: &AddressSpace| {
                    shown(space.unmap(region.iova, region.length).map(|()| 0))
                };
                (unmap(self.real), unmap(&self.model))
            }
            _ if numbers.below(3) == 0 => {
                let live = self.model.regions();
                let some = live.iter().filter(|region| region.iova / PAGE % 3 != page % 3);
                let some: Vec<_> = some.map(|region| (region.iova, region.length)).collect();
                let unmap = |space: &AddressSpace| shown(space.unmap_batch(&some).map(|()| 0));
                (unmap(self.real), unmap(&self.model))
            }
            _ => return Ok(()),
        };
        self.refused += u64::from(real.is_err());
        ensure!(real == model, "the kernel: {real:?}; the simulation: {model:?}");
        Ok(())
    }

    fn map(
        &self,
        place: IovaChoice,
        numbers: &mut Numbers,
        length: u64,
    ) -> (Result<u64, String>, Result<u64, String>) {
        let memory = self.memory.page(numbers.below(PAGES - 4));
        // SAFETY: the memory stays for the rest of the process's life, and nothing refers to it.
        let map = |space: &AddressSpace| unsafe { space.map(place, memory, length, RW) };
        (shown(map(self.real)), shown(map(&self.model)))
    }

    /// The device reads one mapped page and writes another: the memory behind both is what the
    /// simulation says.
    fn probe(&self, edu: &Edu, numbers: &mut Numbers, seed: u8) -> Result<()> {
        ensure!(self.real.regions() == self.model.regions(), "the mirrors differ");
        let live: Vec<_> = self.model.regions().into_iter().filter(|r| r.iova < 1 << 31).collect();
        if live.is_empty() {
            return Ok(());
        }
        let mut pick = || -> Result<(u64, u64)> {
            let region = live[usize::try_from(numbers.below(live.len() as u64))?];
            let iova = region.iova + numbers.below(region.length / PAGE) * PAGE;
            let area = self.sim.lookup(iova).filter(|area| area.iova == region.iova);
            let Some(Source::Memory { address }) = area.map(|area| area.source) else {
                anyhow::bail!("the simulation has nothing at {iova:#x}")
            };
            let base = u64::try_from(self.memory.page(0).addr().get())?;
            Ok((iova, (address + (iova - region.iova) - base) / PAGE))
        };
        let ((from, from_page), (to, to_page)) = (pick()?, pick()?);
        let bytes = pattern(seed, usize::try_from(PAGE)?);
        self.memory.write(to_page, &vec![0; bytes.len()]);
        self.memory.write(from_page, &bytes);
        edu.copy_in(from, PAGE)?;
        edu.copy_out(to, PAGE)?;
        let back = self.memory.read(to_page, bytes.len());
        ensure!(back == bytes, "the device did not copy {from:#x} to {to:#x}");
        Ok(())
    }
}

fn random(ctx: &Ctx, bench: Bench, flavour: SimFlavour) -> Result<Outcome> {
    let edu = bench.edu()?;
    let limits = SimLimits { permitted: bench.space.ranges()?, ..SimLimits::default() };
    let sim = SimIoas::new(flavour, limits);
    let model = AddressSpace::simulated(sim.clone());
    let memory = Memory::new(PAGES)?;
    let mut pair = Pair { real: &bench.space, model, sim, memory, refused: 0 };
    let mut numbers = Numbers(0x5eed);
    for step in 0..STEPS {
        pair.step(&mut numbers).map_err(|error| error.context(format!("step {step}")))?;
        if step % (STEPS / PROBES) == 0 {
            pair.probe(&edu, &mut numbers, u8::try_from(step % 200)?)?;
        }
    }
    let left: u64 = pair.model.regions().iter().map(|region| region.length).sum();
    ctx.say(format!("{STEPS} operations, {} refused by both, {left:#x} bytes left", pair.refused));
    ensure!(pair.real.unmap_all()? == left, "the kernel had something else");
    drop(pair);
    bench.end(edu)
}

fn iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    random(ctx, Bench::iommufd()?, SimFlavour::Iommufd)
}

fn type1(ctx: &mut Ctx) -> Result<Outcome> {
    random(ctx, Bench::type1()?, SimFlavour::Type1)
}
