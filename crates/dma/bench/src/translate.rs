//! `translate`: from the address of memory to its IOVA, in an address space of so many areas, by so many
//! threads. The peer keeps the areas in a sorted array, and looks there by binary search under an
//! `RwLock`.
#![expect(
    unsafe_code,
    reason = "maps memory by address, on a simulated IOMMU that never touches it"
)]

use std::{
    hint::black_box,
    ptr::NonNull,
    sync::RwLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use berth_dma::{AddressSpace, DmaPerms, IovaChoice, SimFlavour, SimIoas, SimLimits};
use berth_measure::{Question, Row, Target, compare, median};

use crate::{
    Places,
    counted::{What, by_tracing, marked},
    timing::cpu,
};

const SLICE: Duration = Duration::from_millis(40);
/// Looked up between two looks at the clock: few enough to stay in the cache.
const CHUNK: u64 = 4096;
/// With so many areas instructions are counted.
const COUNTED: u64 = 64;
const LENGTH: u64 = 4096;
/// One area lies behind the other with a gap, so that they stay apart.
const STRIDE: u64 = 2 * LENGTH;
const BASE: u64 = 0x1000_0000_0000;

/// Areas, and what is asked of one thread.
const CASES: [(u64, Target); 4] = [
    (1, Target::Within(5.0)),
    (64, Target::AtMost(0.5)),
    (4096, Target::Beside),
    (1_000_000, Target::Beside),
];

struct Area {
    address: u64,
    iova: u64,
    length: u64,
}

fn pointer(address: u64) -> Result<NonNull<u8>> {
    let address = usize::try_from(address)?;
    NonNull::new(std::ptr::without_provenance_mut(address)).context("address 0")
}

fn fill(areas: u64) -> Result<(AddressSpace, RwLock<Vec<Area>>)> {
    let limits = SimLimits { entries: usize::MAX, ..SimLimits::default() };
    let space = AddressSpace::simulated(SimIoas::new(SimFlavour::Iommufd, limits));
    let mut list = Vec::new();
    for number in 0..areas {
        let address = BASE + number * STRIDE;
        let memory = pointer(address)?;
        // SAFETY: the simulated IOMMU never touches memory.
        let iova = unsafe { space.map(IovaChoice::Any, memory, LENGTH, DmaPerms::READ_WRITE) }?;
        list.push(Area { address, iova, length: LENGTH });
    }
    Ok((space, RwLock::new(list)))
}

fn in_array(list: &RwLock<Vec<Area>>, address: u64, length: u64) -> Option<u64> {
    let list = list.read().ok()?;
    let at = list.partition_point(|area| area.address <= address).checked_sub(1)?;
    let area = list.get(at)?;
    let offset = address - area.address;
    (offset < area.length && length <= area.length - offset).then_some(area.iova + offset)
}

/// Addresses to ask for, at random.
fn questions(areas: u64, mut seed: u64) -> Vec<u64> {
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    (0..CHUNK).map(|_| BASE + next() % areas * STRIDE + next() % (LENGTH / 2)).collect()
}

/// Nanoseconds that a thread needs for one, while so many do the same.
fn slice(areas: u64, threads: usize, look: impl Fn(u64) -> Option<u64> + Sync) -> Result<f64> {
    let one = |seed: u64| {
        let questions = questions(areas, seed);
        let (mut count, mut missed) = (0, 0);
        let (began, before) = (Instant::now(), cpu());
        while began.elapsed() < SLICE {
            for address in &questions {
                missed += u64::from(black_box(look(*address)).is_none());
            }
            count += CHUNK;
        }
        ((cpu() - before) * 1e9 / count as f64, missed)
    };
    let answers: Vec<(f64, u64)> = thread::scope(|scope| {
        let more: Vec<_> =
            (2_u64..).take(threads - 1).map(|seed| scope.spawn(move || one(seed))).collect();
        let mut answers = vec![one(1)];
        answers.extend(more.into_iter().filter_map(|thread| thread.join().ok()));
        answers
    });
    ensure!(answers.len() == threads, "a thread panicked");
    ensure!(answers.iter().all(|(_, missed)| *missed == 0), "memory that is mapped wasn't found");
    Ok(median(&answers.into_iter().map(|(time, _)| time).collect::<Vec<_>>()))
}

fn count(look: impl Fn(u64) -> Option<u64>) -> Result<()> {
    let questions = questions(COUNTED, 1);
    marked(|| {
        let found = questions.iter().filter_map(|address| black_box(look(*address))).count();
        ensure!(found == questions.len(), "memory that is mapped wasn't found");
        Ok(())
    })
}

/// Counts ours.
///
/// # Errors
/// Memory that is mapped wasn't found.
pub(crate) fn ours(_: &Places) -> Result<()> {
    let (space, _) = fill(COUNTED)?;
    let ask = |address| space.translate(pointer(address).ok()?, 64);
    ask(BASE);
    count(ask)
}

/// Counts the peer.
///
/// # Errors
/// As ours.
pub(crate) fn in_an_array(_: &Places) -> Result<()> {
    let (_, list) = fill(COUNTED)?;
    count(|address| in_array(&list, address, 64))
}

/// Runs it.
///
/// # Errors
/// Memory that is mapped wasn't found.
pub(crate) fn bench(places: &Places) -> Result<Vec<Row>> {
    let most = thread::available_parallelism()?.get();
    let mut counts = vec![1, 2.min(most), most];
    counts.dedup();
    let counted = |name| by_tracing(places, What::Instructions, name);
    let question = Question {
        name: "translate",
        case: format!("instructions, {COUNTED} areas / sorted array, RwLock"),
        unit: "a call",
        target: Target::Beside,
    };
    let calls = CHUNK as f64;
    let (own, others) = (counted("translate")? / calls, counted("translate in an array")? / calls);
    let mut rows = vec![Row::counted(&question, own, others)];
    for (areas, alone) in CASES {
        let (space, list) = fill(areas)?;
        let ask = |address| pointer(address).ok().and_then(|memory| space.translate(memory, 64));
        ensure!(ask(BASE) == in_array(&list, BASE, 64), "both have different answers");
        for threads in counts.iter().copied() {
            let target = match alone {
                Target::Within(_) if threads > 1 => Target::Beside,
                // A target of the ratio is one for as many threads as there are.
                other => other,
            };
            let plural = if threads == 1 { "thread" } else { "threads" };
            let question = Question {
                name: "translate",
                case: format!("{areas} areas, {threads} {plural} / sorted array, RwLock"),
                unit: "ns",
                target,
            };
            let mut ours = || slice(areas, threads, ask);
            let mut peer = || slice(areas, threads, |address| in_array(&list, address, 64));
            rows.push(compare(&question, &mut ours, &mut peer)?);
        }
    }
    Ok(rows)
}
