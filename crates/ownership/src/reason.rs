//! The closed list of reasons for which anything is refused, and the one table that maps each to
//! its errno, gRPC code, HTTP status and exit code.

use std::fmt;

use serde::{Serialize, Serializer};

/// An errno with its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Errno {
    /// The number, as on Linux.
    pub number: i32,
    /// The name.
    pub name: &'static str,
}

macro_rules! errnos {
    ($($name:ident = $number:literal),* $(,)?) => {
        impl Errno {
            $(
                #[doc = concat!("The errno ", stringify!($name), ".")]
                pub const $name: Self = Self { number: $number, name: stringify!($name) };
            )*
        }
    };
}

errnos!(
    EPERM = 1,
    ENOENT = 2,
    EIO = 5,
    EAGAIN = 11,
    ENOMEM = 12,
    EACCES = 13,
    EBUSY = 16,
    EEXIST = 17,
    ENODEV = 19,
    EINVAL = 22,
    EOPNOTSUPP = 95,
    ETIMEDOUT = 110,
    ESTALE = 116,
    EDQUOT = 122,
    ECANCELED = 125,
);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A gRPC status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum GrpcCode {
    /// The request is malformed whatever the state.
    InvalidArgument = 3,
    /// The deadline passed.
    DeadlineExceeded = 4,
    /// The object does not exist.
    NotFound = 5,
    /// The object exists already.
    AlreadyExists = 6,
    /// The caller may not.
    PermissionDenied = 7,
    /// A limit is reached.
    ResourceExhausted = 8,
    /// The state forbids it.
    FailedPrecondition = 9,
    /// The caller lost a race, or acts on a stale view.
    Aborted = 10,
    /// The range is over.
    OutOfRange = 11,
    /// The kernel or the back end can't do it.
    Unimplemented = 12,
    /// Our fault.
    Internal = 13,
    /// Not now.
    Unavailable = 14,
    /// The caller is not known.
    Unauthenticated = 16,
}

impl GrpcCode {
    /// The number on the wire.
    pub fn number(self) -> i32 {
        self as i32
    }

    /// The HTTP status that goes with the code.
    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidArgument | Self::OutOfRange => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::FailedPrecondition | Self::Aborted => 409,
            Self::ResourceExhausted => 507,
            Self::Internal => 500,
            // What is asked for is what this host can't do; 5xx would say that the daemon is broken.
            Self::Unimplemented => 422,
            Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
        }
    }

    /// The code by its protocol name.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Aborted => "ABORTED",
            Self::OutOfRange => "OUT_OF_RANGE",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Internal => "INTERNAL",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unauthenticated => "UNAUTHENTICATED",
        }
    }
}

/// What the command line exits with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// It was tried and failed.
    Failed = 1,
    /// The command was wrong.
    Usage = 2,
    /// The state forbids it.
    Refused = 3,
    /// The object does not exist.
    NotFound = 4,
    /// The daemon does not answer.
    Unreachable = 5,
    /// The caller may not.
    NotPermitted = 6,
    /// The deadline passed.
    TimedOut = 7,
}

impl ExitCode {
    /// The number.
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// Everything that is known of a reason.
#[derive(Clone, Copy, Debug)]
pub struct ReasonRow {
    /// The name on every surface.
    pub name: &'static str,
    /// The kernel's errno for it, or the nearest one.
    pub errno: Errno,
    /// The gRPC code.
    pub grpc: GrpcCode,
    /// The exit code of the command line.
    pub exit: ExitCode,
    /// A heading.
    pub title: &'static str,
    /// What it means.
    pub doc: &'static str,
    /// What resolves it.
    pub way_out: &'static str,
}

macro_rules! reasons {
    ($($variant:ident $name:literal $errno:ident $grpc:ident $exit:ident
        $title:literal $doc:literal $way_out:literal;)*) => {
        /// Why something was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $(#[doc = $doc] $variant,)*
        }

        impl Reason {
            const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its row of the table.
            pub fn row(self) -> &'static ReasonRow {
                match self {
                    $(Self::$variant => &ReasonRow {
                        name: $name,
                        errno: Errno::$errno,
                        grpc: GrpcCode::$grpc,
                        exit: ExitCode::$exit,
                        title: $title,
                        doc: $doc,
                        way_out: $way_out,
                    },)*
                }
            }
        }
    };
}

reasons! {
    GroupOwned "GROUP_OWNED" EPERM FailedPrecondition Refused
        "the group belongs to another reservation"
        "Another reservation holds or owns the group's DMA, and what was presented doesn't join it."
        "Wait for its release, join it with --join under the same label, or choose another device.";
    ForeignOwner "FOREIGN_OWNER" EPERM FailedPrecondition Refused
        "a process outside owns the group"
        "A process that the daemon did not start or serve has the group or one of its devices open."
        "End the named process or let it release the group, then try again.";
    NotTheOwner "NOT_THE_OWNER" EINVAL FailedPrecondition Refused
        "the process doesn't own the group"
        "The process that is to be adopted has neither the group nor one of its devices open."
        "Name the process that `berth group show` names, or reserve: nobody has the group.";
    DomainMismatch "DOMAIN_MISMATCH" EINVAL FailedPrecondition Refused
        "another domain was presented first"
        "The group is shared through a domain; only a claim that presents the same domain joins."
        "Present the domain that is named, or wait until its last user has left.";
    GroupNotSingleton "GROUP_NOT_SINGLETON" EINVAL FailedPrecondition Refused
        "the group has more than one device"
        "An exclusive claim needs a group of exactly one device; bridges count."
        "Reserve the whole group with --policy group.";
    GroupNotViable "GROUP_NOT_VIABLE" EPERM FailedPrecondition Refused
        "the kernel says the group is not viable"
        "The kernel counts a claim on the group that the daemon can't name."
        "See the blocking devices; `berth explain` reads them again.";
    KernelDma "KERNEL_DMA" EPERM FailedPrecondition Refused
        "a host driver uses the group's DMA"
        "A host driver on a member claims the group's default domain; an unknown driver counts."
        "Release the named devices with `berth kernel-dma release`, or pass --take-from-host.";
    HostUsesDevice "HOST_USES_DEVICE" EBUSY FailedPrecondition Refused
        "the host is using the device"
        "A member carries a mounted disk, a route, a console or the like."
        "Stop that use, or pass --take-from-host together with --host-uses-it-anyway.";
    LabelMismatch "LABEL_MISMATCH" EACCES FailedPrecondition Refused
        "the trust labels differ"
        "Nothing is shared across labels: no domain, token, context or device that can't be reset."
        "Use the same label, or have an operator clear the device with `berth quarantine clear`.";
    ResetScope "RESET_SCOPE" EBUSY FailedPrecondition Refused
        "a reset would hit somebody else's device"
        "A device can only be reset with its bus or slot, and another holder or label has a device there."
        "Wait for the release of the named reservation, or reserve both for one holder under one label.";
    StaleEpoch "STALE_EPOCH" ESTALE Aborted Refused
        "the order is of another epoch"
        "The reservation's epoch is not the one that the order was made for."
        "Read the reservation again and act on its present epoch.";
    LeaseExpired "LEASE_EXPIRED" ESTALE FailedPrecondition Refused
        "the lease has ended"
        "The lease ended while claims stand: DMA goes on, orders are refused."
        "Renew it with `berth reservation renew`, or end it with `berth release --force`.";
    Quarantined "QUARANTINED" EIO FailedPrecondition Refused
        "the device is quarantined"
        "A member could not be given back clean."
        "Clear it with `berth quarantine clear` once its state is known.";
    Cordoned "CORDONED" EBUSY FailedPrecondition Refused
        "the device is cordoned"
        "An operator keeps new reservations away from the group."
        "Undo it with `berth uncordon`.";
    DeviceDegraded "DEVICE_DEGRADED" EIO FailedPrecondition Refused
        "the device is degraded"
        "The machine shows that a member works less well than it should, and the site refuses that."
        "See the causes with `berth device show`; choose another device, or repair this one.";
    DeviceFailed "DEVICE_FAILED" EIO FailedPrecondition Refused
        "the device has failed"
        "The machine shows that a member doesn't work: it doesn't answer, or had fatal errors."
        "See the causes with `berth device show`; choose another device, or repair this one.";
    DeniedByRule "DENIED_BY_RULE" EACCES PermissionDenied NotPermitted
        "a rule keeps the device on the host"
        "A rule of the daemon's configuration says that a member of the group is not given away."
        "Choose another device, or have the rule that is named changed.";
    Wedged "WEDGED" ETIMEDOUT FailedPrecondition Refused
        "kernel work on the group hangs"
        "An earlier operation on a member has not come back from the kernel."
        "Wait for it, or see `berth explain` for the process and what it waits for.";
    MsiUnsafe "MSI_UNSAFE" EPERM FailedPrecondition Refused
        "interrupts are not isolated"
        "The host does not remap interrupts, so that a device could forge them."
        "Turn interrupt remapping on in firmware and kernel, or allow unsafe interrupts there.";
    Firmware1to1 "FIRMWARE_1TO1" EINVAL FailedPrecondition Refused
        "firmware wants the device mapped 1:1"
        "Firmware asked for an identity mapping (RMRR), so that the device can't be blocked."
        "Use another device, or turn the feature off that needs the mapping in firmware.";
    NotCoherent "NOT_COHERENT" EINVAL FailedPrecondition Refused
        "the IOMMU can't enforce cache coherency"
        "iommufd binds only devices whose DMA is cache coherent."
        "Use the type1 back end for this device.";
    MemlockLimit "MEMLOCK_LIMIT" ENOMEM ResourceExhausted Refused
        "the memlock limit is too low"
        "The process that maps may lock less memory than the reservation needs."
        "Reserve with --memory SIZE, so that the limit is raised at hand-over, or raise it by hand.";
    BackendCannot "BACKEND_CANNOT" EOPNOTSUPP Unimplemented Refused
        "the back end can't do that"
        "The kernel interface of this reservation lacks the operation."
        "Use the iommufd back end where the kernel has it.";
    HolderOwnsDomain "HOLDER_OWNS_DOMAIN" EPERM FailedPrecondition Refused
        "the holder makes its own domains"
        "With this delivery the holder binds and attaches by itself; the daemon has no hand in it."
        "Ask the holder, or reserve with --delivery held or bound.";
    HoldLost "HOLD_LOST" ENODEV FailedPrecondition Refused
        "the reservation lost its group"
        "A device vanished, or somebody else took the group while the daemon was away."
        "Release the reservation and reserve again.";
    RequestIdReused "REQUEST_ID_REUSED" EEXIST InvalidArgument Usage
        "the request id was used for another request"
        "A request id stands for one request with one body."
        "Use a new request id.";
    EventsCompacted "EVENTS_COMPACTED" ESTALE OutOfRange Failed
        "events before this are gone"
        "The event log no longer reaches back to the sequence number asked for."
        "List the state anew and go on from the sequence number that the list carries.";
    ReservationBusy "RESERVATION_BUSY" EBUSY Aborted Refused
        "an operation is under way"
        "The kernel works on an earlier operation of the same object."
        "Wait for the named operation and try again.";
    AlreadyExists "ALREADY_EXISTS" EEXIST AlreadyExists Refused
        "the object exists already"
        "An object of that id is on record."
        "Use the one there is, or a new id.";
    AlreadyAttached "ALREADY_ATTACHED" EBUSY FailedPrecondition Refused
        "it is attached already"
        "The devices are attached or handed over already."
        "Detach first, or go on: nothing needs to be done.";
    NotAttached "NOT_ATTACHED" EINVAL FailedPrecondition Refused
        "nothing is attached"
        "The operation needs an attached domain or a claimed device."
        "Attach first with `berth attach`.";
    ReplaceRefused "REPLACE_REFUSED" EINVAL FailedPrecondition Refused
        "the domain can't be replaced under this policy"
        "A shared domain's replacement would silently move the others; an exclusive one is private."
        "Detach and attach anew, or reserve under --policy group.";
    HolderDraining "HOLDER_DRAINING" EBUSY FailedPrecondition Refused
        "another process still has the device open"
        "The holder is dead, but its device is open elsewhere."
        "End the named process, or use `berth release --force`.";
    DomainInUse "DOMAIN_IN_USE" EBUSY FailedPrecondition Refused
        "the domain is in use"
        "Reservations present or attach the domain."
        "Release or replace them first.";
    NoOperation "NO_OPERATION" EINVAL FailedPrecondition Refused
        "no such operation is under way"
        "An outcome was reported of an operation that is not on record."
        "Read the state again.";
    NotForYou "NOT_FOR_YOU" EACCES PermissionDenied NotPermitted
        "the reservation is for somebody else"
        "Only the identity that a reservation is for may fetch its devices."
        "Fetch as that identity, or reserve with --for.";
    DeviceGone "DEVICE_GONE" ENODEV NotFound NotFound
        "the device is gone"
        "The device was removed while the operation was under way."
        "Release the reservation and choose another device.";
    DaemonRestarted "DAEMON_RESTARTED" ECANCELED Aborted Failed
        "the daemon was restarted"
        "The operation was undone, or the attachment ended, as the daemon restarted."
        "Try again.";
    KernelRefused "KERNEL_REFUSED" EIO FailedPrecondition Failed
        "the kernel refused"
        "The kernel answered with the errno that is given."
        "See the errno and `berth explain`.";
    HelperFailed "HELPER_FAILED" EIO Internal Failed
        "the privileged helper failed"
        "The helper process did not do its work; its own words are given."
        "See the daemon's log for the request.";
    NotFound "NOT_FOUND" ENOENT NotFound NotFound
        "no such object"
        "Nothing of that name is on record."
        "List what there is.";
    InvalidArgument "INVALID_ARGUMENT" EINVAL InvalidArgument Usage
        "the request is malformed"
        "The request could not succeed in any state."
        "Correct what is named.";
    Unauthenticated "UNAUTHENTICATED" EACCES Unauthenticated NotPermitted
        "the caller is not known"
        "The listener wants to know who is calling."
        "Present credentials.";
    PermissionDenied "PERMISSION_DENIED" EACCES PermissionDenied NotPermitted
        "the caller may not"
        "The caller's role does not allow the call."
        "Use a listener whose role allows it.";
    Unsupported "UNSUPPORTED" EOPNOTSUPP Unimplemented Refused
        "this host can't do that"
        "The kernel or the host lacks what the request needs."
        "See `berth capabilities`.";
    Unavailable "UNAVAILABLE" EAGAIN Unavailable Unreachable
        "the daemon can't answer now"
        "The daemon is starting, stopping or overloaded."
        "Try again shortly.";
    StateUnwritable "STATE_UNWRITABLE" EIO Unavailable Unreachable
        "the state can't be written"
        "The state directory takes no writes, so that nothing is changed: what is read and what runs goes on."
        "Make the state directory writable again; the daemon tries by itself. See `berth capabilities`.";
    DeadlineExceeded "DEADLINE_EXCEEDED" ETIMEDOUT DeadlineExceeded TimedOut
        "the deadline passed"
        "The operation goes on; only the waiting ended."
        "Read the reservation's state.";
    QuotaExceeded "QUOTA_EXCEEDED" EDQUOT ResourceExhausted Refused
        "a quota is used up"
        "The configuration says how much one identity or label may have; with this it would have more."
        "Give something back, or have the quota that is named raised; `berth quota` shows them.";
    RateLimited "RATE_LIMITED" EAGAIN ResourceExhausted Refused
        "too many calls in too short a time"
        "The configuration says how many calls of one identity are answered in a second."
        "Call again after the time that is named, and less often.";
    Internal "INTERNAL" EIO Internal Failed
        "an error of ours"
        "Something that must not happen did."
        "See the daemon's log; report it.";
}

impl Reason {
    /// All reasons, in the order of the table.
    pub fn all() -> &'static [Self] {
        Self::ALL
    }

    /// The reason of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.name() == name)
    }

    /// The name on every surface.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The kernel's errno for it, or the nearest one.
    pub fn errno(self) -> Errno {
        self.row().errno
    }

    /// The gRPC code.
    pub fn grpc(self) -> GrpcCode {
        self.row().grpc
    }

    /// The HTTP status: of the code, where HTTP has none of its own for the reason.
    pub fn http_status(self) -> u16 {
        match self {
            Self::RateLimited => 429,
            _ => self.row().grpc.http_status(),
        }
    }

    /// The exit code of the command line.
    pub fn exit_code(self) -> ExitCode {
        self.row().exit
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> serde::Deserialize<'de> for Reason {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::by_name(&name)
            .ok_or_else(|| serde::de::Error::custom(format!("no reason is called {name}")))
    }
}
