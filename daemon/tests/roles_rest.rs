//! The table of roles, walked over REST: every operation of the OpenAPI document, every role, and whose
//! reservation it is about; over unix sockets, and over TCP, which proves nobody.

mod front_support;
mod roles_support;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::{self, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use berth_proto::v1;
use berthd::model::{Call, Role, Standing, Transport};
use front_support::{PATIENCE, Running};
use roles_support::{ROLES, STANDINGS, end, expected, for_want_of_rights, reservation};
use serde_json::{Value, json};

/// One call as REST has it.
#[derive(Debug, Clone)]
struct Operation {
    method: String,
    path: String,
    rpc: String,
}

impl Operation {
    fn call(&self) -> Call {
        let found = Call::ALL.iter().find(|call| call.row().rpc == Some(self.rpc.as_str()));
        *found.unwrap_or_else(|| panic!("{} has no row", self.rpc))
    }

    /// The request, about a reservation where it is about one.
    fn request(&self, id: &str) -> String {
        // A device of another group, as a cordon would keep the next reservation from being made.
        let path = self.path.replace("{id}", id).replace("{address}", "0000:00:06.0");
        let path = path.replace("{group}", "2");
        let mut body = json!({});
        if self.path.ends_with("/kernel-dma") && self.method == "POST" {
            let word = self.rpc.trim_start_matches("Devices/").trim_end_matches("KernelDma");
            body["action"] = word.to_lowercase().into();
        }
        match self.rpc.as_str() {
            "Reservations/Replace" => body["domain"] = "d-x".into(),
            // In the context of the reservation; without one it is another right.
            "Domains/CreateDomain" => body["context"] = id.into(),
            _ => {}
        }
        let body = if self.method == "POST" { body.to_string() } else { String::new() };
        let mut text = format!("{} {path} HTTP/1.1\r\nhost: localhost\r\n", self.method);
        let _ = write!(
            text,
            "connection: close\r\naccept: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        text
    }
}

/// All that the document has.
async fn operations(running: &Running, socket: PathBuf) -> Vec<Operation> {
    let text = "GET /api/v1/openapi.json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let (_, document) = over_unix(socket, text.to_owned()).await;
    assert!(!running.daemon.tcp_addresses().is_empty());
    let mut found = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            for rpc in operation["x-berth-rpc"].as_array().into_iter().flatten() {
                let rpc = rpc.as_str().expect("a name").trim_start_matches("berth.v1.").to_owned();
                found.push(Operation { method: method.to_uppercase(), path: path.clone(), rpc });
            }
        }
    }
    found
}

async fn over_unix(socket: PathBuf, request: String) -> (u16, Value) {
    blocking(move || {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        exchange(stream, &request)
    })
    .await
}

async fn over_tcp(running: &Running, request: String) -> (u16, Value) {
    let address = running.tcp();
    blocking(move || {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        exchange(stream, &request)
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("a client that ends").expect("an answer")
}

/// Status and document of an answer.
fn exchange(mut stream: impl Read + Write, request: &str) -> io::Result<(u16, Value)> {
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let (_, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    let status = status.ok_or_else(|| io::Error::other(format!("not HTTP: {text}")))?;
    Ok((status, serde_json::from_str(body).unwrap_or_default()))
}

fn settings(dir: &Path) -> String {
    let mut text = format!(
        "[[listen]]\nserve = \"http\"\naddress = \"127.0.0.1:0\"\n\
         [[listen]]\nserve = \"grpc\"\npath = \"{0}/grpc.sock\"\n\
         [[listen]]\nserve = \"handover\"\npath = \"{0}/handover.sock\"\n",
        dir.display()
    );
    for role in ROLES {
        let _ = write!(
            text,
            "[[listen]]\nserve = \"http\"\npath = \"{}/{role}.sock\"\nrole = \"{role}\"\n",
            dir.display()
        );
    }
    text
}

/// The reason of a refusal for want of rights: 405 where the listener hears no such method.
fn refused(answer: &(u16, Value)) -> Option<String> {
    let (status, problem) = answer;
    let reason = for_want_of_rights(problem["reason"].as_str().unwrap_or_default());
    assert_eq!(reason.is_some(), matches!(status, 403 | 405), "{status}: {problem}");
    reason
}

#[tokio::test(flavor = "multi_thread")]
async fn rest_answers_as_the_table_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let running = Running::with(&settings(dir.path())).await;
    let socket = |role: Role| dir.path().join(format!("{role}.sock"));
    let operations = operations(&running, socket(Role::Viewer)).await;
    let covered: BTreeSet<&str> = operations.iter().map(|it| it.rpc.as_str()).collect();
    let missing = Call::ALL.iter().filter_map(|call| call.row().rpc).filter(|rpc| {
        // Over HTTP the events' route is the watch, too.
        rpc.contains('/') && *rpc != "Events/Watch" && !covered.contains(rpc)
    });
    assert_eq!(missing.collect::<Vec<_>>(), Vec::<&str>::new(), "REST lacks calls");
    for operation in &operations {
        let call = operation.call();
        for standing in STANDINGS {
            for role in ROLES {
                // Made anew each time, as some calls end it.
                let id = reservation(&running, standing, v1::ReserveRequest::default()).await;
                let answer = over_unix(socket(role), operation.request(&id)).await;
                let expected = expected(call, role, Transport::Unix, standing);
                let (found, what) = (refused(&answer), format!("{operation:?}: {answer:?}"));
                assert_eq!(found, expected, "{what} as {role}, {standing:?}");
                end(&running, id).await;
            }
        }
    }
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_without_tls_reads_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let running = Running::with(&settings(dir.path())).await;
    let viewer = dir.path().join("viewer.sock");
    let operations = operations(&running, viewer).await;
    let own = Standing { is_for: true, asked: true };
    let id = reservation(&running, own, v1::ReserveRequest::default()).await;
    for operation in &operations {
        let answer = over_tcp(&running, operation.request(&id)).await;
        let allowed = expected(operation.call(), Role::Viewer, Transport::Tcp, own).is_none();
        // What only reads is asked by GET; by another method it isn't heard at all.
        let heard = allowed && operation.method == "GET";
        let what = format!("{operation:?}: {answer:?}");
        assert_eq!(refused(&answer).is_none(), heard, "{what}");
    }
    end(&running, id).await;
    running.daemon.stop().await;
}
