//! Settings that can change while the daemon runs.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

/// A setting that is read by many and replaced as a whole. Clones show the same one.
#[derive(Debug)]
pub struct Live<T>(Arc<ArcSwap<T>>);

impl<T> Live<T> {
    /// With what counts first.
    pub fn new(value: T) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(value)))
    }

    /// What counts now; for a short time, as it keeps what it shows alive.
    pub fn get(&self) -> Guard<Arc<T>> {
        self.0.load()
    }

    /// What counts from now on.
    pub fn set(&self, value: T) {
        self.0.store(Arc::new(value));
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Default> Default for Live<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}
