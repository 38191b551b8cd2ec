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

use std::io::Write as _;

use clap::CommandFactory as _;
use tonic::transport::Channel;

use crate::{
    args::{Cli, Command},
    client,
    error::CliError,
    render::Output,
};

/// Runs one command.
pub(crate) async fn run(cli: Cli, output: &Output) -> Result<(), CliError> {
    if let Command::Completions { shell } = cli.command {
        return completions(shell);
    }
    if let Command::LibvirtStandIn { .. } = cli.command {
        return libvirt::stand_in();
    }
    if let Command::Run(args) = cli.command {
        return run::run(&cli.global, *args, output).await;
    }
    if let Command::LibvirtHook(args) = cli.command {
        return libvirt::hook(&cli.global, args).await;
    }
    let channel = client::connect(&cli.global).await?;
    output.note_simulated(host::simulated(&channel).await);
    match cli.command {
        Command::Group(command) => group::run(channel, command, output).await,
        Command::Device(command) => device::run(channel, command, output).await,
        Command::Explain { object, label, memory } => {
            explain::run(channel, &object, label, memory, output).await
        }
        Command::Reserve(args) => reserve::run(channel, *args, output).await,
        Command::Adopt(args) => adopt::run(channel, *args, output).await,
        Command::Reservation(command) => reservation::run(channel, command, output).await,
        Command::Attach { order, domain } => {
            reservation::attach(channel, order, domain, output).await
        }
        Command::Detach(order) => reservation::detach(channel, order, output).await,
        Command::Release { order, force } => {
            reservation::release(channel, order, force, output).await
        }
        Command::Revoke(order) => reservation::revoke(channel, order, output).await,
        Command::Domain(command) => domain::run(channel, command, output).await,
        Command::KernelDma(command) => device::kernel_dma(channel, command, output).await,
        Command::Sriov(command) => sriov::run(channel, command, output).await,
        Command::Cordon { device, note, term } => {
            device::cordon(channel, device, note, term, output).await
        }
        Command::Uncordon { device } => device::uncordon(channel, device, output).await,
        Command::Quarantine(command) => device::quarantine(channel, command, output).await,
        Command::Watch { since, object } => events::watch(channel, since, object, output).await,
        Command::History { object, since, limit } => {
            events::history(channel, object, since, limit, output).await
        }
        Command::Snapshot { with_serials } => host::snapshot(channel, with_serials, output).await,
        Command::Doctor => host::doctor(channel, output).await,
        Command::Config => host::config(channel, output).await,
        Command::Quota => host::quota(channel, output).await,
        Command::Capabilities => host::capabilities(channel, output).await,
        Command::Completions { shell } => completions(shell),
        Command::Run(args) => run::run(&cli.global, *args, output).await,
        Command::LibvirtHook(args) => libvirt::hook(&cli.global, args).await,
        Command::LibvirtStandIn { .. } => libvirt::stand_in(),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "berth", &mut script);
    std::io::stdout()
        .write_all(&script)
        .map_err(|error| CliError::failed(format!("write to standard output: {error}")))
}

/// The given request id, or a fresh one: every change can be sent again without harm.
fn request_id(given: Option<String>) -> String {
    given.unwrap_or_else(|| uuid::Uuid::new_v4().to_string())
}

type Groups = berth_proto::v1::groups_client::GroupsClient<Channel>;
type Devices = berth_proto::v1::devices_client::DevicesClient<Channel>;
type Reservations = berth_proto::v1::reservations_client::ReservationsClient<Channel>;
type Domains = berth_proto::v1::domains_client::DomainsClient<Channel>;
type Events = berth_proto::v1::events_client::EventsClient<Channel>;
type Host = berth_proto::v1::host_client::HostClient<Channel>;
