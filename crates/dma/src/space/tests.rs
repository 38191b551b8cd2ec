//! The address space over the simulation: it must agree with what stands below it.

use std::sync::atomic::{AtomicUsize, Ordering};

use std::sync::Arc;

use berth_uapi::{DmaPerms, Errno, IovaChoice};
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;
use crate::error::DmaErrorKind;
use crate::sim::{SimFlavour, SimLimits};
use crate::{DmaBuffer, Source};

const PAGE: u64 = 4096;
const RW: DmaPerms = DmaPerms::READ_WRITE;

fn space(flavour: SimFlavour) -> (AddressSpace, SimIoas) {
    let sim = SimIoas::new(flavour, SimLimits::default());
    (AddressSpace::simulated(sim.clone()), sim)
}

fn memfd(pages: u64) -> std::os::fd::OwnedFd {
    let file = memfd_create("dma", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, pages * PAGE).expect("a size");
    file
}

#[test]
fn buffers_and_files_go_in_and_out() {
    for flavour in [SimFlavour::Iommufd, SimFlavour::Type1] {
        let (space, sim) = space(flavour);
        let buffer = DmaBuffer::new(8192).expect("memory");
        let first = space.map_buffer(IovaChoice::Any, &buffer, RW).expect("room");
        let file = memfd(4);
        let fixed = IovaChoice::Fixed(0x10_0000);
        let second = space.map_file(fixed, &file, PAGE, 2 * PAGE, DmaPerms::READ).expect("free");
        assert_eq!(second, 0x10_0000);
        let regions = space.regions();
        assert_eq!(regions.iter().map(|r| r.iova).collect::<Vec<_>>(), [first, second]);
        assert_eq!(regions[1].source, Source::File { offset: PAGE });
        assert_eq!(sim.areas().len(), 2);
        space.unmap(first, 8192).expect("mapped");
        space.unmap(second, 2 * PAGE).expect("mapped");
        assert_eq!((space.regions(), sim.areas()), (vec![], vec![]));
    }
}

#[test]
fn only_exactly_what_was_mapped_is_unmapped() {
    let (space, sim) = space(SimFlavour::Iommufd);
    let buffer = DmaBuffer::new(4 * 4096).expect("memory");
    space.map_buffer(IovaChoice::Fixed(4 * PAGE), &buffer, RW).expect("free");
    let kind = |first: u64, pages: u64| {
        let error = space.unmap(first * PAGE, pages * PAGE).expect_err("not exactly that");
        assert_eq!((error.kind(), error.errno()), (DmaErrorKind::NotMapped, Errno::NOENT));
        error
    };
    assert!(matches!(kind(4, 3), DmaError::Bisects { .. }));
    assert!(matches!(kind(5, 3), DmaError::Bisects { .. }));
    assert!(matches!(kind(3, 9), DmaError::Bisects { .. }));
    assert!(matches!(kind(9, 1), DmaError::NotMapped { .. }));
    let text = kind(4, 3).to_string();
    assert!(text.contains("0x4000") && text.contains("exactly what was mapped"), "{text}");
    assert_eq!(sim.areas().len(), 1);
}

#[test]
fn refusals_carry_the_numbers() {
    let (space, _) = space(SimFlavour::Iommufd);
    let buffer = DmaBuffer::new(8192).expect("memory");
    let map = |iova, perms| {
        space.map_buffer(IovaChoice::Fixed(iova), &buffer, perms).expect_err("refused")
    };
    space.map_buffer(IovaChoice::Fixed(2 * PAGE), &buffer, RW).expect("free");
    let DmaError::Overlap { with: Some(with), .. } = map(3 * PAGE, RW) else { panic!("overlaps") };
    assert_eq!((with.iova, with.length), (2 * PAGE, 8192));
    let DmaError::NotPermitted { permitted, .. } = map(0xfee0_0000, RW) else {
        panic!("the MSI window")
    };
    assert_eq!(permitted.len(), 2);
    assert!(matches!(map(PAGE + 1, RW), DmaError::Misaligned { what: "iova", .. }));
    assert!(matches!(map(u64::MAX - PAGE + 1, RW), DmaError::Overflow { .. }));
    let none = DmaPerms { read: false, write: false };
    assert!(matches!(map(0, none), DmaError::NoAccess { .. }));
    assert_eq!(space.regions().len(), 1);
}

#[test]
fn files_must_be_long_enough() {
    for flavour in [SimFlavour::Iommufd, SimFlavour::Type1] {
        let (space, sim) = space(flavour);
        let file = memfd(2);
        let map = |offset, length| space.map_file(IovaChoice::Any, &file, offset, length, RW);
        for (offset, length) in [(PAGE, 2 * PAGE), (4 * PAGE, PAGE), (u64::MAX - 4095, PAGE)] {
            let error = map(offset, length).expect_err("past the end");
            assert!(matches!(error, DmaError::OutsideBuffer { .. }), "{error}");
        }
        assert!(matches!(map(7, PAGE), Err(DmaError::Misaligned { what: "file offset", .. })));
        assert!(map(PAGE, PAGE).is_ok());
        assert_eq!(sim.areas().len(), 1);
    }
}

#[test]
fn what_failed_leaves_nothing_behind() {
    for flavour in [SimFlavour::Iommufd, SimFlavour::Type1] {
        let (space, sim) = space(flavour);
        let buffer = DmaBuffer::new(4096).expect("memory");
        for place in [IovaChoice::Any, IovaChoice::Fixed(PAGE)] {
            sim.fail_next(Errno::FAULT);
            let error = space.map_buffer(place, &buffer, RW).expect_err("scripted");
            assert_eq!(error.kind(), DmaErrorKind::BadAddress);
            assert_eq!(space.regions(), []);
        }
        let iova = space.map_buffer(IovaChoice::Fixed(PAGE), &buffer, RW).expect("free");
        sim.fail_next(Errno::BUSY);
        assert_eq!(space.unmap(iova, PAGE).expect_err("scripted").kind(), DmaErrorKind::Busy);
        assert_eq!(space.regions().len(), 1);
        space.unmap(iova, PAGE).expect("still mapped");
    }
}

#[test]
fn the_entry_limit_is_told_from_a_full_address_space() {
    let limits = SimLimits { entries: 1, ..SimLimits::default() };
    let space = AddressSpace::simulated(SimIoas::new(SimFlavour::Type1, limits));
    let buffer = DmaBuffer::new(4096).expect("memory");
    space.map_buffer(IovaChoice::Any, &buffer, RW).expect("the first");
    let error = space.map_buffer(IovaChoice::Any, &buffer, RW).expect_err("the second");
    assert!(matches!(error, DmaError::EntryLimit { mapped: 1, .. }), "{error:?}");
    let all = [IovaRange { start: 0, last: 2 * PAGE - 1 }].to_vec();
    let limits = SimLimits { permitted: all, ..SimLimits::default() };
    let space = AddressSpace::simulated(SimIoas::new(SimFlavour::Type1, limits));
    space.map_buffer(IovaChoice::Any, &buffer, RW).expect("the only page");
    let error = space.map_buffer(IovaChoice::Any, &buffer, RW).expect_err("none left");
    assert!(matches!(error, DmaError::NoSpace { largest: 0, .. }), "{error:?}");
}

#[test]
fn a_mapping_another_user_removed_is_forgotten() {
    let (space, sim) = space(SimFlavour::Iommufd);
    let buffer = DmaBuffer::new(4096).expect("memory");
    let iova = space.map_buffer(IovaChoice::Any, &buffer, RW).expect("room");
    assert_eq!(sim.unmap_all(), Ok(PAGE));
    assert!(matches!(space.unmap(iova, PAGE), Err(DmaError::NotMapped { .. })));
    assert_eq!(space.regions(), []);
    // The addresses are used again.
    assert_eq!(space.map_buffer(IovaChoice::Any, &buffer, RW), Ok(iova));
}

#[test]
fn other_users_are_stepped_around() {
    for flavour in [SimFlavour::Iommufd, SimFlavour::Type1] {
        let (space, sim) = space(flavour);
        let foreign = Source::File { offset: 0 };
        for page in 1..2000 {
            sim.map(IovaChoice::Fixed(page * PAGE), PAGE, RW, foreign).expect("somebody else's");
        }
        let buffer = DmaBuffer::new(4096).expect("memory");
        let calls = sim.calls();
        let iova = space.map_buffer(IovaChoice::Any, &buffer, RW).expect("room");
        assert!(iova >= 2000 * PAGE && sim.calls() - calls < 16, "{iova:#x} {}", sim.calls());
        // Where it is said where, the kernel decides.
        let fixed = IovaChoice::Fixed(5 * PAGE);
        let error = space.map_buffer(fixed, &buffer, RW).expect_err("it is there");
        assert!(matches!(error, DmaError::Overlap { with: None, .. }));
        sim.unmap(5 * PAGE, PAGE).expect("mapped");
        assert_eq!(space.map_buffer(fixed, &buffer, RW), Ok(5 * PAGE));
    }
}

#[test]
fn what_is_permitted_changes_under_it() {
    for flavour in [SimFlavour::Iommufd, SimFlavour::Type1] {
        let (space, sim) = space(flavour);
        let buffer = DmaBuffer::new(4096).expect("memory");
        sim.set_permitted(vec![]).expect("nothing is mapped");
        let map = |place| space.map_buffer(place, &buffer, RW);
        assert!(matches!(map(IovaChoice::Any), Err(DmaError::NoSpace { largest: 0, .. })));
        let fixed = IovaChoice::Fixed(8 * PAGE);
        assert!(matches!(map(fixed), Err(DmaError::NotPermitted { .. })));
        // A device is attached, then another one that reserves more.
        let range = |first, last| IovaRange { start: first * PAGE, last: last * PAGE - 1 };
        sim.set_permitted(vec![range(0, 4), range(6, 20)]).expect("nothing is mapped");
        assert_eq!(map(fixed), Ok(8 * PAGE));
        assert_eq!(space.reserved(), Ok(vec![range(4, 6)]));
        assert_eq!(space.aperture(), Ok(Some(range(0, 20))));
        sim.set_permitted(vec![range(8, 10)]).expect("nothing else is mapped");
        assert_eq!(map(IovaChoice::Any), Ok(9 * PAGE));
        assert!(matches!(map(IovaChoice::Fixed(PAGE)), Err(DmaError::NotPermitted { .. })));
        assert!(matches!(map(IovaChoice::Any), Err(DmaError::NoSpace { largest: 0, .. })));
        assert_eq!(sim.areas().len(), 2);
    }
}

#[test]
fn zero_can_be_asked_for() {
    let (space, _) = space(SimFlavour::Iommufd);
    let buffer = DmaBuffer::new(8192).expect("memory");
    for _ in 0..2 {
        assert_eq!(space.map_buffer(IovaChoice::Fixed(0), &buffer, RW), Ok(0));
        space.unmap(0, 2 * PAGE).expect("mapped");
    }
    assert_eq!(space.map_buffer(IovaChoice::Any, &buffer, RW), Ok(PAGE));
}

#[test]
fn memory_is_found_by_its_address() {
    let (space, _) = space(SimFlavour::Iommufd);
    let buffers: Vec<_> = (0..20).map(|_| DmaBuffer::new(3 * 4096).expect("memory")).collect();
    let at =
        |n: usize, offset: usize| buffers[n].memory().base().map_addr(|a| a.saturating_add(offset));
    let map = |n: usize| space.map_buffer(IovaChoice::Any, &buffers[n], RW).expect("room");
    let first = map(0);
    assert_eq!(space.translate(at(0, 5), 100), Some(first + 5));
    assert_eq!(space.translate(at(1, 0), 1), None);
    let iovas: Vec<u64> = (1..20).map(map).collect();
    for (n, iova) in (1..20).zip(&iovas) {
        assert_eq!(space.translate(at(n, 4097), 4096), Some(iova + 4097));
        assert_eq!(space.translate(at(n, 0), 3 * PAGE + 1), None, "past its end");
        assert_eq!(space.find(iova + 2 * PAGE).expect("mapped").iova, *iova);
    }
    assert_eq!(space.translate(at(3, 0), 0), None);
    // The same memory twice: found as long as one of them is left.
    let again = map(3);
    space.unmap(iovas[2], 3 * PAGE).expect("mapped");
    assert_eq!(space.translate(at(3, 8), 8), Some(again + 8));
    let third = map(3);
    space.unmap(again, 3 * PAGE).expect("mapped");
    assert_eq!(space.translate(at(3, 8), 8), Some(third + 8));
    space.unmap(third, 3 * PAGE).expect("mapped");
    assert_eq!(space.translate(at(3, 8), 8), None);
    // What was asked for first is looked at first, though other memory may be mapped there by now.
    for _ in 0..3 {
        space.unmap(first, 3 * PAGE).expect("mapped");
        assert_eq!(space.translate(at(0, 5), 100), None);
        let other = map(3);
        assert_eq!(other, first, "it is mapped where the first one was");
        assert_eq!(space.translate(at(3, 5), 100), Some(first + 5));
        assert_eq!(space.translate(at(0, 5), 100), None);
        space.unmap(other, 3 * PAGE).expect("mapped");
        assert_eq!(map(0), first);
        assert_eq!(space.translate(at(0, 5), 100), Some(first + 5));
        assert_eq!(space.translate(at(1, 5), 100), Some(iovas[0] + 5));
    }
}

#[test]
fn copies_show_the_same_and_live_on() {
    let (space, _) = space(SimFlavour::Iommufd);
    let target = SimIoas::new(SimFlavour::Iommufd, SimLimits::default());
    let other = AddressSpace::simulated(target.clone());
    let buffer = DmaBuffer::new(4 * 4096).expect("memory");
    let memory = Arc::downgrade(buffer.memory());
    let address = as_u64(buffer.memory().base().addr().get());
    let iova = space.map_buffer(IovaChoice::Any, &buffer, DmaPerms::READ).expect("room");
    drop(buffer);
    let fixed = IovaChoice::Fixed(64 * PAGE);
    let copy = |length, perms| space.copy(iova + PAGE, length, &other, fixed, perms);
    assert_eq!(copy(PAGE, RW).expect_err("read-only").errno(), Errno::PERM);
    assert!(matches!(copy(4 * PAGE, DmaPerms::READ), Err(DmaError::Bisects { .. })));
    assert_eq!((other.regions(), target.areas()), (vec![], vec![]));
    assert_eq!(copy(2 * PAGE, DmaPerms::READ), Ok(64 * PAGE));
    let source = Source::Memory { address: address + PAGE };
    assert_eq!(target.lookup(65 * PAGE).expect("mapped").source, source);
    space.unmap(iova, 4 * PAGE).expect("mapped");
    assert!(memory.upgrade().is_some(), "the copy still shows it");
    other.unmap(64 * PAGE, 2 * PAGE).expect("mapped");
    assert!(memory.upgrade().is_none(), "nobody uses it any more");
    let (type1, _) = self::space(SimFlavour::Type1);
    let buffer = DmaBuffer::new(4096).expect("memory");
    let iova = type1.map_buffer(IovaChoice::Any, &buffer, RW).expect("room");
    let error = type1.copy(iova, PAGE, &type1, IovaChoice::Any, RW).expect_err("type1 can't");
    assert!(matches!(error, DmaError::Cannot { .. }), "{error}");
    assert_eq!(error.kind(), DmaErrorKind::Unsupported);
}

#[test]
fn what_is_allowed_is_all_that_is_given_out() {
    let (space, _) = space(SimFlavour::Iommufd);
    let buffer = DmaBuffer::new(8192).expect("memory");
    let range = |start, last| IovaRange { start, last };
    space.allow(&[range(0x10_0000, 0x10_1fff)]).expect("permitted");
    assert_eq!(space.map_buffer(IovaChoice::Any, &buffer, RW), Ok(0x10_0000));
    assert!(matches!(
        space.map_buffer(IovaChoice::Any, &buffer, RW),
        Err(DmaError::NoSpace { largest: 0, .. })
    ));
    let fixed = IovaChoice::Fixed(0x20_0000);
    assert_eq!(space.map_buffer(fixed, &buffer, RW), Ok(0x20_0000), "the kernel permits it");
    let error = space.allow(&[range(0xfee0_0000, 0xfee0_0fff)]).expect_err("reserved");
    assert_eq!(error.errno(), Errno::ADDRINUSE);
    space.allow(&[]).expect("lifted");
    assert!(space.map_buffer(IovaChoice::Any, &buffer, RW).is_ok());
    assert!(self::space(SimFlavour::Type1).0.allow(&[]).is_err());
}

#[test]
fn dropping_unmaps_and_taking_apart_does_not() {
    let (space, sim) = space(SimFlavour::Iommufd);
    let buffer = DmaBuffer::new(4096).expect("memory");
    let foreign = Source::File { offset: 0 };
    sim.map(IovaChoice::Fixed(0x5000), PAGE, RW, foreign).expect("somebody else's");
    space.map_buffer(IovaChoice::Any, &buffer, RW).expect("room");
    drop(space);
    assert_eq!(sim.areas().len(), 1);
    let space = AddressSpace::simulated(sim.clone());
    space.map_buffer(IovaChoice::Any, &buffer, RW).expect("room");
    assert!(matches!(space.into_parts(), Parts::Simulated(_)));
    assert_eq!(sim.areas().len(), 2);
    assert_eq!(AddressSpace::simulated(sim.clone()).unmap_all(), Ok(2 * PAGE));
}

#[test]
fn no_lock_is_held_while_the_kernel_works() {
    for flavour in [SimFlavour::Iommufd, SimFlavour::Type1] {
        let (space, sim) = space(flavour);
        let buffer = DmaBuffer::new(4096).expect("memory");
        let first = space.map_buffer(IovaChoice::Any, &buffer, RW).expect("room");
        let slow = IovaChoice::Fixed(64 * PAGE);
        let barrier = Arc::new(std::sync::Barrier::new(2));
        sim.pause_next(Arc::clone(&barrier));
        std::thread::scope(|scope| {
            let mapping = scope.spawn(|| space.map_buffer(slow, &buffer, RW));
            barrier.wait();
            // It is in the kernel now, and everything else goes on.
            assert_eq!(space.find(64 * PAGE), None, "it isn't mapped yet");
            let error = space.map_buffer(slow, &buffer, RW).expect_err("it is being mapped");
            assert!(matches!(error, DmaError::Overlap { with: Some(_), .. }));
            let error = space.unmap(64 * PAGE, PAGE).expect_err("it is being mapped");
            assert!(matches!(error, DmaError::Busy { .. }));
            let second = space.map_buffer(IovaChoice::Any, &buffer, RW).expect("room");
            space.unmap_batch(&[(first, PAGE), (second, PAGE)]).expect("mapped");
            assert_eq!(space.regions(), []);
            barrier.wait();
            assert_eq!(mapping.join().expect("no panic"), Ok(64 * PAGE));
        });
        assert!(space.find(64 * PAGE).is_some());
    }
}

#[test]
fn memory_stays_while_it_is_mapped() {
    let (space, _) = space(SimFlavour::Iommufd);
    let buffer = DmaBuffer::new(4096).expect("memory");
    let memory = Arc::downgrade(buffer.memory());
    let iova = space.map_buffer(IovaChoice::Any, &buffer, RW).expect("room");
    drop(buffer);
    assert!(memory.upgrade().is_some(), "a device may still use it");
    space.unmap(iova, PAGE).expect("mapped");
    assert!(memory.upgrade().is_none(), "nobody uses it any more");
}

#[test]
fn threads_never_lose_a_mapping() {
    for flavour in [SimFlavour::Iommufd, SimFlavour::Type1] {
        let (space, sim) = space(flavour);
        let refused = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (space, refused) = (&space, &refused);
                scope.spawn(move || {
                    let buffer = DmaBuffer::new(4096).expect("memory");
                    for round in 0..500u64 {
                        let place = match (thread + round) % 3 {
                            0 => IovaChoice::Any,
                            slot => IovaChoice::Fixed(slot * PAGE),
                        };
                        match space.map_buffer(place, &buffer, RW) {
                            Ok(iova) => space.unmap(iova, PAGE).expect("mapped by this thread"),
                            Err(error) => {
                                assert_eq!(error.kind(), DmaErrorKind::Overlap, "{error}");
                                refused.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
        });
        assert_eq!((space.regions(), sim.areas()), (vec![], vec![]), "{refused:?}");
    }
}

proptest! {
    #[test]
    fn the_mirror_is_the_kernels_table(
        acts in proptest::collection::vec((0u8..4, 1u64..16, 1usize..5), 0..40),
        type1 in any::<bool>(),
    ) {
        let flavour = if type1 { SimFlavour::Type1 } else { SimFlavour::Iommufd };
        let (space, sim) = space(flavour);
        for (act, page, pages) in acts {
            let length = as_u64(pages) * PAGE;
            match act {
                0 | 1 => {
                    let place =
                        if act == 0 { IovaChoice::Any } else { IovaChoice::Fixed(page * PAGE) };
                    let buffer = DmaBuffer::new(pages * 4096).expect("memory");
                    let free = (page..page + as_u64(pages))
                        .all(|page| sim.lookup(page * PAGE).is_none());
                    let answer = space.map_buffer(place, &buffer, RW);
                    prop_assert_eq!(answer.is_ok(), act == 0 || free);
                }
                2 => {
                    let exact = space
                        .regions()
                        .iter()
                        .any(|r| (r.iova, r.length) == (page * PAGE, length));
                    prop_assert_eq!(space.unmap(page * PAGE, length).is_ok(), exact);
                }
                _ if page == 1 => {
                    space.unmap_all().expect("nothing refuses");
                }
                _ => {}
            }
            let ours: Vec<_> = space.regions().iter().map(|r| (r.iova, r.length)).collect();
            let theirs: Vec<_> = sim.areas().iter().map(|a| (a.iova, a.length)).collect();
            prop_assert_eq!(ours, theirs);
        }
    }
}

#[test]
fn what_is_left_mapped_is_taken_over_and_the_rest_of_it_goes() {
    for flavour in [SimFlavour::Iommufd, SimFlavour::Type1] {
        let (first, sim) = space(flavour);
        let buffer = DmaBuffer::new(8192).expect("memory");
        for iova in [0x10_0000, 0x20_0000, 0x30_0000] {
            first.map_buffer(IovaChoice::Fixed(iova), &buffer, RW).expect("free");
        }
        first.leave_mapped();
        assert_eq!((first.regions(), first.stats()), (vec![], Stats::default()));
        drop(first);
        assert_eq!(sim.areas().len(), 3, "nothing was unmapped");

        let second = AddressSpace::simulated(sim.clone());
        second.adopt(0x20_0000, 8192, RW).expect("it is there");
        let twice = second.adopt(0x20_0000, 8192, RW).expect_err("known already");
        assert_eq!(twice.kind(), DmaErrorKind::Overlap);
        assert_eq!(second.unmap_unknown().expect("the others"), 2 * 8192);
        assert_eq!(sim.areas().len(), 1);
        second.unmap(0x20_0000, 8192).expect("taken over");
        assert!(sim.areas().is_empty());
    }
}
