//! `watch_fanout`: from the order that makes one event until 1,000 watchers have it, while one more
//! never reads.
//!
//! The peer is `grpc.health.v1.Health/Watch` of tonic-health with as many watchers, one of which
//! never reads, from the change of a status on. Server and watchers share the process and a runtime
//! of two workers, over unix sockets, with a hundred streams to a connection. What Berth's order
//! takes until it is recorded, in memory, is in its time. Watchers count messages and decode none.

mod crowd;
mod raw;

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use berth_measure::{Question, Row, Target, compare};
use berth_proto::v1::{self, devices_client::DevicesClient};
use berthd::run::Daemon;
use tokio::{runtime::Runtime, task::JoinHandle};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Server};
use tonic_health::{ServingStatus, pb::HealthCheckRequest, server::HealthReporter};

use self::crowd::{Crowd, WATCHERS};
use crate::{
    Places,
    front::{rpc, start_with},
    ledger::runtime,
};

/// A slice.
const SLICE: Duration = Duration::from_millis(250);
/// Events until nothing more is sent to who doesn't read: a stream's window is full by then.
const FULL: usize = 400;
const DEVICE: &str = "0000:01:00.0";

/// A daemon and its watchers.
struct Ours {
    daemon: Daemon,
    orders: DevicesClient<Channel>,
    crowd: Crowd,
    cordoned: bool,
}

impl Ours {
    async fn follow(daemon: Daemon, socket: &Path, one_never_reads: bool) -> Result<Self> {
        let open = |channel: Channel| {
            raw::follow(channel, "/berth.v1.Events/Watch", v1::WatchRequest::default())
        };
        let crowd = Crowd::gather(socket, one_never_reads, open).await?;
        let orders = DevicesClient::new(rpc::connect(socket).await?);
        let mut ours = Self { daemon, orders, crowd, cordoned: false };
        for _ in 0..if one_never_reads { FULL } else { 1 } {
            ours.event().await?;
        }
        Ok(ours)
    }

    /// Makes one event, and waits until all have it.
    async fn event(&mut self) -> Result<()> {
        let kind = v1::device_address::Kind::Pci(DEVICE.to_owned());
        let device = Some(v1::DeviceAddress { kind: Some(kind) });
        if self.cordoned {
            let request = v1::UncordonRequest { device, ..v1::UncordonRequest::default() };
            self.orders.uncordon(request).await?;
        } else {
            let request = v1::CordonRequest { device, ..v1::CordonRequest::default() };
            self.orders.cordon(request).await?;
        }
        self.cordoned = !self.cordoned;
        self.crowd.all_have_one().await
    }

    async fn slice(&mut self) -> Result<f64> {
        let began = tokio::time::Instant::now();
        let mut done = 0.0;
        while began.elapsed() < SLICE {
            self.event().await?;
            done += 1.0;
        }
        Ok(began.elapsed().as_secs_f64() * 1e3 / done)
    }
}

/// A health server and its watchers.
struct Health {
    server: JoinHandle<()>,
    reporter: HealthReporter,
    crowd: Crowd,
    serving: bool,
}

impl Health {
    async fn follow(socket: &Path) -> Result<Self> {
        let listener = tokio::net::UnixListener::bind(socket).context("bind the peer's socket")?;
        let (reporter, service) = tonic_health::server::health_reporter();
        let serving = Server::builder().add_service(service);
        let server = tokio::spawn(async move {
            // It is aborted when it isn't needed any more.
            let _ = serving.serve_with_incoming(UnixListenerStream::new(listener)).await;
        });
        let open = |channel: Channel| {
            let request = HealthCheckRequest { service: String::new() };
            raw::follow(channel, "/grpc.health.v1.Health/Watch", request)
        };
        let mut crowd = Crowd::gather(socket, true, open).await?;
        // Everyone is told how it is, first.
        crowd.all_have_one().await?;
        Ok(Self { server, reporter, crowd, serving: true })
    }

    async fn slice(&mut self) -> Result<f64> {
        let began = tokio::time::Instant::now();
        let mut done = 0.0;
        while began.elapsed() < SLICE {
            self.serving = !self.serving;
            let status =
                if self.serving { ServingStatus::Serving } else { ServingStatus::NotServing };
            self.reporter.set_service_status("", status).await;
            self.crowd.all_have_one().await?;
            done += 1.0;
        }
        Ok(began.elapsed().as_secs_f64() * 1e3 / done)
    }
}

fn ours(runtime: &Runtime, dir: &Path, one_never_reads: bool) -> Result<Ours> {
    let limits = format!("[limits]\nwatchers = {0}\nconnections_per_uid = {0}\n", WATCHERS + 1);
    let (daemon, _) = start_with(runtime, dir, 1, &limits)?;
    runtime.block_on(Ours::follow(daemon, &dir.join("berthd.sock"), one_never_reads))
}

/// Runs it.
///
/// # Errors
/// Of either side; an event that somebody did not get.
pub(crate) fn bench(places: &Places) -> Result<Vec<Row>> {
    let dir = || tempfile::tempdir_in(&places.memory).context("make a directory in memory");
    let (first, second, third) = (dir()?, dir()?, dir()?);
    let runtime = runtime()?;
    let mut crowded = ours(&runtime, first.path(), true)?;
    let mut alone = ours(&runtime, second.path(), false)?;
    let mut health = runtime.block_on(Health::follow(&third.path().join("health.sock")))?;
    let question = |case: String, ratio: f64| Question {
        name: "watch_fanout",
        case,
        unit: "ms",
        target: Target::AtMost(ratio),
    };
    let mut with = || runtime.block_on(crowded.slice());
    let mut peer = || runtime.block_on(health.slice());
    let case = format!("event to {WATCHERS}, one more stalled / health Watch");
    let mut rows = vec![compare(&question(case, 1.3), &mut with, &mut peer)?];
    let mut without = || runtime.block_on(alone.slice());
    let case = format!("event to {WATCHERS}, one more stalled / none stalled");
    rows.push(compare(&question(case, 1.1), &mut with, &mut without)?);
    health.server.abort();
    drop(health.crowd);
    for Ours { daemon, crowd, .. } in [crowded, alone] {
        drop(crowd);
        runtime.block_on(daemon.stop());
    }
    Ok(rows)
}
