//! `--watch`: a list that is shown again at each change.

use std::time::Duration;

use berth_proto::v1;
use tonic::transport::Channel;

use super::Events;
use crate::{client::is_away, error::CliError, render::Output};

/// Changes that come so close together are shown at once.
const TOGETHER: Duration = Duration::from_millis(200);
/// How long until an absent daemon is asked again.
const PAUSE: Duration = Duration::from_secs(1);

/// Shows a list by `show`: once, or with `watch` again at each change, until interrupted. Where the daemon is
/// away for a while it goes on when it is back.
pub(super) async fn shown<F>(
    channel: &Channel,
    watch: bool,
    output: &Output,
    mut show: impl FnMut(Output) -> F,
) -> Result<(), CliError>
where
    F: Future<Output = Result<(), CliError>>,
{
    if !watch {
        return show(*output).await;
    }
    let output = output.watched();
    let mut away = false;
    loop {
        match follow(channel, output, &mut show).await {
            Err(CliError::Daemon(status)) if is_away(&status) => {
                if !std::mem::replace(&mut away, true) {
                    output.remark("the daemon is away; this goes on when it is back");
                }
            }
            Ok(()) => {}
            other => return other,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Until the stream of events ends.
async fn follow<F>(
    channel: &Channel,
    output: Output,
    show: &mut impl FnMut(Output) -> F,
) -> Result<(), CliError>
where
    F: Future<Output = Result<(), CliError>>,
{
    // Before the list, so that nothing between both is missed.
    let mut events =
        Events::new(channel.clone()).watch(v1::WatchRequest::default()).await?.into_inner();
    loop {
        output.begin_again()?;
        show(output).await?;
        if events.message().await?.is_none() {
            return Ok(());
        }
        let end = tokio::time::Instant::now() + TOGETHER;
        while let Ok(next) = tokio::time::timeout_at(end, events.message()).await {
            if next?.is_none() {
                return Ok(());
            }
        }
    }
}
