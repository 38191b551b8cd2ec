//! What a helper gives up once it knows its act: all files but those that the act opens (Landlock),
//! and all system calls but those that it needs (seccomp).

use std::path::Path;

use berth_confine::{
    ConfineError, Sysno,
    calls::{self, Others, Test, Whom},
    files::{self, Right},
};
use berth_host::{
    Act,
    linux::acts::{Reach, reach},
};

/// Gives up what `act` doesn't need below `root`. Where the kernel can't, the act is done all the same:
/// a device that can't be given back would be worse. Answers the version of Landlock that is in force.
pub fn enter(root: &Path, act: &Act) -> i32 {
    try_enter(root, act).unwrap_or_else(|error| {
        tracing::warn!(%error, "the act is done with more than it needs");
        0
    })
}

fn try_enter(root: &Path, act: &Act) -> Result<i32, ConfineError> {
    let reach = reach(root, act);
    let files = if reach.processes { Ok(0) } else { files_of(&reach).enter().map(|it| it.abi) };
    calls_of(act).enter(Others::Refused, Whom::Process)?;
    files
}

fn files_of(reach: &Reach) -> files::Allowed {
    let all =
        [(&reach.read, Right::Read), (&reach.write, Right::Write), (&reach.devices, Right::Device)];
    all.into_iter().fold(files::Allowed::nothing().signals(), |allowed, (paths, right)| {
        paths.iter().fold(allowed, |allowed, path| allowed.path(path, right))
    })
}

/// No file is ever made; those that only look open none for writing either.
fn calls_of(act: &Act) -> calls::Allowed {
    let without = |mask| Test::Masked { mask, bits: 0 };
    let allowed = calls::Allowed::base().all(&[Sysno::sendmsg]);
    let (reading, writing) = (without(O_CREAT | O_ACCMODE), without(O_CREAT));
    match act {
        Act::Bind { .. }
        | Act::Unbind { .. }
        | Act::Override { .. }
        | Act::Restore { .. }
        | Act::Sriov { .. }
        | Act::Reset { .. } => allowed.open(writing),
        Act::ReadConfig { .. } | Act::WhoHolds { .. } => allowed.open(reading),
        Act::Prlimit { .. } => allowed.open(reading).all(&[Sysno::pidfd_open, Sysno::prlimit64]),
        Act::Kill { .. } => {
            allowed.open(reading).all(&[Sysno::pidfd_open, Sysno::pidfd_send_signal])
        }
        Act::OpenIommu => allowed.open(writing).only(Sysno::ioctl, 1, IOMMUFD),
        Act::Access { .. } => allowed.open(reading).all(&[Sysno::getxattr, Sysno::setxattr]),
    }
}

const O_ACCMODE: u32 = 0o3;
const O_CREAT: u32 = 0o100;

/// The type that iommufd's requests have, `;`.
const IOMMUFD: Test = Test::Masked { mask: 0xffff_ff00, bits: 0x3b00 };
