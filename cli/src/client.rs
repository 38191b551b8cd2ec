//! The connection to the daemon.

use std::{path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri},
};

use crate::{
    args::Global,
    error::{CliError, refusal_of},
    progress::Waiting,
};

/// How often a call with a request id is tried when the daemon is away for a moment.
const TRIES: u32 = 4;

/// Connects to `unix:PATH` or `https://HOST:PORT`.
pub(crate) async fn connect(global: &Global) -> Result<Channel, CliError> {
    let endpoint = global.endpoint.as_str();
    if endpoint.starts_with("https://") {
        return connect_tls(global).await;
    }
    let Some(path) = endpoint.strip_prefix("unix:") else {
        return Err(CliError::Usage(format!(
            "endpoint {endpoint:?} is not supported; write it like unix:/run/berth/berthd.sock or \
             https://host:7712"
        )));
    };
    let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
    // Asked once by itself, so that the cause is the system's and not the transport's.
    UnixStream::connect(&path).await.map_err(|error| unreachable(endpoint, error.to_string()))?;
    Endpoint::from_static("http://berthd")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .map_err(|error| unreachable(endpoint, error.to_string()))
}

fn unreachable(endpoint: &str, cause: String) -> CliError {
    let endpoint = endpoint.to_owned();
    CliError::Unreachable { endpoint, cause, option: "--endpoint or BERTH_ENDPOINT" }
}

/// Over TLS both sides show a certificate.
async fn connect_tls(global: &Global) -> Result<Channel, CliError> {
    let endpoint = global.endpoint.as_str();
    let file = |given: &Option<PathBuf>, option: &str| -> Result<Vec<u8>, CliError> {
        let Some(path) = given else {
            return Err(CliError::Usage(format!(
                "endpoint {endpoint} needs {option}; name a PEM file"
            )));
        };
        std::fs::read(path).map_err(|error| {
            CliError::Usage(format!("read {}: {error}; name another with {option}", path.display()))
        })
    };
    let ca = Certificate::from_pem(file(&global.tls_ca, "--tls-ca or BERTH_TLS_CA")?);
    let cert = file(&global.tls_cert, "--tls-cert or BERTH_TLS_CERT")?;
    let key = file(&global.tls_key, "--tls-key or BERTH_TLS_KEY")?;
    let tls = ClientTlsConfig::new().ca_certificate(ca).identity(Identity::from_pem(cert, key));
    let unfit = |error: tonic::transport::Error| {
        CliError::Usage(format!(
            "endpoint {endpoint}: {}; write it like https://host:7712",
            chain(&error)
        ))
    };
    Endpoint::from_shared(endpoint.to_owned())
        .map_err(unfit)?
        .tls_config(tls)
        .map_err(unfit)?
        .connect()
        .await
        .map_err(|error| unreachable(endpoint, chain(&error)))
}

/// An error and what is behind it: the transport's own says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
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

/// The same for what may take long: says so meanwhile.
pub(crate) async fn waited<T, F>(waiting: Waiting, call: impl FnMut() -> F) -> Result<T, CliError>
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    waiting.until(retried(call)).await
}

/// Whether nobody answered, or no longer.
pub(crate) fn is_away(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown) && refusal_of(status).is_none()
}
