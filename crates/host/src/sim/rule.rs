//! Rules of the kernel that a test can break, to see that somebody notices.

/// A rule of the simulated kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// A group node has one opener.
    GroupOpensOnce,
    /// `BIND` is refused while the group node is open.
    HoldBlocksBind,
    /// An owned group refuses host drivers.
    OwnedRefusesDrivers,
    /// A second member attaches to the first one's domain only.
    SiblingsShareDomain,
    /// A replace moves the whole group.
    ReplaceMovesGroup,
    /// What is in use isn't destroyed.
    UsedStays,
    /// The last close gives the group back.
    LastCloseReleases,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::GroupOpensOnce,
        Self::HoldBlocksBind,
        Self::OwnedRefusesDrivers,
        Self::SiblingsShareDomain,
        Self::ReplaceMovesGroup,
        Self::UsedStays,
        Self::LastCloseReleases,
    ];
}
