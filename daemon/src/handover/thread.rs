//! A thread of its own: a holder that fetches waits for one thread to wake up, and for none that
//! others keep busy.

use std::{io, os::fd::OwnedFd, sync::Arc, thread};

use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{House, serve_in};
use crate::acts::Engine;

/// A socket that is served, until the last one of this is dropped.
#[derive(Debug, Clone)]
pub struct Serving {
    runtime: Handle,
    _stop: Arc<DropGuard>,
}

impl Serving {
    /// Serves a listening socket.
    ///
    /// # Errors
    /// There can be no thread, or nothing for it to wait with.
    pub fn start(listener: OwnedFd, engine: Engine, house: House) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("berth-handover")
            .build()?;
        let (stop, handle) = (CancellationToken::new(), runtime.handle().clone());
        let stopped = stop.clone();
        thread::Builder::new().name("berth-handover".to_owned()).spawn(move || {
            let served =
                runtime.block_on(stopped.run_until_cancelled(serve_in(listener, engine, house)));
            if let Some(Err(error)) = served {
                tracing::error!(%error, "the hand-over socket broke");
            }
            // Work for a peer that hangs in the kernel must not keep the process from ending.
            runtime.shutdown_background();
        })?;
        Ok(Self { runtime: handle, _stop: Arc::new(stop.drop_guard()) })
    }

    /// Waits until the thread has turned to something new; for ever where it has ended.
    pub(crate) fn turn(&self) -> impl Future<Output = ()> + Send + use<> {
        let turned = self.runtime.spawn(std::future::ready(()));
        async move {
            if turned.await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
