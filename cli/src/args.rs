//! The command line's words.

use std::{path::PathBuf, time::Duration};

use berth_proto::v1::{self, DeviceAddress};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{address, quantity};

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
        object: String,
        /// Ask on behalf of this trust label.
        #[arg(long)]
        label: Option<String>,
        /// Also what mapping so much memory takes: locked memory, mappings, addresses, time.
        #[arg(long, value_name = "SIZE", value_parser = quantity::bytes)]
        memory: Option<u64>,
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
    },
    /// Cut the holder's DMA and end its claims without its consent.
    Revoke(OrderArgs),
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
        object: Option<String>,
    },
    /// What happened to a device, group or reservation.
    History {
        /// A device, group or reservation; all when left out.
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
        #[arg(value_parser = address::parse)]
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
        #[arg(value_parser = address::parse)]
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
    /// What libvirt's qemu hook runs: reserve a domain's devices, release them after it.
    #[command(after_help = LIBVIRT)]
    LibvirtHook(LibvirtHookArgs),
    /// A process that does nothing, in the place of a QEMU that isn't there yet.
    #[command(hide = true)]
    LibvirtStandIn { reservation: String },
    /// Print completions for a shell.
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// All groups.
    #[command(visible_alias = "ls")]
    List,
    /// One group: stable id, number, or a member's address.
    Show { group: String },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// All devices.
    #[command(visible_alias = "ls")]
    List {
        /// Bridges too.
        #[arg(long)]
        all: bool,
    },
    /// One device.
    Show {
        #[arg(value_parser = address::parse)]
        device: DeviceAddress,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReservationCommand {
    /// All reservations.
    #[command(visible_alias = "ls")]
    List,
    /// One reservation.
    Show { id: String },
    /// Start the TTL anew.
    Renew {
        id: String,
        #[arg(long, default_value_t = 0)]
        epoch: u64,
        /// A new TTL; the one it has otherwise.
        #[arg(long, value_parser = quantity::duration)]
        ttl: Option<Duration>,
        #[arg(long)]
        request_id: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DomainCommand {
    /// Make a domain in a context.
    Create {
        /// A context, or a reservation whose context it is; a new context otherwise.
        #[arg(long)]
        context: Option<String>,
        /// Trust label of a new context.
        #[arg(long)]
        label: Option<String>,
        /// Back end of a new context.
        #[arg(long, value_enum, default_value_t = BackendArg::Auto)]
        backend: BackendArg,
        #[arg(long)]
        request_id: Option<String>,
    },
    /// All domains.
    #[command(visible_alias = "ls")]
    List,
    /// One domain.
    Show { id: String },
    /// Delete a domain that nothing is attached to.
    Delete {
        id: String,
        #[arg(long)]
        request_id: Option<String>,
    },
    /// Switch a reservation's groups to another domain of its context.
    Replace {
        #[arg(long)]
        reservation: String,
        #[arg(long)]
        domain: String,
        #[arg(long, default_value_t = 0)]
        epoch: u64,
        #[arg(long)]
        request_id: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KernelDmaCommand {
    /// Does the device's driver use kernel DMA, and which policies may attach.
    Query {
        #[arg(value_parser = address::parse)]
        device: DeviceAddress,
    },
    /// Give the device to its host driver.
    Set {
        #[arg(value_parser = address::parse)]
        device: DeviceAddress,
        /// The driver; the one it had before Berth took it otherwise.
        #[arg(long)]
        driver: Option<String>,
        #[arg(long)]
        request_id: Option<String>,
    },
    /// Take the host driver off the device.
    Release {
        #[arg(value_parser = address::parse)]
        device: DeviceAddress,
        /// Also when the host is using the device: a mounted disk, the default route.
        #[arg(long)]
        host_uses_it_anyway: bool,
        #[arg(long)]
        request_id: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SriovCommand {
    /// Make so many virtual functions, without host drivers on them; 0 takes them away.
    ///
    /// From one number to another the way leads over 0, so that nobody may have one of them. Host
    /// drivers are not offered them as long as they are there (sriov_drivers_autoprobe).
    Set {
        /// The physical function.
        #[arg(value_parser = address::parse)]
        device: DeviceAddress,
        /// How many.
        vfs: u32,
        #[command(flatten)]
        args: SriovArgs,
    },
    /// Bring back the number of virtual functions that there was before Berth changed it.
    Restore {
        /// The physical function.
        #[arg(value_parser = address::parse)]
        device: DeviceAddress,
        #[command(flatten)]
        args: SriovArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SriovArgs {
    /// Decide, and print each write to sysfs and what undoes it; change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Wait this long for the kernel work; 0 doesn't wait.
    #[arg(long, value_parser = quantity::duration)]
    pub(crate) wait: Option<Duration>,
    /// The same id gets the same answer for 24 hours.
    #[arg(long)]
    pub(crate) request_id: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum QuarantineCommand {
    /// Say that the device may be given away again.
    Clear {
        #[arg(value_parser = address::parse)]
        device: DeviceAddress,
        /// Why; kept in the history.
        #[arg(long)]
        reason: String,
        #[arg(long)]
        request_id: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct OrderArgs {
    /// The reservation.
    pub(crate) id: String,
    /// Refuse when the reservation has a newer epoch.
    #[arg(long, default_value_t = 0)]
    pub(crate) epoch: u64,
    /// Wait this long for the kernel work; 0 doesn't wait.
    #[arg(long, value_parser = quantity::duration)]
    pub(crate) wait: Option<Duration>,
    /// The same id gets the same answer for 24 hours.
    #[arg(long)]
    pub(crate) request_id: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The reservation.
    #[arg(long)]
    pub(crate) reservation: String,
    /// Whose words are filled in; told from the program's name otherwise.
    #[arg(long, value_enum)]
    pub(crate) vmm: Option<VmmArg>,
    /// Refuse when the reservation has a newer epoch.
    #[arg(long, default_value_t = 0)]
    pub(crate) epoch: u64,
    /// The hand-over socket; handover.sock beside the gRPC socket otherwise.
    #[arg(long, env = "BERTH_HANDOVER")]
    pub(crate) handover: Option<String>,
    /// Print the command that would be run, with placeholders for numbers; fetch nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LibvirtHookArgs {
    /// The domain's name.
    pub(crate) domain: String,
    /// `prepare`, `started`, `reconnect` and `release` do something; all others nothing.
    pub(crate) operation: String,
    /// `begin` or `end`.
    pub(crate) suboperation: String,
    /// What libvirt says beside: `-` where it has nothing to say.
    #[arg(default_value = "-")]
    pub(crate) extra: String,
    /// The hand-over socket; handover.sock beside the gRPC socket otherwise.
    #[arg(long, env = "BERTH_HANDOVER")]
    pub(crate) handover: Option<String>,
    /// Where libvirt has the pid files of its QEMUs; /run/libvirt/qemu for root's.
    #[arg(long, env = "BERTH_LIBVIRT_RUN_DIR", value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum VmmArg {
    /// QEMU 9.0 or newer; older ones on type1.
    Qemu,
    CloudHypervisor,
    /// Any other program: its words have placeholders.
    Other,
}

#[derive(Debug, Args)]
pub(crate) struct AdoptArgs {
    /// The process, which alone has each of the groups open.
    #[arg(long)]
    pub(crate) pid: i32,
    /// Name of the VM, pod or operator.
    #[arg(long)]
    pub(crate) holder: String,
    /// A group's stable id or number. Several make one reservation, all or nothing.
    #[arg(long, required_unless_present = "device", conflicts_with = "device")]
    pub(crate) group: Vec<String>,
    /// A device. Several make one reservation.
    #[arg(long, value_parser = address::parse)]
    pub(crate) device: Vec<DeviceAddress>,
    /// exclusive or group; exclusive otherwise where every group has one device.
    #[arg(long, value_enum)]
    pub(crate) policy: Option<PolicyArg>,
    /// Trust label; `uid:N` of the process otherwise.
    #[arg(long)]
    pub(crate) label: Option<String>,
    /// Memory that the process will map: it may lock as much, and 256 MiB.
    #[arg(long, value_parser = quantity::bytes)]
    pub(crate) memory: Option<u64>,
    /// Lapse after this long unless renewed: orders are refused then, DMA goes on.
    #[arg(long, value_parser = quantity::duration)]
    pub(crate) ttl: Option<Duration>,
    /// The same id gets the same answer for 24 hours.
    #[arg(long)]
    pub(crate) request_id: Option<String>,
    /// Decide and say what would be done; change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Wait this long for the kernel work; 0 doesn't wait.
    #[arg(long, value_parser = quantity::duration)]
    pub(crate) wait: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct ReserveArgs {
    /// Name of the VM, pod or operator.
    #[arg(long)]
    pub(crate) holder: String,
    /// A group's stable id or number. Several make one reservation, all or nothing.
    #[arg(long, required_unless_present_any = ["device", "class"], conflicts_with_all = ["device", "class"])]
    pub(crate) group: Vec<String>,
    /// A device. Several make one reservation.
    #[arg(long, value_parser = address::parse, conflicts_with = "class")]
    pub(crate) device: Vec<DeviceAddress>,
    /// Any free device of this class: gpu, nic, nvme, or a class code.
    #[arg(long)]
    pub(crate) class: Option<String>,
    /// Only of this vendor: 10de or 10de:2330.
    #[arg(long, requires = "class")]
    pub(crate) vendor: Option<String>,
    /// How many devices of the class.
    #[arg(long, requires = "class")]
    pub(crate) count: Option<u32>,
    /// Only on this NUMA node.
    #[arg(long, requires = "class")]
    pub(crate) numa: Option<i32>,
    /// How the claims are made.
    #[arg(long, value_enum)]
    pub(crate) policy: PolicyArg,
    /// How the holder gets the devices.
    #[arg(long, value_enum)]
    pub(crate) delivery: Option<DeliveryArg>,
    /// The kernel interface.
    #[arg(long, value_enum, default_value_t = BackendArg::Auto)]
    pub(crate) backend: BackendArg,
    /// A domain to present.
    #[arg(long)]
    pub(crate) domain: Option<String>,
    /// Present the owner token of this reservation.
    #[arg(long)]
    pub(crate) join: Option<String>,
    /// Trust label; `uid:N` of the holder otherwise.
    #[arg(long)]
    pub(crate) label: Option<String>,
    /// The identity that may fetch descriptors, `uid:N`; the caller otherwise.
    #[arg(long = "for")]
    pub(crate) for_identity: Option<String>,
    /// Memory that the holder will map: it may lock as much, and 256 MiB, from the hand-over on.
    #[arg(long, value_parser = quantity::bytes)]
    pub(crate) memory: Option<u64>,
    /// Lapse after this long unless renewed.
    #[arg(long, value_parser = quantity::duration)]
    pub(crate) ttl: Option<Duration>,
    /// Unbind host drivers where the host isn't using the device.
    #[arg(long)]
    pub(crate) take_from_host: bool,
    /// And also where it is.
    #[arg(long, requires = "take_from_host")]
    pub(crate) host_uses_it_anyway: bool,
    /// What must hold about a device's reset before others may have it.
    #[arg(long, value_enum)]
    pub(crate) reset_policy: Option<ResetPolicyArg>,
    /// The same id gets the same answer for 24 hours.
    #[arg(long)]
    pub(crate) request_id: Option<String>,
    /// Decide and say what would be done; change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Wait this long for the kernel work; 0 doesn't wait.
    #[arg(long, value_parser = quantity::duration)]
    pub(crate) wait: Option<Duration>,
}

macro_rules! mirrored {
    ($(#[$doc:meta])* $name:ident => $proto:ident { $($variant:ident),+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
        pub(crate) enum $name { $($variant),+ }

        impl From<$name> for v1::$proto {
            fn from(value: $name) -> Self {
                match value { $($name::$variant => mirrored!(@to $proto $variant)),+ }
            }
        }
    };
    (@to Backend Auto) => { v1::Backend::Auto };
    (@to $proto:ident $variant:ident) => { v1::$proto::$variant };
}

mirrored!(
    /// How claims are made.
    PolicyArg => Policy { Exclusive, Shared, Group }
);
mirrored!(
    /// How the holder gets the devices.
    DeliveryArg => Delivery { Held, Bound, Unbound, Node }
);
mirrored!(
    /// The kernel interface.
    BackendArg => Backend { Auto, Iommufd, Type1 }
);
mirrored!(
    /// What must hold about a reset.
    ResetPolicyArg => ResetPolicy { Require, AllowSameLabel, None }
);
