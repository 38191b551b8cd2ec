//! Letting a user open a node, and no more.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::{
    fs::{FileType, Mode, OFlags, Stat, XattrFlags, fstat, getxattr, major, minor, setxattr},
    io::Errno,
};

use super::access_list::{AccessList, NAME, READ_WRITE};
use crate::{
    HostError, Node,
    linux::{
        nodes,
        tree::{Root, file_error},
    },
};

/// The largest list that is read: more than a thousand entries.
const MOST_BYTES: usize = 16 * 1024;

/// Adds a user to a node's access list, or takes it out.
pub(super) fn set(root: &Root, node: Node, uid: u32, allow: bool) -> Result<(), HostError> {
    let opened = nodes::find(root, node).and_then(|place| open(root, &place));
    let file = match opened {
        Err(HostError::NoDevice(_)) if !allow => return Ok(()),
        Err(HostError::File { errno, .. }) if !allow && errno == Errno::NOENT.raw_os_error() => {
            return Ok(());
        }
        opened => opened?,
    };
    change(&file, uid, allow)
}

/// A node that was found to be the one that was meant. It isn't opened for use: to open a group's
/// would take it.
struct File {
    path: String,
    fd: OwnedFd,
    stat: Stat,
}

fn open(root: &Root, place: &nodes::Place) -> Result<File, HostError> {
    let path = root.join(place.path.trim_start_matches('/'));
    let file = look(path.display().to_string())?;
    let device = file.stat.st_rdev;
    let same = FileType::from_raw_mode(file.stat.st_mode) == FileType::CharacterDevice
        && (major(device), minor(device)) == place.number;
    if same { Ok(file) } else { Err(file_error("stat", &file.path, Errno::NODEV)) }
}

fn look(path: String) -> Result<File, HostError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(&path, flags, Mode::empty())
        .map_err(|errno| file_error("open", &path, errno))?;
    let stat = fstat(&fd).map_err(|errno| file_error("stat", &path, errno))?;
    Ok(File { path, fd, stat })
}

fn change(file: &File, uid: u32, allow: bool) -> Result<(), HostError> {
    let before = read(file)?;
    let mut list = before.clone().unwrap_or_else(|| AccessList::of_mode(file.stat.st_mode));
    let owns = file.stat.st_uid == uid && list.owner() & READ_WRITE == READ_WRITE;
    let enough = match list.user(uid) {
        Some(may) => allow && may & READ_WRITE == READ_WRITE,
        None => !allow || owns || list.open_to_all(),
    };
    if enough {
        return Ok(());
    }
    if allow {
        list.allow(uid)
    } else {
        list.forbid(uid)
    }
    setxattr(same_file(file), NAME, &list.bytes(), XattrFlags::empty())
        .map_err(|errno| file_error("setxattr", &file.path, errno))
}

/// The file's list; `None` where its mode says it all.
fn read(file: &File) -> Result<Option<AccessList>, HostError> {
    let failed = |errno| file_error("getxattr", &file.path, errno);
    let mut bytes = vec![0; MOST_BYTES];
    let count = match getxattr(same_file(file), NAME, bytes.as_mut_slice()) {
        Err(Errno::NODATA) => return Ok(None),
        count => count.map_err(failed)?,
    };
    bytes.truncate(count);
    AccessList::parse(&bytes).map(Some).ok_or_else(|| failed(Errno::INVAL))
}

/// A path to the very file that was looked at, whatever has its name by now.
fn same_file(file: &File) -> String {
    format!("/proc/self/fd/{}", file.fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::linux::testing::{ConfigBytes, FakeDevice, FakeTree};

    fn mode(path: &std::path::Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    /// Answers nothing where the file system keeps no access lists.
    fn file(bits: u32) -> Option<(tempfile::NamedTempFile, File)> {
        let made = tempfile::NamedTempFile::new().unwrap();
        let permissions = std::fs::Permissions::from_mode(bits);
        std::fs::set_permissions(made.path(), permissions).unwrap();
        let file = look(made.path().display().to_string()).unwrap();
        match read(&file) {
            Err(error) if error.errno() == Some(Errno::OPNOTSUPP.raw_os_error()) => None,
            found => {
                assert_eq!(found.unwrap(), None);
                Some((made, file))
            }
        }
    }

    #[test]
    fn the_kernel_takes_the_list_and_the_mode_is_back_when_it_goes() {
        for bits in [0o600, 0o660, 0o640] {
            let Some((made, file)) = file(bits) else { return };
            change(&file, 60001, true).unwrap();
            change(&file, 60002, true).unwrap();
            let list = read(&file).unwrap().unwrap();
            assert_eq!((list.user(60001), list.user(60002)), (Some(6), Some(6)));
            change(&file, 60001, false).unwrap();
            change(&file, 60001, false).unwrap();
            assert_eq!(read(&file).unwrap().unwrap().user(60001), None);
            change(&file, 60002, false).unwrap();
            assert_eq!(read(&file).unwrap(), None);
            assert_eq!(mode(made.path()), bits);
        }
    }

    #[test]
    fn what_is_open_to_all_or_owned_is_left_alone() {
        let Some((_made, all)) = file(0o666) else { return };
        change(&all, 60001, true).unwrap();
        assert_eq!(read(&all).unwrap(), None);
        let Some((_made, own)) = file(0o600) else { return };
        change(&own, own.stat.st_uid, true).unwrap();
        assert_eq!(read(&own).unwrap(), None);
    }

    #[test]
    fn only_the_node_that_sysfs_tells_of_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let tree = FakeTree::at(dir.path()).unwrap();
        let config = ConfigBytes::conventional(0x1234, 0x11e8, 0x00_ff_00);
        let device = "0000:00:05.0".parse().unwrap();
        tree.add(&FakeDevice::new(device, &config).group(8)).unwrap();
        let root = Root::new(dir.path());
        let errno = |node, allow| set(&root, node, 60001, allow).unwrap_err().errno();
        let code = |errno: Errno| Some(errno.raw_os_error());
        for node in [Node::Cdev(device), Node::Group(8), Node::Iommu, Node::Container] {
            assert_eq!(errno(node, true), code(Errno::NOENT), "{node}");
            set(&root, node, 60001, false).unwrap();
        }
        let gone = "0000:00:06.0".parse().unwrap();
        assert_eq!(set(&root, Node::Cdev(gone), 1, true), Err(HostError::NoDevice(gone)));
        set(&root, Node::Cdev(gone), 1, false).unwrap();
        // Not a device, and a link to one.
        tree.file("sys/class/vfio/8/dev", "1:3\n").unwrap();
        tree.file("dev/vfio/8", "").unwrap();
        for allow in [true, false] {
            assert_eq!(errno(Node::Group(8), allow), code(Errno::NODEV));
        }
        std::fs::remove_file(dir.path().join("dev/vfio/8")).unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("dev/vfio/8")).unwrap();
        assert_eq!(errno(Node::Group(8), true), code(Errno::NODEV));
    }
}
