//! A device's descriptor that was sent over a socket and not received yet is in no process's table
//! and keeps the device open: nothing is given back before the kernel says that it is closed.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd as _, OwnedFd},
};

use berth_host::Host as _;
use berth_ownership::{
    Backend, Command, Delivery, Order, Ownership, Policy, Reason, ReservationState,
};
use berthd::acts::Records as _;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};

use crate::world::{Ask, World, id};

const DEVICE: &str = "0000:00:06.0";

/// Both ends of the socket that the descriptor is on its way through.
struct UnderWay(#[expect(dead_code, reason = "closing them is what they are for")] [OwnedFd; 2]);

fn send(fd: OwnedFd) -> UnderWay {
    let kind = SocketType::SEQPACKET;
    let (here, there) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&here, &[IoSlice::new(b"fd")], &mut control, SendFlags::empty()).unwrap();
    drop(fd);
    UnderWay([here, there])
}

fn attached(backend: Backend) -> World {
    let world = World::new();
    let ask = Ask::new("r-1", Policy::Exclusive, &[DEVICE]);
    world.reserve(&ask.delivery(Delivery::Bound).backend(backend)).unwrap();
    world.attach("r-1").unwrap();
    world
}

fn not_given_back(world: &World, place: &str) {
    assert!(!world.sim.probe_free(world.number_of(DEVICE)).unwrap(), "{place}: it is open");
    for force in [false, true] {
        let release = Command::Release { order: Order::new("r-1"), force };
        let refusal = world.book.run(&release, &id("r-1")).unwrap_err();
        assert_eq!(refusal.reason, Reason::HolderDraining, "{place}: {}", refusal.message);
        assert!(!refusal.resolve.is_empty());
        assert_ne!(world.state("r-1"), ReservationState::Released, "{place}");
    }
    let group = world.group_of(DEVICE);
    let snapshot = world.book.snapshot();
    let held = snapshot.state.reservations_of(snapshot.state.group(&group).unwrap()).count();
    assert_ne!(world.state("r-1"), ReservationState::Lost, "{place}: nobody took it");
    assert_eq!(held, 1, "{place}: nobody else may have it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_descriptor_under_way_keeps_its_group_from_being_released() {
    for backend in [Backend::Type1, Backend::Iommufd] {
        let world = attached(backend);
        let under_way = send(world.engine.device_fd(DEVICE.parse().unwrap()).unwrap());
        not_given_back(&world, &backend.to_string());
        assert_ne!(world.ownership(DEVICE), Ownership::Free, "{backend}");
        drop(under_way);
        world.release("r-1").unwrap();
        world.check_given_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_holders_descriptor_under_way_does_so_over_a_restart() {
    for backend in [Backend::Type1, Backend::Iommufd] {
        let mut world = attached(backend);
        let under_way = send(world.engine.device_fd(DEVICE.parse().unwrap()).unwrap());
        let holder = world.sim.foreign("qemu");
        world.hand_to(&holder, "r-1");
        drop(holder);
        world.restart();
        world.book.wait_for("draining", |state| {
            let record = state.reservation(&id("r-1"));
            record.is_some_and(|record| record.state == ReservationState::Draining)
        });
        not_given_back(&world, &backend.to_string());
        drop(under_way);
        world.release("r-1").unwrap();
        world.check_given_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detach_waits_for_a_descriptor_under_way_and_loses_nothing() {
    for backend in [Backend::Type1, Backend::Iommufd] {
        let world = attached(backend);
        let under_way = send(world.engine.device_fd(DEVICE.parse().unwrap()).unwrap());
        let detach = Command::Detach { order: Order::new("r-1") };
        for _ in 0..2 {
            let refusal = world.book.run(&detach, &id("r-1")).unwrap_err();
            assert_eq!(refusal.reason, Reason::HolderDraining, "{backend}: {}", refusal.message);
            assert_eq!(world.state("r-1"), ReservationState::Held, "{backend}");
        }
        drop(under_way);
        world.book.run(&detach, &id("r-1")).unwrap();
        assert_eq!(world.state("r-1"), ReservationState::Reserved, "{backend}");
        world.check();
        world.release("r-1").unwrap();
        world.check_given_back();
    }
}
