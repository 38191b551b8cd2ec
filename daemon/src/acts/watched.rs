//! Which processes are watched for which reservation, and until when: a holder may live much longer
//! than what it held.

use std::{
    collections::{HashMap, HashSet},
    sync::Mutex,
};

use berth_ownership::{HolderProcess, ReservationId};
use tokio_util::sync::CancellationToken;

use super::runtime::lock;

/// The table.
#[derive(Debug, Default)]
pub(crate) struct Watched(Mutex<HashMap<ReservationId, OfOne>>);

#[derive(Debug, Default)]
struct OfOne {
    over: CancellationToken,
    processes: HashSet<HolderProcess>,
}

impl Watched {
    /// A process is to be watched until it ends or the reservation is over, of which the token
    /// tells; `None` where it is watched already.
    pub(crate) fn begin(
        &self,
        id: &ReservationId,
        process: &HolderProcess,
    ) -> Option<CancellationToken> {
        let mut table = lock(&self.0);
        let one = table.entry(id.clone()).or_default();
        one.processes.insert(process.clone()).then(|| one.over.clone())
    }

    /// Tells when the reservation is over.
    pub(crate) fn until(&self, id: &ReservationId) -> CancellationToken {
        lock(&self.0).entry(id.clone()).or_default().over.clone()
    }

    /// A process is watched no more.
    pub(crate) fn end(&self, id: &ReservationId, process: &HolderProcess) {
        if let Some(one) = lock(&self.0).get_mut(id) {
            one.processes.remove(process);
        }
    }

    /// The reservation is over: whoever watches for it stops.
    pub(crate) fn over(&self, id: &ReservationId) {
        if let Some(one) = lock(&self.0).remove(id) {
            one.over.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_watched_is_watched_once_until_it_is_over() {
        let (watched, id) = (Watched::default(), ReservationId::new("r-1"));
        let process = HolderProcess::new(7, 1);
        let token = watched.begin(&id, &process).expect("not yet");
        assert!(watched.begin(&id, &process).is_none());
        watched.end(&id, &process);
        let again = watched.begin(&id, &process).expect("not any more");
        let also = watched.until(&id);
        assert!(!token.is_cancelled());
        watched.over(&id);
        assert!([token, again, also].iter().all(CancellationToken::is_cancelled));
        let anew = watched.begin(&id, &process).expect("a new life");
        assert!(!anew.is_cancelled());
        assert_eq!(lock(&watched.0).len(), 1);
    }
}
