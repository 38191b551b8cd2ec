//! The peers in C, by their functions.
#![expect(unsafe_code, reason = "calls C, which maps memory by address")]

use std::os::fd::{AsRawFd, BorrowedFd};

use anyhow::{Result, bail};
use berth_uapi::Errno;

/// A container, or an iommufd with an address space in it: the descriptor that ours stands on, too.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Raw {
    fd: i32,
    /// 0 for a container.
    ioas: u32,
}

/// What is mapped, and where.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Span {
    /// Of memory, or where in a file.
    pub(crate) address: u64,
    pub(crate) iova: u64,
    pub(crate) length: u64,
}

unsafe extern "C" {
    fn raw_map(it: *const Raw, span: *const Span) -> i32;
    fn raw_unmap(it: *const Raw, span: *const Span) -> i32;
    fn raw_map_file(it: *const Raw, file: i32, span: *const Span) -> i32;
    fn raw_pairs(it: *const Raw, span: *const Span, count: u64) -> i32;
    fn raw_map_each(it: *const Raw, span: *const Span, piece: u64, done: *mut u64) -> i32;
    fn raw_unmap_each(it: *const Raw, span: *const Span, piece: u64) -> i32;
    fn raw_fake_container() -> i32;
}

fn outcome(what: &str, answer: i32) -> Result<()> {
    match answer {
        0 => Ok(()),
        errno => bail!("{what} in C: {}", Errno::from_raw_os_error(errno)),
    }
}

impl Raw {
    /// A container.
    pub(crate) fn type1(fd: BorrowedFd<'_>) -> Self {
        Self { fd: fd.as_raw_fd(), ioas: 0 }
    }

    /// An address space of an iommufd.
    pub(crate) fn iommufd(fd: BorrowedFd<'_>, ioas: u32) -> Self {
        Self { fd: fd.as_raw_fd(), ioas }
    }

    /// One ioctl that maps.
    ///
    /// # Safety
    ///
    /// As for all that map here: the memory stays where it is until it is unmapped, and nothing
    /// refers to it.
    pub(crate) unsafe fn map(&self, span: &Span) -> Result<()> {
        // SAFETY: both are live; the memory is the caller's promise.
        outcome("map", unsafe { raw_map(self, span) })
    }

    /// One ioctl that unmaps.
    pub(crate) fn unmap(&self, span: &Span) -> Result<()> {
        // SAFETY: both are live.
        outcome("unmap", unsafe { raw_unmap(self, span) })
    }

    /// One ioctl that maps a file.
    pub(crate) fn map_file(&self, file: BorrowedFd<'_>, span: &Span) -> Result<()> {
        // SAFETY: all are live; memory is named by its file.
        outcome("map a file", unsafe { raw_map_file(self, file.as_raw_fd(), span) })
    }

    /// Maps and unmaps, so often.
    ///
    /// # Safety
    ///
    /// As [`Raw::map`].
    pub(crate) unsafe fn pairs(&self, span: &Span, count: u64) -> Result<()> {
        // SAFETY: both are live; the memory is the caller's promise.
        outcome("map and unmap", unsafe { raw_pairs(self, span, count) })
    }

    /// Maps piece by piece. How many bytes were mapped is told also where one was refused.
    ///
    /// # Safety
    ///
    /// As [`Raw::map`].
    pub(crate) unsafe fn map_each(&self, span: &Span, piece: u64) -> (u64, Result<()>) {
        let mut done = 0;
        // SAFETY: all are live; the memory is the caller's promise.
        let answer = unsafe { raw_map_each(self, span, piece, &raw mut done) };
        (done, outcome("map piece by piece", answer))
    }

    /// Unmaps what was mapped piece by piece, likewise.
    pub(crate) fn unmap_each(&self, span: &Span, piece: u64) -> Result<()> {
        // SAFETY: both are live.
        outcome("unmap piece by piece", unsafe { raw_unmap_each(self, span, piece) })
    }
}

/// Lets any file answer as a container, for this thread and those that it starts, for good.
pub(crate) fn fake_container() -> Result<()> {
    // SAFETY: calls that name no container's ioctl stay as they are.
    outcome("install a filter", unsafe { raw_fake_container() })
}
