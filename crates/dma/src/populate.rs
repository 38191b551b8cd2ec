//! Having memory there before it is mapped: zeroing new pages is most of what a first map costs.
#![expect(unsafe_code, reason = "advises the kernel about memory")]

use std::num::NonZero;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use berth_uapi::Errno;
use rustix::mm::{Advice, madvise};

use crate::error::DmaError;
use crate::memory::as_u64;

/// What one call populates. While it goes on no thread of the process can map or unmap anything, not
/// even the stack of another one that is to help: the kernel keeps the process's memory map locked.
/// Large pages aren't shared, as pieces end where an address is a multiple of it.
const PIECE: usize = 32 << 20;

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
    let base = memory.as_ptr().expose_provenance();
    let (first, end) = (base / PIECE, base.saturating_add(length));
    let pieces = end.div_ceil(PIECE).saturating_sub(first);
    let next = AtomicUsize::new(0);
    let work = || loop {
        let piece = next.fetch_add(1, Ordering::Relaxed);
        if piece >= pieces {
            return Ok(());
        }
        let from = base.max((first + piece) * PIECE);
        let length = end.min((first + piece + 1) * PIECE) - from;
        // SAFETY: the caller's promise. Populating changes no contents.
        let done = unsafe {
            madvise(std::ptr::with_exposed_provenance_mut(from), length, Advice::LinuxPopulateWrite)
        };
        if done.is_err() {
            next.store(pieces, Ordering::Relaxed);
            return done;
        }
    };
    let populated = std::thread::scope(|scope| {
        // Where there can be no more threads, those that there are do it.
        let help = |_| std::thread::Builder::new().spawn_scoped(scope, work).ok();
        let helpers: Vec<_> = (1..threads.get().min(pieces)).map_while(help).collect();
        let own = work();
        let answers = helpers.into_iter().map(|helper| helper.join().unwrap_or(Err(Errno::IO)));
        answers.fold(own, Result::and)
    });
    populated.map_err(|errno| DmaError::Memory { op: "madvise", length: as_u64(length), errno })
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
        // Some pieces, and a page.
        let pages = 3 * (PIECE >> 12) + 1;
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
