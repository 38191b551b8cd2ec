//! `fd_claim`: a holder connects to the hand-over socket, fetches the device and the iommufd that it
//! was handed before, and closes what it got.
//!
//! The peer passes as many descriptors by `SCM_RIGHTS` over a connection of its own, and knows
//! nobody. On both sides client and server are two processes, and the descriptors are of the same
//! kind: those of a device and its context, or memfds as the simulated host's files are. Afterwards
//! as many fetches as are asked for must have left no descriptor, with the daemon or with the client.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use berth_handover::Client;
use berth_measure::{Question, Row, Target, compare, median};

use crate::{
    Places, daemon::Running, front::rpc, ledger::runtime, orders, peer::Program, site::Site,
};

/// A slice.
const SLICE: Duration = Duration::from_millis(250);
/// The device, and its iommufd or container.
const FDS: usize = 2;
/// How long the daemon may take to close the last connections.
const CLOSING: Duration = Duration::from_secs(5);

/// Runs it.
///
/// # Errors
/// Of either side; descriptors that stayed open.
pub(crate) fn bench(places: &Places) -> Result<Vec<Row>> {
    let site = Site::start(places)?;
    let id = runtime()?.block_on(async {
        let channel = rpc::connect(&site.grpc()).await?;
        let bound = orders::bound(site.backend());
        let id = orders::reserve(&channel, site.device(), bound).await?;
        orders::attach(&channel, &id).await?;
        anyhow::Ok(id)
    })?;
    let socket = site.handover();
    let mut pass = Program::start(&places.peers.join("pass"), &site.beside(FDS))?;
    let (mut own, mut others) = (Vec::new(), Vec::new());
    let mut ours = || {
        let [middle, most] = slice(&socket, &id)?;
        own.push(most);
        Ok(middle)
    };
    let mut peer = || {
        let [middle, most] = pass.ask(SLICE)?;
        others.push(most);
        Ok(middle)
    };
    // An emulated processor takes as long for an instruction of ours as for one of the kernel, where
    // most of the peer's time is.
    let target = if site.is_real() { Target::Beside } else { Target::AtMost(2.0) };
    let question = Question {
        name: "fd_claim",
        case: site.case(&format!("connect, fetch, close {FDS} fds / SCM_RIGHTS in C")),
        unit: "us",
        target,
    };
    let mut row = compare(&question, &mut ours, &mut peer)?;
    let note = format!(
        "99 of 100 within {:.0} us, and {:.0} us of the peer's; {}",
        median(&own),
        median(&others),
        leaks(&site.daemon, &socket, &id, places.fetches)?
    );
    let note = site.note(&note);
    eprintln!("{note}");
    row.notes.push(note);
    site.daemon.stop()?;
    Ok(vec![row])
}

fn fetch(socket: &Path, id: &str) -> Result<()> {
    let fetched = Client::connect(socket)?.fetch(id, 0)?;
    if fetched.fds.len() != FDS {
        bail!("{} descriptors came, not {FDS}", fetched.fds.len());
    }
    Ok(())
}

/// The time that half of the fetches take at most, and that 99 of 100 do.
///
/// # Units
/// Microseconds.
fn slice(socket: &Path, id: &str) -> Result<[f64; 2]> {
    let end = Instant::now() + SLICE;
    let mut times = Vec::new();
    while Instant::now() < end {
        let began = Instant::now();
        fetch(socket, id)?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    let most = times.get(times.len().saturating_sub(1) * 99 / 100).copied();
    Ok([median(&times), most.context("no fetch in a slice")?])
}

/// Open descriptors of a process.
fn open(process: &str) -> Result<usize> {
    let list = fs::read_dir(format!("/proc/{process}/fd")).context("read its descriptors")?;
    Ok(list.count())
}

/// Fetches so often, and says what is open before and after.
///
/// # Errors
/// More than before.
fn leaks(daemon: &Running, socket: &Path, id: &str, fetches: u64) -> Result<String> {
    let both = || anyhow::Ok([open(&daemon.pid().to_string())?, open("self")?]);
    let settled = |want: [usize; 2]| {
        let began = Instant::now();
        loop {
            let now = both()?;
            if now == want || began.elapsed() > CLOSING {
                return anyhow::Ok(now);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    // The connections of the slices before are closed by then.
    std::thread::sleep(Duration::from_millis(200));
    let before = both()?;
    for _ in 0..fetches {
        fetch(socket, id)?;
    }
    let after = settled(before)?;
    let [daemon, client] = before;
    let text = format!(
        "{fetches} fetches: open at the daemon {daemon} before and {} after, at the client \
         {client} and {}",
        after[0], after[1]
    );
    if after.iter().zip(&before).any(|(after, before)| after > before) {
        bail!("descriptors stayed open; {text}");
    }
    Ok(text)
}
