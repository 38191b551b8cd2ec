//! The table of roles, walked over the hand-over socket: every request, every role, and whom the
//! reservation is for.

mod front_support;
mod roles_support;

use std::{
    fmt::Write as _,
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command},
};

use berth_handover::{Client, ClientError, Iova, Request};
use berth_proto::v1;
use berthd::model::{Call, Role, Standing, Transport};
use front_support::Running;
use roles_support::{ROLES, STANDINGS, end, expected, for_want_of_rights, me, other, reservation};
use rustix::{
    fs::{MemfdFlags, memfd_create},
    process::{Pid, PidfdFlags, pidfd_open},
};

fn settings(dir: &Path) -> String {
    let mut text = format!(
        "[[listen]]\nserve = \"http\"\npath = \"{0}/http.sock\"\n\
         [[listen]]\nserve = \"grpc\"\npath = \"{0}/grpc.sock\"\n",
        dir.display()
    );
    for role in ROLES {
        let path = socket(dir, role);
        let _ = write!(
            text,
            "[[listen]]\nserve = \"handover\"\npath = {path:?}\nrole = \"operator\"\n\
             [[listen.rule]]\nuid = {}\nrole = \"{role}\"\n",
            me()
        );
    }
    text
}

fn socket(dir: &Path, role: Role) -> PathBuf {
    dir.join(format!("{role}.sock"))
}

/// Asks, with what the request takes, and gives the reason of a refusal for want of rights.
async fn asked(path: PathBuf, call: Call, id: String) -> Option<String> {
    let ask = move || {
        let client = Client::connect(path).expect("the socket is open to all");
        let memory = memfd_create("memory", MemfdFlags::CLOEXEC).expect("a memfd");
        let (reservation, iova, length_bytes) = (id, Iova(0x10_0000), 4096);
        let answer = match call {
            Call::Fetch => client.fetch(&reservation, 0).map(drop),
            Call::Register => client.register(&reservation, memory, 0, 4096, None).map(drop),
            Call::Unregister => {
                client.ask(&Request::Unregister { reservation, iova, length_bytes }, &[]).map(drop)
            }
            Call::ShowToken => {
                client.ask(&Request::ShowToken { reservation }, &[memory.as_fd()]).map(drop)
            }
            call => panic!("{call:?} is no request of the hand-over"),
        };
        reason(answer)
    };
    tokio::task::spawn_blocking(ask).await.expect("a client that ends")
}

fn reason(answer: Result<(), ClientError>) -> Option<String> {
    match answer {
        Ok(()) => None,
        Err(ClientError::Refused(refusal)) => for_want_of_rights(&refusal.reason),
        Err(error) => panic!("no answer: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hand_over_answers_as_the_table_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let running = Running::with(&settings(dir.path())).await;
    let requests = [Call::Fetch, Call::Register, Call::Unregister, Call::ShowToken];
    let rows = Call::ALL.iter().filter(|call| call.row().rpc.is_some_and(|rpc| !rpc.contains('/')));
    assert_eq!(rows.copied().collect::<Vec<_>>(), requests, "a request is not walked");
    for call in requests {
        for standing in STANDINGS {
            for role in ROLES {
                let id = reservation(&running, standing, v1::ReserveRequest::default()).await;
                let found = asked(socket(dir.path(), role), call, id.clone()).await;
                let expected = expected(call, role, Transport::Unix, standing);
                assert_eq!(found, expected, "{call:?} as {role}, {standing:?}");
                end(&running, id).await;
            }
        }
    }
    running.daemon.stop().await;
}

/// A process of another user, which only root can start.
struct Process(Child);

impl Process {
    fn of(uid: u32) -> Self {
        Self(Command::new("sleep").arg("1000").uid(uid).spawn().expect("sleep starts"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It ends with the test, whatever that came to.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_operators_fetch_for_a_process_of_another_user() {
    if me() != 0 {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let running = Running::with(&settings(dir.path())).await;
    let theirs = Standing { is_for: false, asked: true };
    for role in ROLES {
        let terms = v1::ReserveRequest {
            delivery: v1::Delivery::Unbound.into(),
            ..v1::ReserveRequest::default()
        };
        let id = reservation(&running, theirs, terms).await;
        let (path, reservation) = (socket(dir.path(), role), id.clone());
        let process = Process::of(other());
        let pidfd = pidfd_open(Pid::from_child(&process.0), PidfdFlags::empty()).expect("a pidfd");
        let answer = tokio::task::spawn_blocking(move || {
            let client = Client::connect(path).expect("the socket is open to all");
            client.fetch_for(&reservation, 0, pidfd).map(drop)
        });
        let answer = answer.await.expect("a client that ends");
        // For whom it is: the process's user, in whose name an operator asks.
        let named = Standing { is_for: true, asked: true };
        let expected = expected(Call::FetchForOther, role, Transport::Unix, named);
        assert_eq!(answer.is_ok(), expected.is_none(), "{role}: {answer:?}");
        drop(process);
        end(&running, id).await;
    }
    running.daemon.stop().await;
}
