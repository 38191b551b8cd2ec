//! What a shell completes berth's words with: verbs and options from the same source as the help,
//! addresses, groups and reservations from the daemon.

mod bash;

use std::{ffi::OsStr, io, time::Duration};

use berth_proto::v1;
use clap::{CommandFactory as _, Parser as _};
use clap_complete::{
    CompletionCandidate,
    env::{CompleteEnv, Elvish, EnvCompleter, Fish, Powershell, Shells, Zsh},
};
use tonic::{Status, transport::Channel};

use crate::{
    address,
    args::{Cli, ShellArg},
    client,
    commands::{Devices, Groups, Reservations},
    render::word,
};

/// A shell waits no longer for the daemon.
const PATIENCE: Duration = Duration::from_millis(500);
/// The variable by which a shell asks.
const VARIABLE: &str = "BERTH_COMPLETE";
const SHELLS: Shells<'static> = Shells(&[&bash::Bash, &Elvish, &Fish, &Powershell, &Zsh]);

/// Answers a shell that asks, and ends then; else does nothing.
pub(crate) fn answer() {
    CompleteEnv::with_factory(Cli::command).var(VARIABLE).shells(SHELLS).complete();
}

/// What makes a shell ask.
pub(crate) fn script(shell: ShellArg) -> io::Result<Vec<u8>> {
    let shell: &dyn EnvCompleter = match shell {
        ShellArg::Bash => &bash::Bash,
        ShellArg::Elvish => &Elvish,
        ShellArg::Fish => &Fish,
        ShellArg::Powershell => &Powershell,
        ShellArg::Zsh => &Zsh,
    };
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, "berth", "berth", "berth", &mut script)?;
    Ok(script)
}

/// A word, other forms of it that are as good, and what it is.
struct Word {
    forms: Vec<String>,
    what: String,
}

/// Addresses of devices.
pub(crate) fn devices(current: &OsStr) -> Vec<CompletionCandidate> {
    ask(current, device_words)
}

/// Stable ids of groups, and their devices.
pub(crate) fn groups(current: &OsStr) -> Vec<CompletionCandidate> {
    ask(current, async |channel: Channel| {
        let mut words = group_words(channel.clone()).await?;
        words.extend(device_words(channel).await?);
        Ok(words)
    })
}

/// Reservations.
pub(crate) fn reservations(current: &OsStr) -> Vec<CompletionCandidate> {
    ask(current, reservation_words)
}

/// All of them.
pub(crate) fn objects(current: &OsStr) -> Vec<CompletionCandidate> {
    ask(current, async |channel: Channel| {
        let mut words = device_words(channel.clone()).await?;
        words.extend(group_words(channel.clone()).await?);
        words.extend(reservation_words(channel).await?);
        Ok(words)
    })
}

async fn device_words(channel: Channel) -> Result<Vec<Word>, Status> {
    let mut client = Devices::new(channel).max_decoding_message_size(usize::MAX);
    let list = client.list_devices(v1::ListDevicesRequest {}).await?.into_inner();
    let words = list.devices.into_iter().filter(|device| !device.is_bridge).map(|device| {
        let full = address::text(device.address.as_ref()).to_owned();
        let short = full.strip_prefix("0000:").map(str::to_owned);
        Word { forms: [full].into_iter().chain(short).collect(), what: device.device_name }
    });
    Ok(words.collect())
}

async fn group_words(channel: Channel) -> Result<Vec<Word>, Status> {
    let mut client = Groups::new(channel).max_decoding_message_size(usize::MAX);
    let list = client.list_groups(v1::ListGroupsRequest {}).await?.into_inner();
    let words = list.groups.into_iter().map(|group| {
        let kind = group.owner.as_ref().map(|owner| word(owner.kind().as_str_name()));
        Word { what: kind.unwrap_or_default(), forms: vec![group.stable_id] }
    });
    Ok(words.collect())
}

async fn reservation_words(channel: Channel) -> Result<Vec<Word>, Status> {
    let mut client = Reservations::new(channel).max_decoding_message_size(usize::MAX);
    let list = client.list_reservations(v1::ListReservationsRequest {}).await?.into_inner();
    let words = list.reservations.into_iter().map(|one| {
        let state = word(one.state().as_str_name());
        let holder = one.holder.map(|holder| holder.name).unwrap_or_default();
        Word { what: format!("{holder}, {state}"), forms: vec![one.id] }
    });
    Ok(words.collect())
}

/// What the daemon has that goes on from what is there already; nothing where it doesn't answer.
fn ask<F>(current: &OsStr, words: impl FnOnce(Channel) -> F) -> Vec<CompletionCandidate>
where
    F: Future<Output = Result<Vec<Word>, Status>>,
{
    let Some(current) = current.to_str() else { return Vec::new() };
    // The endpoint is that of the environment: what stands on the line isn't told.
    let Ok(cli) = Cli::try_parse_from(["berth", "capabilities"]) else { return Vec::new() };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let words = runtime.block_on(async {
        let asked = async {
            let channel = client::connect(&cli.global).await.ok()?;
            words(channel).await.ok()
        };
        tokio::time::timeout(PATIENCE, asked).await.ok().flatten()
    });
    let fitting = words.unwrap_or_default().into_iter().filter_map(|word| {
        let form = word.forms.into_iter().find(|form| form.starts_with(current))?;
        Some(CompletionCandidate::new(form).help(Some(word.what.into())))
    });
    fitting.collect()
}
