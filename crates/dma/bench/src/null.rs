//! `map_call_null`: what a call costs outside of the kernel. A filter answers the ioctls with success
//! before they reach the file, for both sides; see `peers/fake.c`.
#![expect(unsafe_code, reason = "maps memory by address, though nothing is mapped")]

use std::{
    fs::OpenOptions,
    os::fd::{AsFd as _, OwnedFd},
    ptr::NonNull,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use berth_dma::{AddressSpace, DmaPerms, IovaChoice};
use berth_measure::{Question, Row, Target, compare, median, percentile};
use berth_uapi::VfioContainer;

use crate::{
    Places,
    counted::{What, allocations, by_tracing, marked},
    raw::{Raw, Span, fake_container},
    timing::cpu,
};

const SLICE: Duration = Duration::from_millis(50);
/// Pairs of calls that are timed together.
const PAIRS: u64 = 1000;
/// Pairs of which instructions are counted.
const COUNTED: u64 = 500;
const SPAN: Span = Span { address: 0x7000_0000, iova: 0x10_0000, length: 4096 };

struct Sides {
    space: AddressSpace,
    file: OwnedFd,
}

impl Sides {
    /// For this thread alone.
    fn new() -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let container = VfioContainer::from_fd(file.try_clone()?.into(), "no container");
        fake_container()?;
        let sides = Self { space: AddressSpace::type1(container), file: file.into() };
        // The addresses are asked for now, and what is kept has its size.
        sides.ours(1)?;
        Ok(sides)
    }

    fn ours(&self, pairs: u64) -> Result<()> {
        let address = usize::try_from(SPAN.address)?;
        let memory = NonNull::new(std::ptr::without_provenance_mut(address)).context("null")?;
        let place = IovaChoice::Fixed(SPAN.iova);
        for _ in 0..pairs {
            // SAFETY: the filter keeps the kernel from mapping anything.
            unsafe { self.space.map(place, memory, SPAN.length, DmaPerms::READ_WRITE) }?;
            self.space.unmap(SPAN.iova, SPAN.length)?;
        }
        Ok(())
    }

    fn in_c(&self, pairs: u64) -> Result<()> {
        // SAFETY: as above.
        unsafe { Raw::type1(self.file.as_fd()).pairs(&SPAN, pairs) }
    }
}

/// The median of a call, and what 99 of 100 are not above.
fn slice(run: impl Fn(u64) -> Result<()>) -> Result<[f64; 2]> {
    let began = Instant::now();
    let mut times = Vec::new();
    while began.elapsed() < SLICE {
        let before = cpu();
        run(PAIRS)?;
        times.push((cpu() - before) * 1e9 / (2 * PAIRS) as f64);
    }
    Ok([median(&times), percentile(&times, 99)])
}

/// Counts ours.
///
/// # Errors
/// No filter.
pub(crate) fn ours(_: &Places) -> Result<()> {
    let sides = Sides::new()?;
    marked(|| sides.ours(COUNTED))
}

/// Counts the peer.
///
/// # Errors
/// No filter.
pub(crate) fn in_c(_: &Places) -> Result<()> {
    let sides = Sides::new()?;
    marked(|| sides.in_c(COUNTED))
}

/// Runs it.
///
/// # Errors
/// No filter.
pub(crate) fn bench(places: &Places) -> Result<Vec<Row>> {
    let calls = (2 * COUNTED) as f64;
    let own = by_tracing(places, What::Instructions, "null")? / calls;
    let others = by_tracing(places, What::Instructions, "null in C")? / calls;
    // The filter stays with the thread that installs it.
    let thread = std::thread::scope(|scope| scope.spawn(timed).join());
    let (row, allocated) = thread.map_err(|_| anyhow::anyhow!("the thread panicked"))??;
    let question = |case: &str, unit, target| Question {
        name: "map_call_null",
        case: case.to_owned(),
        unit,
        target,
    };
    let instructions = question("instructions outside of the kernel", "a call", Target::Beside);
    let heap = question("heap allocations", "a call", Target::Exactly(0.0));
    Ok(vec![row, Row::counted(&instructions, own, others), Row::counted(&heap, allocated, 0.0)])
}

fn timed() -> Result<(Row, f64)> {
    let sides = Sides::new()?;
    let question = Question {
        name: "map_call_null",
        case: "map, unmap without the kernel's work / C".to_owned(),
        unit: "ns",
        target: Target::Over(30.0),
    };
    let (mut own, mut others) = (Vec::new(), Vec::new());
    let mut ours = || {
        let [middle, most] = slice(|pairs| sides.ours(pairs))?;
        own.push(most);
        Ok(middle)
    };
    let mut peer = || {
        let [middle, most] = slice(|pairs| sides.in_c(pairs))?;
        others.push(most);
        Ok(middle)
    };
    let row = compare(&question, &mut ours, &mut peer)?;
    let note = format!(
        "99 of 100 times {PAIRS} pairs took at most {:.0} ns a call, and {:.0} ns in C",
        median(&own),
        median(&others)
    );
    let allocated = allocations(|| sides.ours(COUNTED))?;
    Ok((row.with_note(note), allocated as f64 / (2 * COUNTED) as f64))
}
