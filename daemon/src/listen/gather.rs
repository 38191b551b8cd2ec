//! Writing once what many answers of a connection have to send.
//!
//! An answer that is there wakes the connection's task, which tokio then runs before other tasks that
//! are as ready. With a hundred streams on a connection that is a write for every few of them. So a
//! write waits until the task has had its next turn, which comes after theirs, where other answers
//! are under way; and goes out at once where there are none.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much is gathered at most.
const MOST: usize = 32 * 1024;

/// What a connection and its answers know of each other.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Turns that the connection's task has had.
    turns: AtomicU64,
    /// Answers that are being made or sent.
    answers: AtomicUsize,
}

impl Traffic {
    /// Drives a connection, and counts the turns that it has.
    pub(super) async fn turns_of<C: Future>(&self, mut connection: Pin<&mut C>) -> C::Output {
        poll_fn(|cx| {
            self.turns.fetch_add(1, Ordering::Relaxed);
            connection.as_mut().poll(cx)
        })
        .await
    }

    /// Counts an answer as long as what is returned lives.
    pub(super) fn answer(self: &Arc<Self>) -> Answering {
        self.answers.fetch_add(1, Ordering::Relaxed);
        Answering(Arc::clone(self))
    }

    fn is_dense(&self) -> bool {
        self.answers.load(Ordering::Relaxed) > 1
    }
}

/// An answer under way.
#[derive(Debug)]
pub(super) struct Answering(Arc<Traffic>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that is written to once a turn.
#[derive(Debug)]
pub(super) struct Gather<S> {
    stream: S,
    traffic: Arc<Traffic>,
    gathered: Vec<u8>,
    /// How much of it is written.
    written: usize,
    /// The turn in which the write was put off.
    put_off: Option<u64>,
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    pub(super) fn new(stream: S, traffic: Arc<Traffic>) -> Self {
        Self { stream, traffic, gathered: Vec::new(), written: 0, put_off: None }
    }

    /// Whether what is gathered may wait for the next turn, which is then asked for.
    fn may_wait(&mut self, cx: &Context<'_>) -> bool {
        let turn = self.traffic.turns.load(Ordering::Relaxed);
        match self.put_off {
            Some(then) => then == turn,
            None if self.traffic.is_dense() => {
                self.put_off = Some(turn);
                cx.waker().wake_by_ref();
                true
            }
            None => false,
        }
    }

    fn poll_gathered(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.gathered.len() {
            let left = &self.gathered[self.written..];
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, left))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        self.gathered.clear();
        if !self.traffic.is_dense() {
            // Most connections are quiet most of the time.
            self.gathered = Vec::new();
        }
        self.written = 0;
        self.put_off = None;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.gathered.is_empty() && !self.traffic.is_dense() {
            return Pin::new(&mut self.stream).poll_write(cx, bytes);
        }
        if self.gathered.len() + bytes.len() > MOST {
            ready!(self.poll_gathered(cx))?;
        }
        if bytes.len() > MOST {
            return Pin::new(&mut self.stream).poll_write(cx, bytes);
        }
        self.gathered.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.gathered.is_empty() && self.may_wait(cx) {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_gathered(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_gathered(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    /// Small frames are gathered then, up to a larger size than where it is.
    fn is_write_vectored(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Wake, Waker};

    use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};

    use super::*;

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Connection {
        traffic: Arc<Traffic>,
        near: Gather<DuplexStream>,
        far: DuplexStream,
        woken: Arc<Count>,
    }

    impl Connection {
        fn with_room_for(bytes: usize) -> Self {
            let (near, far) = duplex(bytes);
            let traffic = Arc::new(Traffic::default());
            let near = Gather::new(near, Arc::clone(&traffic));
            Self { traffic, near, far, woken: Arc::default() }
        }

        /// What a turn of the connection's task does: writes each of these, and flushes after each.
        fn turn(&mut self, writes: &[&[u8]]) -> Poll<io::Result<()>> {
            self.traffic.turns.fetch_add(1, Ordering::Relaxed);
            let waker = Waker::from(Arc::clone(&self.woken));
            let mut cx = Context::from_waker(&waker);
            for bytes in writes {
                let count = ready!(Pin::new(&mut self.near).poll_write(&mut cx, bytes))?;
                assert_eq!(count, bytes.len());
                ready!(Pin::new(&mut self.near).poll_flush(&mut cx))?;
            }
            Pin::new(&mut self.near).poll_flush(&mut cx)
        }

        /// What has come to the other end.
        async fn came(&mut self) -> Vec<u8> {
            let mut bytes = vec![0; 1 << 20];
            let read = tokio::time::timeout(std::time::Duration::ZERO, self.far.read(&mut bytes));
            let count = read.await.map_or(0, |count| count.expect("read"));
            bytes.truncate(count);
            bytes
        }

        fn woken(&self) -> usize {
            self.woken.0.load(Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn a_single_answer_goes_at_once() {
        let mut connection = Connection::with_room_for(1 << 20);
        let _one = connection.traffic.answer();
        assert!(connection.turn(&[b"headers", b"data"]).is_ready());
        assert_eq!(connection.came().await, b"headersdata");
        assert_eq!(connection.woken(), 0);
    }

    #[tokio::test]
    async fn of_several_answers_all_that_came_until_the_next_turn_goes_together() {
        let mut connection = Connection::with_room_for(1 << 20);
        let (one, _other) = (connection.traffic.answer(), connection.traffic.answer());
        assert!(connection.turn(&[b"a", b"b"]).is_ready());
        assert_eq!((connection.came().await, connection.woken()), (Vec::new(), 1));
        drop(one);
        assert!(connection.turn(&[b"c"]).is_ready());
        assert_eq!(connection.came().await, b"abc", "they go, though it is one answer by now");
        assert!(connection.turn(&[b"d"]).is_ready());
        assert_eq!((connection.came().await, connection.woken()), (b"d".to_vec(), 1));
    }

    #[tokio::test]
    async fn a_turn_is_asked_for_whenever_something_waits() {
        let mut connection = Connection::with_room_for(1 << 20);
        let _both = (connection.traffic.answer(), connection.traffic.answer());
        for round in 1..=3 {
            assert!(connection.turn(&[b"x"]).is_ready());
            assert_eq!((connection.came().await, connection.woken()), (Vec::new(), round));
            assert!(connection.turn(&[]).is_ready());
            assert_eq!(connection.came().await, b"x");
        }
    }

    #[tokio::test]
    async fn not_more_than_a_buffer_waits_and_nothing_overtakes() {
        let mut connection = Connection::with_room_for(1 << 20);
        let _both = (connection.traffic.answer(), connection.traffic.answer());
        let (some, large) = (vec![1; MOST - 1], vec![2; MOST + 1]);
        assert!(connection.turn(&[&some, b"more", &large, b"end"]).is_ready());
        let mut all = [&some[..], b"more", &large].concat();
        assert_eq!(connection.came().await, all);
        assert!(connection.turn(&[]).is_ready());
        all = connection.came().await;
        assert_eq!(all, b"end");
    }

    #[tokio::test]
    async fn who_does_not_read_stops_the_writing_and_gets_all_later() {
        let mut connection = Connection::with_room_for(10);
        let _both = (connection.traffic.answer(), connection.traffic.answer());
        assert!(connection.turn(&[b"0123456789abcdef"]).is_ready());
        assert!(connection.turn(&[]).is_pending());
        assert!(connection.turn(&[]).is_pending());
        let rest = vec![7; MOST];
        assert!(connection.turn(&[&rest]).is_pending(), "it can't be taken");
        assert_eq!(connection.came().await, b"0123456789");
        assert!(connection.turn(&[]).is_ready());
        assert_eq!(connection.came().await, b"abcdef");
    }

    #[tokio::test]
    async fn what_waits_goes_before_the_end() {
        let mut connection = Connection::with_room_for(1 << 20);
        let _both = (connection.traffic.answer(), connection.traffic.answer());
        assert!(connection.turn(&[b"last"]).is_ready());
        tokio::io::AsyncWriteExt::shutdown(&mut connection.near).await.expect("shut down");
        let mut all = Vec::new();
        connection.far.read_to_end(&mut all).await.expect("read");
        assert_eq!(all, b"last");
    }
}
