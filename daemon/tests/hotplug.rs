//! The host changes under the daemon: devices come, go and are exchanged, drivers are bound by hand.
//! No scan is due here: what is seen was told.

mod front_support;

use std::time::{Duration, Instant};

use berth_host::{Act, Host as _, PciAddress};
use berth_ownership::{Reservation, ReservationId, ReservationState};
use front_support::{PATIENCE, Running};
use serde_json::{Value, json};

/// Never due while a test runs.
const NO_SCANS: &str = "[timeouts]\nrescan_ms = 3600000\n";
/// Alone in its group, without a driver.
const DEVICE: &str = "0000:00:06.0";
/// Alone in its group, on a host driver.
const DRIVEN: &str = "0000:04:00.0";
/// Nothing is there: a function of the same slot.
const SIBLING: &str = "0000:00:06.1";
/// Nothing is there.
const EMPTY: &str = "0000:00:1f.0";

fn at(text: &str) -> PciAddress {
    text.parse().expect("an address")
}

async fn start() -> Running {
    Running::with(NO_SCANS).await
}

async fn reserve(running: &Running, holder: &str) -> String {
    let ask = json!({
        "holder": holder, "policy": "EXCLUSIVE", "delivery": "HELD", "devices": [{"pci": DEVICE}],
    });
    let answer = running.unix("POST", "/api/v1/reservations", Some(&ask)).await;
    assert!(answer.status < 300, "{answer:?}");
    answer.json()["id"].as_str().expect("an id").to_owned()
}

async fn attach(running: &Running, id: &str) {
    let path = format!("/api/v1/reservations/{id}/attach");
    let answer = running.unix("POST", &path, Some(&json!({}))).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn record(running: &Running, id: &str) -> Reservation {
    let snapshot = running.daemon.service().ledger().snapshot();
    snapshot.state.reservation(&ReservationId::new(id)).expect("on record").clone()
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn until_lost(running: &Running, id: &str) {
    until("the reservation is lost", async || record(running, id).state == ReservationState::Lost)
        .await;
    assert_eq!(record(running, id).claims, 0);
}

/// All events with a device in them, in words.
async fn events(running: &Running, device: &str) -> Vec<Value> {
    let headers = "accept: application/json\r\n";
    let answer = running.unix_raw("GET", "/api/v1/events?limit=1000", None, headers).await;
    let all = answer.json()["events"].as_array().expect("events").clone();
    let about = |event: &&Value| event["devices"].to_string().contains(device);
    all.iter().filter(about).cloned().collect()
}

async fn is_told(running: &Running, device: &str, kind: &str, cause: &str) -> Value {
    let all = events(running, device).await;
    let found = all.iter().rev().find(|event| {
        event["kind"] == kind && event["cause"].as_str().is_some_and(|text| text.contains(cause))
    });
    found.unwrap_or_else(|| panic!("no {kind} for {cause} in {all:#?}")).clone()
}

/// Gives the lost reservation back and the device to another.
async fn goes_on(running: &Running, id: &str) {
    let answer = running.unix("DELETE", &format!("/api/v1/reservations/{id}"), None).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let census = running.daemon.engine().census();
    assert_eq!((census.devices, census.holds, census.contexts), (0, 0, 0), "{census:?}");
    let next = reserve(running, "next").await;
    attach(running, &next).await;
    assert_eq!(record(running, &next).state, ReservationState::Held);
    running.host.check().expect("the kernel's rules");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_plugged_in_is_there_at_once() {
    let running = start().await;
    running.host.plug(at(EMPTY), at(DEVICE)).expect("a free slot");
    let path = format!("/api/v1/devices/{EMPTY}");
    until("the device is listed", async || running.unix("GET", &path, None).await.status == 200)
        .await;
    is_told(&running, EMPTY, "group.observed", &format!("uevent: add {EMPTY}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_pulled_out_takes_its_reservation_along() {
    let running = start().await;
    let id = reserve(&running, "vm1").await;
    running.host.unplug(at(DEVICE)).expect("not open");
    until_lost(&running, &id).await;
    let event = is_told(&running, DEVICE, "device.gone", &format!("remove {DEVICE}")).await;
    assert_eq!(event["reservation"], id.as_str(), "{event}");
    until("nothing is open of it", async || running.daemon.engine().census().holds == 0).await;
}

/// The group's id and members, by a device in it.
async fn group_of(running: &Running, device: &str) -> (String, Vec<String>) {
    let path = format!("/api/v1/groups/{device}");
    let group = running.unix("GET", &path, None).await.json();
    let members = group["devices"].as_array().cloned().unwrap_or_default();
    let address = |device: &Value| device["address"]["pci"].as_str().map(str::to_owned);
    let id = group["stableId"].as_str().unwrap_or_default();
    (id.to_owned(), members.iter().filter_map(address).collect())
}

async fn until_in_group(running: &Running, members: &[&str]) -> String {
    until("the group is as it should be", async || group_of(running, DEVICE).await.1 == members)
        .await;
    group_of(running, DEVICE).await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_reserved_is_the_same_with_a_device_more_or_less() {
    let running = start().await;
    let alone = until_in_group(&running, &[DEVICE]).await;
    let id = reserve(&running, "vm1").await;
    let why = running.host.device(at(DEVICE)).expect("there").grouping;
    let beside = || running.host.plug_beside(at(SIBLING), at(DEVICE), &why).expect("free");
    // What is exclusive is attached alone.
    beside();
    assert_eq!(until_in_group(&running, &[DEVICE, SIBLING]).await, alone);
    let path = format!("/api/v1/reservations/{id}/attach");
    let refused = running.unix("POST", &path, Some(&json!({}))).await;
    assert_eq!(refused.json()["reason"], "GROUP_NOT_SINGLETON", "{refused:?}");
    running.host.unplug(at(SIBLING)).expect("not open");
    assert_eq!(until_in_group(&running, &[DEVICE]).await, alone);
    attach(&running, &id).await;

    beside();
    assert_eq!(until_in_group(&running, &[DEVICE, SIBLING]).await, alone);
    assert_eq!(record(&running, &id).state, ReservationState::Held);
    let ask = json!({
        "holder": "vm2", "policy": "GROUP", "delivery": "HELD", "devices": [{"pci": SIBLING}],
    });
    let refused = running.unix("POST", "/api/v1/reservations", Some(&ask)).await;
    assert_eq!(refused.status, 409, "{refused:?}");
    assert!(refused.json().to_string().contains(&id), "{refused:?}");
    running.host.unplug(at(SIBLING)).expect("not open");
    assert_eq!(until_in_group(&running, &[DEVICE]).await, alone);
    assert_eq!(record(&running, &id).state, ReservationState::Held);

    // Both in one: what is reserved of them goes on with the one that stays.
    let path = format!("/api/v1/reservations/{id}");
    assert_eq!(running.unix("DELETE", &path, None).await.status, 200);
    beside();
    let both = until_in_group(&running, &[DEVICE, SIBLING]).await;
    assert_ne!(both, alone);
    let ask = json!({
        "holder": "vm1", "policy": "GROUP", "delivery": "HELD",
        "devices": [{"pci": DEVICE}, {"pci": SIBLING}],
    });
    let answer = running.unix("POST", "/api/v1/reservations", Some(&ask)).await;
    assert!(answer.status < 300, "{answer:?}");
    let id = answer.json()["id"].as_str().expect("an id").to_owned();
    running.host.unplug(at(SIBLING)).expect("not open");
    assert_eq!(until_in_group(&running, &[DEVICE]).await, both);
    assert_eq!(record(&running, &id).state, ReservationState::Reserved);
    attach(&running, &id).await;
    assert_eq!(record(&running, &id).claims, 1);
    let path = format!("/api/v1/reservations/{id}");
    assert_eq!(running.unix("DELETE", &path, None).await.status, 200);

    // Nobody knows it by the old one any more.
    beside();
    until_in_group(&running, &[DEVICE, SIBLING]).await;
    running.host.unplug(at(SIBLING)).expect("not open");
    assert_eq!(until_in_group(&running, &[DEVICE]).await, alone);
    running.host.check().expect("the kernel's rules");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_device_at_the_address_inherits_nothing() {
    let running = start().await;
    let id = reserve(&running, "vm1").await;
    running.host.exchange(at(DEVICE)).expect("not open");
    until_lost(&running, &id).await;
    goes_on(&running, &id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_attached_is_closed_for_the_host_to_take_it() {
    let running = start().await;
    let id = reserve(&running, "vm1").await;
    attach(&running, &id).await;
    running.host.unplug_when_closed(at(DEVICE)).expect("there");
    until_lost(&running, &id).await;
    until("it is gone", async || running.host.device(at(DEVICE)).is_err()).await;
    running.host.plug(at(DEVICE), at("0000:00:05.0")).expect("a free slot");
    until("the next one is there", async || {
        let snapshot = running.daemon.service().ledger().snapshot();
        snapshot.group_of(at(DEVICE)).is_some()
    })
    .await;
    goes_on(&running, &id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_is_bound_by_hand_is_seen() {
    let running = start().await;
    let driver = running.host.device(at(DRIVEN)).expect("there").driver.expect("on a driver");
    let shown = async || {
        let path = format!("/api/v1/devices/{DRIVEN}");
        running.unix("GET", &path, None).await.json()["driver"].clone()
    };
    running.host.host_driver_unbind(at(DRIVEN)).expect("not open");
    until("it has no driver", async || shown().await.as_str().unwrap_or_default().is_empty()).await;
    running.host.host_driver_bind(at(DRIVEN), &driver).expect("free");
    until("it has its driver", async || shown().await == driver.as_str()).await;
    let event = is_told(&running, DRIVEN, "group.observed", &format!("bind {DRIVEN}")).await;
    assert_eq!(event["after"]["drivers"][DRIVEN], driver.as_str(), "{event}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_of_somebody_else_is_an_event_of_the_next_scan() {
    let running = Running::with("[timeouts]\nrescan_ms = 1000\n").await;
    running.host.host_override(at(DEVICE), Some("pci-stub")).expect("there");
    until("it is told", async || {
        events(&running, DEVICE)
            .await
            .iter()
            .any(|event| event["after"]["driverOverrides"][DEVICE] == "pci-stub")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_berth_does_itself_is_no_news() {
    let running = start().await;
    let before = events(&running, DRIVEN).await.len();
    let ask = json!({
        "holder": "vm1", "policy": "EXCLUSIVE", "delivery": "HELD", "takeFromHost": true,
        "devices": [{"pci": DRIVEN}],
    });
    let answer = running.unix("POST", "/api/v1/reservations", Some(&ask)).await;
    assert!(answer.status < 300, "{answer:?}");
    let id = answer.json()["id"].as_str().expect("an id").to_owned();
    attach(&running, &id).await;
    let path = format!("/api/v1/reservations/{id}");
    assert_eq!(running.unix("DELETE", &path, None).await.status, 200);
    // Longer than messages are waited for.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let all = events(&running, DRIVEN).await;
    let told = all.iter().skip(before).filter(|event| {
        event["kind"] == "group.observed" && !event["cause"].to_string().contains("intent")
    });
    assert_eq!(told.count(), 0, "{all:#?}");
    let seen = running.unix("GET", &format!("/api/v1/devices/{DRIVEN}"), None).await.json();
    let driver = running.host.device(at(DRIVEN)).expect("there").driver;
    assert_eq!(seen["driver"].as_str(), Some(driver.as_deref().unwrap_or_default()), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_off_its_driver_and_then_pulled_out_can_be_given_back() {
    let running = start().await;
    let id = reserve(&running, "vm1").await;
    attach(&running, &id).await;
    let host = running.host.clone();
    tokio::task::spawn_blocking(move || host.perform(&Act::Unbind { device: at(DEVICE) }))
        .await
        .expect("no panic")
        .expect("it comes back once the daemon has closed the device");
    until_lost(&running, &id).await;
    assert!(
        record(&running, &id).detail.contains("off its VFIO driver"),
        "{:?}",
        record(&running, &id)
    );
    running.host.unplug(at(DEVICE)).expect("not open");
    let path = format!("/api/v1/devices/{DEVICE}");
    until("the device is gone", async || running.unix("GET", &path, None).await.status == 404)
        .await;
    let answer = running.unix("DELETE", &format!("/api/v1/reservations/{id}"), None).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}
