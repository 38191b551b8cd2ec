//! Under strain: clients that are slow, silent, many or mad, and one that behaves, which is answered
//! all the while.

mod front_support;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use berth_handover::{Client, ClientError};
use berth_proto::v1;
use front_support::{PATIENCE, Running, channel_at};

/// What every HTTP/2 connection begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A call by gRPC and one by REST, each on a connection of its own.
async fn is_answered(running: &Running) {
    let calls = async {
        let mut groups = v1::groups_client::GroupsClient::new(running.channel().await);
        groups.list_groups(v1::ListGroupsRequest {}).await.expect("an answer");
        let answer = running.unix("GET", "/api/v1/groups", None).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    tokio::time::timeout(PATIENCE, calls).await.expect("in time");
}

/// One number of the metrics, of a listener whose name ends so.
async fn gauge(running: &Running, name: &str, listener: &str) -> u64 {
    let page = running.tcp_raw("GET", "/metrics", "localhost", "").await.body;
    let line = page.lines().find(|line| {
        line.starts_with(&format!("{name}{{")) && line.contains(&format!("{listener}\"}}"))
    });
    let number = line.and_then(|line| line.rsplit(' ').next()).and_then(|text| text.parse().ok());
    number.unwrap_or_else(|| panic!("no {name} of {listener} in {page}"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

/// A peer's end of a connection that is closed, or what else came.
fn ends(mut stream: impl std::io::Read) -> bool {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_trickles_or_says_nothing_is_dropped_on_every_socket_of_http() {
    let running = Running::with("[timeouts]\nheader_ms = 300\nhandshake_ms = 300\n").await;
    let (grpc, http, tcp) = (running.grpc_path(), running.http_path(), running.tcp());
    let slow = blocking(move || {
        let unix = |path: &PathBuf, first: &[u8]| {
            let mut stream = UnixStream::connect(path).expect("connected");
            stream.write_all(first).expect("written");
            stream.set_read_timeout(Some(PATIENCE)).expect("set");
            stream
        };
        let mut plain = TcpStream::connect(tcp).expect("connected");
        plain.write_all(b"GET / HTTP/1.1\r\nhost: local").expect("written");
        plain.set_read_timeout(Some(PATIENCE)).expect("set");
        let mut ended = vec![ends(plain)];
        for (path, first) in [
            (&grpc, &b""[..]),
            (&grpc, &PREFACE[..20]),
            (&http, &b""[..]),
            (&http, &b"GET /api/v1/groups HTTP/1.1\r\nx: "[..]),
        ] {
            ended.push(ends(unix(path, first)));
        }
        ended
    });
    let (ended, ()) = tokio::join!(slow, is_answered(&running));
    assert_eq!(ended, [true; 5], "one was still open after {PATIENCE:?}");
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_given_up() {
    let running = Running::with("[timeouts]\nbody_ms = 300\n").await;
    let path = running.http_path();
    let answer = blocking(move || {
        let mut stream = UnixStream::connect(path).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let head = b"POST /api/v1/reservations HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{";
        stream.write_all(head).expect("written");
        let mut bytes = [0; 4096];
        let length = stream.read(&mut bytes).expect("an answer in time");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    });
    let answer = answer.await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("within 300 ms"), "{answer}");
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_connections_keep_nobody_waiting() {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: most.maximum, maximum: most.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).expect("raised");
    let limits = "[limits]\nconnections = 1100\nconnections_per_uid = 1050\n";
    let running = Running::with(limits).await;
    let path = running.grpc_path();
    let idle = blocking(move || {
        let connect = |_| {
            let mut stream = UnixStream::connect(&path).expect("connected");
            stream.write_all(PREFACE).expect("written");
            stream
        };
        (0..1000).map(connect).collect::<Vec<_>>()
    });
    let idle = idle.await;
    for _ in 0..1000 {
        if gauge(&running, "berth_connections", "berthd.sock").await >= 1000 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(gauge(&running, "berth_limit_connections", "berthd.sock").await, 1100);
    assert!(gauge(&running, "berth_connections", "berthd.sock").await >= 1000);
    assert!(gauge(&running, "berth_connections_per_uid", "berthd.sock").await >= 1000);
    is_answered(&running).await;
    drop(idle);
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_uid_has_so_many_connections_and_no_more() {
    let running = Running::with("[limits]\nconnections_per_uid = 3\n").await;
    let path = running.http_path();
    let last = blocking(move || {
        let connect = || UnixStream::connect(&path).expect("connected");
        let held = [connect(), connect(), connect()];
        let fourth = connect();
        fourth.set_read_timeout(Some(PATIENCE)).expect("set");
        (ends(fourth), held)
    });
    let (ended, held) = last.await;
    assert!(ended, "the fourth is closed at once");
    // Other listeners count for themselves, and what was closed is free again.
    let mut groups = v1::groups_client::GroupsClient::new(running.channel().await);
    groups.list_groups(v1::ListGroupsRequest {}).await.expect("an answer");
    drop(held);
    for _ in 0..1000 {
        if gauge(&running, "berth_connections", "http.sock").await == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    is_answered(&running).await;
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_peers_of_the_hand_over_socket_take_their_own_places_only() {
    let limits = "[limits]\nhandover_connections_per_uid = 3\n";
    let running = Running::with(limits).await;
    let path = running.dir.path().join("handover.sock");
    let (refused, silent) = blocking(move || {
        let silent: Vec<_> = (0..3).map(|_| Client::connect(&path).expect("connected")).collect();
        // Each has its place once a call behind it is answered or refused.
        let refused = loop {
            let Ok(client) = Client::connect(&path) else { continue };
            match client.fetch("r-none", 0) {
                Err(ClientError::Refused(refusal)) if refusal.object == "connection" => {
                    break refusal;
                }
                Err(ClientError::Refused(_) | ClientError::Closed) => {}
                other => panic!("{other:?}"),
            }
        };
        (refused, silent)
    })
    .await;
    assert!(refused.message.contains("one uid has 3 at a time"), "{}", refused.message);
    assert_eq!(gauge(&running, "berth_limit_connections_per_uid", "handover.sock").await, 3);
    is_answered(&running).await;
    drop(silent);
    let path = running.dir.path().join("handover.sock");
    let again = blocking(move || {
        loop {
            let client = Client::connect(&path).expect("connected");
            match client.fetch("r-none", 0) {
                Err(ClientError::Refused(refusal)) if refusal.reason == "NOT_FOUND" => break,
                Err(ClientError::Refused(_) | ClientError::Closed) => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                other => panic!("{other:?}"),
            }
        }
    });
    tokio::time::timeout(PATIENCE, again).await.expect("their places are free again");
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_reset_at_once_keep_nobody_waiting() {
    let running = Running::start().await;
    let path = running.grpc_path();
    let flood = tokio::spawn(async move {
        let stream = tokio::net::UnixStream::connect(path).await.expect("connected");
        let (mut client, connection) = h2::client::handshake(stream).await.expect("a handshake");
        let driver = tokio::spawn(connection);
        let mut sent = 0_u32;
        for _ in 0..20_000 {
            let request = http::Request::post("http://x/berth.v1.Groups/ListGroups")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())
                .expect("a request");
            let Ok(ready) = client.clone().ready().await else { break };
            client = ready;
            let Ok((_, mut body)) = client.send_request(request, false) else { break };
            body.send_reset(h2::Reason::CANCEL);
            sent += 1;
            if sent.is_multiple_of(64) {
                tokio::task::yield_now().await;
            }
        }
        drop(client);
        driver.abort();
        sent
    });
    let mut answered = 0;
    while !flood.is_finished() {
        is_answered(&running).await;
        answered += 1;
    }
    let sent = flood.await.expect("no panic");
    assert!(sent > 20 && answered > 0, "{sent} sent, {answered} answered meanwhile");
    is_answered(&running).await;
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_reads_its_stream_keeps_nobody_waiting() {
    let running = Running::start().await;
    let path = running.http_path();
    let mut deaf = blocking(move || {
        let mut stream = UnixStream::connect(path).expect("connected");
        let head = b"GET /api/v1/events?since=0 HTTP/1.1\r\nhost: x\r\n\r\n";
        stream.write_all(head).expect("written");
        stream
    })
    .await;
    let mut watch = v1::events_client::EventsClient::new(channel_at(running.grpc_path()).await);
    let deaf_too = watch.watch(v1::WatchRequest { since_seq: Some(0), ..Default::default() }).await;
    let deaf_too = deaf_too.expect("it follows");
    let mut devices = v1::devices_client::DevicesClient::new(running.channel().await);
    let device = || v1::DeviceAddress {
        kind: Some(v1::device_address::Kind::Pci("0000:00:06.0".to_owned())),
    };
    // More than the buffers of a socket take.
    for _ in 0..400 {
        let note = "x".repeat(512);
        let request = v1::CordonRequest { device: Some(device()), note, ..Default::default() };
        devices.cordon(request).await.expect("cordoned");
        let request = v1::UncordonRequest { device: Some(device()), ..Default::default() };
        devices.uncordon(request).await.expect("uncordoned");
    }
    is_answered(&running).await;
    let mut first = [0; 12];
    blocking(move || deaf.read_exact(&mut first).map(|()| first)).await.expect("it is still there");
    drop(deaf_too);
    running.daemon.stop().await;
}
