//! The one table of who may call what. Authorization is decided from it, tests walk it, and
//! `docs/security.md` shows it.
//!
//! A call can't be without a row: the list of calls and the table are made from the same lines.

use super::{Role, Transport};

/// Whose reservation a call may be about, below a role that may for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// It is about no reservation, or everybody of the role may for all.
    All,
    /// Holders only for what is for them, or what they asked for; orchestrators for all.
    Own,
    /// Orchestrators only for what they asked for themselves; operators for all.
    Asked,
    /// Whom the reservation is for; nobody's role changes that.
    Holder,
}

/// Over what a call may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Everything, TCP without TLS included; not as a browser's session, which reads without it.
    Any,
    /// Transports that prove who calls, and a browser's session.
    Web,
    /// Transports that prove who calls by themselves.
    Proven,
    /// Unix sockets: the kernel says who calls.
    Unix,
    /// The hand-over socket.
    Handover,
}

impl Over {
    fn lets_in(self, transport: Transport) -> bool {
        match transport {
            Transport::Tcp => self == Self::Any,
            Transport::Web => self == Self::Web,
            Transport::Tls => self != Self::Unix,
            Transport::Unix | Transport::Internal => true,
        }
    }
}

/// What the table says of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Service and method of `berth.v1`, or the hand-over's request; `None` for a right beyond the
    /// call that it is asked with.
    pub rpc: Option<&'static str>,
    /// In words, for refusals.
    pub words: &'static str,
    /// The least role.
    pub least: Role,
    /// Whose reservation it may be about.
    pub whose: Whose,
    /// Over what it may come.
    pub over: Over,
}

macro_rules! calls {
    ($($name:ident $rpc:expr, $words:literal, $least:ident $whose:ident $over:ident;)*) => {
        /// Everything that somebody may be allowed or not.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "each is told by its row")]
        pub enum Call { $($name,)* }

        impl Call {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its row.
            #[must_use]
            pub const fn row(self) -> Row {
                match self {
                    $(Self::$name => Row {
                        rpc: $rpc,
                        words: $words,
                        least: Role::$least,
                        whose: Whose::$whose,
                        over: Over::$over,
                    },)*
                }
            }
        }
    };
}

calls! {
    ReadPublished None, "read what is published", Viewer All Any;
    ListGroups Some("Groups/ListGroups"), "list groups", Viewer All Any;
    GetGroup Some("Groups/GetGroup"), "get a group", Viewer All Any;
    Explain Some("Groups/Explain"), "explain", Viewer All Any;
    ListDevices Some("Devices/ListDevices"), "list devices", Viewer All Any;
    GetDevice Some("Devices/GetDevice"), "get a device", Viewer All Any;
    QueryKernelDma Some("Devices/QueryKernelDma"), "query kernel DMA", Viewer All Any;
    SetKernelDma Some("Devices/SetKernelDma"), "set kernel DMA", Operator All Proven;
    ReleaseKernelDma Some("Devices/ReleaseKernelDma"), "release kernel DMA", Operator All Proven;
    Cordon Some("Devices/Cordon"), "cordon", Operator All Web;
    Uncordon Some("Devices/Uncordon"), "uncordon", Operator All Web;
    ClearQuarantine Some("Devices/ClearQuarantine"), "clear quarantine", Operator All Web;
    SetSriov Some("Devices/SetSriov"), "set SR-IOV", Operator All Proven;
    ListReservations Some("Reservations/ListReservations"), "list reservations", Viewer All Any;
    GetReservation Some("Reservations/GetReservation"), "get a reservation", Viewer All Any;
    Reserve Some("Reservations/Reserve"), "reserve", Orchestrator All Web;
    Adopt Some("Reservations/Adopt"), "adopt", Operator All Proven;
    HostUsesItAnyway None, "taking a device that the host is using", Operator All Proven;
    WeakerReset None, "a reset policy weaker than the configuration's", Operator All Proven;
    Renew Some("Reservations/Renew"), "renew", Holder Own Web;
    Attach Some("Reservations/Attach"), "attach", Holder Own Proven;
    Detach Some("Reservations/Detach"), "detach", Holder Own Proven;
    Replace Some("Reservations/Replace"), "replace", Holder Own Proven;
    Release Some("Reservations/Release"), "release", Holder Own Web;
    ForceRelease None, "release with force", Orchestrator Asked Proven;
    Revoke Some("Reservations/Revoke"), "revoke", Orchestrator Asked Proven;
    ListDomains Some("Domains/ListDomains"), "list domains", Viewer All Any;
    GetDomain Some("Domains/GetDomain"), "get a domain", Viewer All Any;
    CreateDomain Some("Domains/CreateDomain"), "create a domain", Holder Own Proven;
    CreateContext None, "create a context", Orchestrator All Proven;
    DeleteDomain Some("Domains/DeleteDomain"), "delete a domain", Orchestrator All Proven;
    ListEvents Some("Events/ListEvents"), "list events", Viewer All Any;
    Watch Some("Events/Watch"), "watch events", Viewer All Any;
    GetCapabilities Some("Host/GetCapabilities"), "get capabilities", Viewer All Any;
    Diagnose Some("Host/Diagnose"), "ask the doctor", Viewer All Any;
    GetSnapshot Some("Host/GetSnapshot"), "get a snapshot", Viewer All Any;
    ListQuotas Some("Host/ListQuotas"), "list quotas", Viewer All Any;
    GetConfig Some("Host/GetConfig"), "see the configuration", Operator All Proven;
    CreateWebSession Some("Host/CreateWebSession"), "open a browser's session", Holder All Unix;
    WhatIf Some("Host/WhatIf"), "ask what if", Viewer All Any;
    SnapshotWithSerials None, "a snapshot with serial numbers", Operator All Proven;
    Fetch Some("fetch"), "fetch", Holder Holder Handover;
    FetchForOther None, "fetch for a process of another user", Operator Holder Handover;
    Register Some("register"), "register memory", Holder Holder Handover;
    Unregister Some("unregister"), "unregister memory", Holder Holder Handover;
    ShowToken Some("show_token"), "show a token", Holder Holder Handover;
}

/// How a caller stands to the reservation that a call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// It is for the caller's identity.
    pub is_for: bool,
    /// The caller's identity asked for it.
    pub asked: bool,
}

/// What the table answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Allowed,
    /// The role is too low, whosever reservation it is: this one is needed.
    NeedsRole(Role),
    /// The transport proves nobody.
    NotProven,
    /// The transport is none that the call may come over.
    NotThisWay,
    /// Somebody else's reservation.
    NotYours,
}

impl Call {
    /// Decides. `standing` is `None` for what is about no reservation, or before it is known about
    /// which: then it is decided as for one's own.
    #[must_use]
    pub fn decide(self, role: Role, transport: Transport, standing: Option<Standing>) -> Verdict {
        self.row().decide(role, transport, standing)
    }
}

impl Row {
    /// Decides a call of which this is the row.
    #[must_use]
    pub fn decide(self, role: Role, transport: Transport, standing: Option<Standing>) -> Verdict {
        if role < self.least {
            return Verdict::NeedsRole(self.least);
        }
        if !self.over.lets_in(transport) {
            let nobody = transport == Transport::Tcp;
            return if nobody { Verdict::NotProven } else { Verdict::NotThisWay };
        }
        let Some(Standing { is_for, asked }) = standing else { return Verdict::Allowed };
        match self.whose {
            Whose::All => Verdict::Allowed,
            Whose::Own if role >= Role::Orchestrator || is_for || asked => Verdict::Allowed,
            Whose::Asked if role >= Role::Operator || asked => Verdict::Allowed,
            Whose::Asked => Verdict::NeedsRole(Role::Operator),
            Whose::Holder if is_for => Verdict::Allowed,
            Whose::Own | Whose::Holder => Verdict::NotYours,
        }
    }
}
