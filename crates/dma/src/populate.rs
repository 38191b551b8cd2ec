//! Having memory there before it is mapped: zeroing new pages is most of what a first map costs.
#![expect(unsafe_code, reason = "advises the kernel about memory")]

use std::num::NonZero;
use std::ptr::NonNull;

use berth_uapi::Errno;
use rustix::mm::{Advice, madvise};

use crate::error::DmaError;
use crate::memory::as_u64;

/// What one thread is given at least: the size of a large page, so that none is shared.
const SHARE: usize = 2 << 20;

/// Makes the pages of this memory present and writable, with several threads.
///
/// Its contents don't change. Pages of a file or of huge pages are allocated, so that too few of
/// them are an error here and not later.
///
/// # Errors
///
/// `NoMemory`; `BadAddress`: not all of it is mapped in this process; `Invalid`: `memory` isn't at a
/// page's start, or the kernel is older than 5.14.
///
/// # Safety
///
/// `length` bytes at `memory` must be memory that this process may write to, and stay so meanwhile.
///
/// # Kernel
///
/// `MADV_POPULATE_WRITE`, 5.14.
pub unsafe fn populate(
    memory: NonNull<u8>,
    length: usize,
    threads: NonZero<usize>,
) -> Result<(), DmaError> {
    let share = length.div_ceil(threads.get()).next_multiple_of(SHARE);
    let base = memory.as_ptr().expose_provenance();
    let shares = (0..length).step_by(share).map(|at| (base + at, share.min(length - at)));
    let failed = std::thread::scope(|scope| {
        let workers: Vec<_> = shares
            .map(|(at, length)| {
                scope.spawn(move || {
                    let start = std::ptr::with_exposed_provenance_mut(at);
                    // SAFETY: the caller's promise. Populating changes no contents.
                    unsafe { madvise(start, length, Advice::LinuxPopulateWrite) }
                })
            })
            .collect();
        let answers = workers.into_iter().map(|worker| worker.join().unwrap_or(Err(Errno::IO)));
        answers.filter_map(Result::err).next()
    });
    failed.map_or(Ok(()), |errno| {
        Err(DmaError::Memory { op: "madvise", length: as_u64(length), errno })
    })
}

/// Asks for transparent large pages, for memory that isn't there yet.
///
/// # Errors
///
/// `Invalid`: the kernel has none, or `memory` isn't at a page's start.
///
/// # Safety
///
/// `length` bytes at `memory` must be mapped in this process, and stay so meanwhile.
pub unsafe fn advise_large_pages(memory: NonNull<u8>, length: usize) -> Result<(), DmaError> {
    // SAFETY: the caller's promise. The advice changes no contents.
    unsafe { madvise(memory.as_ptr().cast(), length, Advice::LinuxHugepage) }
        .map_err(|errno| DmaError::Memory { op: "madvise", length: as_u64(length), errno })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::DmaBuffer;

    /// How many pages of a buffer are there, by the kernel's word for each.
    fn present(buffer: &DmaBuffer) -> usize {
        const PRESENT: u64 = 1 << 63;
        let (memory, page) = (buffer.memory(), crate::page_bytes());
        let first = as_u64(memory.base().as_ptr().addr()) / page;
        let pages = memory.len() / usize::try_from(page).expect("small");
        let mut entries = vec![0; pages * 8];
        let pagemap = std::fs::File::open("/proc/self/pagemap").expect("pagemap");
        pagemap.read_exact_at(&mut entries, first * 8).expect("an entry for each page");
        let entries =
            entries.chunks_exact(8).map(|it| u64::from_ne_bytes(it.try_into().expect("8")));
        entries.filter(|entry| entry & PRESENT != 0).count()
    }

    #[test]
    fn every_page_is_there_and_nothing_is_lost() {
        let threads = NonZero::new(2).expect("two");
        let pages = (16 << 8) + 1;
        let mut buffer = DmaBuffer::new(pages << 12).expect("memory");
        buffer.write(5 << 20, b"kept").expect("inside");
        let before = present(&buffer);
        assert!(before < pages, "all of it is there before");
        buffer.populate(threads).expect("memory");
        assert_eq!(present(&buffer), pages, "{before} were there before");
        let mut bytes = [0; 4];
        buffer.read(5 << 20, &mut bytes).expect("inside");
        assert_eq!(&bytes, b"kept");
        let page = NonNull::new(std::ptr::without_provenance_mut(4096)).expect("not null");
        // SAFETY: nothing is mapped there, which is what the kernel is to say.
        let error = unsafe { populate(page, 4096, threads) }.expect_err("nothing is there");
        assert_eq!(error.errno(), Errno::NOMEM, "{error}");
    }
}
