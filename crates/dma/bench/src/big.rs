//! `big_region`: 256 GiB of IOVA, by as few mappings as can be. One huge page of a GiB lies 256 times one
//! behind the other in memory, so that a small machine has as much. The peer maps pieces of 2 MiB, which
//! a container refuses at half of it, when it has 65,535 mappings.
#![expect(unsafe_code, reason = "maps memory by address, which stays until it is unmapped")]

use anyhow::{Result, bail, ensure};
use berth_dma::{AddressSpace, DmaError, DmaPerms, IovaChoice, Planned};
use berth_measure::{Question, Row, Target};

use crate::{
    Places,
    call::{IOVA, first, span},
    memory::{Kind, Memory},
    raw::Span,
    site::{Backend, Site},
    timing::time,
};

const GIB: u64 = 1 << 30;
const PIECE: u64 = 2 << 20;
const TIMES: usize = 256;
/// More mappings than a container has.
const TOO_MANY: u64 = 70_000;

/// Runs it.
///
/// # Errors
/// No device, or no huge page of a GiB.
pub(crate) fn bench(places: &Places) -> Result<Vec<Row>> {
    let site = Site::open(places)?;
    let (space, raw) = (site.space()?, site.raw());
    let memory = Memory::repeated(Kind::Huge1G, GIB, TIMES)?;
    let span = span(&memory);
    let mut entries = 0;
    let took = time(|| {
        let place = IovaChoice::Fixed(IOVA);
        // SAFETY: the memory stays until it is unmapped, and nothing refers to it.
        unsafe { space.map(place, memory.base(), memory.length(), DmaPerms::READ_WRITE) }?;
        entries = space.stats().mappings;
        Ok(())
    })?;
    let back = time(|| Ok(space.unmap(IOVA, memory.length())?))?;
    let mut done = 0;
    let mut refused = None;
    let pieces = time(|| {
        // SAFETY: as above.
        let (bytes, answer) = unsafe { raw.map_each(&span, PIECE) };
        (done, refused) = (bytes, answer.err());
        Ok(())
    })?;
    ensure!(done > 0, "not one piece was mapped: {refused:?}");
    raw.unmap(&Span { length: done, ..span })?;
    let question = |case: &str, target| Question {
        name: "big_region",
        case: site.kernel.case(case),
        unit: "entries",
        target,
    };
    let (gib, outcome) = (
        done as f64 / GIB as f64,
        refused.map_or("success".to_owned(), |error| format!("then {error:#}")),
    );
    let note = site.kernel.note(&format!(
        "one mapping of {TIMES} GiB: mapped in {:.0} ms, unmapped in {:.0} ms; pieces of 2 MiB: \
         {gib:.3} GiB in {:.0} ms, {outcome}",
        took / 1e3,
        back / 1e3,
        pieces / 1e3
    ));
    let case = format!("{TIMES} GiB at once / pieces of 2 MiB, {gib:.3} GiB");
    let pieces = (done / PIECE) as f64;
    let mut rows =
        vec![Row::counted(&question(&case, Target::Exactly(1.0)), entries as f64, pieces)];
    if site.kernel.backend == Backend::Type1 {
        let made = refused_first(&space)?;
        let case = format!("made before {TOO_MANY} are refused / pieces in C");
        rows.push(Row::counted(&question(&case, Target::Exactly(0.0)), made, pieces));
    }
    Ok(rows.into_iter().enumerate().map(|(at, row)| first(at, row, &note)).collect())
}

/// Asks for what can't be, and says how much was mapped until that was told.
fn refused_first(space: &AddressSpace) -> Result<f64> {
    let planned: Vec<Planned> = (0..TOO_MANY)
        .map(|page| Planned { iova: IovaChoice::Fixed(IOVA + 8192 * page), length: 4096 })
        .collect();
    match space.preflight(&planned) {
        Err(DmaError::EntryLimit { .. }) => Ok(space.stats().mappings as f64),
        other => bail!("{TOO_MANY} mappings in a container: {other:?}"),
    }
}
