//! The connection to the daemon.

use std::{path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};

use crate::error::{CliError, refusal_of};

/// How often a call with a request id is tried when the daemon is away for a moment.
const TRIES: u32 = 4;

/// Connects to `unix:PATH`.
pub(crate) async fn connect(endpoint: &str) -> Result<Channel, CliError> {
    let unreachable = |cause: String| CliError::Unreachable {
        endpoint: endpoint.to_owned(),
        cause,
        option: "--endpoint or BERTH_ENDPOINT",
    };
    let Some(path) = endpoint.strip_prefix("unix:") else {
        return Err(CliError::Usage(format!(
            "endpoint {endpoint:?} is not supported; write it like unix:/run/berth/berthd.sock"
        )));
    };
    let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
    // Asked once by itself, so that the cause is the system's and not the transport's.
    UnixStream::connect(&path).await.map_err(|error| unreachable(error.to_string()))?;
    Endpoint::from_static("http://berthd")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .map_err(|error| unreachable(error.to_string()))
}

/// Runs a call that carries a request id again while the daemon is away: the same id gets the
/// same answer, so nothing happens twice.
pub(crate) async fn retried<T, F>(mut call: impl FnMut() -> F) -> Result<T, CliError>
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    let mut pause = Duration::from_millis(100);
    for left in (0..TRIES).rev() {
        match call().await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) if left > 0 && is_away(&status) => {
                tokio::time::sleep(pause).await;
                pause *= 3;
            }
            Err(status) => return Err(status.into()),
        }
    }
    Err(CliError::failed("the daemon stayed away"))
}

fn is_away(status: &Status) -> bool {
    status.code() == Code::Unavailable && refusal_of(status).is_none()
}
