//! The kernel's rules, case by case, and against a map of every page.

use proptest::prelude::*;

use super::*;

const PAGE: u64 = 4096;
const MEMORY: Source = Source::Memory { address: 0x7000_0000 };

fn ioas(flavour: SimFlavour) -> SimIoas {
    SimIoas::new(flavour, SimLimits::default())
}

fn map(sim: &SimIoas, iova: u64, length: u64) -> Result<u64, Errno> {
    sim.map(IovaChoice::Fixed(iova), length, DmaPerms::READ_WRITE, MEMORY)
}

#[test]
fn overlaps_are_refused_whole() {
    for flavour in [SimFlavour::Iommufd, SimFlavour::Type1] {
        let sim = ioas(flavour);
        assert_eq!(map(&sim, 4 * PAGE, 2 * PAGE), Ok(4 * PAGE));
        for (first, pages) in [(4, 2), (3, 2), (5, 1), (3, 9), (5, 2)] {
            assert_eq!(map(&sim, first * PAGE, pages * PAGE), Err(Errno::EXIST), "{first}");
        }
        assert_eq!(map(&sim, 3 * PAGE, PAGE), Ok(3 * PAGE));
        assert_eq!(map(&sim, 6 * PAGE, PAGE), Ok(6 * PAGE));
        assert_eq!(sim.areas().len(), 3);
    }
}

#[test]
fn cutting_is_each_kernels_errno() {
    for (flavour, cut) in [(SimFlavour::Iommufd, Errno::NOENT), (SimFlavour::Type1, Errno::INVAL)] {
        let sim = ioas(flavour);
        assert_eq!(map(&sim, 4 * PAGE, 4 * PAGE), Ok(4 * PAGE));
        for (first, pages) in [(4, 3), (5, 3), (5, 1), (2, 3), (7, 9)] {
            assert_eq!(sim.unmap(first * PAGE, pages * PAGE), Err(cut), "{flavour:?} {first}");
        }
        assert_eq!(sim.unmap(PAGE, PAGE), Err(Errno::NOENT), "{flavour:?}");
        assert_eq!(sim.unmap(4 * PAGE, 4 * PAGE), Ok(4 * PAGE));
        assert_eq!(sim.unmap(4 * PAGE, 4 * PAGE), Err(Errno::NOENT), "{flavour:?}");
    }
}

#[test]
fn an_unmap_may_span_mappings_and_holes() {
    for flavour in [SimFlavour::Iommufd, SimFlavour::Type1] {
        let sim = ioas(flavour);
        for page in [1, 2, 5, 9] {
            assert_eq!(map(&sim, page * PAGE, PAGE), Ok(page * PAGE));
        }
        assert_eq!(sim.unmap(PAGE, 8 * PAGE), Ok(3 * PAGE));
        assert_eq!(sim.unmap_all(), Ok(PAGE));
        assert_eq!(sim.unmap_all(), Ok(0));
    }
}

#[test]
fn an_iommufd_unmap_that_fails_half_way_has_removed_the_first_half() {
    let sim = ioas(SimFlavour::Iommufd);
    assert_eq!(map(&sim, PAGE, PAGE), Ok(PAGE));
    assert_eq!(map(&sim, 2 * PAGE, 4 * PAGE), Ok(2 * PAGE));
    assert_eq!(sim.unmap(PAGE, 3 * PAGE), Err(Errno::NOENT));
    assert_eq!(sim.areas().len(), 1);
    let sim = ioas(SimFlavour::Type1);
    assert_eq!(map(&sim, PAGE, PAGE), Ok(PAGE));
    assert_eq!(map(&sim, 2 * PAGE, 4 * PAGE), Ok(2 * PAGE));
    assert_eq!(sim.unmap(PAGE, 3 * PAGE), Err(Errno::INVAL));
    assert_eq!(sim.areas().len(), 2);
}

#[test]
fn numbers_that_make_no_sense() {
    let none = DmaPerms { read: false, write: false };
    for flavour in [SimFlavour::Iommufd, SimFlavour::Type1] {
        let sim = ioas(flavour);
        assert_eq!(map(&sim, PAGE + 1, PAGE), Err(Errno::INVAL));
        assert_eq!(map(&sim, PAGE, PAGE + 1), Err(Errno::INVAL));
        assert_eq!(map(&sim, PAGE, 0), Err(Errno::INVAL));
        assert_eq!(sim.map(IovaChoice::Fixed(PAGE), PAGE, none, MEMORY), Err(Errno::INVAL));
        assert_eq!(map(&sim, 0xfedf_f000, 2 * PAGE), Err(Errno::INVAL), "the MSI window");
        assert_eq!(map(&sim, 0xfee0_0000, PAGE), Err(Errno::INVAL), "the MSI window");
        assert_eq!(map(&sim, 1 << 48, PAGE), Err(Errno::INVAL), "beyond the aperture");
        assert_eq!(sim.unmap(0, 0), Err(Errno::INVAL));
    }
    let top = u64::MAX - PAGE + 1;
    let wrap = |flavour| map(&ioas(flavour), top, 2 * PAGE);
    assert_eq!(wrap(SimFlavour::Iommufd), Err(Errno::OVERFLOW));
    assert_eq!(wrap(SimFlavour::Type1), Err(Errno::OVERFLOW));
    let older = SimLimits { type1_wrap: Errno::INVAL, ..SimLimits::default() };
    let older = SimIoas::new(SimFlavour::Type1, older);
    assert_eq!(map(&older, top, 2 * PAGE), Err(Errno::INVAL));
    assert_eq!(older.unmap(top, 2 * PAGE), Err(Errno::INVAL));
    assert_eq!(ioas(SimFlavour::Iommufd).unmap(top, 2 * PAGE), Err(Errno::OVERFLOW));
    assert_eq!(ioas(SimFlavour::Iommufd).unmap(0, u64::MAX), Ok(0));
}

#[test]
fn limits() {
    let limits = SimLimits { entries: 2, locked_bytes: 4 * PAGE, ..SimLimits::default() };
    let sim = SimIoas::new(SimFlavour::Type1, limits.clone());
    assert_eq!(map(&sim, PAGE, 4 * PAGE), Ok(PAGE));
    assert_eq!(map(&sim, 9 * PAGE, PAGE), Err(Errno::NOMEM));
    assert_eq!(sim.unmap_all(), Ok(4 * PAGE));
    assert_eq!(map(&sim, PAGE, PAGE), Ok(PAGE));
    assert_eq!(map(&sim, 2 * PAGE, PAGE), Ok(2 * PAGE));
    assert_eq!(map(&sim, 3 * PAGE, PAGE), Err(Errno::NOSPC));
    assert_eq!(map(&sim, 2 * PAGE, PAGE), Err(Errno::EXIST), "looked at before the limit");

    let narrow = vec![IovaRange { start: 0, last: 4 * PAGE - 1 }];
    let limits = SimLimits { permitted: narrow, ..limits };
    let sim = SimIoas::new(SimFlavour::Iommufd, limits);
    let any = |pages| sim.map(IovaChoice::Any, pages * PAGE, DmaPerms::READ, MEMORY);
    assert_eq!(any(3), Ok(PAGE));
    assert_eq!(any(1), Err(Errno::NOSPC), "address 0 is never given out");
    assert_eq!(sim.set_permitted(vec![]), Err(Errno::ADDRINUSE));
}

#[test]
fn a_lookup_finds_what_a_device_would() {
    let sim = ioas(SimFlavour::Iommufd);
    assert_eq!(map(&sim, 2 * PAGE, 2 * PAGE), Ok(2 * PAGE));
    assert_eq!(sim.lookup(2 * PAGE - 1), None);
    assert_eq!(sim.lookup(3 * PAGE + 7).map(|area| area.iova), Some(2 * PAGE));
    assert_eq!(sim.lookup(4 * PAGE), None);
}

#[test]
fn scripted_faults_have_no_effect() {
    let sim = ioas(SimFlavour::Iommufd);
    sim.fail_next(Errno::NOMEM);
    assert_eq!(map(&sim, PAGE, PAGE), Err(Errno::NOMEM));
    assert_eq!(sim.areas(), []);
    assert_eq!(map(&sim, PAGE, PAGE), Ok(PAGE));
    sim.fail_next(Errno::BUSY);
    assert_eq!(sim.unmap(PAGE, PAGE), Err(Errno::BUSY));
    assert_eq!(sim.areas().len(), 1);
}

const PAGES: usize = 24;

#[derive(Clone, Copy, Debug)]
enum Act {
    Map(usize, usize),
    Unmap(usize, usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = (any::<bool>(), 1usize..PAGES, 1usize..6).prop_map(|(map, first, pages)| {
        let pages = pages.min(PAGES - first);
        if map { Act::Map(first, pages) } else { Act::Unmap(first, pages) }
    });
    proptest::collection::vec(act, 0..60)
}

/// A map of pages, each knowing the mapping it belongs to: another way to say the same rules.
#[derive(Debug, Default)]
struct Pages {
    owner: [Option<usize>; PAGES],
    next: usize,
}

impl Pages {
    fn map(&mut self, first: usize, pages: usize) -> Result<u64, Errno> {
        let slots = &mut self.owner[first..first + pages];
        if slots.iter().any(Option::is_some) {
            return Err(Errno::EXIST);
        }
        slots.fill(Some(self.next));
        self.next += 1;
        Ok(crate::memory::as_u64(first) * PAGE)
    }

    fn cut(&self, first: usize, pages: usize, owner: usize) -> bool {
        let outside = |page: usize| page < first || page >= first + pages;
        (0..PAGES).any(|page| self.owner[page] == Some(owner) && outside(page))
    }

    fn unmap(&mut self, first: usize, pages: usize, flavour: SimFlavour) -> Result<u64, Errno> {
        let inside: Vec<usize> =
            self.owner[first..first + pages].iter().copied().flatten().collect();
        let cut: Vec<usize> =
            inside.iter().copied().filter(|owner| self.cut(first, pages, *owner)).collect();
        if flavour == SimFlavour::Type1 && !cut.is_empty() {
            return Err(Errno::INVAL);
        }
        let mut bytes = 0;
        for page in first..first + pages {
            match self.owner[page] {
                Some(owner) if cut.contains(&owner) => return Err(Errno::NOENT),
                Some(_) => {
                    self.owner[page] = None;
                    bytes += PAGE;
                }
                None => {}
            }
        }
        if bytes == 0 { Err(Errno::NOENT) } else { Ok(bytes) }
    }

    fn page_is_mapped(&self) -> Vec<bool> {
        self.owner.iter().map(Option::is_some).collect()
    }
}

proptest! {
    #[test]
    fn agrees_with_a_map_of_every_page(acts in acts(), type1 in any::<bool>()) {
        let flavour = if type1 { SimFlavour::Type1 } else { SimFlavour::Iommufd };
        let sim = ioas(flavour);
        let mut pages = Pages::default();
        let at = |page: usize| crate::memory::as_u64(page) * PAGE;
        for act in acts {
            let (got, expected) = match act {
                Act::Map(first, count) => {
                    (map(&sim, at(first), at(count)), pages.map(first, count))
                }
                Act::Unmap(first, count) => {
                    (sim.unmap(at(first), at(count)), pages.unmap(first, count, flavour))
                }
            };
            prop_assert_eq!(got, expected, "{:?}", act);
            let mapped: Vec<bool> =
                (0..PAGES).map(|page| sim.lookup(at(page)).is_some()).collect();
            prop_assert_eq!(mapped, pages.page_is_mapped());
        }
    }
}
