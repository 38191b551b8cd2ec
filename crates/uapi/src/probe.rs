//! What this kernel can do, found by asking it, never by its version.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::{Extension, IoctlError, Iommufd, IommufdOp, VfioContainer};

/// The answer to "does this kernel have it?".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It does.
    Yes,
    /// It doesn't.
    No,
    /// The question could not be asked.
    Unknown(String),
}

impl Answer {
    /// Whether it is known to be there.
    pub fn is_yes(&self) -> bool {
        *self == Self::Yes
    }

    fn of(answer: Result<bool, IoctlError>) -> Self {
        match answer {
            Ok(true) => Self::Yes,
            Ok(false) => Self::No,
            Err(error) => Self::Unknown(error.to_string()),
        }
    }

    /// What an attempt to open a node says about the driver behind it.
    fn of_open<T>(opened: &Result<T, IoctlError>) -> Self {
        match opened {
            Ok(_) => Self::Yes,
            Err(error) if error.is_gone() => Self::No,
            // The node is busy or forbidden: it is there, but nothing more can be said.
            Err(error) => Self::Unknown(error.to_string()),
        }
    }
}

/// Where the nodes are; the defaults are the kernel's.
#[derive(Clone, Debug)]
pub struct DevNodes {
    /// `/dev/iommu`.
    pub iommu: PathBuf,
    /// `/dev/vfio/vfio`.
    pub container: PathBuf,
    /// `/dev/vfio/devices`.
    pub cdevs: PathBuf,
    /// `/proc/devices`, which lists the major numbers that drivers took.
    pub proc_devices: PathBuf,
}

impl Default for DevNodes {
    fn default() -> Self {
        Self {
            iommu: "/dev/iommu".into(),
            container: "/dev/vfio/vfio".into(),
            cdevs: "/dev/vfio/devices".into(),
            proc_devices: "/proc/devices".into(),
        }
    }
}

/// What the kernel was found to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// iommufd.
    pub iommufd: Answer,
    /// VFIO devices as cdevs.
    pub cdev: Answer,
    /// `IOMMU_GET_HW_INFO`, with which a bind can be seen from outside.
    pub get_hw_info: Answer,
    /// `IOMMU_HWPT_ALLOC`.
    pub hwpt_alloc: Answer,
    /// `IOMMU_IOAS_MAP_FILE`.
    pub map_file: Answer,
    /// `IOMMU_IOAS_CHANGE_PROCESS`.
    pub change_process: Answer,
    /// VFIO groups and containers.
    pub container: Answer,
    /// The type1 v2 back end of containers.
    pub type1v2: Answer,
    /// Unmapping all of a container with one call.
    pub unmap_all: Answer,
}

/// Asks the running kernel. Opens and closes an iommufd and a container; changes nothing.
pub fn probe(nodes: &DevNodes) -> Features {
    let iommufd = Iommufd::open_path(&nodes.iommu);
    let container = VfioContainer::open_path(&nodes.container).and_then(checked_version);
    let call = |op| ask(&iommufd, |iommufd| iommufd.supports(op));
    let extension = |which| ask(&container, |container| container.check_extension(which));
    Features {
        cdev: cdev(nodes),
        get_hw_info: call(IommufdOp::GetHwInfo),
        hwpt_alloc: call(IommufdOp::HwptAlloc),
        map_file: call(IommufdOp::MapFile),
        change_process: call(IommufdOp::ChangeProcess),
        type1v2: extension(Extension::Type1v2),
        unmap_all: extension(Extension::UnmapAll),
        iommufd: Answer::of_open(&iommufd),
        container: Answer::of_open(&container),
    }
}

fn checked_version(container: VfioContainer) -> Result<VfioContainer, IoctlError> {
    match container.api_version()? {
        0 => Ok(container),
        _ => Err(IoctlError::new("VFIO_GET_API_VERSION", "vfio container", Errno::PROTO)),
    }
}

/// Asks an open file; where there is none, its features are as absent or unknown as itself.
fn ask<T>(
    opened: &Result<T, IoctlError>,
    question: impl FnOnce(&T) -> Result<bool, IoctlError>,
) -> Answer {
    match opened {
        Ok(file) => Answer::of(question(file)),
        Err(_) => Answer::of_open(opened),
    }
}

/// The directory of cdevs only exists once there is one; before, the VFIO core tells by the major
/// number that it took for them.
fn cdev(nodes: &DevNodes) -> Answer {
    if nodes.cdevs.is_dir() {
        return Answer::Yes;
    }
    match read_majors(&nodes.proc_devices) {
        Ok(names) if names.iter().any(|name| name == "vfio-dev") => Answer::Yes,
        Ok(names) if names.iter().any(|name| name == "vfio") => Answer::No,
        Ok(_) => Answer::Unknown("the vfio module is not loaded".to_owned()),
        Err(error) => Answer::Unknown(format!("read on {}: {error}", nodes.proc_devices.display())),
    }
}

fn read_majors(path: &Path) -> std::io::Result<Vec<String>> {
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(name: &str, majors: &str) -> DevNodes {
        let directory =
            std::env::temp_dir().join(format!("berth-uapi-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        std::fs::write(directory.join("devices"), majors).expect("a file");
        DevNodes {
            iommu: directory.join("iommu"),
            container: directory.join("vfio"),
            cdevs: directory.join("cdevs"),
            proc_devices: directory.join("devices"),
        }
    }

    #[test]
    fn absent_nodes_are_a_no() {
        let features = probe(&nodes("absent", "Character devices:\n 10 misc\n"));
        assert_eq!(features.iommufd, Answer::No);
        assert_eq!(features.map_file, Answer::No);
        assert_eq!(features.container, Answer::No);
        assert_eq!(features.type1v2, Answer::No);
        assert!(matches!(features.cdev, Answer::Unknown(_)), "{features:?}");
    }

    #[test]
    fn majors_tell_of_cdevs() {
        assert_eq!(probe(&nodes("no", "240 vfio\n")).cdev, Answer::No);
        assert_eq!(probe(&nodes("yes", "240 vfio\n511 vfio-dev\n")).cdev, Answer::Yes);
    }

    #[test]
    fn a_file_that_is_something_else_is_unknown_not_yes() {
        let nodes = DevNodes {
            iommu: "/dev/null".into(),
            container: "/dev/null".into(),
            ..nodes("null", "240 vfio\n")
        };
        let features = probe(&nodes);
        assert!(matches!(features.container, Answer::Unknown(_)), "{features:?}");
        // /dev/null doesn't know the call, which is all that is asked here.
        assert_eq!(features.map_file, Answer::No);
    }
}
