//! `guest_ram`: a GiB of a guest's memory, a memfd or huge pages, that the VMM has mapped already. Ours is
//! mapped by file where the kernel can, else by address; beside each of the ioctls for that. At most so
//! much of either is at most so much of the better one.
#![expect(unsafe_code, reason = "maps memory by address, which stays until it is unmapped")]

use std::os::fd::BorrowedFd;

use anyhow::{Context as _, Result};
use berth_dma::{AddressSpace, DmaPerms, IovaChoice};
use berth_measure::{Question, Row, Target};
use berth_uapi::IommufdOp;

use crate::{
    Places,
    call::{IOVA, SPARE, first, span},
    memory::{Kind, Memory, available},
    raw::{Raw, Span},
    site::Site,
    timing::{compare_times, time},
};

const LENGTH: u64 = 1 << 30;
const RW: DmaPerms = DmaPerms::READ_WRITE;

fn ours(space: &AddressSpace, memory: &Memory, by_file: bool) -> Result<f64> {
    let place = IovaChoice::Fixed(IOVA);
    let took = time(|| {
        match memory.file().filter(|_| by_file) {
            Some(file) => space.map_file(place, file, 0, LENGTH, RW),
            // SAFETY: the memory stays until it is unmapped, and nothing refers to it.
            None => unsafe { space.map(place, memory.base(), LENGTH, RW) },
        }?;
        Ok(())
    })?;
    space.unmap(IOVA, LENGTH)?;
    Ok(took)
}

fn by_address(raw: &Raw, span: &Span) -> Result<f64> {
    // SAFETY: as above.
    let took = time(|| unsafe { raw.map(span) })?;
    raw.unmap(span)?;
    Ok(took)
}

fn by_file(raw: &Raw, file: BorrowedFd<'_>, span: &Span) -> Result<f64> {
    let span = Span { address: 0, ..*span };
    let took = time(|| raw.map_file(file, &span))?;
    raw.unmap(&span)?;
    Ok(took)
}

/// Runs it.
///
/// # Errors
/// No device, or no memory of any kind.
pub(crate) fn bench(places: &Places) -> Result<Vec<Row>> {
    let site = Site::open(places)?;
    let (space, raw) = (site.space()?, site.raw());
    let iommufd = site.iommufd();
    let files = iommufd.map(|(iommufd, _)| iommufd.supports(IommufdOp::MapFile)).transpose()?;
    let files = files.unwrap_or(false);
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    notes.push(format!("mapped by {}", if files { "file" } else { "address" }));
    for kind in [Kind::Memfd, Kind::Huge2M, Kind::Huge1G] {
        if kind == Kind::Memfd && available()? < LENGTH + SPARE {
            notes.push("no memory here for a memfd of 1 GiB".to_owned());
            continue;
        }
        let memory = match Memory::new(kind, LENGTH) {
            Ok(memory) => memory,
            Err(error) => {
                notes.push(format!("{}: {error:#}", kind.word()));
                continue;
            }
        };
        let span = span(&memory);
        let question = |peer: &str| Question {
            name: "guest_ram",
            case: site.kernel.case(&format!("1 GiB, {} / {peer}", kind.word())),
            unit: "us",
            target: Target::AtMost(1.02),
        };
        let own = || ours(&space, &memory, files);
        rows.push(compare_times(&question("ioctl by address"), own, || by_address(&raw, &span))?.0);
        if files {
            let file = memory.file().context("memory without a file")?;
            let peer = || by_file(&raw, file, &span);
            rows.push(compare_times(&question("ioctl by file"), own, peer)?.0);
        }
    }
    let note = site.kernel.note(&notes.join("; "));
    Ok(rows.into_iter().enumerate().map(|(at, row)| first(at, row, &note)).collect())
}
