//! Two labels never share: whatever of another's a reservation names, by whatever policy, is refused.

mod core_support;

use berth_ownership::Reason;
use berth_proto::v1;
use core_support::{World, attach, operator, pci, release, reserve, small};

/// Both in one group of the topology `small`.
const PAIR: [&str; 2] = ["0000:02:01.0", "0000:02:02.0"];
/// Each in a group of its own.
const ALONE: [&str; 2] = ["0000:00:06.0", "0000:00:05.0"];

const POLICIES: [v1::Policy; 3] = [v1::Policy::Exclusive, v1::Policy::Shared, v1::Policy::Group];

fn of(label: &str, policy: v1::Policy, device: &str) -> v1::ReserveRequest {
    let request = reserve(label, device);
    v1::ReserveRequest { label: label.to_owned(), policy: policy.into(), ..request }
}

async fn mismatch(world: &World, what: &str, request: v1::ReserveRequest) {
    for dry_run in [true, false] {
        let request = v1::ReserveRequest { dry_run, ..request.clone() };
        let refused = world.service.reserve(&operator(), request).await;
        let refused = refused.map(|made| made.id).expect_err(what);
        assert_eq!(refused.reason(), Reason::LabelMismatch, "{what}: {refused}");
        for label in ["red", "blue"] {
            assert!(refused.refusal().message.contains(label), "{what}: {refused}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_another_label_is_joined_by_any_policy() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    let (service, me) = (&world.service, operator());
    for theirs in POLICIES {
        // An exclusive claim is alone in its group.
        let places = if theirs == v1::Policy::Exclusive { ALONE } else { PAIR };
        let first = service.reserve(&me, of("red", theirs, places[0])).await.expect("reserved");
        for attached in [false, true] {
            if attached {
                service.attach(&me, attach(&first.id)).await.expect("attached");
            }
            for own in POLICIES {
                for device in [places[1], ALONE[1], "0000:04:00.0"] {
                    let request = of("blue", own, device);
                    let by_domain =
                        v1::ReserveRequest { domain: first.domain.clone(), ..request.clone() };
                    let what = format!("{own:?} by a domain of {theirs:?}, {device}, {attached}");
                    if own == v1::Policy::Exclusive {
                        // It presents nothing, whoever's that is.
                        let refused = service.reserve(&me, by_domain).await.expect_err(&what);
                        assert_eq!(refused.reason(), Reason::InvalidArgument, "{what}: {refused}");
                        continue;
                    }
                    mismatch(&world, &what, by_domain).await;
                    if own == v1::Policy::Group {
                        let by_token = v1::ReserveRequest { join: first.id.clone(), ..request };
                        let what = format!("a token of {theirs:?}, {device}, {attached}");
                        mismatch(&world, &what, by_token).await;
                    }
                }
            }
        }
        service.release(&me, release(&first.id)).await.expect("released");
    }
    // In a group that another label has nothing is had without naming it either.
    let first =
        service.reserve(&me, of("red", v1::Policy::Group, PAIR[0])).await.expect("reserved");
    for own in POLICIES {
        let request = of("blue", own, PAIR[1]);
        assert!(service.reserve(&me, request).await.is_err(), "{own:?} beside another label");
    }
    let same = v1::ReserveRequest {
        join: first.id.clone(),
        devices: vec![pci(PAIR[1])],
        ..of("red", v1::Policy::Group, PAIR[1])
    };
    service.reserve(&me, same).await.expect("the same label joins");
}
