//! `grpc_read`, `grpc_mut`, `rest_get`: the daemon as its clients see it, beside what the same
//! framework does when there is nothing to do.
//!
//! Daemon, peers and clients share one process and one runtime of two workers. The daemon runs on
//! a simulated host with its database in memory.

mod http;
pub(crate) mod rpc;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use berth_host::sim::{Fault, SimHost, Site, Topology};
use berth_measure::{Question, Row, Target, compare};
use berthd::{
    config::{Args, Config},
    run::Daemon,
};
use clap::Parser as _;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::{Places, ledger::runtime};

/// Groups of the simulated host.
const GROUPS: u32 = 2048;
/// A slice.
const SLICE: Duration = Duration::from_millis(200);
/// Calls in flight, and the targets of reading and of changing.
const CASES: [(usize, f64, f64); 2] = [(1, 0.80, 0.30), (64, 0.80, 0.50)];

fn start(runtime: &Runtime, dir: &Path) -> Result<(Daemon, Arc<SimHost>)> {
    start_with(runtime, dir, GROUPS, "")
}

/// A daemon in this process, on a simulated host with so many groups, under a configuration.
///
/// # Errors
/// It can't start.
pub(crate) fn start_with(
    runtime: &Runtime,
    dir: &Path,
    groups: u32,
    text: &str,
) -> Result<(Daemon, Arc<SimHost>)> {
    let path = |name: &str| dir.join(name).display().to_string();
    let unix = |name: &str| format!("unix:{}", path(name));
    std::fs::write(dir.join("berthd.toml"), text).context("write a configuration")?;
    let words = [
        "berthd",
        "--host=sim",
        "--config",
        &path("berthd.toml"),
        "--state-dir",
        &path("state"),
        "--listen-grpc",
        &unix("berthd.sock"),
        "--listen-http",
        &unix("http.sock"),
        "--listen-handover",
        &unix("handover.sock"),
    ];
    let args = Args::try_parse_from(words)?;
    let config = Config::load(&args)?;
    let host = Arc::new(SimHost::from_topology(Topology::generated(groups)));
    let machine = Arc::clone(&host);
    Ok((runtime.block_on(Daemon::start(&config, host))?, machine))
}

/// Addresses of the simulated host's devices.
fn devices(daemon: &Daemon) -> Vec<String> {
    daemon.service().snapshot().devices().map(|device| device.address.to_string()).collect()
}

/// GetGroup beside the health check of the same server.
///
/// # Errors
/// Of either side.
pub(crate) fn grpc_read(places: &Places) -> Result<Vec<Row>> {
    let dir = tempfile::tempdir_in(&places.memory).context("make a directory in memory")?;
    let runtime = runtime()?;
    let (daemon, _) = start(&runtime, dir.path())?;
    let group = devices(&daemon).first().context("no device")?.clone();
    let mut rows = Vec::new();
    for (flight, target, _) in CASES {
        let channel = runtime.block_on(rpc::connect(&dir.path().join("berthd.sock")))?;
        let mut ours = || runtime.block_on(rpc::get_group(&channel, &group, flight, SLICE));
        let mut peer = || runtime.block_on(rpc::check(&channel, flight, SLICE));
        let question = Question {
            name: "grpc_read",
            case: format!("GetGroup / health Check, {flight} in flight"),
            unit: "calls/s",
            target: Target::AtLeast(target),
        };
        rows.push(compare(&question, &mut ours, &mut peer)?);
    }
    runtime.block_on(daemon.stop());
    Ok(rows)
}

/// How many pieces of kernel work the daemon does at once.
const AT_ONCE: usize = 64;

/// Keeps the simulated kernel from coming back while it lives: the work on so many devices as the
/// daemon has threads for hangs, and all later work waits for a thread.
struct HeldBack<'a>(&'a SimHost);

impl<'a> HeldBack<'a> {
    async fn new(host: &'a SimHost, channel: &Channel, devices: &[String]) -> Result<Self> {
        let before = host.fault_points();
        host.fault(Fault::at(Site::Bind).always().hang());
        let this = Self(host);
        rpc::reserve(channel, devices, 1, true).await?;
        let hanging = u64::try_from(devices.len())?;
        while host.fault_points() - before < hanging {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(this)
    }
}

impl Drop for HeldBack<'_> {
    fn drop(&mut self) {
        self.0.clear_faults();
    }
}

/// Reserve beside the health check of the same server.
///
/// # Errors
/// Of either side.
pub(crate) fn grpc_mut(places: &Places) -> Result<Vec<Row>> {
    let dir = tempfile::tempdir_in(&places.memory).context("make a directory in memory")?;
    let runtime = runtime()?;
    let (daemon, host) = start(&runtime, dir.path())?;
    let devices = devices(&daemon);
    let (first, others) = devices.split_at_checked(AT_ONCE).context("too few devices")?;
    let mut rows = Vec::new();
    for (what, recorded) in [("recorded", true), ("and kernel work", false)] {
        for (flight, _, target) in CASES {
            let channel = runtime.block_on(rpc::connect(&dir.path().join("berthd.sock")))?;
            // As many as fill a slice, so that few are given back between slices.
            let count = if flight == 1 { 400 } else { 1600 };
            let some = others.get(..count).context("too few devices")?;
            let mut ours = || {
                runtime.block_on(async {
                    let held = match recorded {
                        true => Some(HeldBack::new(&host, &channel, first).await?),
                        false => None,
                    };
                    let measured = rpc::reserve(&channel, some, flight, recorded).await?;
                    drop(held);
                    rpc::give_back(&channel).await?;
                    Ok(measured)
                })
            };
            let mut peer = || runtime.block_on(rpc::check(&channel, flight, SLICE));
            let question = Question {
                name: "grpc_mut",
                case: format!("Reserve ({what}) / Check, {flight} in flight"),
                unit: "calls/s",
                target: if recorded { Target::AtLeast(target) } else { Target::Beside },
            };
            rows.push(compare(&question, &mut ours, &mut peer)?);
        }
    }
    runtime.block_on(daemon.stop());
    Ok(rows)
}

/// GET of a group beside axum that answers the same bytes.
///
/// # Errors
/// Of either side.
pub(crate) fn rest_get(places: &Places) -> Result<Vec<Row>> {
    let dir = tempfile::tempdir_in(&places.memory).context("make a directory in memory")?;
    let runtime = runtime()?;
    let (daemon, _) = start(&runtime, dir.path())?;
    let group = devices(&daemon).first().context("no device")?.clone();
    let path = format!("/api/v1/groups/{group}");
    let ours_at = dir.path().join("http.sock");
    let peer_at = dir.path().join("peer.sock");
    let answer = runtime.block_on(http::get(&ours_at, &path))?;
    let bytes = answer.len();
    let server = http::constant(&runtime, &peer_at, answer)?;
    let mut rows = Vec::new();
    for flight in [1, 64] {
        let mut ours = || runtime.block_on(http::slice(&ours_at, &path, flight, SLICE));
        let mut peer = || runtime.block_on(http::slice(&peer_at, &path, flight, SLICE));
        let question = Question {
            name: "rest_get",
            case: format!("GET a group / constant of {bytes} bytes, {flight} conn."),
            unit: "gets/s",
            target: Target::AtLeast(0.85),
        };
        rows.push(compare(&question, &mut ours, &mut peer)?);
    }
    server.abort();
    runtime.block_on(daemon.stop());
    Ok(rows)
}
