//! Many that follow one stream each, and count.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::{sync::Notify, task::JoinSet, time::timeout};
use tonic::{Streaming, transport::Channel};

use crate::front::rpc;

/// How many follow.
pub(super) const WATCHERS: usize = 1000;
/// How many share a connection.
const TOGETHER: usize = 100;
/// When somebody has nothing after so long, he gets nothing.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Count {
    messages: AtomicUsize,
    all: Notify,
}

/// Those who follow. Dropping it ends them.
pub(super) struct Crowd {
    count: Arc<Count>,
    _tasks: JoinSet<()>,
    /// The stream of the one that never reads.
    _unread: Option<Box<dyn Send>>,
}

impl Crowd {
    /// Opens a stream for each, and one on a connection of its own that nobody reads, if asked for.
    ///
    /// # Errors
    /// Of a stream.
    pub(super) async fn gather<T, F>(
        socket: &Path,
        one_never_reads: bool,
        open: impl Fn(Channel) -> F,
    ) -> Result<Self>
    where
        T: Send + 'static,
        F: Future<Output = Result<Streaming<T>>>,
    {
        let count = Arc::new(Count::default());
        let mut tasks = JoinSet::new();
        for _ in 0..WATCHERS / TOGETHER {
            let channel = rpc::connect(socket).await?;
            for _ in 0..TOGETHER {
                let stream = open(channel.clone()).await.context("follow")?;
                tasks.spawn(read(stream, Arc::clone(&count)));
            }
        }
        let unread = if one_never_reads {
            let stream = open(rpc::connect(socket).await?).await.context("follow")?;
            Some(Box::new(stream) as Box<dyn Send>)
        } else {
            None
        };
        Ok(Self { count, _tasks: tasks, _unread: unread })
    }

    /// Waits until each has one message more.
    ///
    /// # Errors
    /// Somebody got none, or one too many.
    pub(super) async fn all_have_one(&mut self) -> Result<()> {
        let arrived = timeout(PATIENCE, self.count.all.notified()).await;
        let messages = self.count.messages.swap(0, Ordering::AcqRel);
        if arrived.is_err() || messages != WATCHERS {
            bail!("{WATCHERS} watchers have {messages} messages of one event");
        }
        Ok(())
    }
}

async fn read<T>(mut stream: Streaming<T>, count: Arc<Count>) {
    while let Ok(Some(_)) = stream.message().await {
        if count.messages.fetch_add(1, Ordering::AcqRel) + 1 == WATCHERS {
            count.all.notify_one();
        }
    }
}
