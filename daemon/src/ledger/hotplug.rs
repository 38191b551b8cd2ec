//! What happens to the machine: the kernel tells that something did, and a scan finds what.

use std::{collections::BTreeSet, time::Duration};

use berth_host::{Host, News, PciAddress, Uevent, Uevents};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout_at},
};

use super::LedgerHandle;
use crate::model::{Meta, Snapshot};

/// Messages come in swarms: a scan waits until none has come for so long,
const QUIET: Duration = Duration::from_millis(50);
/// but no longer than this.
const SWARM: Duration = Duration::from_millis(500);
/// Between two scans lies this many times what the last one took.
const SPARE: u32 = 4;
/// Before a group that was being worked on is looked at once more.
const ONCE_MORE: Duration = Duration::from_secs(1);
/// How long the thread that reads waits before it looks whether anybody listens.
const LISTEN: Duration = Duration::from_secs(1);
/// How many addresses a cause names.
const NAMED: usize = 4;

/// What the host tells of its devices.
#[derive(Debug)]
pub struct Told(mpsc::UnboundedReceiver<News>);

impl Told {
    /// Subscribes; `None` where the host has nothing to tell, or doesn't let us hear it. Then only
    /// scans find what happened.
    #[must_use]
    pub fn of(host: &dyn Host) -> Option<Self> {
        let uevents = match host.uevents() {
            Ok(uevents) => uevents,
            Err(error) => {
                tracing::warn!(%error, "no uevents: what happens to devices is found by scans only");
                return None;
            }
        };
        let (sender, receiver) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new().name("uevents".to_owned());
        match thread.spawn(move || listen(uevents, &sender)) {
            Ok(_) => Some(Self(receiver)),
            Err(error) => {
                tracing::warn!(%error, "no thread for uevents: what happens is found by scans only");
                None
            }
        }
    }

    /// The messages of a swarm. For ever, where none will come any more. May be given up and called
    /// again until the first has come.
    async fn swarm(told: &mut Option<Self>) -> Vec<News> {
        let Some(Self(receiver)) = told else { return std::future::pending().await };
        let mut swarm: Vec<News> = receiver.recv().await.into_iter().collect();
        if swarm.is_empty() {
            *told = None;
            return swarm;
        }
        let end = Instant::now() + SWARM;
        while let Ok(Some(more)) =
            timeout_at(end.min(Instant::now() + QUIET), receiver.recv()).await
        {
            swarm.push(more);
        }
        swarm
    }
}

/// Passes on what comes until nobody listens any more.
fn listen(mut uevents: Box<dyn Uevents>, sender: &mpsc::UnboundedSender<News>) {
    while !sender.is_closed() {
        match uevents.next(LISTEN) {
            Ok(News::Uevents(none)) if none.is_empty() => {}
            Ok(news) => drop(sender.send(news)),
            Err(error) => {
                tracing::error!(%error, "uevents end: what happens is found by scans only");
                return;
            }
        }
    }
}

impl LedgerHandle {
    /// Scans the machine again and again, and when it tells that something happened, for as long as
    /// it is polled.
    pub async fn follow_host(self, period: Duration, mut told: Option<Told>) {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut again = false;
        loop {
            let cause = tokio::select! {
                swarm = Told::swarm(&mut told) => {
                    let tale = Tale::of(&swarm, &self.snapshot());
                    let Some(cause) = tale.cause() else { continue };
                    if tale.of_drivers() {
                        self.look_at_drivers(&tale, cause).await;
                        continue;
                    }
                    cause
                }
                () = sleep(ONCE_MORE), if again => "scan".to_owned(),
                _ = ticks.tick() => "scan".to_owned(),
            };
            let (began, looks) = (Instant::now(), self.snapshot().looks);
            if let Err(error) = self.rescan(Meta::internal(cause)).await {
                tracing::warn!(%error, "scanning the host");
            }
            // What was looked at meanwhile was left as that look found it.
            again = self.snapshot().looks != looks;
            sleep(began.elapsed() * SPARE).await;
        }
    }

    /// Devices changed their drivers, and are all there: they alone are looked at.
    async fn look_at_drivers(&self, tale: &Tale, cause: String) {
        let devices = tale.uevents.iter().map(|(device, _)| *device).collect();
        if let Err(error) = self.refresh(devices, Meta::internal(cause)).await {
            tracing::warn!(%error, "looking at devices whose drivers changed");
        }
    }
}

/// What a swarm tells, but for drivers in groups that are being worked on: how that ends is looked at
/// then.
#[derive(Debug, Default)]
struct Tale {
    dropped: bool,
    uevents: BTreeSet<(PciAddress, String)>,
    /// A device came, went or changed.
    more_than_drivers: bool,
}

impl Tale {
    fn of(swarm: &[News], snapshot: &Snapshot) -> Self {
        let mut tale = Self::default();
        for news in swarm {
            let News::Uevents(all) = news else {
                tale.dropped = true;
                continue;
            };
            for uevent in all.iter().filter(|uevent| !is_ours(uevent, snapshot)) {
                tale.more_than_drivers |= !uevent.is_of_driver();
                tale.uevents.insert((uevent.device, uevent.action.clone()));
            }
        }
        tale
    }

    fn of_drivers(&self) -> bool {
        !self.dropped && !self.more_than_drivers
    }

    /// In words, for the events; `None` where it tells nothing.
    fn cause(&self) -> Option<String> {
        if self.dropped {
            return Some("uevents were dropped".to_owned());
        }
        let named = self.uevents.iter().take(NAMED);
        let mut words: Vec<String> =
            named.map(|(device, action)| format!("{action} {device}")).collect();
        match self.uevents.len().saturating_sub(NAMED) {
            0 => {}
            more => words.push(format!("{more} more")),
        }
        (!words.is_empty()).then(|| format!("uevent: {}", words.join(", ")))
    }
}

fn is_ours(uevent: &Uevent, snapshot: &Snapshot) -> bool {
    let Some(group) = snapshot.group_of(uevent.device).filter(|_| uevent.is_of_driver()) else {
        return false;
    };
    snapshot.intents.values().any(|intent| match (&intent.reservation, intent.body.device()) {
        (Some(id), _) => group.reservations.contains(id),
        (None, Some(device)) => group.devices.contains(device),
        (None, None) => false,
    })
}
