//! `map_call`: one map and one unmap of memory that is there, at an IOVA that the caller chose, beside
//! the same two ioctls from C on the same file.
#![expect(unsafe_code, reason = "maps memory by address, which stays until it is unmapped")]

use anyhow::Result;
use berth_dma::{AddressSpace, DmaPerms, IovaChoice};
use berth_measure::{Question, Row, Target};

use crate::{
    Places,
    counted::{What, allocations, by_tracing, marked},
    memory::{Kind, Memory, available},
    raw::Span,
    site::Site,
    timing::{compare_times, time},
};

/// Above what reaches 32 bits, and above what a platform reserves.
pub(crate) const IOVA: u64 = 0x1_0000_0000;
/// Pairs that are counted.
const COUNTED: u64 = 100;
/// What must be left beside the memory that is mapped.
pub(crate) const SPARE: u64 = 256 << 20;

const SIZES: [(&str, u64, Kind); 4] = [
    ("4K", 4 << 10, Kind::Small),
    ("64K", 64 << 10, Kind::Small),
    ("2M", 2 << 20, Kind::Large),
    ("1G", 1 << 30, Kind::Large),
];

/// What to map, and where.
pub(crate) fn span(memory: &Memory) -> Span {
    Span { address: memory.address(), iova: IOVA, length: memory.length() }
}

/// Ours.
pub(crate) fn pair(space: &AddressSpace, memory: &Memory) -> Result<()> {
    let length = memory.length();
    let place = IovaChoice::Fixed(IOVA);
    // SAFETY: the memory stays until it is unmapped, and nothing refers to it.
    unsafe { space.map(place, memory.base(), length, DmaPerms::READ_WRITE) }?;
    Ok(space.unmap(IOVA, length)?)
}

fn pairs(space: &AddressSpace, memory: &Memory) -> Result<()> {
    (0..COUNTED).try_for_each(|_| pair(space, memory))
}

/// What is counted by tracing.
///
/// # Errors
/// No device.
pub(crate) fn counted(places: &Places) -> Result<()> {
    let site = Site::open(places)?;
    let (space, memory) = (site.space()?, Memory::new(Kind::Small, 4 << 10)?);
    pair(&space, &memory)?;
    marked(|| pairs(&space, &memory))
}

/// Runs it.
///
/// # Errors
/// No device.
pub(crate) fn bench(places: &Places) -> Result<Vec<Row>> {
    // By a process of its own, so before this one has the device.
    let calls = (2 * COUNTED) as f64;
    let ioctls = by_tracing(places, What::Ioctls, "map_call")? / calls;
    let site = Site::open(places)?;
    let (space, raw) = (site.space()?, site.raw());
    let question = |case: &str, unit, target| Question {
        name: "map_call",
        case: site.kernel.case(case),
        unit,
        target,
    };
    let mut rows = Vec::new();
    let (mut notes, mut left_out) = (Vec::new(), Vec::new());
    for (word, length, kind) in SIZES {
        if available()? < length + SPARE {
            left_out.push(word);
            continue;
        }
        let memory = Memory::new(kind, length)?;
        let span = span(&memory);
        let case = format!("map, unmap {word} ({}) / ioctls in C", kind.word());
        let ours = || time(|| pair(&space, &memory));
        // SAFETY: the memory stays until it is unmapped, and nothing refers to it.
        let peer = || time(|| unsafe { raw.pairs(&span, 1) });
        let question = question(&case, "us", Target::AtMost(1.03));
        let (row, note) = compare_times(&question, ours, peer)?;
        notes.push(format!("{word}: {note} in C"));
        rows.push(row);
    }
    let memory = Memory::new(Kind::Small, 4 << 10)?;
    pair(&space, &memory)?;
    let heap = allocations(|| pairs(&space, &memory))? as f64 / calls;
    let counted = question("ioctls", "a call", Target::Exactly(1.0));
    rows.push(Row::counted(&counted, ioctls, 1.0));
    let counted = question("heap allocations", "a call", Target::Exactly(0.0));
    rows.push(Row::counted(&counted, heap, 0.0));
    if !left_out.is_empty() {
        notes.push(format!("no memory here for {}", left_out.join(", ")));
    }
    let note = site.kernel.note(&notes.join("; "));
    Ok(rows.into_iter().enumerate().map(|(at, row)| first(at, row, &note)).collect())
}

/// The note below the first row alone.
pub(crate) fn first(at: usize, row: Row, note: &str) -> Row {
    if at == 0 { row.with_note(note.to_owned()) } else { row }
}
