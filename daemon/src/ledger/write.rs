//! A transaction under way.

use std::{fmt, task::Poll};

use futures::{FutureExt as _, future::BoxFuture, poll};

use crate::store::{Rows, StoreError, Writer};

/// What is there when it is over: the writer again, and whether all is on the disk.
type Done = (Writer, Result<(), StoreError>);

/// A transaction under way, that is SQLite's thread's to do.
pub(super) struct Write {
    going: BoxFuture<'static, Done>,
    done: Option<Done>,
}

impl Write {
    /// Starts it: SQLite's thread has it when this returns. Without rows there is nothing to do.
    pub(super) async fn start(mut writer: Writer, rows: Rows) -> Self {
        let mut going = async move {
            let done = if rows.is_empty() { Ok(()) } else { writer.write(&rows).await };
            (writer, done)
        }
        .boxed();
        let done = match poll!(&mut going) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        };
        Self { going, done }
    }

    /// Waits until it is over. May be given up and called again until it was.
    pub(super) async fn over(&mut self) -> Done {
        match self.done.take() {
            Some(done) => done,
            None => (&mut self.going).await,
        }
    }
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Write").finish_non_exhaustive()
    }
}
