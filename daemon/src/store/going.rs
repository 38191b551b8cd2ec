//! A transaction under way, at whose results nobody looks before they matter.
//!
//! SQLite's thread answers a text of many statements with a result for each, and wakes who listens.
//! To wake a thread costs more than most statements, and there is nothing to do for it yet. So nobody
//! listens until the transaction is about to be committed: then SQLite's thread itself takes the
//! results that are there, and leaves word where the last one is to be told.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture, task::AtomicWaker};
use sqlx::SqliteConnection;
use tokio::time::{Instant, Sleep};

use super::{Rows, StoreError, Writer, commit};

/// How long nobody listens at most: a transaction that fails before it is committed rings no bell.
const PATIENCE: Duration = Duration::from_millis(50);

/// What is there when it is over: the writer again, and whether all is on the disk.
type Done = (Writer, Result<(), StoreError>);

/// Rings for who waits for a transaction of a writer.
#[derive(Default)]
pub(super) struct Bell {
    state: Mutex<State>,
    rung: AtomicBool,
    waiting: AtomicWaker,
}

#[derive(Default)]
struct State {
    going: Option<BoxFuture<'static, Done>>,
    done: Option<Done>,
    /// Set anew only after it is over, so that not every transaction sets a timer.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Bell {
    /// Has the thread of a connection listen whenever it is about to commit.
    ///
    /// # Errors
    /// The connection is gone.
    pub(super) async fn hang_on(
        self: &Arc<Self>,
        conn: &mut SqliteConnection,
    ) -> Result<(), StoreError> {
        let bell = Arc::clone(self);
        let mut handle = conn.lock_handle().await.map_err(StoreError::sql("lock the database"))?;
        handle.set_commit_hook(move || {
            bell.listen(&mut bell.state());
            true
        });
        Ok(())
    }

    fn start(self: &Arc<Self>, mut going: BoxFuture<'static, Done>, deaf: bool) {
        let waker = if deaf { Waker::noop().clone() } else { Waker::from(Arc::clone(self)) };
        // The thread can't listen before it is there.
        let mut state = self.state();
        self.rung.store(false, Ordering::Release);
        match going.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(done) => state.done = Some(done),
            Poll::Pending => state.going = Some(going),
        }
        if state.patience.as_ref().is_none_or(|patience| patience.is_elapsed()) {
            let until = Instant::now() + PATIENCE;
            match &mut state.patience {
                Some(patience) => patience.as_mut().reset(until),
                None => state.patience = Some(Box::pin(tokio::time::sleep_until(until))),
            }
        }
    }

    /// Takes what has come of it, and is rung by what comes next.
    fn listen(self: &Arc<Self>, state: &mut State) {
        let waker = Waker::from(Arc::clone(self));
        if let Some(going) = &mut state.going
            && let Poll::Ready(done) = going.as_mut().poll(&mut Context::from_waker(&waker))
        {
            *state = State { going: None, done: Some(done), patience: state.patience.take() };
        }
    }

    fn poll_over(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Done> {
        self.waiting.register(cx.waker());
        let mut state = self.state();
        let impatient = match &mut state.patience {
            Some(patience) => patience.poll_unpin(cx).is_ready(),
            None => true,
        };
        if self.rung.swap(false, Ordering::AcqRel) || impatient {
            self.listen(&mut state);
        }
        state.done.take().map_or(Poll::Pending, Poll::Ready)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.waiting.wake();
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").field("rung", &self.rung).finish_non_exhaustive()
    }
}

/// A transaction under way, that is SQLite's thread's to do.
#[derive(Debug)]
pub struct Going(Arc<Bell>);

impl Going {
    /// Starts it: SQLite's thread has it when this returns. Without rows there is nothing to do.
    pub(crate) fn start(mut writer: Writer, rows: Rows) -> Self {
        let bell = Arc::clone(&writer.bell);
        // Of several texts each is sent when the one before is done.
        let deaf = commit::is_one_text(&rows);
        let going = async move {
            let done = if rows.is_empty() { Ok(()) } else { writer.write(rows).await };
            (writer, done)
        };
        bell.start(going.boxed(), deaf);
        Self(bell)
    }

    /// Waits until it is over. May be given up and called again until it was.
    pub(crate) async fn over(&mut self) -> Done {
        poll_fn(|cx| self.0.poll_over(cx)).await
    }
}

impl Drop for Going {
    /// What goes on has the writer, which has the bell, which has what goes on.
    fn drop(&mut self) {
        let mut state = self.0.state();
        let left = (state.going.take(), state.done.take());
        drop(state);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::AtomicUsize,
        thread,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::store::{IntentRow, open};

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn pairs(prefix: &str) -> Vec<(String, String)> {
        (0..3).map(|number| (format!("{prefix}{number}"), "{}".to_owned())).collect()
    }

    fn rows() -> Rows {
        Rows {
            meta: pairs("m"),
            groups: pairs("g"),
            contexts: pairs("c"),
            domains: pairs("d"),
            identities: pairs("i"),
            ..Rows::default()
        }
    }

    /// Polls only when woken, as a runtime does. Answers how often that was.
    async fn by_wakes(going: &mut Going) -> (Done, usize) {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut polled = None;
        loop {
            let wakes = woken.0.load(Ordering::SeqCst);
            if polled != Some(wakes) {
                polled = Some(wakes);
                let mut cx = Context::from_waker(&waker);
                if let Poll::Ready(done) = going.0.poll_over(&mut cx) {
                    return (done, wakes);
                }
            }
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
    }

    #[tokio::test]
    async fn who_waits_is_woken_when_it_is_over_and_seldom_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = open(dir.path()).await.unwrap().writer;
        let mut wakes = 0;
        for _ in 0..32 {
            let mut going = Going::start(writer, rows());
            // The thread has come as far as the commit by the time that anybody asks.
            thread::sleep(Duration::from_millis(5));
            let ((back, done), woken) = by_wakes(&mut going).await;
            done.unwrap();
            (writer, wakes) = (back, wakes + woken);
            let mut going = Going::start(writer, rows());
            let ((back, done), woken) = by_wakes(&mut going).await;
            done.unwrap();
            (writer, wakes) = (back, wakes + woken);
        }
        // Half of them ask late, and needn't be woken; a timer that was set for an earlier one counts.
        assert!(wakes <= 128, "{wakes}");
        writer.close().await;
    }

    #[tokio::test]
    async fn what_fails_before_its_commit_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let writer = open(dir.path()).await.unwrap().writer;
        let intent = || IntentRow(1, None, "{}".into(), "b".into(), 9);
        let bad = Rows { intents: vec![intent(), intent()], ..rows() };
        let began = Instant::now();
        let mut going = Going::start(writer, bad);
        let (writer, done) = going.over().await;
        assert!(matches!(done, Err(StoreError::Sql { op: "commit", .. })), "{done:?}");
        println!("told after {:?}", began.elapsed());
        let mut going = Going::start(writer, rows());
        let (writer, done) = going.over().await;
        done.expect("nothing is left of what failed");
        let mut going = Going::start(writer, Rows::default());
        let (writer, done) = going.over().await;
        done.expect("there is nothing to do");
        writer.close().await;
    }

    #[tokio::test]
    async fn texts_that_follow_each_other_are_each_sent() {
        let dir = tempfile::tempdir().unwrap();
        let writer = open(dir.path()).await.unwrap().writer;
        let many = Rows {
            identities: (0..3000).map(|number| (number.to_string(), String::new())).collect(),
            ..Rows::default()
        };
        assert!(!commit::is_one_text(&many));
        let mut going = Going::start(writer, many);
        let (writer, done) = going.over().await;
        done.unwrap();
        writer.close().await;
    }

    #[tokio::test]
    async fn what_is_given_up_keeps_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let writer = open(dir.path()).await.unwrap().writer;
        let bell = Arc::downgrade(&writer.bell);
        drop(Going::start(writer, rows()));
        let gone = async {
            while bell.strong_count() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), gone).await.expect("the writer is let go of");
    }
}
