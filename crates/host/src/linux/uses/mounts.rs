//! `/proc/self/mountinfo` and `/proc/swaps`.

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::linux) struct Mount {
    /// `MAJOR:MINOR` of the file system; for btrfs an anonymous one.
    pub device: String,
    /// Where it is mounted.
    pub point: String,
    /// What was mounted.
    pub source: String,
}

/// Parses mountinfo; lines that don't have its form are left out.
pub(in crate::linux) fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ');
    let device = fields.nth(2)?;
    let point = fields.nth(1)?;
    Some(Mount {
        device: device.to_owned(),
        point: unescape(point),
        source: unescape(after.split(' ').nth(1)?),
    })
}

/// The areas of `/proc/swaps`: paths of devices or files.
pub(in crate::linux) fn swaps(text: &str) -> Vec<String> {
    text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(unescape).collect()
}

/// Undoes the kernel's `\040` for blank and the like.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = text.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_mounts_with_and_without_optional_fields() {
        let text = "\
36 35 259:1 / /mnt/my\\040disk rw,noatime shared:1 master:2 - ext4 /dev/nvme0n1p1 rw
22 1 0:41 /sub / rw - btrfs /dev/nvme0n1p2 rw,subvol=/sub
broken
1 2 3 - x
";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].device, "259:1");
        assert_eq!(mounts[0].point, "/mnt/my disk");
        assert_eq!(mounts[1].source, "/dev/nvme0n1p2");
    }

    #[test]
    fn reads_swaps() {
        let text = "Filename\tType\tSize\n/dev/dm-1 partition 8 0 -2\n/swap\\040file file 1 0 -3\n";
        assert_eq!(swaps(text), ["/dev/dm-1", "/swap file"]);
        assert!(swaps("").is_empty());
    }

    #[test]
    fn unescape_leaves_what_is_no_escape() {
        for (text, plain) in [("a\\", "a\\"), ("\\99", "\\99"), ("\\0é", "\\0é"), ("\\134", "\\")]
        {
            assert_eq!(unescape(text), plain);
        }
    }
}
