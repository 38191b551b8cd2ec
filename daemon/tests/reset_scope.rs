//! Devices in groups of their own that are only reset together: what is told before they are
//! reserved, and to whom the second one is refused.

mod core_support;

use std::sync::Arc;

use berth_host::sim::{SimHost, Topology};
use berth_ownership::Reason;
use berth_proto::v1;
use core_support::{World, operator, pci, release, reserve};

const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:01:00.1";

/// Two functions behind a port, each with a group of its own and no reset but that of their bus.
const TOPOLOGY: &str = r#"
name = "one-reset"
description = "two functions with one reset"
kernel_release = "6.12.0-sim"

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
address = "0000:01:00.0"
group = 2
parent = "0000:00:1c.0"
vendor = 0x1234
device = 0x11e8
class = 0x00ff00
reset_methods = []
reset_set = ["0000:01:00.1"]

[[device]]
address = "0000:01:00.1"
group = 3
parent = "0000:00:1c.0"
vendor = 0x1234
device = 0x11e8
class = 0x00ff00
reset_methods = ["flr"]
reset_set = ["0000:01:00.0"]
"#;

async fn world() -> (tempfile::TempDir, World) {
    let dir = tempfile::tempdir().expect("a directory");
    let topology = Topology::parse(TOPOLOGY, "one-reset.toml").expect("a topology");
    let world = World::open(dir.path(), Arc::new(SimHost::from_topology(topology))).await;
    (dir, world)
}

fn of(holder: &str, device: &str) -> v1::ReserveRequest {
    v1::ReserveRequest { devices: vec![pci(device)], ..reserve(holder, device) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_release_resets_too_is_told_before_anything_is_reserved() {
    let (_dir, world) = world().await;
    let (service, me) = (&world.service, operator());
    let dry = v1::ReserveRequest { dry_run: true, ..of("vm-a", FIRST) };
    let told = service.reserve(&me, dry).await.expect("it would do").warnings;
    assert_eq!(told.len(), 1, "{told:?}");
    for word in [FIRST, SECOND, "reserved by nobody", "no reset of its own"] {
        assert!(told[0].contains(word), "{told:?}");
    }
    let held = service.reserve(&me, of("vm-a", FIRST)).await.expect("reserved");
    assert_eq!(held.warnings, told, "and once it is");
    let request = v1::ExplainRequest { object: FIRST.to_owned(), ..Default::default() };
    let shown = service.explain(&me, request).await.expect("explained");
    let text = &shown.devices[0].text;
    assert!(text.contains(SECOND), "{text}");
    let gone = service.release(&me, release(&held.id)).await.expect("released");
    assert!(gone.warnings.is_empty(), "nothing is left to warn of");
    let alone = service.reserve(&me, of("vm-a", SECOND)).await.expect("reserved");
    assert!(alone.warnings.is_empty(), "its reset hits it alone: {:?}", alone.warnings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_elses_device_is_not_reset() {
    let (_dir, world) = world().await;
    let (service, me) = (&world.service, operator());
    for (first, second) in [(FIRST, SECOND), (SECOND, FIRST)] {
        let held = service.reserve(&me, of("vm-a", first)).await.expect("reserved");
        let refused = service.reserve(&me, of("vm-b", second)).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::ResetScope, "{refused}");
        let owner = refused.refusal().owner.as_ref().expect("whose it is");
        assert_eq!(owner.reservation.as_ref().map(|id| id.as_str()), Some(held.id.as_str()));
        let way_out = format!("berth release {}", held.id);
        assert_eq!(refused.refusal().resolve[0], way_out);
        let request = v1::ExplainRequest { object: second.to_owned(), ..Default::default() };
        let shown = service.explain(&me, request).await.expect("explained");
        let verdict = &shown.devices[0];
        assert!(verdict.blocks && verdict.text.contains(first), "{}", verdict.text);
        assert_eq!(verdict.resolve, way_out);

        let both = service.reserve(&me, of("vm-a", second)).await.expect("for the same holder");
        service.release(&me, release(&both.id)).await.expect("released");
        service.release(&me, release(&held.id)).await.expect("released");
    }
    service.reserve(&me, of("vm-b", SECOND)).await.expect("nobody has the other one");
}
