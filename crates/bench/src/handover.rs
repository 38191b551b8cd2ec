//! `handover`: from the `kill -9` of `berthd` until the next one is ready, with 1,000 reservations
//! handed to as many living processes.
//!
//! The peer is a start of `berthd` that was killed just so, on the same record before anything was
//! handed over: it takes 1,000 holds, where ours finds 1,000 holders and lets them in again. The
//! record lies on a disk. The simulated host dies with the daemon, so that what is handed over is
//! nodes (delivery `node`), which are a living holder's whether it has opened them or not.

use std::{
    fs,
    io::{PipeWriter, pipe},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use berth_handover::Client;
use berth_host::sim::Topology;
use berth_measure::{Question, Row, Target, compare};
use berth_proto::v1::{self, reservations_client::ReservationsClient};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::{
    Places,
    daemon::{Machine, Running},
    front::rpc,
    ledger::runtime,
    orders,
};

/// Reservations, each with a device and a holder of its own.
const COUNT: u32 = 1000;

/// The holders. They end when nobody has the other end of their standard input.
struct Holders {
    processes: Vec<Child>,
    input: Option<PipeWriter>,
}

impl Holders {
    fn start(program: &Path) -> Result<Self> {
        let (reader, writer) = pipe().context("make a pipe")?;
        let mut holders = Self { processes: Vec::new(), input: Some(writer) };
        for _ in 0..COUNT {
            let child = Command::new(program)
                .args(["0", "0"])
                .stdin(reader.try_clone().context("give the pipe away")?)
                .stdout(Stdio::null())
                .spawn()
                .context("start a holder")?;
            holders.processes.push(child);
        }
        Ok(holders)
    }

    /// Hands a reservation to each.
    fn fetch(&self, socket: &Path, ids: &[String]) -> Result<()> {
        let client = Client::connect(socket)?;
        for (process, id) in self.processes.iter().zip(ids) {
            let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).context("a pid")?;
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("open a pidfd")?;
            client.fetch_for(id, 0, pidfd)?;
        }
        Ok(())
    }
}

impl Drop for Holders {
    fn drop(&mut self) {
        drop(self.input.take());
        for process in &mut self.processes {
            // It ends by itself.
            let _ = process.wait();
        }
    }
}

/// A daemon's directory, and the daemon in it while there is one.
struct Place {
    programs: PathBuf,
    machine: PathBuf,
    dir: PathBuf,
    running: Option<Running>,
}

impl Place {
    fn new(places: &Places, machine: &Path, dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let (programs, machine) = (places.programs.clone(), machine.to_owned());
        Ok(Self { programs, machine, dir, running: None })
    }

    fn start(&mut self) -> Result<f64> {
        let machine = Machine::Simulated(&self.machine);
        let running = Running::start(&self.programs, machine, &self.dir)?;
        let ready_ms = running.ready_ms;
        self.running = Some(running);
        Ok(ready_ms)
    }

    fn kill(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), Running::kill)
    }

    async fn reserve(&self) -> Result<Vec<String>> {
        let channel = rpc::connect(&self.dir.join("berthd.sock")).await?;
        let mut ids = Vec::new();
        for device in devices() {
            let node = v1::ReserveRequest {
                delivery: v1::Delivery::Node.into(),
                backend: v1::Backend::Iommufd.into(),
                ..v1::ReserveRequest::default()
            };
            ids.push(orders::reserve(&channel, &device, node).await?);
        }
        Ok(ids)
    }

    /// Whether all reservations are in a state.
    async fn all_are(&self, state: v1::reservation::State) -> Result<()> {
        let channel = rpc::connect(&self.dir.join("berthd.sock")).await?;
        let request = v1::ListReservationsRequest::default();
        let list = ReservationsClient::new(channel).list_reservations(request).await?.into_inner();
        let count = list.reservations.iter().filter(|one| one.state() == state).count();
        if count == usize::try_from(COUNT)? {
            return Ok(());
        }
        bail!("{count} of {COUNT} reservations are {}", state.as_str_name())
    }
}

/// Addresses of the generated machine's devices.
fn devices() -> impl Iterator<Item = String> {
    (0..COUNT).map(|at| format!("0000:{:02x}:{:02x}.0", at / 32 + 1, at % 32))
}

/// A machine whose devices are on vfio-pci, as those are that were reserved before, and which all
/// daemons find on the same boot.
fn machine() -> Result<String> {
    let text = Topology::generated(COUNT).to_toml()?;
    let devices = text.replace("[[device]]\n", "[[device]]\ndriver = \"vfio-pci\"\n");
    Ok(format!("boot_id = \"7d0c4f52-3a1e-4c55-9f0e-b5c1f4a0de11\"\n{devices}"))
}

/// The directory's files, and no sockets.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry.context("read an entry")?;
        if entry.file_type().context("read an entry")?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).context("copy the record")?;
        }
    }
    Ok(())
}

/// Runs it.
///
/// # Errors
/// Of either side; a reservation that isn't as it was before.
pub(crate) fn bench(places: &Places) -> Result<Vec<Row>> {
    let disk = tempfile::tempdir_in(&places.disk).context("make a directory on the disk")?;
    let file = disk.path().join("machine.toml");
    fs::write(&file, machine()?).context("write the machine")?;
    let runtime = runtime()?;
    let mut live = Place::new(places, &file, disk.path().join("live"))?;
    let mut quiet = Place::new(places, &file, disk.path().join("quiet"))?;
    live.start()?;
    let ids = runtime.block_on(live.reserve())?;
    live.kill()?;
    copy(&live.dir.join("state"), &quiet.dir.join("state"))?;
    live.start()?;
    let holders = Holders::start(&places.peers.join("hold"))?;
    holders.fetch(&live.dir.join("handover.sock"), &ids)?;
    let mut ours = || {
        let began = Instant::now();
        live.kill()?;
        live.start()?;
        let elapsed = began.elapsed().as_secs_f64() * 1e3;
        runtime.block_on(live.all_are(v1::reservation::State::Handed))?;
        Ok(elapsed)
    };
    let mut peer = || {
        let ready_ms = quiet.start()?;
        runtime.block_on(quiet.all_are(v1::reservation::State::Reserved))?;
        quiet.kill()?;
        Ok(ready_ms)
    };
    let question = Question {
        name: "handover",
        case: format!("kill -9 to ready, {COUNT} holders / start, none"),
        unit: "ms",
        target: Target::AtMost(1.5),
    };
    let row = compare(&question, &mut ours, &mut peer)?;
    live.kill()?;
    drop(holders);
    Ok(vec![row])
}
