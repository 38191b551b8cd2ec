//! `vm_death`: from the `SIGKILL` of a holder until a watcher reads that its claims have ended.
//!
//! By then it is proven that nobody has the device open, the daemon has closed its own descriptors
//! and taken the hold again, and that is on record, in memory. The peer is the same program with as
//! many descriptors of its own, from the `SIGKILL` until its pidfd says that it has ended. The
//! host is simulated; who has its descriptors is looked for in the real `/proc`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use berth_host::sim::Topology;
use berth_proto::v1::{self, events_client::EventsClient};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use tokio::runtime::Runtime;
use tonic::{Streaming, transport::Channel};

use crate::{
    Places,
    compare::{Question, Target, compare, median},
    daemon::{Machine, Running},
    front::rpc,
    ledger::runtime,
    orders,
    peer::Program,
    report::Row,
};

/// How many die in a slice.
const DEATHS: usize = 5;
/// The device and the iommufd.
const FDS: &str = "2";
/// Memory that the process has written to, in MiB, and the target: what the kernel needs to free
/// a VM's memory is most of both sides, so that it is printed beside.
const CASES: [(&str, Target); 2] = [("0", Target::AtMost(1.5)), ("256", Target::Beside)];

/// Starts one that holds something.
fn start(program: &Path, words: &[&str]) -> Result<Program> {
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
            loop {
                let event = self.events.message().await?.context("the events ended")?;
                if event.kind == "reservation.holder_gone" {
                    return anyhow::Ok(());
                }
            }
        })?;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }
}

fn bare(program: &Path, mib: &str) -> Result<f64> {
    let process = start(program, &[mib, FDS])?;
    let pid = pid(&process)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("open its pidfd")?;
    let began = Instant::now();
    kill_process(pid, Signal::KILL).context("kill it")?;
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).context("wait for its end")?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

fn slice(mut death: impl FnMut() -> Result<f64>) -> Result<f64> {
    let times: Result<Vec<f64>> = (0..DEATHS).map(|_| death()).collect();
    Ok(median(&times?))
}

/// Runs it.
///
/// # Errors
/// Of either side.
pub(crate) fn bench(places: &Places) -> Result<Vec<Row>> {
    let dir = tempfile::tempdir_in(&places.memory).context("make a directory in memory")?;
    let file = dir.path().join("machine.toml");
    fs::write(&file, Topology::generated(1).to_toml()?).context("write the machine")?;
    let daemon = Running::start(&places.programs, Machine::Simulated(&file), dir.path())?;
    let runtime = runtime()?;
    let program = places.peers.join("hold");
    let (channel, events, id) = runtime.block_on(async {
        let channel = rpc::connect(&dir.path().join("berthd.sock")).await?;
        let id = orders::reserve(&channel, "0000:01:00.0", orders::bound()).await?;
        let request = v1::WatchRequest { object: id.clone(), ..v1::WatchRequest::default() };
        let events = EventsClient::new(channel.clone()).watch(request).await?.into_inner();
        anyhow::Ok((channel, events, id))
    })?;
    let socket = dir.path().join("handover.sock").display().to_string();
    let mut ours =
        Ours { runtime: &runtime, program: program.clone(), socket, channel, events, id };
    let mut rows = Vec::new();
    for (mib, target) in CASES {
        let question = Question {
            name: "vm_death",
            case: format!("kill to claims ended / to exit, {mib} MiB, {FDS} fds"),
            unit: "ms",
            target,
        };
        let mut own = || slice(|| ours.death(mib));
        let mut peer = || slice(|| bare(&program, mib));
        rows.push(compare(&question, &mut own, &mut peer)?);
    }
    daemon.stop()?;
    Ok(rows)
}
