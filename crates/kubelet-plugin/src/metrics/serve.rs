//! `GET /metrics` on a loopback address or a unix socket.

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};

use super::Page;
use crate::config::{Config, Door};

/// Between two attempts to listen: another instance may be on its way out.
const AGAIN: Duration = Duration::from_secs(2);
const KIND: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves where the configuration of the moment says, or nowhere. Returns only once there are no
/// more configurations.
pub async fn serve(page: Page, mut configs: watch::Receiver<Arc<Config>>) {
    loop {
        let door = configs.borrow_and_update().metrics.clone();
        let moved = async {
            while configs.changed().await.is_ok() {
                if configs.borrow_and_update().metrics != door {
                    return;
                }
            }
            // Nobody turns it any more.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = at(page.clone(), door.as_ref()) => {}
            () = moved => {}
        }
    }
}

async fn at(page: Page, door: Option<&Door>) {
    let Some(door) = door else { return std::future::pending().await };
    let app = Router::new().route("/metrics", get(numbers)).with_state(page);
    let mut told = false;
    loop {
        let ended = match door {
            Door::Tcp(address) => match TcpListener::bind(address).await {
                Ok(listener) => axum::serve(listener, app.clone()).await,
                Err(error) => Err(error),
            },
            Door::Unix(path) => match bind(path) {
                Ok(listener) => axum::serve(listener, app.clone()).await,
                Err(error) => Err(error),
            },
        };
        if let Err(error) = ended
            && !std::mem::replace(&mut told, true)
        {
            tracing::warn!(%error, %door, "the metrics are not served: trying again");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// A former run's socket is taken away; one that somebody serves is left to him.
fn bind(path: &Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

async fn numbers(State(page): State<Page>, headers: HeaderMap) -> Response {
    if !asked_here(&headers) {
        let why = "the Host header names another machine: ask a loopback address\n";
        return (StatusCode::MISDIRECTED_REQUEST, why).into_response();
    }
    ([(header::CONTENT_TYPE, KIND)], page.text()).into_response()
}

/// A page of somebody else's whose name leads here must not read the answer in a browser.
fn asked_here(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else {
        return true;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost"
        || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_answered() {
        for (host, answered) in [
            ("localhost", true),
            ("localhost:9711", true),
            ("127.0.0.1:9711", true),
            ("[::1]:9711", true),
            ("[::1]", true),
            ("metrics.example.com", false),
            ("10.0.0.1:9711", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            assert_eq!(asked_here(&headers), answered, "{host}");
        }
        assert!(asked_here(&HeaderMap::new()));
    }
}
