//! `berth explain --what-if`.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use berth_proto::v1;
use tonic::transport::Channel;

use super::Host;
use crate::{
    address,
    error::CliError,
    render::{self, Output},
};

/// What is assumed: the ports whose Access Control Services are on; none stands for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WhatIf(pub(crate) Vec<String>);

/// Reads `acs=on` or `acs=on:PORT,PORT`.
pub(crate) fn parse(text: &str) -> Result<WhatIf, String> {
    let wrong = || format!("{text:?}: say acs=on, or acs=on:0000:00:1c.0 for one port");
    let rest = text.strip_prefix("acs=on").ok_or_else(wrong)?;
    if rest.is_empty() {
        return Ok(WhatIf(Vec::new()));
    }
    let ports: Vec<String> =
        rest.strip_prefix(':').ok_or_else(wrong)?.split(',').map(address::object).collect();
    if ports.iter().any(String::is_empty) { Err(wrong()) } else { Ok(WhatIf(ports)) }
}

pub(super) async fn run(
    channel: Channel,
    object: Option<String>,
    assumed: WhatIf,
    snapshot: Option<PathBuf>,
    output: &Output,
) -> Result<(), CliError> {
    let request = v1::WhatIfRequest {
        acs_on: assumed.0,
        snapshot: snapshot.as_deref().map(read).transpose()?.unwrap_or_default(),
        object: object.map(|object| address::object(&object)).unwrap_or_default(),
    };
    let mut client = Host::new(channel).max_decoding_message_size(usize::MAX);
    let answer = client.what_if(request).await?.into_inner();
    output.show(&answer, render::what_if::text)
}

fn read(path: &Path) -> Result<String, CliError> {
    let mut text = String::new();
    let done = if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(path).map(|read| text = read)
    };
    let named = |error| CliError::failed(format!("read the snapshot {}: {error}", path.display()));
    done.map_err(named)?;
    if text.trim().is_empty() {
        return Err(CliError::failed(format!("the snapshot {} is empty", path.display())));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::{WhatIf, parse};

    #[test]
    fn all_ports_or_those_that_are_named() {
        assert_eq!(parse("acs=on"), Ok(WhatIf(Vec::new())));
        let two = WhatIf(vec!["0000:00:1c.0".to_owned(), "0000:00:1c.1".to_owned()]);
        assert_eq!(parse("acs=on:00:1c.0,0000:00:1c.1"), Ok(two));
        for wrong in ["", "acs", "acs=off", "acs=on,", "acs=on:", "acs=on:,"] {
            assert!(parse(wrong).is_err_and(|says| says.contains("acs=on:")), "{wrong}");
        }
    }
}
