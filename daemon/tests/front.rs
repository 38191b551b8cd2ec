//! The front over real sockets: who gets in, as whom, and how gRPC answers.

mod front_support;

use std::{io::Read as _, os::unix::net::UnixStream};

use berth_proto::v1;
use front_support::{PATIENCE, Running};
use futures::StreamExt as _;
use prost::Message as _;
use serde_json::json;
use tokio::time::timeout;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use tonic_types::StatusExt as _;

fn uid() -> u32 {
    rustix::process::getuid().as_raw()
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_the_services_and_health_says_serving() {
    let running = Running::start().await;
    let channel = running.channel().await;
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel.clone())
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .expect("reflection answers")
        .into_inner();
    let answer = answers.message().await.expect("no error").expect("one answer");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("not a list: {answer:?}");
    };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    let mut health = HealthClient::new(channel);
    for service in ["Groups", "Devices", "Reservations", "Domains", "Events", "Host"] {
        let name = format!("berth.v1.{service}");
        assert!(names.contains(&name), "{names:?}");
        let answer = health.check(HealthCheckRequest { service: name }).await.expect("health");
        assert_eq!(answer.into_inner().status, 1, "SERVING");
    }
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_error_carries_error_info_and_the_refusal() {
    let running = Running::start().await;
    let mut groups = v1::groups_client::GroupsClient::new(running.channel().await);
    let request = v1::GetGroupRequest { group: "g-000000000000".to_owned() };
    let status = groups.get_group(request).await.expect_err("there is no such group");
    assert_eq!(status.code(), Code::NotFound);
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("NOT_FOUND", "berth"));
    assert_eq!(info.metadata["errno"], "2");
    let details = tonic_types::pb::Status::decode(status.details()).expect("a google.rpc.Status");
    let refusal = details
        .details
        .iter()
        .find(|any| any.type_url == berth_proto::REFUSAL_TYPE_URL)
        .map(|any| v1::Refusal::decode(&*any.value).expect("a refusal"))
        .expect("the refusal is among the details");
    assert_eq!((refusal.reason.as_str(), refusal.errno_name.as_str()), ("NOT_FOUND", "ENOENT"));
    assert!(!refusal.resolve.is_empty());
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_eperm_is_a_failed_precondition() {
    let running = Running::start().await;
    let mut client = v1::reservations_client::ReservationsClient::new(running.channel().await);
    let status = client
        .reserve(v1::ReserveRequest {
            holder: "vm".to_owned(),
            groups: vec!["9".to_owned()],
            policy: v1::Policy::Exclusive.into(),
            ..Default::default()
        })
        .await
        .expect_err("a host driver is on the device");
    assert_eq!(status.code(), Code::FailedPrecondition);
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!(info.reason, "KERNEL_DMA");
    assert_eq!(info.metadata["errno"], "1");
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_goes_on_after_a_seq() {
    let running = Running::start().await;
    let channel = running.channel().await;
    let mut client = v1::reservations_client::ReservationsClient::new(channel.clone());
    let mut events = v1::events_client::EventsClient::new(channel);
    let since = client
        .list_reservations(v1::ListReservationsRequest {})
        .await
        .expect("a list")
        .into_inner()
        .resume_seq;
    client
        .reserve(v1::ReserveRequest {
            holder: "vm".to_owned(),
            groups: vec!["2".to_owned()],
            policy: v1::Policy::Exclusive.into(),
            ..Default::default()
        })
        .await
        .expect("the group is free");
    let request = v1::WatchRequest { since_seq: Some(since), object: String::new() };
    let mut stream = events.watch(request).await.expect("a stream").into_inner();
    let first = timeout(PATIENCE, stream.next()).await.expect("in time").expect("an event");
    let first = first.expect("no error");
    assert_eq!(first.seq, since + 1);
    // What is encoded once for all who watch is what everybody else is told.
    let request = v1::ListEventsRequest { since_seq: since, ..Default::default() };
    let listed = events.list_events(request).await.expect("a list").into_inner().events;
    assert_eq!(Some(&first), listed.first());
    assert!(first.after.is_some(), "{first:?}");
    // Streams don't keep the daemon from stopping.
    timeout(PATIENCE, running.daemon.stop()).await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_serves_reading_only() {
    let running = Running::start().await;
    let host = running.tcp().to_string();
    let list = running.tcp_raw("GET", "/api/v1/groups", &host, "").await;
    assert_eq!(list.status, 200, "{list:?}");
    for method in ["POST", "DELETE", "PUT", "PATCH"] {
        let refused = running.tcp_raw(method, "/api/v1/reservations", &host, "").await;
        assert_eq!(refused.status, 405, "{refused:?}");
        assert_eq!(refused.header("allow"), Some("GET, HEAD"));
        assert_eq!(refused.problem()["reason"], "PERMISSION_DENIED");
    }
    let none = running.unix("GET", "/api/v1/reservations", None).await.json();
    assert_eq!(none["reservations"], json!([]));
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rebound_names_and_other_origins_are_refused() {
    let running = Running::start().await;
    let host = running.tcp().to_string();
    for path in ["/", "/api/v1/groups", "/metrics"] {
        let refused = running.tcp_raw("GET", path, "evil.example:7711", "").await;
        assert_eq!(refused.status, 403, "{refused:?}");
        assert_eq!(refused.problem()["object"], "Host");
        let refused = running.tcp_raw("GET", path, &host, "origin: http://evil.example\r\n").await;
        assert_eq!(refused.status, 403, "{refused:?}");
        assert_eq!(refused.problem()["object"], "Origin");
    }
    let same = format!("origin: http://{host}\r\n");
    let served = running.tcp_raw("GET", "/api/v1/groups", &host, &same).await;
    assert_eq!(served.status, 200);
    assert_eq!(served.header("access-control-allow-origin"), None);
    running.daemon.stop().await;
}

/// Listeners with roles in a directory that the settings name.
fn with_roles(dir: &std::path::Path, http: &str) -> String {
    let path = |name: &str| dir.join(name).display().to_string();
    format!(
        "[[listen]]\nserve = \"grpc\"\npath = \"{}\"\nrole = \"viewer\"\n\
         [[listen]]\nserve = \"handover\"\npath = \"{}\"\n\
         [[listen]]\nserve = \"http\"\npath = \"{}\"\n{http}",
        path("g.sock"),
        path("h.sock"),
        path("http.sock"),
    )
}

async fn post_over(socket: std::path::PathBuf) -> String {
    tokio::task::spawn_blocking(move || {
        use std::io::Write as _;
        let body = r#"{"holder":"vm","groups":["2"],"policy":"EXCLUSIVE"}"#;
        let mut stream = UnixStream::connect(socket).expect("connected");
        let request = format!(
            "POST /api/v1/reservations HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        // At once: who may do nothing here is answered, and hung up on, after the first part.
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    })
    .await
    .expect("a client that ends")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_is_the_listeners_narrowed_by_the_uid() {
    let cases = [
        ("role = \"operator\"\n".to_owned(), "HTTP/1.1 201"),
        ("role = \"viewer\"\n".to_owned(), "HTTP/1.1 403"),
        (format!("[[listen.rule]]\nuid = {}\nrole = \"viewer\"\n", uid()), "HTTP/1.1 403"),
        (format!("[[listen.rule]]\nuid = {}\nrole = \"none\"\n", uid()), "HTTP/1.1 403"),
        (
            format!(
                "others = \"none\"\n[[listen.rule]]\nuid = {}\nrole = \"orchestrator\"\n",
                uid()
            ),
            "HTTP/1.1 201",
        ),
        ("others = \"viewer\"\n".to_owned(), "HTTP/1.1 403"),
    ];
    for (http, expected) in cases {
        let dir = tempfile::tempdir().expect("a directory");
        let running = Running::with(&with_roles(dir.path(), &http)).await;
        let answer = post_over(dir.path().join("http.sock")).await;
        assert!(answer.starts_with(expected), "{http}\n{answer}");
        if expected.ends_with("403") {
            assert!(answer.contains("\"reason\":\"PERMISSION_DENIED\""), "{answer}");
        }
        running.daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_names_its_requester_by_peer_credentials() {
    let running = Running::start().await;
    let body = json!({ "holder": "vm", "groups": ["2"], "policy": "EXCLUSIVE" });
    let made = running.unix("POST", "/api/v1/reservations", Some(&body)).await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(made.json()["holder"]["requester"], format!("uid:{}", uid()));
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sockets_of_a_running_daemon_are_not_taken() {
    let running = Running::start().await;
    let path = running.grpc_path();
    let error = berthd::listen::bind_unix(&path, 0o600, None, berthd::listen::Kind::Stream)
        .expect_err("berthd listens there");
    assert!(error.to_string().contains("another process listens there"), "{error}");
    let files = [path, running.http_path(), running.dir.path().join("handover.sock")];
    for file in &files {
        assert!(file.exists(), "{}", file.display());
    }
    running.daemon.stop().await;
    for file in &files {
        assert!(!file.exists(), "{} is left", file.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_nothing_is_dropped() {
    let running = Running::with("[timeouts]\nheader_ms = 200\n").await;
    let socket = running.http_path();
    let read = tokio::task::spawn_blocking(move || {
        let mut stream = UnixStream::connect(socket).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)
    });
    let read = read.await.expect("a client that ends");
    assert!(read.is_ok(), "the connection was still open after {PATIENCE:?}: {read:?}");
    running.daemon.stop().await;
}
