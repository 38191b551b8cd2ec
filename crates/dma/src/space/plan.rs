//! What a batch becomes: as few areas as can be, of buffers that are neighbours.

use std::num::NonZero;

use berth_uapi::IovaChoice;

use super::map::fixed;

/// Memory that is to be mapped in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) place: IovaChoice,
    pub(super) address: u64,
    pub(super) length: u64,
}

impl Piece {
    /// Whether `next` goes on where this one ends: in memory and, where both say, in IOVA.
    pub(super) fn goes_on_with(&self, next: &Self) -> bool {
        let follows = match (self.place, next.place) {
            (IovaChoice::Any, IovaChoice::Any) => true,
            (IovaChoice::Fixed(iova), IovaChoice::Fixed(next)) => {
                iova.checked_add(self.length) == Some(next)
            }
            _ => false,
        };
        follows && self.address.checked_add(self.length) == Some(next.address)
    }
}

/// Buffers in the order of their places, and the areas that they become.
#[derive(Debug)]
pub(super) struct Plan {
    /// Areas, those with a place first.
    pub(super) areas: Vec<Piece>,
    /// For each buffer, in which area it is and how far inside.
    pub(super) of: Vec<(usize, u64)>,
}

/// Joins neighbours. Each buffer's length is at least 1.
pub(super) fn plan(buffers: &[Piece]) -> Plan {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    let key = |at: &usize| {
        let Piece { place, address, .. } = buffers[*at];
        (place == IovaChoice::Any, fixed(place), address)
    };
    // Buffers are mostly in order already.
    if !order.is_sorted_by_key(key) {
        order.sort_by_key(key);
    }
    let mut areas: Vec<Piece> = Vec::with_capacity(buffers.len());
    let mut of = vec![(0, 0); buffers.len()];
    for at in order {
        let buffer = buffers[at];
        if let Some(area) = areas.last_mut().filter(|area| area.goes_on_with(&buffer)) {
            let offset = area.length;
            area.length += buffer.length;
            of[at] = (areas.len() - 1, offset);
        } else {
            of[at] = (areas.len(), 0);
            areas.push(buffer);
        }
    }
    Plan { areas, of }
}

impl Plan {
    /// How many areas have a place.
    pub(super) fn placed(&self) -> usize {
        self.areas.partition_point(|area| area.place != IovaChoice::Any)
    }

    /// How many areas from `from` on, at least one, are small enough to lie one behind the other:
    /// what can use large IOMMU pages is placed for itself.
    pub(super) fn row(&self, from: usize) -> NonZero<usize> {
        let small = self.areas[from..].iter().take_while(|area| area.length < 2 << 20).count();
        NonZero::new(small).unwrap_or(NonZero::<usize>::MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(place: IovaChoice, address: u64, length: u64) -> Piece {
        Piece { place, address, length }
    }

    #[test]
    fn neighbours_become_one() {
        let (any, fixed) = (IovaChoice::Any, IovaChoice::Fixed);
        let plan = plan(&[
            piece(any, 30, 10),
            piece(fixed(100), 50, 10),
            piece(any, 20, 10),
            piece(fixed(110), 60, 5),
            piece(any, 41, 2),
            // In IOVA but not in memory, and the other way round.
            piece(fixed(115), 90, 1),
            piece(fixed(200), 91, 1),
        ]);
        let areas = [
            piece(fixed(100), 50, 15),
            piece(fixed(115), 90, 1),
            piece(fixed(200), 91, 1),
            piece(any, 20, 20),
            piece(any, 41, 2),
        ];
        assert_eq!(plan.areas, areas);
        assert_eq!(plan.of, [(3, 10), (0, 0), (3, 0), (0, 10), (4, 0), (1, 0), (2, 0)]);
        assert_eq!((plan.placed(), plan.row(3).get()), (3, 2));
    }
}
