//! The whole way from bytes to an answer, by gRPC and by REST, on a simulated host: what is no
//! request is refused by name, and whatever is one leaves a record that holds together.

use std::{
    cell::RefCell,
    path::Path,
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::{Router, body::Body};
use berth_host::sim::SimHost;
use berth_ownership::{Reason, invariants};
use berth_proto::v1;
use berthd::{
    config::{Access, Args, Config},
    grpc,
    listen::{Admission, Meters, UnixPeer},
    model::{Live, Role},
    rest,
    run::Daemon,
};
use clap::Parser as _;
use http::{HeaderMap, Method, Request};
use http_body_util::BodyExt as _;
use prost::Message as _;
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// Longer than any of it takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// A record grows with what is asked of it; then there is a new daemon.
const REQUESTS: usize = 2_000;

struct World {
    /// Stops when it is dropped, before its directory goes.
    daemon: Daemon,
    grpc: Router,
    rest: Router,
    methods: Vec<String>,
    left: usize,
    _ready: watch::Sender<bool>,
    _dir: tempfile::TempDir,
}

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
});

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// The first byte chooses the call, the others are its protobuf.
pub(crate) fn check_request(bytes: &[u8]) {
    with_world(|world| RUNTIME.block_on(world.request(bytes)));
}

/// The first byte chooses the path, what follows up to the first zero byte is the path's parameter
/// and the query, the rest is the body.
pub(crate) fn check_rest(bytes: &[u8]) {
    with_world(|world| RUNTIME.block_on(world.body(bytes)));
}

fn with_world(check: impl FnOnce(&World)) {
    WORLD.with_borrow_mut(|place| {
        if place.as_ref().is_some_and(|world| world.left == 0)
            && let Some(world) = place.take()
        {
            RUNTIME.block_on(world.daemon.stop());
        }
        let world = place.get_or_insert_with(|| RUNTIME.block_on(World::start()));
        world.left -= 1;
        check(world);
        let snapshot = world.daemon.service().snapshot();
        invariants::check(&snapshot.state).expect("the record holds together");
    });
}

impl World {
    async fn start() -> Self {
        // In memory where there is such a place: a disk would be all that is measured.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir = tempfile::tempdir_in(place).expect("a directory");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let words = [
            "berthd".to_owned(),
            "--host=sim:small".to_owned(),
            format!("--state-dir={}", path("state")),
            format!("--listen-grpc=unix:{}", path("berthd.sock")),
            format!("--listen-http=unix:{}", path("http.sock")),
        ];
        let args = Args::try_parse_from(words).expect("arguments");
        let config = Config::parse("", None, &args).expect("settings");
        let host = Arc::new(SimHost::builtin("small").expect("a topology"));
        let daemon = Daemon::start(&config, host).await.expect("a daemon");
        let (tell, ready) = watch::channel(true);
        let front = Arc::new(rest::Front {
            service: Arc::clone(daemon.service()),
            metrics: Arc::default(),
            ready,
            stopping: CancellationToken::new(),
            watchers: Arc::default(),
            limits: Live::new(config.limits),
            timeouts: Live::new(config.timeouts),
            meters: Arc::new(Meters::new(config.rates.clone())),
            doors: Arc::default(),
            body_bytes: config.limits.body_bytes,
        });
        Self {
            grpc: grpc::router(&front).await.expect("gRPC").0,
            rest: rest::behind(&front).expect("REST").router,
            methods: methods(),
            daemon,
            left: REQUESTS,
            _ready: tell,
            _dir: dir,
        }
    }

    async fn answer(
        &self,
        router: &Router,
        mut request: Request<Body>,
    ) -> (u16, HeaderMap, Vec<u8>, HeaderMap) {
        let peer = UnixPeer { uid: 0, pid: None, gids: Vec::new() };
        let admission = Admission::unix(&Access::all(Role::Operator), "unix:/fuzz", &peer);
        request.extensions_mut().insert(admission);
        let answered = async {
            let response = router.clone().oneshot(request).await.expect("infallible");
            let (parts, body) = response.into_parts();
            let collected = body.collect().await.expect("an answer");
            let trailers = collected.trailers().cloned().unwrap_or_default();
            (parts.status.as_u16(), parts.headers, collected.to_bytes().to_vec(), trailers)
        };
        timeout(PATIENCE, answered).await.expect("an answer in time")
    }

    async fn request(&self, bytes: &[u8]) {
        let Some((which, message)) = bytes.split_first() else { return };
        let path = &self.methods[usize::from(*which) % self.methods.len()];
        let length = u32::try_from(message.len()).expect("short").to_be_bytes();
        let frame = [&[0], &length[..], message].concat();
        let request = Request::post(path)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Body::from(frame))
            .expect("a request");
        let (status, headers, body, trailers) = self.answer(&self.grpc, request).await;
        assert_eq!(status, 200, "{path}");
        let place = if headers.contains_key("grpc-status") { &headers } else { &trailers };
        let answer = tonic::Status::from_header_map(place).expect("a status");
        if answer.code() == tonic::Code::Ok {
            let length = u32::from_be_bytes(body[1..5].try_into().expect("four bytes"));
            assert_eq!(usize::try_from(length).expect("short") + 5, body.len(), "{path}");
        } else if answer.details().is_empty() {
            // It never came to us: what came is no message of this kind.
            assert!(answer.message().contains("rotobuf"), "{path}: {answer}");
        } else {
            refused(path, answer.details());
        }
    }

    async fn body(&self, bytes: &[u8]) {
        let Some((which, rest)) = bytes.split_first() else { return };
        let zero = rest.iter().position(|byte| *byte == 0);
        let (param, body) = rest.split_at(zero.unwrap_or(0));
        let body = body.strip_prefix(b"\0").unwrap_or(body);
        let (method, template) = &ROUTES[usize::from(*which) % ROUTES.len()];
        let param = String::from_utf8_lossy(param);
        let Ok(uri) = template.replace("{}", &param).parse::<http::Uri>() else { return };
        let request = Request::builder()
            .method(method.clone())
            .uri(&uri)
            .header("content-type", "application/json")
            .header("accept", "application/json")
            .body(Body::from(body.to_vec()))
            .expect("a request");
        let (status, headers, answer, _) = self.answer(&self.rest, request).await;
        let kind = headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or("");
        if (200..300).contains(&status) {
            return;
        }
        let expected = (400..500).contains(&status) || status == 503;
        assert!(expected, "{method} {uri}: {status}");
        assert_eq!(kind, "application/problem+json", "{method} {uri}");
        let problem: serde_json::Value = serde_json::from_slice(&answer).expect("JSON");
        assert_eq!(problem["status"], status);
        let text = |key: &str| problem[key].as_str().unwrap_or_default().to_owned();
        known(&text("reason"));
        // 422: what looks like a device that isn't of PCI.
        assert!(status != 422 || text("reason") == "UNSUPPORTED", "{problem}");
        assert!(!text("detail").is_empty(), "{problem}");
        assert!(problem["resolve"].as_array().is_some_and(|ways| !ways.is_empty()), "{problem}");
    }
}

/// Reason, message and object of a refusal are there, and it isn't our fault.
fn refused(path: &str, details: &[u8]) {
    let status = tonic_types::pb::Status::decode(details).expect("a status");
    let ours = status.details.iter().find(|any| any.type_url == berth_proto::REFUSAL_TYPE_URL);
    let refusal = v1::Refusal::decode(&*ours.expect("a refusal").value).expect("a refusal");
    known(&refusal.reason);
    assert!(!refusal.message.is_empty(), "{path}: {refusal:?}");
    assert!(refusal.errno > 0, "{path}: {refusal:?}");
}

fn known(reason: &str) {
    assert!(Reason::all().iter().any(|known| known.name() == reason), "{reason:?}");
    assert_ne!(reason, Reason::Internal.name());
}

/// Every call that answers once, as its path.
fn methods() -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(berth_proto::FILE_DESCRIPTOR_SET)
        .expect("descriptors");
    let mut methods = Vec::new();
    for file in set.file {
        for service in &file.service {
            for method in service.method.iter().filter(|method| !method.server_streaming()) {
                methods.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    methods
}

const ROUTES: &[(Method, &str)] = &[
    (Method::POST, "/api/v1/reservations"),
    (Method::POST, "/api/v1/reservations/adopt"),
    (Method::DELETE, "/api/v1/reservations/{}"),
    (Method::POST, "/api/v1/reservations/{}/attach"),
    (Method::POST, "/api/v1/reservations/{}/detach"),
    (Method::POST, "/api/v1/reservations/{}/renew"),
    (Method::POST, "/api/v1/reservations/{}/replace"),
    (Method::POST, "/api/v1/reservations/{}/revoke"),
    (Method::POST, "/api/v1/domains"),
    (Method::DELETE, "/api/v1/domains/{}"),
    (Method::POST, "/api/v1/devices/{}/kernel-dma"),
    (Method::POST, "/api/v1/devices/{}/cordon"),
    (Method::POST, "/api/v1/devices/{}/uncordon"),
    (Method::POST, "/api/v1/devices/{}/clear-quarantine"),
    (Method::GET, "/api/v1/groups/{}"),
    (Method::GET, "/api/v1/groups/{}/explain"),
    (Method::GET, "/api/v1/devices/{}"),
    (Method::GET, "/api/v1/devices/{}/explain"),
    (Method::GET, "/api/v1/events{}"),
    (Method::GET, "/api/v1/{}"),
];
