//! `set SR-IOV` as a client asks for it: what is made, what is refused and why, what is told.

mod front_support;

use std::time::{Duration, Instant};

use berth_host::{Host as _, PciAddress};
use berth_proto::v1::{self, devices_client::DevicesClient};
use front_support::{Answer, PATIENCE, Running};
use serde_json::{Value, json};

/// Never due while a test runs: what is seen was told.
const NO_SCANS: &str = "[timeouts]\nrescan_ms = 3600000\n";
const PF: &str = "0000:3b:00.0";
/// The first two of eight virtual functions, which are there from the start.
const VFS: [&str; 2] = ["0000:3b:01.0", "0000:3b:01.1"];

fn at(text: &str) -> PciAddress {
    text.parse().expect("an address")
}

async fn start() -> Running {
    Running::on("sriov-nic", NO_SCANS).await
}

async fn set(running: &Running, device: &str, body: &Value) -> Answer {
    let path = format!("/api/v1/devices/{device}/sriov");
    running.unix("POST", &path, Some(body)).await
}

async fn done(running: &Running, body: Value) -> Value {
    let answer = set(running, PF, &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

async fn refused(running: &Running, device: &str, body: Value, reason: &str) -> String {
    let answer = set(running, device, &body).await;
    assert!(answer.status >= 400, "{answer:?}");
    assert_eq!(answer.problem()["reason"], reason, "{}", answer.body);
    answer.body
}

async fn get(running: &Running, path: &str) -> Value {
    running.unix("GET", path, None).await.json()
}

async fn reserve(running: &Running, holder: &str, device: &str) -> String {
    let ask = json!({
        "holder": holder, "label": holder, "policy": "EXCLUSIVE", "delivery": "HELD",
        "devices": [{"pci": device}],
    });
    let answer = running.unix("POST", "/api/v1/reservations", Some(&ask)).await;
    assert!(answer.status < 300, "{answer:?}");
    answer.json()["id"].as_str().expect("an id").to_owned()
}

async fn order(running: &Running, id: &str, method: &str, order: &str) {
    let path = format!("/api/v1/reservations/{id}{order}");
    let body = (method == "POST").then(|| json!({}));
    let answer = running.unix(method, &path, body.as_ref()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

async fn events(running: &Running) -> Vec<Value> {
    let headers = "accept: application/json\r\n";
    let answer = running.unix_raw("GET", "/api/v1/events?limit=1000", None, headers).await;
    answer.json()["events"].as_array().expect("events").clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_are_made_shown_and_taken_away() {
    let running = start().await;
    let made = done(&running, json!({"vfs": 4})).await;
    assert_eq!((&made["vfs"], &made["totalVfs"]), (&json!(4), &json!(64)), "{made}");
    assert_eq!(made["driversAutoprobe"], false, "{made}");
    assert_eq!(made["baseline"], json!({"vfs": 8, "driversAutoprobe": true}), "{made}");
    assert_eq!(made["functions"].as_array().map(Vec::len), Some(4), "{made}");

    let device = get(&running, &format!("/api/v1/devices/{PF}")).await;
    assert_eq!(device["sriov"], made, "the device shows the same");
    let function = get(&running, &format!("/api/v1/devices/{}", VFS[1])).await;
    assert_eq!(function["physicalFunction"]["pci"], PF);
    assert_eq!(function["driver"], "");
    assert_ne!(function["group"], device["group"]);

    let again = done(&running, json!({"vfs": 4})).await;
    assert_eq!(again, made, "there are so many already");
    let none = done(&running, json!({"vfs": 0})).await;
    assert_eq!((&none["vfs"], &none["driversAutoprobe"]), (&json!(0), &json!(true)), "{none}");
    let gone = running.unix("GET", &format!("/api/v1/devices/{}", VFS[0]), None).await;
    assert_eq!(gone.status, 404, "{gone:?}");
    let back = done(&running, json!({"restore": true})).await;
    assert_eq!((&back["vfs"], &back["baseline"]), (&json!(8), &Value::Null), "{back}");
    refused(&running, PF, json!({"restore": true}), "NO_OPERATION").await;
    running.host.check().expect("the kernel's rules");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_on_purpose_is_not_told_as_if_it_had_been_pulled_out() {
    let running = start().await;
    done(&running, json!({"vfs": 0})).await;
    // Longer than messages are waited for.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let all = events(&running).await;
    let gone: Vec<&Value> =
        all.iter().filter(|event| event["devices"][0]["pci"] == VFS[0]).skip(1).collect();
    assert!(!gone.is_empty(), "{all:#?}");
    for event in gone {
        let cause = event["cause"].as_str().unwrap_or_default();
        assert!(!cause.contains("uevent") && !cause.contains("scan"), "{event:#}");
    }
    let kinds: Vec<&str> = all
        .iter()
        .filter(|event| event["devices"][0]["pci"] == PF)
        .filter_map(|event| event["kind"].as_str())
        .filter(|kind| kind.starts_with("device."))
        .collect();
    assert_eq!(kinds, ["device.sriov_started", "device.sriov_changed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_that_an_administrator_makes_by_hand_are_seen() {
    let running = start().await;
    done(&running, json!({"vfs": 0})).await;
    let host = running.host.clone();
    let act = berth_host::Act::Sriov { device: at(PF), count: 2, autoprobe: false };
    tokio::task::spawn_blocking(move || host.perform(&act)).await.expect("no panic").expect("made");
    let path = format!("/api/v1/devices/{}", VFS[1]);
    let end = Instant::now() + PATIENCE;
    while running.unix("GET", &path, None).await.status != 200 {
        assert!(Instant::now() < end, "never seen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(get(&running, &path).await["physicalFunction"]["pci"], PF);
}

#[tokio::test(flavor = "multi_thread")]
async fn holders_of_functions_keep_their_number_as_it_is() {
    let running = start().await;
    let red = reserve(&running, "red", VFS[0]).await;
    let blue = reserve(&running, "blue", VFS[1]).await;
    order(&running, &blue, "POST", "/attach").await;
    for body in [json!({"vfs": 0}), json!({"vfs": 4}), json!({"vfs": 4, "dryRun": true})] {
        let why = refused(&running, PF, body, "GROUP_OWNED").await;
        assert!(why.contains(VFS[0]) && why.contains(&red) && why.contains("EBUSY"), "{why}");
        assert!(why.contains(&format!("berth release {red}")), "{why}");
    }
    order(&running, &red, "DELETE", "").await;
    let why = refused(&running, PF, json!({"vfs": 0}), "GROUP_OWNED").await;
    assert!(why.contains(VFS[1]) && why.contains("attached by") && why.contains(&blue), "{why}");
    assert_eq!(running.host.device(at(PF)).expect("there").virtual_functions.len(), 8);
    order(&running, &blue, "DELETE", "").await;
    done(&running, json!({"vfs": 4})).await;
    let [red, blue] = [reserve(&running, "red", VFS[0]), reserve(&running, "blue", VFS[1])];
    for id in [red.await, blue.await] {
        order(&running, &id, "POST", "/attach").await;
    }
    running.host.check().expect("the kernel's rules");
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_owners_of_functions_are_found_although_no_scan_was_due() {
    let running = start().await;
    let host = running.host.clone();
    let bind = berth_host::Act::Bind { device: at(VFS[1]), driver: "vfio-pci".to_owned() };
    tokio::task::spawn_blocking(move || host.perform(&bind)).await.expect("no panic").expect("on");
    let foreign = running.host.foreign_bind(at(VFS[1])).expect("free");
    let why = refused(&running, PF, json!({"vfs": 0}), "FOREIGN_OWNER").await;
    assert!(why.contains(VFS[1]) && why.contains(&foreign.pid().to_string()), "{why}");
    assert_eq!(running.host.device(at(PF)).expect("there").virtual_functions.len(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_is_refused_with_what_can() {
    let running = start().await;
    let why = refused(&running, PF, json!({"vfs": 65}), "INVALID_ARGUMENT").await;
    assert!(why.contains("65") && why.contains("64 (sriov_totalvfs)"), "{why}");
    assert!(why.contains("ERANGE"), "{why}");
    let why = refused(&running, VFS[0], json!({"vfs": 1}), "INVALID_ARGUMENT").await;
    assert!(why.contains(&format!("virtual function of {PF}")), "{why}");
    let port = "0000:00:01.0";
    let why = refused(&running, port, json!({"vfs": 1}), "INVALID_ARGUMENT").await;
    assert!(why.contains(&format!("{port} is no physical function")), "{why}");
    refused(&running, PF, json!({"vfs": 1, "restore": true}), "INVALID_ARGUMENT").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_makes_no_functions_is_named() {
    let running = start().await;
    done(&running, json!({"vfs": 0})).await;
    running.host.host_driver_unbind(at(PF)).expect("not open");
    let why = refused(&running, PF, json!({"vfs": 1}), "KERNEL_REFUSED").await;
    assert!(why.contains("has no driver") && why.contains("ENOENT"), "{why}");
    let host = running.host.clone();
    let bind = berth_host::Act::Bind { device: at(PF), driver: "vfio-pci".to_owned() };
    tokio::task::spawn_blocking(move || host.perform(&bind)).await.expect("no panic").expect("on");
    let why = refused(&running, PF, json!({"vfs": 1}), "KERNEL_REFUSED").await;
    assert!(why.contains("vfio-pci") && why.contains("enable_sriov"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_each_write_and_what_undoes_it() {
    let running = start().await;
    let plan = done(&running, json!({"vfs": 4, "dryRun": true})).await;
    let file = |name: &str| format!("/sys/bus/pci/devices/{PF}/{name}");
    let (numvfs, autoprobe) = (file("sriov_numvfs"), file("sriov_drivers_autoprobe"));
    let write = |path: &str, value: &str, undo: &str| json!({"path": path, "value": value, "undoPath": path, "undo": undo, "noUndo": ""});
    let wanted =
        json!([write(&numvfs, "0", "8"), write(&autoprobe, "0", "1"), write(&numvfs, "4", "0")]);
    assert_eq!(plan["writes"], wanted, "{plan:#}");
    assert_eq!(plan["vfs"], 8, "nothing was changed");
    assert!(!events(&running).await.iter().any(|event| event["kind"] == "device.sriov_started"));
    done(&running, json!({"vfs": 4})).await;
    assert_eq!(done(&running, json!({"vfs": 4, "dryRun": true})).await["writes"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_gets_the_same_answer_again() {
    let running = start().await;
    let mut client = DevicesClient::new(running.channel().await);
    let device = v1::DeviceAddress { kind: Some(v1::device_address::Kind::Pci(PF.to_owned())) };
    let request = v1::SetSriovRequest {
        device: Some(device),
        vfs: 2,
        request_id: "once".to_owned(),
        ..Default::default()
    };
    let first = client.set_sriov(request.clone()).await.expect("made").into_inner();
    let none = v1::SetSriovRequest { vfs: 0, request_id: String::new(), ..request.clone() };
    client.set_sriov(none).await.expect("taken away");
    let again = client.set_sriov(request.clone()).await.expect("answered").into_inner();
    assert_eq!((first.vfs, &again), (2, &first));
    let other = v1::SetSriovRequest { vfs: 3, ..request };
    let refused = client.set_sriov(other).await.expect_err("another request");
    assert!(refused.message().contains("once"), "{refused}");
    assert_eq!(running.host.device(at(PF)).expect("there").virtual_functions.len(), 0);
}
