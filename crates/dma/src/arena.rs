//! Memory that is mapped once and handed out in pieces: no ioctl for each buffer.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_uapi::{DmaPerms, IovaChoice};

use crate::memory::as_u64;
use crate::table::Table;
use crate::{AddressSpace, DmaBuffer, DmaError};

/// What pieces begin and end at: a cache line, so that no two share one.
const UNIT: u64 = 64;

/// Memory that a device sees at one IOVA from beginning to end, and that is given out in pieces.
///
/// It is mapped once, when it is made, and unmapped when it is dropped; taking a piece, giving it
/// back and knowing its IOVA is arithmetic. `S` is a reference to the address space, or an `Arc`.
#[derive(Debug)]
pub struct Arena<S: Deref<Target = AddressSpace>> {
    space: S,
    buffer: DmaBuffer,
    iova: u64,
    pieces: Arc<Mutex<Table>>,
}

/// A piece of an [`Arena`]. Dropping it gives the piece back: do that once the device has let go of
/// it. The memory stays as long as any piece does, though it isn't mapped once the arena is gone.
#[derive(Debug)]
pub struct Piece {
    buffer: DmaBuffer,
    pieces: Arc<Mutex<Table>>,
    tile: u32,
    offset: u64,
    length: u64,
    iova: u64,
}

impl<S: Deref<Target = AddressSpace>> Arena<S> {
    /// Maps `length_bytes` of new memory, rounded up to whole pages, for reading and writing.
    ///
    /// # Errors
    ///
    /// As [`DmaBuffer::new`] and [`AddressSpace::map_buffer`].
    pub fn new(space: S, length_bytes: usize) -> Result<Self, DmaError> {
        Self::of_buffer(space, DmaBuffer::new(length_bytes)?)
    }

    /// Maps a buffer for reading and writing: one that was populated, or asked for large pages.
    ///
    /// # Errors
    ///
    /// As [`AddressSpace::map_buffer`].
    pub fn of_buffer(space: S, buffer: DmaBuffer) -> Result<Self, DmaError> {
        let iova = space.map_buffer(IovaChoice::Any, &buffer, DmaPerms::READ_WRITE)?;
        let mut table = Table::new(UNIT);
        // Shifted by one unit, because a table never gives out 0.
        let last = UNIT + as_u64(buffer.len()) - 1;
        table.permit(vec![berth_uapi::IovaRange { start: UNIT, last }]);
        Ok(Self { space, buffer, iova, pieces: Arc::new(Mutex::new(table)) })
    }

    /// Takes a piece of at least `length_bytes`; its place is a multiple of 64 bytes, and of the page
    /// size where it has at least a page.
    ///
    /// # Errors
    ///
    /// `Empty`; `NoSpace`: no piece as long is free.
    pub fn take(&self, length_bytes: usize) -> Result<Piece, DmaError> {
        let wanted = as_u64(length_bytes);
        if wanted == 0 {
            return Err(DmaError::Empty);
        }
        let page = crate::page_bytes();
        let whole = wanted.checked_next_multiple_of(if wanted < page { UNIT } else { page });
        let length = whole.ok_or(DmaError::Overflow { start: 0, length: wanted })?;
        let alignment = if wanted < page { UNIT } else { page };
        let mut table = lock(&self.pieces);
        let tile = table
            .take_aligned(length, alignment, UNIT % alignment)
            .map_err(|largest| DmaError::NoSpace { length, largest })?;
        let offset = table.range(tile).start - UNIT;
        drop(table);
        let pieces = Arc::clone(&self.pieces);
        let (buffer, iova) = (self.buffer.share(), self.iova + offset);
        Ok(Piece { buffer, pieces, tile, offset, length, iova })
    }

    /// Where devices see its first byte.
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// How many bytes there are.
    #[expect(clippy::len_without_is_empty, reason = "an arena is never empty")]
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// The length of the largest piece that can be taken.
    pub fn largest(&self) -> u64 {
        lock(&self.pieces).largest()
    }
}

impl<S: Deref<Target = AddressSpace>> Drop for Arena<S> {
    fn drop(&mut self) {
        // What can't be unmapped stays in the address space's care, which keeps its memory.
        let _ = self.space.unmap(self.iova, as_u64(self.buffer.len()));
    }
}

impl Piece {
    /// Where devices see its first byte.
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// How many bytes there are; at least as many as were asked for.
    #[expect(clippy::len_without_is_empty, reason = "a piece is never empty")]
    pub fn len(&self) -> usize {
        usize::try_from(self.length).unwrap_or(usize::MAX)
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Errors
    ///
    /// Outside the piece.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), DmaError> {
        let at = self.inside(offset, bytes.len())?;
        self.buffer.write(at, bytes)
    }

    /// Copies from `offset` into `bytes`.
    ///
    /// # Errors
    ///
    /// Outside the piece.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), DmaError> {
        let at = self.inside(offset, bytes.len())?;
        self.buffer.read(at, bytes)
    }

    fn inside(&self, offset: usize, length: usize) -> Result<usize, DmaError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.len() => {
                Ok(offset + usize::try_from(self.offset).unwrap_or(usize::MAX))
            }
            _ => Err(DmaError::OutsideBuffer {
                offset: as_u64(offset),
                length: as_u64(length),
                buffer: self.length,
                errno: berth_uapi::Errno::FAULT,
            }),
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        lock(&self.pieces).release(self.tile);
    }
}

fn lock(pieces: &Mutex<Table>) -> MutexGuard<'_, Table> {
    pieces.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SimFlavour, SimIoas, SimLimits};

    #[test]
    fn pieces_are_apart_and_come_back() {
        let sim = SimIoas::new(SimFlavour::Iommufd, SimLimits::default());
        let space = AddressSpace::simulated(sim.clone());
        let arena = Arena::new(&space, 64 << 10).expect("room");
        let calls = sim.calls();
        let mut pieces: Vec<Piece> = (1..9).map(|n| arena.take(n * 100).expect("room")).collect();
        pieces.push(arena.take(4096).expect("room"));
        pieces.push(arena.take(5000).expect("room"));
        for (byte, piece) in (1..).zip(&mut pieces) {
            assert!(piece.iova() % if piece.len() < 4096 { 64 } else { 4096 } == 0);
            piece.write(0, &vec![byte; piece.len()]).expect("inside");
            assert!(piece.write(piece.len(), &[0]).is_err());
        }
        for (byte, piece) in (1..).zip(&pieces) {
            let mut bytes = vec![0; piece.len()];
            piece.read(0, &mut bytes).expect("inside");
            assert!(bytes.iter().all(|b| *b == byte), "piece {byte} was overwritten");
            let region = space.find(piece.iova()).expect("mapped");
            assert_eq!(region.iova, arena.iova());
        }
        assert!(matches!(arena.take(60 << 10), Err(DmaError::NoSpace { .. })));
        assert!(matches!(arena.take(0), Err(DmaError::Empty)));
        let kept = pieces.pop().expect("one");
        drop(pieces);
        drop(kept);
        assert_eq!(arena.largest(), 64 << 10, "all grew together again");
        assert_eq!(sim.calls(), calls, "no piece enters the kernel");
        let late = arena.take(64).expect("room");
        drop(arena);
        assert_eq!(sim.areas(), []);
        let mut byte = [9];
        late.read(0, &mut byte).expect("the memory is still there");
    }

    #[test]
    fn an_arena_can_own_its_address_space() {
        let space = Arc::new(AddressSpace::simulated(SimIoas::default()));
        let arena = Arena::new(Arc::clone(&space), 1).expect("room");
        assert_eq!(space.stats().bytes, as_u64(arena.len()));
        drop(arena);
        assert_eq!(space.stats().bytes, 0);
    }
}
