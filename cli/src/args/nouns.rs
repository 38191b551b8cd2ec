//! What can be done with each kind of object.

use std::time::Duration;

use berth_proto::v1::DeviceAddress;
use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCompleter;

use super::{BackendArg, TriedArgs};
use crate::{address, complete, quantity};

#[derive(Debug, Subcommand)]
pub(crate) enum HistoryCommand {
    /// All of it, a JSON object on each line, the oldest first.
    ///
    /// What retention has dropped isn't there any more: a remark says with which event it begins.
    Export {
        /// Only what concerns this device, group or reservation.
        #[arg(add = ArgValueCompleter::new(complete::objects))]
        object: Option<String>,
        /// Start after this event: the seq of the last line of an earlier export.
        #[arg(long, default_value_t = 0)]
        since: u64,
    },
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Show it again at each change, until interrupted; with JSON a line each time.
    #[arg(short, long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// All groups.
    #[command(visible_alias = "ls")]
    List(WatchArgs),
    /// One group: stable id, number, or a member's address.
    Show {
        #[arg(add = ArgValueCompleter::new(complete::groups))]
        group: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// All devices.
    #[command(visible_alias = "ls")]
    List {
        /// Bridges too.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// One device.
    Show {
        #[arg(value_parser = address::parse, add = ArgValueCompleter::new(complete::devices))]
        device: DeviceAddress,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReservationCommand {
    /// All reservations.
    #[command(visible_alias = "ls")]
    List(WatchArgs),
    /// One reservation.
    Show {
        #[arg(add = ArgValueCompleter::new(complete::reservations))]
        id: String,
    },
    /// Start the TTL anew.
    Renew {
        #[arg(add = ArgValueCompleter::new(complete::reservations))]
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
    List(WatchArgs),
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
        #[arg(long, add = ArgValueCompleter::new(complete::reservations))]
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
        #[arg(value_parser = address::parse, add = ArgValueCompleter::new(complete::devices))]
        device: DeviceAddress,
    },
    /// Give the device to its host driver.
    Set {
        #[arg(value_parser = address::parse, add = ArgValueCompleter::new(complete::devices))]
        device: DeviceAddress,
        /// The driver; the one it had before Berth took it otherwise.
        #[arg(long)]
        driver: Option<String>,
        /// Decide, and say each write to sysfs and what undoes it; change nothing.
        #[arg(long)]
        dry_run: bool,
        #[arg(long)]
        request_id: Option<String>,
    },
    /// Take the host driver off the device.
    Release {
        #[arg(value_parser = address::parse, add = ArgValueCompleter::new(complete::devices))]
        device: DeviceAddress,
        /// Also when the host is using the device: a mounted disk, the default route.
        #[arg(long)]
        host_uses_it_anyway: bool,
        /// Decide, and say each write to sysfs and what undoes it; change nothing.
        #[arg(long)]
        dry_run: bool,
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
        #[arg(value_parser = address::parse, add = ArgValueCompleter::new(complete::devices))]
        device: DeviceAddress,
        /// How many.
        vfs: u32,
        #[command(flatten)]
        args: TriedArgs,
    },
    /// Bring back the number of virtual functions that there was before Berth changed it.
    Restore {
        /// The physical function.
        #[arg(value_parser = address::parse, add = ArgValueCompleter::new(complete::devices))]
        device: DeviceAddress,
        #[command(flatten)]
        args: TriedArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum QuarantineCommand {
    /// Say that the device may be given away again.
    Clear {
        #[arg(value_parser = address::parse, add = ArgValueCompleter::new(complete::devices))]
        device: DeviceAddress,
        /// Why; kept in the history.
        #[arg(long)]
        reason: String,
        #[arg(long)]
        request_id: Option<String>,
    },
}
