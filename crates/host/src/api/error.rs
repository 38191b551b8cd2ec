//! Errors of a host: what was attempted, on what, and the kernel's errno.

use berth_uapi::IoctlError;

use super::PciAddress;

/// Discovery or a privileged act failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// There is no such device.
    #[error("device {0} does not exist")]
    NoDevice(PciAddress),
    /// A file of sysfs, /proc or /dev.
    #[error("{op} {path}: {}", errno_text(*errno))]
    File {
        /// `read`, `write`, `open`, ...
        op: &'static str,
        /// The file.
        path: String,
        /// The kernel's errno.
        errno: i32,
    },
    /// The kernel accepted the writes but another driver is bound afterwards.
    #[error("{device} should be on driver {wanted}, but it is on {found}")]
    DriverMismatch {
        /// The device.
        device: PciAddress,
        /// Wanted, `none` for no driver.
        wanted: String,
        /// Found, `none` for no driver.
        found: String,
    },
    /// The helper itself failed or ran out of time.
    #[error("helper {verb} on {object}: {message}")]
    Helper {
        /// The act's verb.
        verb: String,
        /// What it was about.
        object: String,
        /// What happened.
        message: String,
        /// The act may still be under way in the kernel.
        still_running: bool,
    },
    /// A topology file is wrong.
    #[error("topology {path}: {message}")]
    Topology {
        /// The file.
        path: String,
        /// What is wrong, with the line.
        message: String,
    },
}

impl HostError {
    /// The kernel's errno, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::NoDevice(_) => Some(rustix::io::Errno::NODEV.raw_os_error()),
            Self::File { errno, .. } => Some(*errno),
            Self::DriverMismatch { .. } | Self::Helper { .. } | Self::Topology { .. } => None,
        }
    }
}

fn errno_text(errno: i32) -> String {
    rustix::io::Errno::from_raw_os_error(errno).to_string()
}

/// A VFIO or iommufd operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{op} on {object}: {}", errno_text(*errno))]
pub struct VfioError {
    /// The ioctl or system call, e.g. `VFIO_DEVICE_BIND_IOMMUFD`.
    pub op: String,
    /// The device, group or domain.
    pub object: String,
    /// The kernel's errno.
    pub errno: i32,
}

impl VfioError {
    /// An error from its parts.
    #[must_use]
    pub fn new(op: impl Into<String>, object: impl Into<String>, errno: rustix::io::Errno) -> Self {
        Self { op: op.into(), object: object.into(), errno: errno.raw_os_error() }
    }
}

impl From<IoctlError> for VfioError {
    fn from(error: IoctlError) -> Self {
        Self {
            op: error.op.to_owned(),
            object: error.object.clone(),
            errno: error.errno.raw_os_error(),
        }
    }
}
