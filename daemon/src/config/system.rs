//! The few things that the configuration asks the machine.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

use super::ConfigError;

/// Reads a configuration file.
pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|error| ConfigError::File {
        file: path.to_owned(),
        message: error.to_string().to_lowercase(),
        way_out: match error.kind() {
            ErrorKind::NotFound => "name an existing file with --config".to_owned(),
            ErrorKind::PermissionDenied => "make it readable for berthd's user".to_owned(),
            _ => "name another file with --config".to_owned(),
        },
    })
}

/// The number of a group, from a number or from `/etc/group`.
pub(super) fn group_id(name: &str) -> Option<u32> {
    if let Ok(gid) = name.parse() {
        return Some(gid);
    }
    group_in(&fs::read_to_string("/etc/group").ok()?, name)
}

fn group_in(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        fields.nth(1)?.parse().ok()
    })
}

/// True when the process is root, for whom the system's directories are the default.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether there is a socket at a path.
pub(super) fn is_socket(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

/// Where an unprivileged simulated daemon keeps its state.
pub(super) fn user_state_dir() -> PathBuf {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    from("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| from("HOME").map(|home| Path::new(&home).join(".local/state")))
        .unwrap_or_else(std::env::temp_dir)
        .join("berth")
}

#[cfg(test)]
mod tests {
    use super::group_in;

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let text = "root:x:0:\nberthing:x:7:\nberth:x:998:alice,bob\n";
        assert_eq!(group_in(text, "berth"), Some(998));
        assert_eq!(group_in(text, "bert"), None);
        assert_eq!(group_in("berth:x:no:\n", "berth"), None);
    }
}
