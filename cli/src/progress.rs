//! What is said while a call waits for kernel work, such as a reset: a line on standard error, where
//! that is a terminal, which goes when the call is over.

use std::{io::IsTerminal as _, time::Duration};

use berth_proto::v1;
use indicatif::{ProgressBar, ProgressStyle};
use tonic::transport::Channel;

use crate::commands::Reservations;

/// What ends sooner says nothing.
const SOON: Duration = Duration::from_secs(1);
/// How often it is asked what goes on.
const LOOK: Duration = Duration::from_millis(500);
const FRAME: Duration = Duration::from_millis(120);

/// A call that may take long.
#[derive(Debug)]
pub(crate) struct Waiting {
    what: String,
    reservation: Option<(Channel, String)>,
}

impl Waiting {
    /// `what` is said as the user put it: `attach r-0123456789ab`.
    pub(crate) fn to(what: impl Into<String>) -> Self {
        Self { what: what.into(), reservation: None }
    }

    /// The same about a reservation that is there, whose work under way is told.
    pub(crate) fn about(verb: &str, channel: &Channel, id: &str) -> Self {
        let reservation = Some((channel.clone(), id.to_owned()));
        Self { what: format!("{verb} {id}"), reservation }
    }

    /// Waits for the call.
    pub(crate) async fn until<T>(self, call: impl Future<Output = T>) -> T {
        if !std::io::stderr().is_terminal() {
            return call.await;
        }
        tokio::pin!(call);
        if let Ok(done) = tokio::time::timeout(SOON, &mut call).await {
            return done;
        }
        let line = ProgressBar::new_spinner().with_elapsed(SOON).with_style(style());
        line.set_message(self.words(""));
        line.enable_steady_tick(FRAME);
        let done = tokio::select! {
            done = call => done,
            never = self.follow(&line) => match never {},
        };
        line.finish_and_clear();
        done
    }

    /// Tells what goes on, as long as it is asked.
    async fn follow(&self, line: &ProgressBar) -> std::convert::Infallible {
        let Some((channel, id)) = &self.reservation else { return std::future::pending().await };
        let mut client = Reservations::new(channel.clone());
        loop {
            let request = v1::GetReservationRequest { id: id.clone() };
            // The call itself says what is wrong.
            if let Ok(reservation) = client.get_reservation(request).await {
                line.set_message(self.words(&reservation.into_inner().pending));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn words(&self, pending: &str) -> String {
        let what = &self.what;
        let is_news = !pending.is_empty() && !what.starts_with(pending);
        let now =
            if is_news { format!(" ({} first)", pending.replace('_', " ")) } else { String::new() };
        format!("{what}{now}; Ctrl-C ends only the waiting")
    }
}

fn style() -> ProgressStyle {
    // The template is a constant: where it could not be read the plain spinner does.
    ProgressStyle::with_template("{spinner} {elapsed:>3} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}
