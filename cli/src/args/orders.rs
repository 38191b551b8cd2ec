//! The words of orders.

use std::{path::PathBuf, time::Duration};

use berth_proto::v1::{self, DeviceAddress};
use clap::{Args, ValueEnum};
use clap_complete::engine::ArgValueCompleter;

use crate::{address, complete, quantity};

/// Of what can be tried without doing it.
#[derive(Debug, Args)]
pub(crate) struct TriedArgs {
    /// Decide, and say what would be recorded, and each write to sysfs and what undoes it; change
    /// nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Wait this long for the kernel work; 0 doesn't wait.
    #[arg(long, value_parser = quantity::duration)]
    pub(crate) wait: Option<Duration>,
    /// The same id gets the same answer for 24 hours.
    #[arg(long)]
    pub(crate) request_id: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct OrderArgs {
    /// The reservation.
    #[arg(add = ArgValueCompleter::new(complete::reservations))]
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
    #[arg(long, add = ArgValueCompleter::new(complete::reservations))]
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
    /// Of `prepare` and `release`: say each write to sysfs and what undoes it; change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
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
    #[arg(long, required_unless_present = "device", conflicts_with = "device", add = ArgValueCompleter::new(complete::groups))]
    pub(crate) group: Vec<String>,
    /// A device. Several make one reservation.
    #[arg(long, value_parser = address::parse, add = ArgValueCompleter::new(complete::devices))]
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
    #[command(flatten)]
    pub(crate) tried: TriedArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ReserveArgs {
    /// Name of the VM, pod or operator.
    #[arg(long)]
    pub(crate) holder: String,
    /// A group's stable id or number. Several make one reservation, all or nothing.
    #[arg(long, required_unless_present_any = ["device", "class"], conflicts_with_all = ["device", "class"], add = ArgValueCompleter::new(complete::groups))]
    pub(crate) group: Vec<String>,
    /// A device. Several make one reservation.
    #[arg(long, value_parser = address::parse, conflicts_with = "class", add = ArgValueCompleter::new(complete::devices))]
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
    #[command(flatten)]
    pub(crate) tried: TriedArgs,
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
