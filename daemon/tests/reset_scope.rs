//! Devices that are only reset together, in groups of their own: told before anything is reserved,
//! and refused where somebody else would be hit.

mod core_support;

use std::sync::Arc;

use berth_host::sim::{SimHost, Topology};
use berth_ownership::Reason;
use berth_proto::v1;
use core_support::{World, operator, pci, release, reserve};

const A: &str = "0000:0a:00.0";
const B: &str = "0000:0a:00.1";

/// Two functions behind a port with ACS between them; `a` can't be reset without the other.
fn host(of_a: &str, of_b: &str) -> Arc<SimHost> {
    let text = format!(
        r#"
name = "two-functions"
description = "two functions, a group each, one reset"
kernel_release = "6.12.0-sim"

[template.function]
vendor = 0x8086
device = 0x10fb
class = 0x020000
parent = "0000:00:1c.0"

[[device]]
address = "0000:00:1c.0"
group = 1
vendor = 0x1b36
device = 0x000c
class = 0x060400
bridge = true
driver = "pcieport"
drivers = ["pcieport"]

[[device]]
address = "{A}"
like = "function"
group = 2
reset_methods = [{of_a}]
reset_set = ["{B}"]

[[device]]
address = "{B}"
like = "function"
group = 3
reset_methods = [{of_b}]
reset_set = ["{A}"]
"#
    );
    Arc::new(SimHost::from_topology(Topology::parse(&text, "two-functions").expect("a topology")))
}

async fn world(of_a: &str, of_b: &str) -> (World, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    (World::open(dir.path(), host(of_a, of_b)).await, dir)
}

fn labelled(holder: &str, device: &str, label: &str) -> v1::ReserveRequest {
    v1::ReserveRequest { label: label.to_owned(), ..reserve(holder, device) }
}

#[tokio::test]
async fn a_dry_run_and_the_answer_say_whom_a_release_resets_too() {
    let (world, _dir) = world("\"bus\"", "\"flr\"").await;
    let snapshot = world.ledger.snapshot();
    let group = snapshot.group_of(B.parse().expect("an address")).expect("a group").id.to_string();
    let dry = v1::ReserveRequest { dry_run: true, ..labelled("vm1", A, "red") };
    let shown = world.service.reserve(&operator(), dry).await.expect("nobody is there");
    let [warning] = &shown.warnings[..] else { panic!("{:?}", shown.warnings) };
    for part in [A, B, &group, "reserved by nobody", "no reset of its own"] {
        assert!(warning.contains(part), "{part} in {warning}");
    }
    let first = world.service.reserve(&operator(), labelled("vm1", A, "red")).await.expect("free");
    assert_eq!(first.warnings, shown.warnings);
    let second = world.service.reserve(&operator(), labelled("vm1", B, "red")).await;
    let second = second.expect("the same holder may");
    assert_eq!(second.warnings, [""; 0], "its own reset hits nobody else");
    let get = v1::GetReservationRequest { id: first.id };
    let again = world.service.get_reservation(&operator(), get).await.expect("it lives");
    let by = format!("reserved by {} for vm1", second.id);
    assert!(again.warnings[0].contains(&by), "{:?}", again.warnings);
}

#[tokio::test]
async fn whoever_would_be_hit_or_hit_others_is_refused() {
    for (first, second) in [(A, B), (B, A)] {
        let (world, _dir) = world("", "\"flr\"").await;
        let held = world.service.reserve(&operator(), labelled("vm1", first, "red")).await;
        let held = held.expect("free");
        for dry_run in [true, false] {
            for other in [labelled("vm2", second, "red"), labelled("vm1", second, "blue")] {
                let other = v1::ReserveRequest { dry_run, ..other };
                let error = world.service.reserve(&operator(), other).await.expect_err("refused");
                let refusal = error.refusal();
                assert_eq!(refusal.reason, Reason::ResetScope, "{first} {second}");
                assert!(refusal.message.contains(first) && refusal.message.contains(second));
                let owner = refusal.owner.as_ref().expect("an owner");
                assert_eq!(
                    owner.reservation.as_ref().map(ToString::to_string),
                    Some(held.id.clone())
                );
                assert_eq!(refusal.resolve[0], format!("berth release {}", held.id));
            }
        }
        let explained = explain(&world, second).await;
        assert!(!explained.policies.iter().any(|policy| policy.may), "{explained:?}");
        let verdict = &explained.devices[0];
        assert!(verdict.blocks && verdict.text.contains("reset together with"), "{verdict:?}");
        assert!(verdict.text.contains(&held.id) && verdict.resolve.contains(&held.id));
        world.service.release(&operator(), release(&held.id)).await.expect("given back");
        let freed = world.service.reserve(&operator(), labelled("vm2", second, "blue")).await;
        freed.expect("nobody is hit any more");
    }
}

#[tokio::test]
async fn functions_with_a_reset_of_their_own_are_strangers() {
    for methods in ["\"flr\"", "\"pm\"", "\"bus\", \"af_flr\""] {
        let (world, _dir) = world(methods, methods).await;
        for (holder, device, label) in [("vm1", A, "red"), ("vm2", B, "blue")] {
            let asked = labelled(holder, device, label);
            let shown = world.service.reserve(&operator(), asked).await.expect("its own");
            assert_eq!(shown.warnings, [""; 0]);
        }
        let shown = v1::GetDeviceRequest { device: Some(pci(A)) };
        let device = world.service.get_device(&operator(), shown).await.expect("a device");
        assert_eq!(device.reset_with, []);
    }
}

#[tokio::test]
async fn the_scope_is_shown_of_the_device_and_explained() {
    let (world, _dir) = world("", "\"flr\"").await;
    let shown = v1::GetDeviceRequest { device: Some(pci(A)) };
    let device = world.service.get_device(&operator(), shown).await.expect("a device");
    assert_eq!(device.reset_with, [pci(B)]);
    let explained = explain(&world, A).await;
    assert!(explained.policies.iter().all(|policy| policy.may), "{explained:?}");
    let text = &explained.devices[0].text;
    assert!(text.contains("no reset of its own") && text.contains(B), "{text}");
}

async fn explain(world: &World, device: &str) -> v1::Explanation {
    let object = device.to_owned();
    let request = v1::ExplainRequest { object, ..v1::ExplainRequest::default() };
    world.service.explain(&operator(), request).await.expect("an explanation")
}
