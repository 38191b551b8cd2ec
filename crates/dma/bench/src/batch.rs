//! `map_batch`: many buffers of a page that lie one behind the other, and are to live together. Beside (a)
//! an ioctl for each, and (b) one ioctl for all, by who knows that they do. And `unmap_range`: taking
//! down as many mappings that were made apart, likewise.
#![expect(unsafe_code, reason = "maps memory by address, which stays until it is unmapped")]

use std::ptr::NonNull;

use anyhow::Result;
use berth_dma::{AddressSpace, BatchBuffer, DmaPerms, IovaChoice};
use berth_measure::{Question, Row, Target};

use crate::{
    Places,
    call::{first, span},
    memory::{Kind, Memory},
    raw::{Raw, Span},
    site::Site,
    timing::{compare_rates, compare_times, time},
};

const PAGE: u64 = 4096;
const COUNTS: [u64; 2] = [256, 4096];
const RW: DmaPerms = DmaPerms::READ_WRITE;

/// A page of the memory, and its IOVA.
fn pages(memory: &Memory, span: &Span) -> impl Iterator<Item = (u64, NonNull<u8>)> {
    let (base, iova) = (memory.base(), span.iova);
    (0..span.length).step_by(4096).map(move |offset| {
        let by = usize::try_from(offset).unwrap_or(0);
        (iova + offset, base.map_addr(|address| address.saturating_add(by)))
    })
}

fn buffers(memory: &Memory, span: &Span) -> Vec<BatchBuffer> {
    let of = |(iova, memory)| BatchBuffer { iova: IovaChoice::Fixed(iova), memory, length: PAGE };
    pages(memory, span).map(of).collect()
}

fn map_batch(space: &AddressSpace, buffers: &[BatchBuffer]) -> Result<f64> {
    let mut areas = Vec::new();
    let took = time(|| {
        // SAFETY: the memory stays until it is unmapped, and nothing refers to it.
        let batch = unsafe { space.map_batch(buffers, RW) }?;
        areas.extend_from_slice(batch.areas());
        Ok(())
    })?;
    space.unmap_batch(&areas)?;
    Ok(took)
}

fn map_each(raw: &Raw, span: &Span) -> Result<f64> {
    // SAFETY: as above.
    let took = time(|| unsafe { raw.map_each(span, PAGE) }.1)?;
    raw.unmap(span)?;
    Ok(took)
}

fn map_one(raw: &Raw, span: &Span) -> Result<f64> {
    // SAFETY: as above.
    let took = time(|| unsafe { raw.map(span) })?;
    raw.unmap(span)?;
    Ok(took)
}

/// Runs `map_batch`.
///
/// # Errors
/// No device.
pub(crate) fn map(places: &Places) -> Result<Vec<Row>> {
    let site = Site::open(places)?;
    let (space, raw) = (site.space()?, site.raw());
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    for (kind, least) in [(Kind::Small, 5.0), (Kind::Large, 40.0)] {
        for count in COUNTS {
            // A large page needs room for all of it, though less is mapped.
            let memory = Memory::new(kind, (count * PAGE).max(2 << 20))?;
            let span = Span { length: count * PAGE, ..span(&memory) };
            let buffers = buffers(&memory, &span);
            let question = |peer: &str, unit, target| Question {
                name: "map_batch",
                case: site.kernel.case(&format!("{count} buffers, {} / {peer}", kind.word())),
                unit,
                target,
            };
            rows.push(compare_rates(
                &question("an ioctl each", "buf./ms", Target::AtLeast(least)),
                count,
                || map_batch(&space, &buffers),
                || map_each(&raw, &span),
            )?);
            let (row, note) = compare_times(
                &question("one ioctl", "us", Target::AtMost(1.05)),
                || map_batch(&space, &buffers),
                || map_one(&raw, &span),
            )?;
            notes.push(format!("{count} buffers, {}: {note} of one ioctl", kind.word()));
            rows.push(row);
        }
    }
    let note = site.kernel.note(&notes.join("; "));
    Ok(rows.into_iter().enumerate().map(|(at, row)| first(at, row, &note)).collect())
}

fn unmap_batch(space: &AddressSpace, memory: &Memory, span: &Span) -> Result<f64> {
    let mut ranges = Vec::new();
    for (iova, page) in pages(memory, span) {
        // SAFETY: the memory stays until it is unmapped, and nothing refers to it.
        unsafe { space.map(IovaChoice::Fixed(iova), page, PAGE, RW) }?;
        ranges.push((iova, PAGE));
    }
    time(|| Ok(space.unmap_batch(&ranges)?))
}

fn unmap_raw(raw: &Raw, span: &Span, each: bool) -> Result<f64> {
    // SAFETY: as above.
    unsafe { raw.map_each(span, PAGE) }.1?;
    time(|| if each { raw.unmap_each(span, PAGE) } else { raw.unmap(span) })
}

/// Runs `unmap_range`.
///
/// # Errors
/// No device.
pub(crate) fn unmap(places: &Places) -> Result<Vec<Row>> {
    let site = Site::open(places)?;
    let (space, raw) = (site.space()?, site.raw());
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    for count in COUNTS {
        let memory = Memory::new(Kind::Small, count * PAGE)?;
        let span = span(&memory);
        let question = |peer: &str, unit, target| Question {
            name: "unmap_range",
            case: site.kernel.case(&format!("{count} mappings of 4K / {peer}")),
            unit,
            target,
        };
        rows.push(compare_rates(
            &question("an ioctl each", "map./ms", Target::AtLeast(1.2)),
            count,
            || unmap_batch(&space, &memory, &span),
            || unmap_raw(&raw, &span, true),
        )?);
        let (row, note) = compare_times(
            &question("one ioctl", "us", Target::AtMost(1.05)),
            || unmap_batch(&space, &memory, &span),
            || unmap_raw(&raw, &span, false),
        )?;
        notes.push(format!("{count} mappings: {note} of one ioctl"));
        rows.push(row);
    }
    let note = site.kernel.note(&notes.join("; "));
    Ok(rows.into_iter().enumerate().map(|(at, row)| first(at, row, &note)).collect())
}
