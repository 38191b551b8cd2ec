//! Sessions of browsers: a link works once, a session does what it is for and nothing else, each of
//! what a request has to show is asked for by itself, and TCP without a session only reads.

mod front_support;

use berthd::model::{Call, Over};
use front_support::{Answer, Running};
use serde_json::{Value, json};

const DEVICE: &str = "0000:00:06.0";

/// What a browser that has signed in knows.
#[derive(Debug, Clone)]
struct Browser {
    cookie: String,
    csrf: String,
}

/// What a request of the page shows.
#[derive(Debug, Clone)]
struct Shows {
    host: String,
    lines: Vec<(&'static str, String)>,
}

impl Shows {
    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self = self.without(name);
        self.lines.push((name, value.into()));
        self
    }

    fn without(mut self, name: &'static str) -> Self {
        self.lines.retain(|(known, _)| *known != name);
        self
    }

    fn under(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self
    }

    async fn send(&self, running: &Running, method: &str, path: &str, body: &Value) -> Answer {
        let headers: String =
            self.lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        running.tcp_with(method, path, &self.host, Some(&body.to_string()), &headers).await
    }
}

/// What the page sends before it has a session.
fn page(running: &Running) -> Shows {
    let host = running.tcp().to_string();
    let lines = vec![
        ("origin", format!("http://{host}")),
        ("sec-fetch-site", "same-origin".to_owned()),
        ("content-type", "application/json".to_owned()),
    ];
    Shows { host, lines }
}

impl Browser {
    fn shows(&self, running: &Running) -> Shows {
        page(running).with("cookie", &self.cookie).with("x-berth-csrf", &self.csrf)
    }

    async fn reserves(&self, running: &Running) -> Answer {
        self.shows(running).send(running, "POST", "/api/v1/reservations", &order()).await
    }
}

fn order() -> Value {
    json!({"holder": "vm1", "policy": "EXCLUSIVE", "devices": [{"pci": DEVICE}]})
}

async fn link(running: &Running) -> String {
    let answer = running.unix("POST", "/api/v1/web-sessions", Some(&json!({}))).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let url = answer.json()["url"].as_str().expect("a link").to_owned();
    assert!(url.starts_with(&format!("http://{}/#/sign-in/", running.tcp())), "{url}");
    url.rsplit('/').next().expect("a token").to_owned()
}

async fn enters(running: &Running, token: &str) -> Answer {
    page(running).send(running, "POST", "/web/session", &json!({"token": token})).await
}

async fn signs_in(running: &Running) -> Browser {
    entered(running, &link(running).await).await
}

async fn entered(running: &Running, token: &str) -> Browser {
    let answer = enters(running, token).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let line = answer.header("set-cookie").expect("a cookie").to_owned();
    let (cookie, kept) = line.split_once(';').expect("how it is kept");
    assert_eq!(kept, " Path=/; HttpOnly; SameSite=Strict");
    let name = format!("berth_session_{}=", running.tcp().port());
    assert!(cookie.starts_with(&name) && cookie.len() == name.len() + 64, "{cookie}");
    let told = answer.json();
    let csrf = told["csrf"].as_str().expect("a token").to_owned();
    assert_eq!(told["session"]["role"], "operator", "{told}");
    Browser { cookie: cookie.to_owned(), csrf }
}

fn reason(answer: &Answer) -> (u16, String) {
    (answer.status, answer.problem()["reason"].as_str().unwrap_or_default().to_owned())
}

fn is_refused(answer: &Answer, status: u16, object: &str) {
    let problem = answer.problem();
    assert_eq!((answer.status, &problem["object"]), (status, &json!(object)), "{problem}");
    let ways = problem["resolve"].as_array().expect("ways out");
    assert!(!ways.is_empty(), "no way out: {problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_changes_things_as_who_asked_for_its_link() {
    let running = Running::start().await;
    let browser = signs_in(&running).await;
    let made = browser.reserves(&running).await;
    assert_eq!(made.status, 201, "{made:?}");
    let made = made.json();
    let me = format!("uid:{}", rustix::process::getuid().as_raw());
    assert_eq!((&made["holder"]["requester"], &made["label"]), (&json!(me), &json!(me)));
    let path = format!("/api/v1/reservations/{}", made["id"].as_str().expect("an id"));
    let shows = browser.shows(&running);
    let renewed = shows.send(&running, "POST", &format!("{path}/renew"), &json!({})).await;
    assert_eq!(renewed.status, 200, "{renewed:?}");
    let released = shows.send(&running, "DELETE", &path, &json!({})).await;
    assert_eq!(released.json()["state"], "RELEASED", "{released:?}");
    for (verb, body) in [
        ("cordon", json!({"note": "a fan"})),
        ("uncordon", json!({})),
        ("clear-quarantine", json!({"reason": "power cycled"})),
    ] {
        let path = format!("/api/v1/devices/{DEVICE}/{verb}");
        let answer = shows.send(&running, "POST", &path, &body).await;
        // A device that isn't quarantined may be said so: what counts is that it was decided.
        assert!(!matches!(answer.status, 401 | 403 | 405), "{verb}: {answer:?}");
    }
    let history = "/api/v1/events?limit=1000";
    let headers = "accept: application/json\r\n";
    let events = running.unix_raw("GET", history, None, headers).await.json();
    let of = |kind: &str| {
        let all = events["events"].as_array().expect("events");
        all.iter().find(|event| event["kind"] == kind).cloned().unwrap_or_default()
    };
    for (kind, cause) in
        [("reservation.created", "reserve (web)"), ("reservation.releasing", "release (web)")]
    {
        let event = of(kind);
        assert_eq!((&event["actor"], &event["cause"]), (&json!(me), &json!(cause)), "{event}");
    }
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_works_once_and_only_the_page_s_own_words_open_it() {
    let running = Running::start().await;
    let token = link(&running).await;
    let body = json!({"token": token});
    let ask = async |shows: Shows| shows.send(&running, "POST", "/web/session", &body).await;
    // None of these uses it up.
    is_refused(&ask(page(&running).without("origin")).await, 403, "Origin");
    is_refused(&ask(page(&running).with("origin", "http://127.0.0.1:1")).await, 403, "Origin");
    let site = |site: &str| page(&running).with("sec-fetch-site", site);
    is_refused(&ask(site("cross-site")).await, 403, "Sec-Fetch-Site");
    let form = page(&running).with("content-type", "application/x-www-form-urlencoded");
    is_refused(&ask(form).await, 403, "Content-Type");
    is_refused(&ask(page(&running).under("evil.example")).await, 403, "Host");
    let none = page(&running).send(&running, "POST", "/web/session", &json!({})).await;
    is_refused(&none, 400, "token");

    assert_eq!(ask(page(&running)).await.status, 200);
    let again = ask(page(&running)).await;
    is_refused(&again, 401, "link");
    assert_eq!(again.problem()["resolve"], json!(["berth web"]));
    is_refused(&enters(&running, "0123").await, 401, "link");
    // The door is there for the page alone.
    let unix = running.unix("POST", "/web/session", Some(&json!({"token": "x"}))).await;
    assert_eq!(unix.status, 404, "{unix:?}");
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_change_has_to_show_is_asked_for_by_itself() {
    let running = Running::start().await;
    let (browser, other) = (signs_in(&running).await, signs_in(&running).await);
    let good = browser.shows(&running);
    let ask =
        async |shows: Shows| shows.send(&running, "POST", "/api/v1/reservations", &order()).await;
    let port = running.tcp().port();
    for (what, shows, status, object) in [
        ("another page", good.clone().with("origin", "http://evil.example"), 403, "Origin"),
        ("another port", good.clone().with("origin", "http://127.0.0.1:1"), 403, "Origin"),
        ("no page", good.clone().without("origin"), 403, "Origin"),
        ("a rebound name", good.clone().under("evil.example"), 403, "Host"),
        ("a site", good.clone().with("sec-fetch-site", "same-site"), 403, "Sec-Fetch-Site"),
        ("a form", good.clone().with("content-type", "text/plain"), 403, "Content-Type"),
        ("no kind", good.clone().without("content-type"), 403, "Content-Type"),
        ("no token", good.clone().without("x-berth-csrf"), 403, "x-berth-csrf"),
        ("another's token", good.clone().with("x-berth-csrf", &other.csrf), 403, "x-berth-csrf"),
        ("no cookie", good.clone().without("cookie"), 401, "session"),
        (
            "no session",
            good.clone().with("cookie", format!("berth_session_{port}=0")),
            401,
            "session",
        ),
        ("nothing", good.clone().without("cookie").without("x-berth-csrf"), 405, "method"),
    ] {
        let answer = ask(shows).await;
        let problem = answer.problem();
        assert_eq!((answer.status, &problem["object"]), (status, &json!(object)), "{what}");
    }
    // Browsers that say nothing of where a request comes from still have to show all else.
    assert_eq!(ask(good.without("sec-fetch-site")).await.status, 201);
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_can_call_nothing_but_what_it_is_for() {
    let running = Running::start().await;
    let browser = signs_in(&running).await;
    let document = running.unix("GET", "/api/v1/openapi.json", None).await.json();
    let (mut open, mut shut) = (0, 0);
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            if method == "get" {
                continue;
            }
            for rpc in operation["x-berth-rpc"].as_array().into_iter().flatten() {
                let rpc = rpc.as_str().expect("a name").trim_start_matches("berth.v1.");
                let row = Call::ALL.iter().map(|call| call.row()).find(|row| row.rpc == Some(rpc));
                let path = path.replace("{id}", "r-0").replace("{address}", DEVICE);
                let mut body = json!({});
                if path.ends_with("/kernel-dma") {
                    let word = rpc.trim_start_matches("Devices/").trim_end_matches("KernelDma");
                    body["action"] = word.to_lowercase().into();
                }
                let shows = browser.shows(&running);
                let answer = shows.send(&running, &method.to_uppercase(), &path, &body).await;
                let denied = answer.status == 403;
                assert_eq!(denied, row.expect("a row").over != Over::Web, "{rpc}: {answer:?}");
                if denied {
                    shut += 1;
                    let text = answer.problem()["detail"].to_string();
                    assert!(text.contains("a browser's session can't"), "{text}");
                } else {
                    open += 1;
                }
            }
        }
    }
    assert_eq!(open, 6, "reserve, renew, release, cordon, uncordon, clear quarantine");
    assert!(shut >= 12, "{shut}");
    // Nor what is beyond a call: force, a device that the host uses.
    let made = browser.reserves(&running).await.json();
    let path = format!("/api/v1/reservations/{}", made["id"].as_str().expect("an id"));
    let shows = browser.shows(&running);
    let forced = shows.send(&running, "DELETE", &path, &json!({"force": true})).await;
    assert_eq!(reason(&forced), (403, "PERMISSION_DENIED".to_owned()));
    let mut anyway = order();
    anyway["devices"] = json!([{"pci": "0000:00:05.0"}]);
    anyway["takeFromHost"] = json!(true);
    anyway["hostUsesItAnyway"] = json!(true);
    let taken = shows.send(&running, "POST", "/api/v1/reservations", &anyway).await;
    assert_eq!(reason(&taken), (403, "PERMISSION_DENIED".to_owned()));
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_signs_out_is_out_and_a_session_ends_by_itself_and_with_the_daemon() {
    let settings = "[web]\nidle_ms = 6000\nlink_ms = 5000\n";
    let running = Running::with(settings).await;
    let (browser, idle) = (signs_in(&running).await, signs_in(&running).await);
    let shows = browser.shows(&running);
    let seen = shows.send(&running, "GET", "/web/session", &json!({})).await;
    assert_eq!(seen.status, 200, "{seen:?}");
    let left = seen.json()["idleLeftMs"].as_u64().expect("a number");
    assert!((1..=6000).contains(&left), "{left}");
    assert!(seen.json()["csrf"].is_null(), "the token is told once");
    let without = shows.clone().without("x-berth-csrf");
    let seen = without.send(&running, "GET", "/web/session", &json!({})).await;
    is_refused(&seen, 403, "x-berth-csrf");
    let out = shows.send(&running, "DELETE", "/web/session", &json!({})).await;
    assert_eq!(out.status, 200, "{out:?}");
    assert!(out.header("set-cookie").is_some_and(|line| line.ends_with("Max-Age=0")), "{out:?}");
    is_refused(&browser.reserves(&running).await, 401, "session");

    let late = link(&running).await;
    tokio::time::sleep(std::time::Duration::from_millis(6100)).await;
    is_refused(&idle.reserves(&running).await, 401, "session");
    is_refused(&enters(&running, &late).await, 401, "link");

    let browser = signs_in(&running).await;
    running.daemon.stop().await;
    let next = Running::start().await;
    // What it has is of no use to another daemon, by whichever port.
    let cookie = browser.cookie.split_once('=').expect("a cookie").1.to_owned();
    let cookie = format!("berth_session_{}={cookie}", next.tcp().port());
    is_refused(&Browser { cookie, ..browser }.reserves(&next).await, 401, "session");
    next.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_only_so_many_and_one_identity_ends_its_own() {
    let running = Running::with("[web]\nsessions = 3\n").await;
    let first = signs_in(&running).await;
    let shown = async |of: &Browser| {
        of.shows(&running).send(&running, "GET", "/web/session", &json!({})).await.status
    };
    signs_in(&running).await;
    signs_in(&running).await;
    assert_eq!(shown(&first).await, 200);
    let full = running.unix("POST", "/api/v1/web-sessions", Some(&json!({}))).await;
    assert_eq!(reason(&full), (507, "QUOTA_EXCEEDED".to_owned()));
    assert!(full.problem()["resolve"][0].to_string().contains("web.sessions"), "{full:?}");
    running.daemon.stop().await;

    let running = Running::start().await;
    let first = signs_in(&running).await;
    for _ in 0..4 {
        signs_in(&running).await;
    }
    let gone = first.shows(&running).send(&running, "GET", "/web/session", &json!({})).await;
    is_refused(&gone, 401, "session");
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_page_on_loopback_there_is_no_link_and_the_way_out_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path().display();
    let unix = format!(
        "[[listen]]\nserve = \"grpc\"\npath = \"{at}/grpc.sock\"\n\
         [[listen]]\nserve = \"http\"\npath = \"{at}/http.sock\"\n\
         [[listen]]\nserve = \"handover\"\npath = \"{at}/handover.sock\"\n"
    );
    // One that others reach, too, is none for secrets.
    let everywhere = format!("{unix}[[listen]]\nserve = \"http\"\naddress = \"0.0.0.0:0\"\n");
    for settings in [unix, everywhere] {
        let running = Running::with(&settings).await;
        let answer = running
            .unix_at(dir.path().join("http.sock"), "POST", "/api/v1/web-sessions", &json!({}))
            .await;
        let problem = answer.problem();
        assert_eq!(problem["reason"], "UNSUPPORTED", "{problem}");
        assert!(problem["resolve"][0].to_string().contains("--listen-http"), "{problem}");
        if settings.contains("address") {
            let host = format!("127.0.0.1:{}", running.tcp().port());
            let headers = format!("origin: http://{host}\r\ncontent-type: application/json\r\n");
            let answer =
                running.tcp_with("POST", "/web/session", &host, Some("{}"), &headers).await;
            is_refused(&answer, 405, "method");
        }
        running.daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_narrows_the_sessions_that_there_are() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path().display();
    let uid = rustix::process::getuid().as_raw();
    let with = |lines: &str| {
        format!(
            "[[listen]]\nserve = \"http\"\naddress = \"127.0.0.1:0\"\n\
             [[listen]]\nserve = \"grpc\"\npath = \"{at}/grpc.sock\"\n\
             [[listen]]\nserve = \"handover\"\npath = \"{at}/handover.sock\"\n\
             [[listen]]\nserve = \"http\"\npath = \"{at}/http.sock\"\n{lines}"
        )
    };
    let rule = |words: &str| with(&format!("[[listen.rule]]\n{words}\n"));
    let running = Running::with(&with("")).await;
    let opened = async || {
        let socket = dir.path().join("http.sock");
        let answer = running.unix_at(socket, "POST", "/api/v1/web-sessions", &json!({})).await;
        let url = answer.json()["url"].as_str().expect("a link").to_owned();
        entered(&running, url.rsplit('/').next().expect("a token")).await
    };
    let turn = |settings: &str| running.daemon.dials().turn(&running.settings(settings));
    let cordons = async |browser: &Browser| {
        let path = format!("/api/v1/devices/{DEVICE}/cordon");
        let answer = browser.shows(&running).send(&running, "POST", &path, &json!({})).await;
        (answer.status, answer.json()["detail"].as_str().unwrap_or_default().to_owned())
    };
    let (viewer, shut, label, group) =
        (opened().await, opened().await, opened().await, opened().await);
    assert_eq!(cordons(&viewer).await.0, 200);
    turn(&with("role = \"viewer\"\n"));
    let (status, why) = cordons(&viewer).await;
    assert_eq!(status, 403);
    assert!(why.contains("has role viewer"), "{why}");
    turn(&rule(&format!("uid = {uid}\nrole = \"none\"")));
    let (status, why) = cordons(&shut).await;
    assert_eq!(status, 401);
    assert!(why.contains("may not connect any more"), "{why}");
    turn(&rule(&format!("uid = {uid}\nrole = \"operator\"\nlabel = \"red\"")));
    let (status, why) = cordons(&label).await;
    assert_eq!(status, 401);
    assert!(why.contains("another label"), "{why}");
    turn(&rule("gid = \"4711\"\nrole = \"viewer\""));
    let (status, why) = cordons(&group).await;
    assert_eq!(status, 401);
    assert!(why.contains("about groups"), "{why}");
    // Narrowed it goes on; one that lost its ground is gone for good.
    turn(&with(""));
    assert_eq!(cordons(&viewer).await.0, 200);
    for gone in [&shut, &label, &group] {
        assert_eq!(cordons(gone).await.0, 401);
    }
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_lets_nothing_in_and_nothing_reaches_into_it() {
    let running = Running::start().await;
    let host = running.tcp().to_string();
    for path in ["/", "/web/main.js", "/web/style.css", "/web/icon.svg"] {
        let answer = running.tcp_raw("GET", path, &host, "").await;
        for (name, value) in [
            (
                "content-security-policy",
                "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                 img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            ),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{path}: {answer:?}");
        }
    }
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_without_a_session_says_how_to_sign_in() {
    let running = Running::start().await;
    let answer = page(&running).send(&running, "POST", "/api/v1/reservations", &order()).await;
    is_refused(&answer, 405, "method");
    assert!(answer.problem()["resolve"].to_string().contains("berth web"), "{answer:?}");
    running.daemon.stop().await;
}
