//! What is in a context, noted beside its descriptor: the kernel doesn't tell. The note is a file in
//! memory in the same store, so that it lives exactly as long as what it is about, and a client's
//! registration waits for no disk.

use std::{io, os::fd::OwnedFd};

use berth_host::{BackendKind, PciAddress};
use berth_ownership::{ContextId, DomainId, HolderProcess, ReservationId};
use rustix::{
    fs::MemfdFlags,
    io::{pread, pwrite},
};
use serde::{Deserialize, Serialize};

/// The format of notes that this build writes and reads. Fields may be added to it.
const FORMAT: u32 = 1;

/// More than any note has.
const MOST_BYTES: u64 = 64 << 20;

/// What is in a context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    format: u32,
    pub(crate) context: ContextId,
    pub(crate) backend: BackendKind,
    /// The identity that has the context's descriptor.
    pub(crate) given_to: Option<String>,
    /// The kernel's names for the domains.
    pub(crate) domains: Vec<(DomainId, u32)>,
    pub(crate) devices: Vec<DeviceNote>,
    pub(crate) registrations: Vec<RegistrationNote>,
}

/// A device that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceNote {
    pub(crate) address: PciAddress,
    pub(crate) reservation: ReservationId,
    /// The iommufd's id of it.
    pub(crate) device_id: u32,
    pub(crate) domain: Option<DomainId>,
}

/// Memory that is mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RegistrationNote {
    pub(crate) domain: DomainId,
    pub(crate) reservation: ReservationId,
    pub(crate) process: HolderProcess,
    pub(crate) iova: u64,
    pub(crate) length_bytes: u64,
}

impl Note {
    pub(crate) fn new(context: ContextId, backend: BackendKind) -> Self {
        Self {
            format: FORMAT,
            context,
            backend,
            given_to: None,
            domains: Vec::new(),
            devices: Vec::new(),
            registrations: Vec::new(),
        }
    }
}

/// The file that a note is in: where it is and how long, and then notes. A new one is written beside
/// the one that counts, and counts with one write of a few bytes: whenever the process dies, one of
/// the two is whole.
#[derive(Debug)]
pub(crate) struct NoteFile {
    file: OwnedFd,
    at: u64,
    bytes: u64,
}

const HEADER_BYTES: u64 = 16;

impl NoteFile {
    pub(crate) fn create() -> io::Result<Self> {
        let file = rustix::fs::memfd_create("berth-note", MemfdFlags::CLOEXEC)?;
        Ok(Self { file, at: HEADER_BYTES, bytes: 0 })
    }

    /// A duplicate for the store.
    pub(crate) fn fd(&self) -> io::Result<OwnedFd> {
        self.file.try_clone()
    }

    /// Takes over a file with a note in it.
    ///
    /// # Errors
    /// There is none that this build understands.
    pub(crate) fn adopt(file: OwnedFd) -> io::Result<(Self, Note)> {
        let mut header = [0; 16];
        read_at(&file, &mut header, 0)?;
        let number = |half: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[half * 8..half * 8 + 8]);
            u64::from_ne_bytes(bytes)
        };
        let (at, bytes) = (number(0), number(1));
        let length = usize::try_from(bytes).ok().filter(|_| bytes <= MOST_BYTES);
        let mut text = vec![0; length.ok_or_else(|| io::Error::other("it is too long"))?];
        read_at(&file, &mut text, at)?;
        let note: Note = serde_json::from_slice(&text)?;
        if note.format != FORMAT {
            let text = format!("it has format {}, this build knows {FORMAT}", note.format);
            return Err(io::Error::other(text));
        }
        Ok((Self { file, at, bytes }, note))
    }

    pub(crate) fn write(&mut self, note: &Note) -> io::Result<()> {
        let text = serde_json::to_vec(note)?;
        let bytes = u64::try_from(text.len()).map_err(io::Error::other)?;
        let before = self.at >= HEADER_BYTES + bytes;
        let at = if before { HEADER_BYTES } else { self.at + self.bytes };
        write_at(&self.file, &text, at)?;
        let header = [at.to_ne_bytes(), bytes.to_ne_bytes()].concat();
        write_at(&self.file, &header, 0)?;
        (self.at, self.bytes) = (at, bytes);
        Ok(())
    }
}

/// The whole file that a note is in, once the note was read and written anew.
pub(super) fn again(stored: &[u8]) -> io::Result<Vec<u8>> {
    let file = rustix::fs::memfd_create("berth-note", MemfdFlags::CLOEXEC)?;
    write_at(&file, stored, 0)?;
    let (_, note) = NoteFile::adopt(file)?;
    let mut fresh = NoteFile::create()?;
    fresh.write(&note)?;
    let length = usize::try_from(fresh.at + fresh.bytes).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    read_at(&fresh.file, &mut bytes, 0)?;
    Ok(bytes)
}

fn read_at(file: &OwnedFd, mut into: &mut [u8], mut at: u64) -> io::Result<()> {
    while !into.is_empty() {
        let read = pread(file, &mut *into, at)?;
        if read == 0 {
            return Err(io::Error::other("it ends too early"));
        }
        at += u64::try_from(read).map_err(io::Error::other)?;
        into = &mut into[read..];
    }
    Ok(())
}

fn write_at(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = pwrite(file, bytes, at)?;
        at += u64::try_from(written).map_err(io::Error::other)?;
        bytes = &bytes[written..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(registrations: u64) -> Note {
        let mut note = Note::new("c-1".into(), BackendKind::Iommufd);
        note.domains.push(("d-1".into(), 2));
        note.registrations = (0..registrations)
            .map(|at| RegistrationNote {
                domain: "d-1".into(),
                reservation: "r-1".into(),
                process: HolderProcess::new(7, 9),
                iova: at << 12,
                length_bytes: 4096,
            })
            .collect();
        note
    }

    #[test]
    fn the_last_note_that_was_written_whole_comes_back() {
        let mut file = NoteFile::create().unwrap();
        // Longer and shorter, so that it moves to and fro.
        for registrations in [0, 5, 1, 300, 2, 2, 1000, 0] {
            let note = with(registrations);
            file.write(&note).unwrap();
            let (again, found) = NoteFile::adopt(file.fd().unwrap()).unwrap();
            assert_eq!(found, note);
            assert_eq!((again.at, again.bytes), (file.at, file.bytes));
        }
        // The next one is cut off by the end of the process: before its header is written.
        let half = serde_json::to_vec(&with(3)).unwrap();
        write_at(&file.file, &half[..40], file.at + file.bytes).unwrap();
        assert_eq!(NoteFile::adopt(file.fd().unwrap()).unwrap().1, with(0));
    }

    #[test]
    fn what_is_no_note_is_told() {
        let empty = NoteFile::create().unwrap();
        assert!(NoteFile::adopt(empty.file).is_err());
        let mut file = NoteFile::create().unwrap();
        file.write(&Note { format: 2, ..with(1) }).unwrap();
        let error = NoteFile::adopt(file.file).unwrap_err().to_string();
        assert!(error.contains("format 2"), "{error}");
        let file = NoteFile::create().unwrap();
        let header = [16u64.to_ne_bytes(), u64::MAX.to_ne_bytes()].concat();
        write_at(&file.file, &header, 0).unwrap();
        assert!(NoteFile::adopt(file.file).unwrap_err().to_string().contains("too long"));
    }
}
