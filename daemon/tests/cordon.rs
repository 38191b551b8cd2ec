//! Cordons with an end, over restarts of the daemon and the host.

mod core_support;

use std::{sync::Arc, time::Duration};

use berth_host::sim::{SimHost, Topology};
use berth_proto::v1;
use core_support::{FREE, World, operator, pci, small};

/// Longer than a start takes, shorter than one waits for.
const TTL_MS: u64 = 6_000;

async fn cordon(world: &World, ttl_ms: u64) -> v1::Device {
    let request = v1::CordonRequest {
        device: Some(pci(FREE)),
        note: "firmware".to_owned(),
        ttl_ms,
        ..v1::CordonRequest::default()
    };
    world.service.cordon(&operator(), request).await.expect("an operator's word")
}

async fn shown(world: &World) -> v1::Device {
    world.ledger.expire_due().await;
    let request = v1::GetDeviceRequest { device: Some(pci(FREE)) };
    world.service.get_device(&operator(), request).await.expect("it is there")
}

#[tokio::test]
async fn a_cordon_outlives_the_daemon_and_ends_in_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    let end = cordon(&world, TTL_MS).await.cordon.expect("a cordon").expires_at;
    let host = world.kill().await;
    let world = World::open(dir.path(), host).await;
    let found = shown(&world).await;
    assert_eq!(found.condition(), v1::Condition::Cordoned);
    let found = found.cordon.expect("a cordon");
    assert_eq!((found.note.as_str(), found.ttl_ms), ("firmware", TTL_MS));
    let second = |time: &Option<berth_proto::Timestamp>| time.as_ref().map(|time| time.seconds);
    let (before, after) = (second(&end).expect("an end"), second(&found.expires_at).expect("one"));
    assert!((after - before).abs() <= 1, "{before} {after}");
    tokio::time::sleep(Duration::from_millis(TTL_MS)).await;
    let found = shown(&world).await;
    assert_eq!((found.condition(), found.cordon), (v1::Condition::Ok, None));
}

#[tokio::test]
async fn on_another_boot_it_begins_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    cordon(&world, TTL_MS).await;
    tokio::time::sleep(Duration::from_millis(TTL_MS / 2)).await;
    world.kill().await;
    let text = Topology::builtin("small").and_then(|it| it.to_toml()).expect("a topology");
    let text = format!("boot_id = \"next\"\n{text}");
    let next = Topology::parse(&text, "next").expect("the same machine");
    let world = World::open(dir.path(), Arc::new(SimHost::from_topology(next))).await;
    assert_eq!(shown(&world).await.condition(), v1::Condition::Cordoned);
    tokio::time::sleep(Duration::from_millis(TTL_MS * 2 / 3)).await;
    let found = shown(&world).await;
    assert_eq!(found.condition(), v1::Condition::Cordoned, "its length counts from the new boot");
    tokio::time::sleep(Duration::from_millis(TTL_MS / 2)).await;
    assert_eq!(shown(&world).await.condition(), v1::Condition::Ok);
}

#[tokio::test]
async fn one_without_an_end_stays() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    cordon(&world, 1_000).await;
    let found = cordon(&world, 0).await.cordon.expect("a cordon");
    assert_eq!((found.ttl_ms, found.expires_at), (0, None));
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(shown(&world).await.condition(), v1::Condition::Cordoned);
}
