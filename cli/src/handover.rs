//! The hand-over socket, as the commands use it.

use std::{path::PathBuf, time::Duration};

use berth_handover::{Client, ClientError, Fetched};

use crate::{args::Global, error::CliError};

/// How long a hand-over may take where nothing is said: it is kernel work, device after device.
const PATIENCE: Duration = Duration::from_mins(10);

/// Fetches over a new connection.
pub(crate) fn fetch(
    global: &Global,
    given: Option<&str>,
    ask: impl FnOnce(&Client) -> Result<Fetched, ClientError>,
) -> Result<Fetched, CliError> {
    let path = socket(given, &global.endpoint);
    let limit = global.timeout.unwrap_or(PATIENCE);
    let fetched = Client::connect(&path).and_then(|client| {
        client.wait_at_most(limit)?;
        ask(&client)
    });
    fetched.map_err(|error| match error {
        ClientError::Refused(refusal) => CliError::handover(&refusal),
        ClientError::Socket { errno, .. } if errno == rustix::io::Errno::AGAIN => {
            CliError::TimedOut(limit)
        }
        ClientError::Socket { op: "connect to", errno } => CliError::Unreachable {
            endpoint: path.display().to_string(),
            cause: errno.to_string(),
            option: "--handover or BERTH_HANDOVER",
        },
        error => CliError::failed(error.to_string()),
    })
}

/// Where the hand-over socket is: as given, or beside the gRPC socket, as the daemon has it.
fn socket(given: Option<&str>, endpoint: &str) -> PathBuf {
    let path = |text: &str| {
        let text = text.strip_prefix("unix:").unwrap_or(text);
        // `unix:///run/...` and `unix:/run/...` are one.
        PathBuf::from(text.strip_prefix("//").unwrap_or(text))
    };
    match given {
        Some(given) => path(given),
        // Descriptors never travel over TCP.
        None if endpoint.starts_with("https://") => PathBuf::from("/run/berth/handover.sock"),
        None => path(endpoint).with_file_name("handover.sock"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_hand_over_socket_is_beside_the_other_one() {
        for (given, endpoint, path) in [
            (None, "unix:/run/berth/berthd.sock", "/run/berth/handover.sock"),
            (None, "unix:///run/berth/berthd.sock", "/run/berth/handover.sock"),
            (Some("/x/h.sock"), "unix:/run/berth/berthd.sock", "/x/h.sock"),
            (Some("unix:/x/h.sock"), "unix:/run/berth/berthd.sock", "/x/h.sock"),
        ] {
            assert_eq!(socket(given, endpoint), Path::new(path));
        }
    }
}
