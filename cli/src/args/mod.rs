//! The command line's words.

mod nouns;
mod orders;

use std::{path::PathBuf, time::Duration};

use berth_proto::v1::DeviceAddress;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCompleter;

pub(crate) use self::{
    nouns::{
        DeviceCommand, DomainCommand, GroupCommand, HistoryCommand, KernelDmaCommand,
        QuarantineCommand, ReservationCommand, SriovCommand, WatchArgs,
    },
    orders::{
        AdoptArgs, BackendArg, LibvirtHookArgs, OrderArgs, PolicyArg, ReserveArgs, RunArgs,
        TriedArgs, VmmArg,
    },
};
use crate::{
    address,
    commands::what_if::{self, WhatIf},
    complete, quantity,
};

const EXAMPLES: &str = "Examples:
  berth group list
  berth explain 0000:65:00.0
  berth reserve --holder vm1 --device 65:00.0 --policy exclusive --for uid:60001
  berth attach r-0123456789ab
  berth run --reservation r-0123456789ab -- ./driver --iommufd={iommufd} --device={device:65:00.0}
  berth release r-0123456789ab

Exit codes: 0 done, 1 failed, 2 usage, 3 refused, 4 not found, 5 daemon unreachable,
6 not permitted, 7 timed out.";

const RUN: &str = "\
QEMU gets `-object iommufd` and `-device vfio-pci` for each device, cloud-hypervisor `--platform`
and `--device`. A `-device vfio-pci,host=ADDRESS` or `--device path=...` that is there already, for
a device of the reservation, is filled in, and its other properties stay.

Any other program names what it gets in its words:
  {iommufd} {container}       number of the context's descriptor
  {device:ADDRESS}            number of the device's descriptor: bound, or its cdev
  {ioas:ADDRESS}              iommufd's id of the address space that the device is attached to
  {node:ADDRESS}              path of the device's cdev, which it may open
  {group:ADDRESS}             path of the device's group, which it may open
  {vf-token:ADDRESS}          the VF token that opens it, where its PF is on vfio-pci
  {address}                   address of the device
  {{                          a brace
Of a single device `:ADDRESS` may be left out. BERTH_RESERVATION, BERTH_EPOCH, BERTH_FDS (JSON) and,
with delivery node, BERTH_NODES (JSON) are in its environment; BERTH_VF_TOKENS (JSON) where there
are any. A command line is seen by every user of the host, an environment by the program's own.

The program takes the place of berth: its pid is the holder's. Where it can't be started, or ends,
the devices are the reservation's again.

Examples:
  berth run --reservation r-0123456789ab -- qemu-system-x86_64 -m 4G -nodefaults
  berth run --reservation r-0123456789ab -- \\
    qemu-system-x86_64 -m 4G -device vfio-pci,host=65:00.0,id=gpu,bus=rp1
  berth run --reservation r-0123456789ab -- cloud-hypervisor --kernel vmlinux --memory size=4G
  berth run --reservation r-0123456789ab -- ./driver --iommufd {iommufd} --device {device:65:00.0}
  berth run --reservation r-0123456789ab --dry-run -- qemu-system-x86_64 -m 4G";

const LIBVIRT: &str = "\
libvirt calls it with these words and the domain's XML on standard input, by a script in
/etc/libvirt/hooks/qemu.d. A domain without PCI devices of the host is none of its business.

  prepare begin    reserves the devices, delivery node, for the user that QEMU runs as
  started begin    names QEMU as their holder
  reconnect begin  names it again, after a restart of libvirt
  release end      releases them

Where prepare fails libvirt doesn't start the domain, and shows what was said here.";

const WEB: &str = "\
Only a unix socket answers, and the page has to be served on loopback (127.0.0.1:7711). The link is a
secret for a minute and works once. Who opens it reserves, renews and releases, cordons and clears
quarantine as you, with your role as it is at each of these; the session ends when you sign out, after
half an hour without a change, after 8 hours, and with the daemon.

From another machine: ssh -L 7711:127.0.0.1:7711 HOST, and open the link there.

Examples:
  berth web
  berth web --open
  berth web -o json | jq -r .url";

const COMPLETIONS: &str = "\
Examples:
  berth completions bash > /etc/bash_completion.d/berth
  berth completions zsh > /usr/local/share/zsh/site-functions/_berth
  berth completions fish > ~/.config/fish/completions/berth.fish

Addresses, groups and reservations are asked of the daemon at BERTH_ENDPOINT; where it doesn't
answer within half a second there are none.";

/// Who may do DMA through each IOMMU group of this host: ask, reserve, attach, release.
#[derive(Debug, Parser)]
#[command(name = "berth", version, after_help = EXAMPLES, subcommand_required = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// How to print: a table for people, or the message as JSON.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// The daemon's gRPC socket, or https://HOST:PORT.
    #[arg(
        long,
        global = true,
        env = "BERTH_ENDPOINT",
        default_value = "unix:/run/berth/berthd.sock"
    )]
    pub(crate) endpoint: String,
    /// With https: the certificates of the CA that the daemon's must come from (PEM).
    #[arg(long, global = true, env = "BERTH_TLS_CA", value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// With https: the certificate that says who you are (PEM).
    #[arg(long, global = true, env = "BERTH_TLS_CERT", value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// With https: its private key (PEM).
    #[arg(long, global = true, env = "BERTH_TLS_KEY", value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Give up waiting after this long; what is recorded goes on.
    #[arg(long, global = true, value_parser = quantity::duration)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShellArg {
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// IOMMU groups: who owns them.
    #[command(subcommand)]
    Group(GroupCommand),
    /// Devices of the host.
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Why a device or group can or can't be given away, and what to do.
    #[command(visible_alias = "why")]
    Explain {
        /// A device address, a group's stable id or number; with --memory also a reservation.
        #[arg(add = ArgValueCompleter::new(complete::objects), required_unless_present = "what_if")]
        object: Option<String>,
        /// Ask on behalf of this trust label.
        #[arg(long)]
        label: Option<String>,
        /// Also what mapping so much memory takes: locked memory, mappings, addresses, time.
        #[arg(long, value_name = "SIZE", value_parser = quantity::bytes)]
        memory: Option<u64>,
        /// Which groups would split if all ports isolated (acs=on), or these (acs=on:PORT,PORT).
        #[arg(long, value_name = "WHAT", value_parser = what_if::parse, conflicts_with_all = ["label", "memory"])]
        what_if: Option<WhatIf>,
        /// With --what-if: of the machine that `berth snapshot` wrote this file on; - is standard input.
        #[arg(long, value_name = "FILE", requires = "what_if")]
        snapshot: Option<PathBuf>,
    },
    /// Reserve groups for a holder, durably.
    Reserve(Box<ReserveArgs>),
    /// Record a process that has groups open already as the holder of a reservation.
    ///
    /// Nothing of what it has is touched. From then on the groups are its reservation's, which ends
    /// with the process: reset, and left on the driver that they were found with.
    Adopt(Box<AdoptArgs>),
    /// Reservations and their state.
    #[command(subcommand)]
    Reservation(ReservationCommand),
    /// Make the reservation's claims: bind, attach its domain.
    Attach {
        #[command(flatten)]
        order: OrderArgs,
        /// Policy group: another domain of the reservation's context.
        #[arg(long)]
        domain: Option<String>,
    },
    /// Fetch a reservation's devices and become the program that uses them.
    #[command(after_help = RUN)]
    Run(Box<RunArgs>),
    /// Take the domain away: DMA is blocked.
    Detach(OrderArgs),
    /// Give the devices back: reset, baseline restored.
    Release {
        #[command(flatten)]
        order: OrderArgs,
        /// Also with live claims of a living holder.
        #[arg(long)]
        force: bool,
        /// Decide, and say who would be killed, and each write to sysfs with what undoes it; change
        /// nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Cut the holder's DMA and end its claims without its consent.
    Revoke {
        #[command(flatten)]
        order: OrderArgs,
        /// Decide, and say who would be killed, and each write to sysfs with what undoes it; change
        /// nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// I/O address spaces.
    #[command(subcommand)]
    Domain(DomainCommand),
    /// Host drivers' use of kernel DMA.
    #[command(subcommand)]
    KernelDma(KernelDmaCommand),
    /// Virtual functions (SR-IOV) of a physical one.
    #[command(subcommand)]
    Sriov(SriovCommand),
    /// Follow changes as they happen.
    Watch {
        /// Start after this event; 0 starts with the oldest kept.
        #[arg(long)]
        since: Option<u64>,
        /// Only what concerns this device, group or reservation.
        #[arg(add = ArgValueCompleter::new(complete::objects))]
        object: Option<String>,
    },
    /// What happened to a device, group or reservation.
    #[command(args_conflicts_with_subcommands = true)]
    History {
        #[command(subcommand)]
        command: Option<HistoryCommand>,
        /// A device, group or reservation; all when left out.
        #[arg(add = ArgValueCompleter::new(complete::objects))]
        object: Option<String>,
        /// Start after this event.
        #[arg(long, default_value_t = 0)]
        since: u64,
        /// At most this many.
        #[arg(long, default_value_t = 1000)]
        limit: u32,
    },
    /// Write a topology file of this host: a bug report, and input for the simulated host.
    Snapshot {
        /// Serial numbers in clear.
        #[arg(long)]
        with_serials: bool,
    },
    /// Refuse new reservations of a device.
    Cordon {
        #[arg(value_parser = address::parse, add = ArgValueCompleter::new(complete::devices))]
        device: DeviceAddress,
        /// Why.
        #[arg(long, default_value = "")]
        note: String,
        /// How long, e.g. 30m, 2h: then it ends by itself. Until it is undone where this is left out.
        #[arg(long = "for", value_name = "TIME", value_parser = quantity::duration)]
        term: Option<Duration>,
    },
    /// Allow new reservations of a device again.
    Uncordon {
        #[arg(value_parser = address::parse, add = ArgValueCompleter::new(complete::devices))]
        device: DeviceAddress,
    },
    /// Quarantined devices.
    #[command(subcommand)]
    Quarantine(QuarantineCommand),
    /// What keeps devices of this host from being given away, and what to do about it.
    ///
    /// Exits with 3 where something does.
    Doctor,
    /// How much each identity and label uses of what it may have.
    Quota,
    /// Which configuration is in force, why a later one isn't, and what takes a restart.
    Config,
    /// What this host and its kernel can do.
    Capabilities,
    /// Print a link that signs a browser in on the page, once, to change things there as you.
    #[command(after_help = WEB)]
    Web {
        /// Open it with xdg-open.
        #[arg(long)]
        open: bool,
    },
    /// What libvirt's qemu hook runs: reserve a domain's devices, release them after it.
    #[command(after_help = LIBVIRT)]
    LibvirtHook(LibvirtHookArgs),
    /// A process that does nothing, in the place of a QEMU that isn't there yet.
    #[command(hide = true)]
    LibvirtStandIn { reservation: String },
    /// Print what makes a shell complete berth's words: verbs, options, and what the daemon has now.
    #[command(after_help = COMPLETIONS)]
    Completions { shell: ShellArg },
    /// Write the man pages of all verbs to a directory.
    Man { dir: PathBuf },
}
