//! `berth web`: a browser's session on the page.

use std::process::{Command, Stdio};

use berth_proto::v1;
use tonic::transport::Channel;

use super::Host;
use crate::{
    error::CliError,
    render::{self, Output},
};

/// Opens what the desktop has for an address.
const OPENER: &str = "xdg-open";

pub(super) async fn run(channel: Channel, open: bool, output: &Output) -> Result<(), CliError> {
    let request = v1::CreateWebSessionRequest {};
    let link = Host::new(channel).create_web_session(request).await?.into_inner();
    output.remark(&render::web::remark(&link));
    output.show(&link, |link| link.url.clone())?;
    if open { show(&link.url).await } else { Ok(()) }
}

async fn show(url: &str) -> Result<(), CliError> {
    let failed = |why: String| {
        CliError::failed(format!("{OPENER} {why}; open the link above in a browser yourself"))
    };
    let mut command = Command::new(OPENER);
    command.arg(url).stdin(Stdio::null()).stdout(Stdio::null());
    let status = tokio::task::spawn_blocking(move || command.status()).await;
    match status.unwrap_or_else(|error| Err(error.into())) {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed(format!("ended with {status}"))),
        Err(error) => Err(failed(format!("can't be started: {error}"))),
    }
}
