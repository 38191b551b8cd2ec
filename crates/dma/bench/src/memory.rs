//! Memory to map: touched once, and there until it is dropped.
#![expect(unsafe_code, reason = "maps memory")]

use std::{
    fs,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    ptr::NonNull,
};

use anyhow::{Context as _, Result};
use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap},
};

/// What stands behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Small pages of this process.
    Small,
    /// Transparent large pages of this process.
    Large,
    /// A memfd of small pages.
    Memfd,
    /// A memfd of huge pages of 2 MiB.
    Huge2M,
    /// A memfd of huge pages of 1 GiB.
    Huge1G,
}

impl Kind {
    /// What it is called.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Small => "4K pages",
            Self::Large => "THP",
            Self::Memfd => "memfd",
            Self::Huge2M => "hugetlb 2M",
            Self::Huge1G => "hugetlb 1G",
        }
    }
}

/// Memory. Nothing refers to it but by address.
#[derive(Debug)]
pub(crate) struct Memory {
    base: NonNull<u8>,
    /// What lies in front of `base`, so that that lies at a large page's start.
    whole: (NonNull<u8>, usize),
    length: u64,
    file: Option<OwnedFd>,
}

const LARGE: usize = 1 << 30;
const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

fn place(base: *mut std::ffi::c_void) -> Result<NonNull<u8>> {
    NonNull::new(base.cast()).context("memory at address 0")
}

impl Memory {
    /// So much, which lies at the start of a gibibyte, so that the largest pages can be used.
    ///
    /// # Errors
    /// There is none, or the kernel has none of this kind.
    pub(crate) fn new(kind: Kind, length: u64) -> Result<Self> {
        Self::repeated(kind, length, 1)
    }

    /// A file of so much, so often one behind the other.
    ///
    /// # Errors
    /// As [`Memory::new`].
    pub(crate) fn repeated(kind: Kind, length: u64, times: usize) -> Result<Self> {
        let flags = match kind {
            Kind::Small | Kind::Large => None,
            Kind::Memfd => Some(MemfdFlags::CLOEXEC),
            Kind::Huge2M => Some(MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB),
            Kind::Huge1G => Some(MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB),
        };
        let file = flags.map(|flags| memfd_create("bench", flags)).transpose();
        let file = file.with_context(|| format!("a memfd of {}", kind.word()))?;
        if let Some(file) = &file {
            ftruncate(file, length).context("give it a size")?;
        }
        let one = usize::try_from(length)?;
        let size = one * times + LARGE;
        let none = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice; it replaces nothing.
        let whole = unsafe { mmap_anonymous(std::ptr::null_mut(), size, ProtFlags::empty(), none) };
        let whole = place(whole.context("reserve addresses")?)?;
        let front = whole.addr().get().next_multiple_of(LARGE) - whole.addr().get();
        let base = whole.map_addr(|address| address.saturating_add(front));
        let memory = Self { base, whole: (whole, size), length: length * times as u64, file };
        for number in 0..times {
            memory.put(kind, number * one, one)?;
        }
        memory.touch(kind, one)?;
        Ok(memory)
    }

    fn at(&self, offset: usize) -> *mut std::ffi::c_void {
        self.base.map_addr(|address| address.saturating_add(offset)).as_ptr().cast()
    }

    fn put(&self, kind: Kind, offset: usize, length: usize) -> Result<()> {
        let at = self.at(offset);
        match &self.file {
            Some(file) => {
                let flags = MapFlags::SHARED | MapFlags::FIXED;
                // SAFETY: inside the addresses that were reserved, which nothing else uses.
                unsafe { mmap(at, length, READ_WRITE, flags, file, 0) }
            }
            None => {
                let flags = MapFlags::PRIVATE | MapFlags::FIXED;
                // SAFETY: as above.
                unsafe { mmap_anonymous(at, length, READ_WRITE, flags) }
            }
        }
        .with_context(|| format!("map {length} bytes of {}", kind.word()))?;
        let advice = match kind {
            Kind::Small => Advice::LinuxNoHugepage,
            Kind::Large => Advice::LinuxHugepage,
            _ => return Ok(()),
        };
        // SAFETY: memory that was mapped just now. The advice changes no contents.
        unsafe { madvise(at, length, advice) }.context("advise large pages, or none")
    }

    fn touch(&self, kind: Kind, length: usize) -> Result<()> {
        // SAFETY: memory that was mapped by `put`; populating changes no contents.
        unsafe { madvise(self.at(0), length, Advice::LinuxPopulateWrite) }
            .with_context(|| format!("have {length} bytes of {} there", kind.word()))
    }

    /// Its first byte.
    pub(crate) const fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Its address.
    pub(crate) fn address(&self) -> u64 {
        u64::try_from(self.base.addr().get()).unwrap_or(0)
    }

    /// How long it is.
    pub(crate) const fn length(&self) -> u64 {
        self.length
    }

    /// The file, where it is one.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(|file| file.as_fd())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let (base, length) = self.whole;
        // SAFETY: all of what was reserved, and nothing else. Benches unmap it for devices before.
        let _ = unsafe { munmap(base.as_ptr().cast(), length) };
    }
}

/// How much memory there is to take.
///
/// # Units
/// Bytes.
pub(crate) fn available() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("read how much memory there is")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(number.context("nothing about available memory")? << 10)
}
