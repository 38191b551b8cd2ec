//! The condition of devices on the simulated host: what they show reaches every surface, and decides
//! about new reservations as the site says. What runs isn't touched.

mod front_support;

use std::time::{Duration, Instant};

use berth_host::{AerCounters, Health, LinkRate, LinkState, PciAddress};
use front_support::{Answer, PATIENCE, Running};
use serde_json::{Value, json};

/// Alone in its group, without a driver.
const DEVICE: &str = "0000:00:06.0";
/// Another of its kind, the first by address.
const FIRST: &str = "0000:00:05.0";
const POLL: &str = "[condition]\npoll_ms = 100\nquiet_ms = 1000\n";

fn at(text: &str) -> PciAddress {
    text.parse().expect("an address")
}

/// A daemon that has looked once: what comes from then on is news.
async fn start(settings: &str) -> Running {
    let running = Running::with(settings).await;
    let looked =
        async || running.daemon.service().ledger().snapshot().health.contains_key(&at(DEVICE));
    until("devices are looked at", looked).await;
    running
}

fn show(running: &Running, change: impl FnOnce(&mut Health)) {
    running.host.set_health(at(DEVICE), change).expect("it is there");
}

fn errors(running: &Running, correctable: u64, nonfatal: u64, fatal: u64) {
    show(running, |health| health.aer = Some(AerCounters { correctable, nonfatal, fatal }));
}

async fn device(running: &Running) -> Value {
    let answer = running.unix("GET", &format!("/api/v1/devices/{DEVICE}"), None).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn until_it_is(running: &Running, condition: &str) -> Value {
    until(condition, async || device(running).await["condition"] == condition).await;
    device(running).await
}

async fn reserve(running: &Running, dry_run: bool) -> Answer {
    let ask = json!({
        "holder": "vm1", "policy": "EXCLUSIVE", "delivery": "HELD", "devices": [{"pci": DEVICE}],
        "dryRun": dry_run,
    });
    running.unix("POST", "/api/v1/reservations", Some(&ask)).await
}

/// The events of one kind about the device.
async fn events(running: &Running, kind: &str) -> Vec<Value> {
    let headers = "accept: application/json\r\n";
    let answer = running.unix_raw("GET", "/api/v1/events?limit=1000", None, headers).await;
    let all = answer.json()["events"].as_array().expect("events").clone();
    let about = |event: &&Value| event["kind"] == kind && event["devices"][0]["pci"] == DEVICE;
    all.iter().filter(about).cloned().collect()
}

async fn metric(running: &Running, line: &str) -> bool {
    let page = running.unix("GET", "/metrics", None).await;
    page.body.lines().any(|found| found == line)
}

#[tokio::test(flavor = "multi_thread")]
async fn new_errors_degrade_a_device_until_it_is_quiet() {
    let running = start(POLL).await;
    errors(&running, 40, 0, 0);
    until("corrected errors are shown", async || {
        device(&running).await["health"]["aer"]["correctable"] == "40"
    })
    .await;
    assert_eq!(device(&running).await["condition"], "OK");
    assert!(events(&running, "device.condition").await.is_empty(), "counting is no event");
    errors(&running, 40, 3, 0);
    let shown = until_it_is(&running, "DEGRADED").await;
    assert_eq!(shown["conditionNote"], "AER_NONFATAL 3");
    let health = &shown["health"];
    assert_eq!(
        (&health["condition"], &health["causes"][0]["code"]),
        (&json!("DEGRADED"), &json!("AER_NONFATAL"))
    );
    assert!(health["causes"][0]["since"].is_string(), "{health}");
    let series =
        format!("berth_device_aer_errors_total{{device=\"{DEVICE}\",severity=\"nonfatal\"}} 3");
    assert!(metric(&running, &series).await);
    assert!(metric(&running, "berth_devices_by_condition{condition=\"degraded\"} 1").await);
    until_it_is(&running, "OK").await;
    let told = events(&running, "device.condition").await;
    let causes: Vec<&str> = told.iter().filter_map(|event| event["cause"].as_str()).collect();
    assert_eq!(causes, ["AER_NONFATAL 3", "no more AER_NONFATAL 3"]);
    assert_eq!(told[0]["before"]["condition"], "OK");
    assert_eq!(told[0]["after"]["causes"][0]["what"], "3");
    assert!(metric(&running, "berth_devices_by_condition{condition=\"degraded\"} 0").await);
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_degraded_device_is_given_with_a_warning() {
    let running = start(POLL).await;
    let best = LinkRate { width: 16, speed: 16_000 };
    let current = LinkRate { width: 4, ..best };
    show(&running, |health| health.link = Some(LinkState { current, device: best, port: None }));
    until_it_is(&running, "DEGRADED").await;
    let dry = reserve(&running, true).await;
    assert!(dry.status < 300, "{dry:?}");
    let answer = reserve(&running, false).await;
    assert!(answer.status < 300, "{answer:?}");
    for answer in [dry, answer] {
        let warnings = answer.json()["warnings"].to_string();
        assert!(warnings.contains("LINK_WIDTH x4 of x16"), "{warnings}");
    }
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_class_those_are_chosen_that_are_well() {
    let running = start(POLL).await;
    let by_class = |count: u32| {
        json!({
            "holder": "vm1", "policy": "EXCLUSIVE", "delivery": "HELD", "dryRun": true,
            "class": {"class": "00ff", "count": count},
        })
    };
    let chosen = async |count| {
        let ask = by_class(count);
        let answer = running.unix("POST", "/api/v1/reservations", Some(&ask)).await;
        assert!(answer.status < 300, "{answer:?}");
        answer.json()["targets"].to_string()
    };
    // Of two that are alike the first is taken, unless it isn't well.
    let first = chosen(1).await;
    assert!(first.contains(FIRST) && !first.contains(DEVICE), "{first}");
    let counted = AerCounters { nonfatal: 1, ..AerCounters::default() };
    running.host.set_health(at(FIRST), |it| it.aer = Some(counted)).expect("there");
    until("the other is taken", async || chosen(1).await.contains(DEVICE)).await;
    let both = chosen(2).await;
    assert!(both.contains(FIRST) && both.contains(DEVICE), "{both}");
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_device_is_refused_with_what_it_shows_and_a_way_out() {
    let running = start(POLL).await;
    show(&running, |health| health.answers = Some(false));
    until_it_is(&running, "FAILED").await;
    let refused = reserve(&running, false).await;
    assert_eq!(refused.status, 409, "{refused:?}");
    let problem = refused.json();
    assert_eq!(problem["reason"], "DEVICE_FAILED", "{problem}");
    for part in [DEVICE, "CONFIG_GONE"] {
        assert!(problem["detail"].to_string().contains(part), "{problem}");
    }
    assert!(problem.to_string().contains("power-cycle"), "{problem}");
    let explained = running.unix("GET", &format!("/api/v1/devices/{DEVICE}/explain"), None).await;
    let text = explained.json().to_string();
    assert!(text.contains("DEVICE_FAILED") && text.contains("is failed: CONFIG_GONE"), "{text}");
    assert!(metric(&running, "berth_groups_by_condition{condition=\"failed\"} 1").await);
    show(&running, |health| health.answers = Some(true));
    until_it_is(&running, "OK").await;
    let granted = reserve(&running, false).await;
    assert!(granted.status < 300, "{granted:?}");
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_goes_on_when_its_device_fails() {
    let running = start(POLL).await;
    let id = reserve(&running, false).await.json()["id"].as_str().expect("an id").to_owned();
    let attach = format!("/api/v1/reservations/{id}/attach");
    let attached = running.unix("POST", &attach, Some(&json!({}))).await;
    assert_eq!(attached.json()["state"], "HELD", "{attached:?}");
    errors(&running, 0, 0, 2);
    until_it_is(&running, "FAILED").await;
    let shown = running.unix("GET", &format!("/api/v1/reservations/{id}"), None).await.json();
    assert_eq!(shown["state"], "HELD", "{shown}");
    assert!(shown["warnings"].to_string().contains("AER_FATAL 2"), "{shown}");
    let released = running.unix("DELETE", &format!("/api/v1/reservations/{id}"), None).await;
    assert_eq!(released.status, 200, "{released:?}");
    running.host.check().expect("the kernel's rules");
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_site_turns_both_round() {
    let turned = format!("{POLL}degraded = \"refuse\"\nfailed = \"warn\"\n");
    let running = start(&turned).await;
    errors(&running, 0, 0, 1);
    until_it_is(&running, "FAILED").await;
    let admitted = reserve(&running, true).await;
    assert!(admitted.status < 300, "{admitted:?}");
    assert!(admitted.json()["warnings"].to_string().contains("is failed: AER_FATAL 1"));
    errors(&running, 0, 0, 0);
    until_it_is(&running, "OK").await;
    errors(&running, 0, 1, 0);
    until_it_is(&running, "DEGRADED").await;
    let refused = reserve(&running, true).await;
    assert_eq!(refused.json()["reason"], "DEVICE_DEGRADED", "{refused:?}");
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_sleeps_keeps_what_was_seen_of_it() {
    let running = start(POLL).await;
    let best = LinkRate { width: 8, speed: 8_000 };
    let current = LinkRate { width: 1, ..best };
    show(&running, |health| health.link = Some(LinkState { current, device: best, port: None }));
    until_it_is(&running, "DEGRADED").await;
    show(&running, |health| health.runtime_status = "suspended".to_owned());
    until("it is shown asleep", async || device(&running).await["health"]["asleep"] == true).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let shown = device(&running).await;
    assert_eq!(shown["conditionNote"], "LINK_WIDTH x1 of x8", "{shown}");
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cordon_shows_its_note_and_its_end_and_ends() {
    let running = start(POLL).await;
    let path = format!("/api/v1/devices/{DEVICE}/cordon");
    let short = running.unix("POST", &path, Some(&json!({"ttlMs": "1"}))).await;
    assert_eq!((short.status, &short.json()["object"]), (400, &json!("ttl_ms")), "{short:?}");
    let ask = json!({"note": "firmware", "ttlMs": "1500"});
    let answer = running.unix("POST", &path, Some(&ask)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    for shown in [answer.json(), device(&running).await] {
        assert_eq!(shown["condition"], "CORDONED", "{shown}");
        assert_eq!(shown["cordon"]["note"], "firmware", "{shown}");
        assert!(shown["cordon"]["expiresAt"].is_string(), "{shown}");
    }
    assert_eq!(reserve(&running, true).await.json()["reason"], "CORDONED");
    let shown = until_it_is(&running, "OK").await;
    assert!(shown["cordon"].is_null(), "{shown}");
    let ended = events(&running, "device.unmarked").await;
    assert_eq!(ended[0]["cause"], "expiry", "{ended:?}");
    assert_eq!(ended[0]["after"]["reason"], "its time is over", "{ended:?}");
    running.daemon.stop().await;
}
