//! Looking at many devices of which each may keep the thread that looks: a read of a configuration
//! space waits for a reset of the device. Another thread goes on with the others then, and whoever
//! is being waited for is left out until it is through.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use berth_host::PciAddress;
use tokio::{sync::mpsc, time::timeout};

/// Devices that are being looked at.
#[derive(Debug, Clone, Default)]
pub(super) struct Busy(Arc<Mutex<BTreeSet<PciAddress>>>);

impl Busy {
    pub(super) fn has(&self, device: PciAddress) -> bool {
        self.all().contains(&device)
    }

    fn all(&self) -> MutexGuard<'_, BTreeSet<PciAddress>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads something of each device, but for those that take longer than `patience`.
pub(super) async fn look<T: Send + 'static>(
    devices: Vec<PciAddress>,
    busy: &Busy,
    patience: Duration,
    read: impl Fn(PciAddress) -> T + Send + Sync + 'static,
) -> Vec<(PciAddress, T)> {
    let work = Arc::new(Work { devices, next: AtomicUsize::new(0), busy: busy.clone(), read });
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let again = sender.downgrade();
    work.begin(sender);
    let mut found = Vec::with_capacity(work.devices.len());
    loop {
        match timeout(patience, receiver.recv()).await {
            Ok(Some(seen)) => found.push(seen),
            Ok(None) => return found,
            Err(_) if !work.is_begun() => {
                // It is there as long as somebody is being waited for.
                if let Some(sender) = again.upgrade() {
                    work.begin(sender);
                }
            }
            Err(_) => return found,
        }
    }
}

struct Work<R> {
    devices: Vec<PciAddress>,
    next: AtomicUsize,
    busy: Busy,
    read: R,
}

impl<R> Work<R> {
    fn is_begun(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.devices.len()
    }

    /// Has a thread go on where the last one began its last device.
    fn begin<T>(self: &Arc<Self>, sender: mpsc::UnboundedSender<(PciAddress, T)>)
    where
        T: Send + 'static,
        R: Fn(PciAddress) -> T + Send + Sync + 'static,
    {
        let work = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            while let Some(device) = work.devices.get(work.next.fetch_add(1, Ordering::Relaxed)) {
                work.busy.all().insert(*device);
                let seen = (work.read)(*device);
                work.busy.all().remove(device);
                if sender.send((*device, seen)).is_err() {
                    return;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn devices(count: u8) -> Vec<PciAddress> {
        (0..count).filter_map(|slot| PciAddress::new(0, 1, slot, 0)).collect()
    }

    #[tokio::test]
    async fn who_hangs_keeps_nobody_else_waiting_and_is_left_out() {
        let (all, busy) = (devices(6), Busy::default());
        let (hangs, through) = (all[1..3].to_vec(), Arc::new(AtomicBool::new(false)));
        let (waits, those) = (Arc::clone(&through), hangs.clone());
        let read = move |device: PciAddress| {
            while those.contains(&device) && !waits.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            device.device()
        };
        let found = look(all.clone(), &busy, Duration::from_millis(50), read).await;
        let seen: Vec<PciAddress> = found.iter().map(|(device, _)| *device).collect();
        let others: Vec<_> = all.iter().copied().filter(|it| !hangs.contains(it)).collect();
        assert_eq!(seen, others);
        assert!(all.iter().all(|device| busy.has(*device) == hangs.contains(device)));
        through.store(true, Ordering::Relaxed);
        while hangs.iter().any(|device| busy.has(*device)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn everybody_is_looked_at_once() {
        let busy = Busy::default();
        let found = look(devices(30), &busy, Duration::from_secs(60), |it| it.device()).await;
        assert_eq!(found.len(), 30);
        assert!(look(Vec::new(), &busy, Duration::from_secs(60), |_| ()).await.is_empty());
    }
}
