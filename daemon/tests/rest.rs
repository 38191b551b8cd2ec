//! REST over a real socket: bodies, problems, events, metrics and the page.

mod front_support;

use front_support::{Frame, Running};
use serde_json::{Value, json};

fn reserve(group: &str) -> Value {
    json!({ "holder": "vm", "groups": [group], "policy": "EXCLUSIVE" })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_lives_over_rest() {
    let running = Running::start().await;
    let mut wanted = reserve("2");
    wanted["dryRun"] = json!(true);
    let dry = running.unix("POST", "/api/v1/reservations", Some(&wanted)).await;
    assert_eq!(dry.status, 200, "{dry:?}");
    let none = running.unix("GET", "/api/v1/reservations", None).await.json();
    assert_eq!(none["reservations"], json!([]), "a dry run changes nothing");

    let made = running.unix("POST", "/api/v1/reservations", Some(&reserve("2"))).await;
    assert_eq!(made.status, 201, "{made:?}");
    let id = made.json()["id"].as_str().expect("an id").to_owned();
    let place = format!("/api/v1/reservations/{id}");
    assert_eq!(made.header("location"), Some(place.as_str()));
    assert_eq!(made.json()["state"], "RESERVED");

    let attached = running.unix("POST", &format!("{place}/attach"), None).await;
    assert_eq!(attached.status, 200, "{attached:?}");
    assert_eq!(attached.json()["state"], "HELD");
    let group = running.unix("GET", "/api/v1/groups/2", None).await.json();
    assert_eq!(group["ownership"], "EXCLUSIVE");
    assert_eq!(group["reservations"], json!([id]));

    let epoch = made.json()["epoch"].as_str().expect("an epoch").to_owned();
    let stale = running.unix("DELETE", &format!("{place}?epoch=1"), None).await;
    assert_eq!(stale.status, 409, "{stale:?}");
    assert_eq!(stale.problem()["reason"], "STALE_EPOCH");
    let released = running.unix("DELETE", &format!("{place}?epoch={epoch}&force=true"), None).await;
    assert_eq!(released.status, 200, "{released:?}");
    assert_eq!(released.json()["state"], "RELEASED");
    running.daemon.stop().await;
}

/// Answers are kept as long as nothing changes, and not a moment longer.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_shows_what_was_answered_before_it() {
    let running = Running::start().await;
    let reads = ["/api/v1/groups/2", "/api/v1/groups", "/api/v1/devices", "/api/v1/reservations"];
    for _ in 0..5 {
        for path in reads {
            let first = running.unix("GET", path, None).await;
            let again = running.unix("GET", path, None).await;
            assert_eq!((first.status, &first.body), (200, &again.body), "{path}");
        }
        let made = running.unix("POST", "/api/v1/reservations", Some(&reserve("2"))).await.json();
        let id = made["id"].as_str().expect("an id");
        let place = format!("/api/v1/reservations/{id}");
        assert_eq!(running.unix("GET", &place, None).await.json()["state"], "RESERVED");
        let group = running.unix("GET", "/api/v1/groups/2", None).await.json();
        assert_eq!(group["reservations"], json!([id]));
        let all = running.unix("GET", "/api/v1/reservations", None).await.json();
        assert_eq!(all["reservations"][0]["id"], *id);
        running.unix("POST", &format!("{place}/attach"), None).await;
        assert_eq!(running.unix("GET", &place, None).await.json()["state"], "HELD");
        let released = running.unix("DELETE", &format!("{place}?force=true"), None).await;
        assert_eq!(released.json()["state"], "RELEASED", "{released:?}");
        assert_eq!(running.unix("GET", &place, None).await.json()["state"], "RELEASED");
        let group = running.unix("GET", "/api/v1/groups/2", None).await.json();
        assert_eq!((&group["reservations"], &group["ownership"]), (&json!([]), &json!("FREE")));
    }
    // Other spellings of the same object, and what isn't there, are answers of their own.
    for (path, status) in [
        ("/api/v1/devices/00:05.0", 200),
        ("/api/v1/devices/0000:00:05.0", 200),
        ("/api/v1/devices/ff:1f.7", 404),
    ] {
        for _ in 0..2 {
            assert_eq!(running.unix("GET", path, None).await.status, status, "{path}");
        }
    }
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_a_problem_with_everything_in_it() {
    let running = Running::start().await;
    let refused = running.unix("POST", "/api/v1/reservations", Some(&reserve("9"))).await;
    assert_eq!(refused.status, 409);
    let problem = refused.problem();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rest_golden/kernel_dma.json");
    let text = serde_json::to_string_pretty(&problem).expect("JSON") + "\n";
    if std::env::var_os("BERTH_BLESS").is_some() {
        std::fs::write(golden, &text).expect("written");
    }
    let expected = std::fs::read_to_string(golden).expect("the golden file");
    assert_eq!(text, expected, "set BERTH_BLESS=1 to accept");
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_named() {
    let running = Running::start().await;
    let path = "/api/v1/reservations";
    let cases = [
        (r#"{"holder":"vm","grups":["2"]}"#, "grups"),
        (r#"{"holder":"vm","policy":"MAYBE"}"#, "MAYBE"),
        (r#"{"holder":7}"#, "invalid type"),
        (r#"{"ttlMs":"soon"}"#, "ttlMs"),
        (r#"{"devices":[{"pci":7}]}"#, "devices[0].pci"),
        (r#"{"holder":"vm""#, "JSON"),
        ("[]", "not a JSON object"),
        ("\u{0}", "JSON"),
    ];
    for (body, named) in cases {
        let answer = running.unix_raw("POST", path, Some(body), "").await;
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        let problem = answer.problem();
        assert_eq!(problem["reason"], "INVALID_ARGUMENT");
        let detail = problem["detail"].as_str().expect("a detail");
        assert!(detail.contains(named), "{body}: {detail}");
        assert_ne!(problem["resolve"], json!([]), "{body} has a way out");
    }
    let query = running.unix("GET", "/api/v1/groups?limit=3", None).await;
    assert_eq!((query.status, &query.problem()["object"]), (400, &json!("limit")));
    let both = json!({ "id": "r-2" });
    let both = running.unix("POST", "/api/v1/reservations/r-1/attach", Some(&both)).await;
    assert_eq!((both.status, &both.problem()["object"]), (400, &json!("id")));
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_http_itself_refuses_is_a_problem_too() {
    let running = Running::start().await;
    let missing = running.unix("GET", "/api/v1/nothing", None).await;
    assert_eq!((missing.status, &missing.problem()["reason"]), (404, &json!("NOT_FOUND")));
    let wrong = running.unix("PUT", "/api/v1/reservations", None).await;
    assert_eq!(wrong.status, 405);
    let allowed = wrong.header("allow").expect("an Allow header").to_owned();
    assert!(allowed.contains("GET") && allowed.contains("POST"), "{allowed}");
    assert_eq!(wrong.problem()["reason"], "INVALID_ARGUMENT");
    running.daemon.stop().await;

    let running = Running::with("[limits]\nbody_bytes = 1024\n").await;
    let large = json!({ "holder": "x".repeat(4096) });
    let refused = running.unix("POST", "/api/v1/reservations", Some(&large)).await;
    assert_eq!(refused.status, 413, "{refused:?}");
    assert!(refused.problem()["detail"].as_str().expect("a detail").contains("1024"));
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kernel_dma_is_asked_and_changed_by_action() {
    let running = Running::start().await;
    let path = "/api/v1/devices/04:00.0/kernel-dma";
    let before = running.unix("GET", path, None).await;
    assert_eq!(before.status, 200, "{before:?}");
    assert_eq!(before.json()["usesKernelDma"], "YES");
    let asked = running.unix("POST", path, Some(&json!({ "action": "query" }))).await;
    assert_eq!(asked.json(), before.json());
    let after = running.unix("POST", path, Some(&json!({ "action": "release" }))).await;
    assert_eq!(after.status, 200, "{after:?}");
    assert_eq!(after.json()["driver"], "");
    let body = json!({ "action": "set", "driver": "e1000e" });
    let back = running.unix("POST", path, Some(&body)).await;
    assert_eq!(back.json()["driver"], "e1000e", "{back:?}");
    // What is kept for a request that is sent again is what was so after the work.
    let body = json!({ "action": "release", "requestId": "one" });
    for _ in 0..2 {
        let kept = running.unix("POST", path, Some(&body)).await;
        assert_eq!((&kept.json()["driver"], kept.status), (&json!(""), 200), "{kept:?}");
    }
    let none = running.unix("POST", path, Some(&json!({}))).await;
    assert_eq!((none.status, &none.problem()["object"]), (400, &json!("action")));
    running.daemon.stop().await;
}

/// As proto3 JSON has it.
fn is_utc(time: &Value) -> bool {
    time.as_str().is_some_and(|text| text.ends_with('Z') && text.contains('T'))
}

#[tokio::test(flavor = "multi_thread")]
async fn events_resume_after_the_last_one_seen() {
    let running = Running::start().await;
    for group in ["2", "3"] {
        let made = running.unix("POST", "/api/v1/reservations", Some(&reserve(group))).await;
        assert_eq!(made.status, 201, "{made:?}");
    }
    let all = running.events("/api/v1/events?since=0", "", 4).await;
    let ids: Vec<u64> = all.iter().map(|frame| frame.id.parse().expect("a seq")).collect();
    assert!(ids.windows(2).all(|pair| pair[1] == pair[0] + 1), "a gap in {ids:?}");
    for frame in &all {
        let event: Value = serde_json::from_str(&frame.data).expect("an event");
        assert_eq!(event["seq"], frame.id);
        assert!(is_utc(&event["time"]), "{event}");
        assert_eq!(frame.event, "", "the page listens to plain messages");
    }
    let headers = format!("last-event-id: {}\r\n", ids[1]);
    let rest = running.events("/api/v1/events?since=0", &headers, 2).await;
    let seqs =
        |frames: &[Frame]| -> Vec<String> { frames.iter().map(|frame| frame.id.clone()).collect() };
    assert_eq!(seqs(&rest), seqs(&all[2..4]));

    let list =
        running.unix_raw("GET", "/api/v1/events?sinceSeq=0", None, "accept: application/json\r\n");
    let list = list.await.json();
    assert_eq!(list["events"][0]["seq"], all[0].id);
    assert!(is_utc(&list["events"][0]["time"]), "{list}");
    let bad = running.unix_raw("GET", "/api/v1/events", None, "last-event-id: x\r\n").await;
    assert_eq!((bad.status, &bad.problem()["object"]), (400, &json!("Last-Event-ID")));
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_events_arrive_while_one_listens() {
    let running = Running::start().await;
    let seq = running.unix("GET", "/api/v1/groups", None).await.json()["resumeSeq"].clone();
    let path = format!("/api/v1/events?since={}", seq.as_str().expect("a seq"));
    let (frames, made) = tokio::join!(running.events(&path, "", 3), async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        running.unix("POST", "/api/v1/reservations", Some(&reserve("2"))).await
    });
    let made = made.json();
    let about_it = frames.iter().any(|frame| {
        let event: Value = serde_json::from_str(&frame.data).expect("an event");
        event["reservation"] == made["id"]
    });
    assert!(about_it, "{frames:?}");
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stream_opens_at_once() {
    let running = Running::start().await;
    let seq = running.unix("GET", "/api/v1/groups", None).await.json()["resumeSeq"].clone();
    let path = format!("/api/v1/events?since={}", seq.as_str().expect("a seq"));
    let head = running.first_line(&path).await;
    assert_eq!(head, "HTTP/1.1 200 OK");
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_readiness_and_numbers_are_served() {
    let running = Running::start().await;
    assert_eq!(running.unix("GET", "/healthz", None).await.body, "ok\n");
    assert_eq!(running.unix("GET", "/readyz", None).await.status, 200);
    running.unix("POST", "/api/v1/reservations", Some(&reserve("2"))).await;
    running.unix("GET", "/api/v1/groups/g-000000000000", None).await;
    let metrics = running.unix("GET", "/metrics", None).await;
    assert!(metrics.header("content-type").is_some_and(|kind| kind.contains("version=0.0.4")));
    for line in [
        "berth_ready 1",
        "berth_reservations{state=\"reserved\"} 1",
        "berth_groups{owner=\"foreign\"} 0",
        "berth_requests_total{surface=\"http\",code=\"201\"} 1",
        "berth_requests_total{surface=\"http\",code=\"404\"} 1",
    ] {
        assert!(metrics.body.lines().any(|found| found == line), "{line}\n{}", metrics.body);
    }
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_has_all_its_files_and_a_strict_policy() {
    let running = Running::start().await;
    let page = running.unix("GET", "/", None).await;
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let mut files: Vec<String> = Vec::new();
    for quoted in page.body.split('"').filter(|text| text.starts_with("/web/")) {
        files.push(quoted.to_owned());
    }
    assert!(files.len() >= 3, "{files:?}");
    let mut at = 0;
    while let Some(file) = files.get(at).cloned() {
        let answer = running.unix("GET", &file, None).await;
        assert_eq!(answer.status, 200, "{file}");
        assert!(!answer.body.contains("innerHTML"), "{file}");
        for import in answer.body.split("from \"").skip(1) {
            let module = import.split('"').next().unwrap_or("");
            // Types are named in comments, which the browser doesn't read.
            if module.ends_with(".d.ts") {
                continue;
            }
            let Some((_, name)) = module.split_once('/').filter(|(up, _)| up.starts_with('.'))
            else {
                panic!("{file} imports {module:?}, which isn't a file of the page");
            };
            let folder = if file.starts_with("/web/views/") && module.starts_with("./") {
                "views/"
            } else {
                ""
            };
            let name = format!("/web/{folder}{name}");
            if !files.contains(&name) {
                files.push(name);
            }
        }
        at += 1;
    }
    assert!(!page.body.contains("http://") && !page.body.contains("https://"), "a third party");
    assert!(!page.body.contains("onclick") && !page.body.contains("style="), "inline code");
    running.daemon.stop().await;
}
