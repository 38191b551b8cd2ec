//! The first bytes of an HTTP/2 connection, which a client may not keep waiting for: HTTP/2 itself
//! knows no time limit before them.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    time::timeout,
};

/// `PRI * HTTP/2.0`, and the end of it.
const LENGTH: usize = 24;

/// A stream whose first bytes were read already; they come again.
#[derive(Debug)]
pub(super) struct Begun<S> {
    first: [u8; LENGTH],
    given: usize,
    stream: S,
}

/// Waits for the first bytes.
///
/// # Errors
/// They didn't come in time; the client went.
pub(super) async fn begun<S: AsyncRead + Unpin>(
    mut stream: S,
    patience: Duration,
) -> io::Result<Begun<S>> {
    let mut first = [0; LENGTH];
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no HTTP/2 preface in time");
    timeout(patience, stream.read_exact(&mut first)).await.map_err(late)??;
    Ok(Begun { first, given: 0, stream })
}

impl<S: AsyncRead + Unpin> AsyncRead for Begun<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.given < LENGTH {
            let more = buffer.remaining().min(LENGTH - self.given);
            let end = self.given + more;
            buffer.put_slice(&self.first[self.given..end]);
            self.given = end;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Begun<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
