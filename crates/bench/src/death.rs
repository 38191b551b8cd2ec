//! `vm_death`: from the `SIGKILL` of a holder until a watcher reads that its claims have ended.
//!
//! By then it is proven that nobody has the device open, the daemon has closed its own descriptors
//! and taken the hold again, and that is on record, in memory. The peer is the same program with
//! descriptors of its own, from the `SIGKILL` until its pidfd says that it has ended: a real device
//! that it has bound and attached is closed, and reset, by then. Where the host is simulated they are
//! memfds; who has its descriptors is looked for in the real `/proc`.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use berth_measure::{Question, Row, Target, compare, median};
use berth_proto::v1::{self, events_client::EventsClient};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use tokio::runtime::Runtime;
use tonic::{Streaming, transport::Channel};

use crate::{Places, front::rpc, ledger::runtime, orders, peer::Program, site::Site};

/// How many die in a slice.
const DEATHS: usize = 5;
/// How many with a real device, whose reset takes a tenth of a second and more.
const REAL_DEATHS: usize = 2;
/// The device, and its iommufd or container.
const FDS: usize = 2;
/// When a process that was killed has not ended after so long, it does not.
const PATIENCE: Duration = Duration::from_secs(120);
/// Memory that the process has written to, in MiB, and the target: what the kernel needs to free
/// a VM's memory is most of both sides, so that it is printed beside.
const CASES: [(&str, Target); 2] = [("0", Target::AtMost(1.5)), ("256", Target::Beside)];

/// Starts one that holds something.
fn start(program: &Path, words: &[impl AsRef<OsStr>]) -> Result<Program> {
    let mut program = Program::start(program, words)?;
    let line = program.line()?;
    if line.trim() != "ready" {
        bail!("the holder says {line:?}");
    }
    Ok(program)
}

fn pid(program: &Program) -> Result<Pid> {
    i32::try_from(program.pid()).ok().and_then(Pid::from_raw).context("a pid")
}

struct Ours<'a> {
    runtime: &'a Runtime,
    program: PathBuf,
    socket: String,
    channel: Channel,
    events: Streaming<v1::Event>,
    id: String,
}

impl Ours<'_> {
    fn death(&mut self, mib: &str) -> Result<f64> {
        self.runtime.block_on(orders::attach(&self.channel, &self.id))?;
        let holder = start(&self.program, &[mib, &self.socket, &self.id])?;
        let pid = pid(&holder)?;
        let began = Instant::now();
        kill_process(pid, Signal::KILL).context("kill the holder")?;
        self.runtime.block_on(async {
            let seen = tokio::time::timeout(PATIENCE, self.claims_ended()).await;
            seen.context("its claims did not end")?
        })?;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }

    async fn claims_ended(&mut self) -> Result<()> {
        loop {
            let event = self.events.message().await?.context("the events ended")?;
            if event.kind == "reservation.holder_gone" {
                return Ok(());
            }
        }
    }
}

fn bare(program: &Path, words: &[String]) -> Result<f64> {
    let process = start(program, words)?;
    let pid = pid(&process)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("open its pidfd")?;
    let began = Instant::now();
    kill_process(pid, Signal::KILL).context("kill it")?;
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).context("wait for its end")?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

fn slice(deaths: usize, mut death: impl FnMut() -> Result<f64>) -> Result<f64> {
    let times: Result<Vec<f64>> = (0..deaths).map(|_| death()).collect();
    Ok(median(&times?))
}

/// Runs it.
///
/// # Errors
/// Of either side.
pub(crate) fn bench(places: &Places) -> Result<Vec<Row>> {
    let site = Site::start(places)?;
    let runtime = runtime()?;
    let program = places.peers.join("hold");
    let (channel, events, id) = runtime.block_on(async {
        let channel = rpc::connect(&site.grpc()).await?;
        let bound = orders::bound(site.backend());
        let id = orders::reserve(&channel, site.device(), bound).await?;
        let request = v1::WatchRequest { object: id.clone(), ..v1::WatchRequest::default() };
        let events = EventsClient::new(channel.clone()).watch(request).await?.into_inner();
        anyhow::Ok((channel, events, id))
    })?;
    let socket = site.handover().display().to_string();
    let mut ours =
        Ours { runtime: &runtime, program: program.clone(), socket, channel, events, id };
    let deaths = if site.is_real() { REAL_DEATHS } else { DEATHS };
    let mut rows = Vec::new();
    for (mib, target) in CASES {
        let question = Question {
            name: "vm_death",
            case: site.case(&format!("kill to claims ended / to exit, {mib} MiB, {FDS} fds")),
            unit: "ms",
            target: site.target(target),
        };
        let words = [vec![mib.to_owned()], site.beside(FDS)].concat();
        let mut own = || slice(deaths, || ours.death(mib));
        let mut peer = || slice(deaths, || bare(&program, &words));
        rows.push(compare(&question, &mut own, &mut peer)?);
    }
    site.daemon.stop()?;
    Ok(rows)
}
