//! One file per noun.

mod adopt;
mod device;
mod domain;
mod events;
mod explain;
mod group;
mod host;
mod libvirt;
mod reservation;
mod reserve;
mod run;
mod sriov;
mod watched;
mod web;
pub(crate) mod what_if;

use std::{io::Write as _, path::Path};

use clap::CommandFactory as _;
use tonic::transport::Channel;

use crate::{
    args::{Cli, Command, HistoryCommand, ShellArg},
    client, complete,
    error::CliError,
    render::Output,
};

/// Runs one command.
pub(crate) async fn run(cli: Cli, output: &Output) -> Result<(), CliError> {
    if let Command::Completions { shell } = cli.command {
        return completions(shell);
    }
    if let Command::Man { dir } = &cli.command {
        return man(dir);
    }
    if let Command::LibvirtStandIn { .. } = cli.command {
        return libvirt::stand_in();
    }
    if let Command::Run(args) = cli.command {
        return run::run(&cli.global, *args, output).await;
    }
    if let Command::LibvirtHook(args) = cli.command {
        return libvirt::hook(&cli.global, args, output).await;
    }
    let channel = client::connect(&cli.global).await?;
    output.note_simulated(host::simulated(&channel).await);
    match cli.command {
        Command::Group(command) => group::run(channel, command, output).await,
        Command::Device(command) => device::run(channel, command, output).await,
        Command::Explain { object, what_if: Some(assumed), snapshot, .. } => {
            what_if::run(channel, object, assumed, snapshot, output).await
        }
        Command::Explain { object, label, memory, .. } => {
            let object = object.unwrap_or_default();
            explain::run(channel, &object, label, memory, output).await
        }
        Command::Reserve(args) => reserve::run(channel, *args, output).await,
        Command::Adopt(args) => adopt::run(channel, *args, output).await,
        Command::Reservation(command) => reservation::run(channel, command, output).await,
        Command::Attach { order, domain } => {
            reservation::attach(channel, order, domain, output).await
        }
        Command::Detach(order) => reservation::detach(channel, order, output).await,
        Command::Release { order, force, dry_run } => {
            reservation::release(channel, order, (force, dry_run), output).await
        }
        Command::Revoke { order, dry_run } => {
            reservation::revoke(channel, order, dry_run, output).await
        }
        Command::Domain(command) => domain::run(channel, command, output).await,
        Command::KernelDma(command) => device::kernel_dma(channel, command, output).await,
        Command::Sriov(command) => sriov::run(channel, command, output).await,
        Command::Cordon { device, note, term } => {
            device::cordon(channel, device, note, term, output).await
        }
        Command::Uncordon { device } => device::uncordon(channel, device, output).await,
        Command::Quarantine(command) => device::quarantine(channel, command, output).await,
        Command::Watch { since, object } => events::watch(channel, since, object, output).await,
        Command::History { command: Some(HistoryCommand::Export { object, since }), .. } => {
            events::export(channel, object, since, output).await
        }
        Command::History { command: None, object, since, limit } => {
            events::history(channel, object, since, limit, output).await
        }
        Command::Snapshot { with_serials } => host::snapshot(channel, with_serials, output).await,
        Command::Doctor => host::doctor(channel, output).await,
        Command::Config => host::config(channel, output).await,
        Command::Quota => host::quota(channel, output).await,
        Command::Capabilities => host::capabilities(channel, output).await,
        Command::Web { open } => web::run(channel, open, output).await,
        Command::Completions { shell } => completions(shell),
        Command::Man { dir } => man(&dir),
        Command::Run(args) => run::run(&cli.global, *args, output).await,
        Command::LibvirtHook(args) => libvirt::hook(&cli.global, args, output).await,
        Command::LibvirtStandIn { .. } => libvirt::stand_in(),
    }
}

fn completions(shell: ShellArg) -> Result<(), CliError> {
    complete::script(shell)
        .and_then(|script| std::io::stdout().write_all(&script))
        .map_err(|error| CliError::failed(format!("write to standard output: {error}")))
}

/// One page for `berth`, and one for each verb.
fn man(dir: &Path) -> Result<(), CliError> {
    clap_mangen::generate_to(Cli::command(), dir).map_err(|error| {
        let dir = dir.display();
        CliError::failed(format!(
            "write man pages to {dir}: {error}; name a directory that is there"
        ))
    })
}

/// The given request id, or a fresh one: every change can be sent again without harm.
fn request_id(given: Option<String>) -> String {
    given.unwrap_or_else(|| uuid::Uuid::new_v4().to_string())
}

pub(crate) type Groups = berth_proto::v1::groups_client::GroupsClient<Channel>;
pub(crate) type Devices = berth_proto::v1::devices_client::DevicesClient<Channel>;
pub(crate) type Reservations = berth_proto::v1::reservations_client::ReservationsClient<Channel>;
type Domains = berth_proto::v1::domains_client::DomainsClient<Channel>;
type Events = berth_proto::v1::events_client::EventsClient<Channel>;
type Host = berth_proto::v1::host_client::HostClient<Channel>;
