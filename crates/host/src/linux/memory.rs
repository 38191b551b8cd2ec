//! How much memory the machine has.

use super::tree::Root;

/// `MemTotal` of `/proc/meminfo`: what the kernel can give away, and so pin, at most.
pub(super) fn total(root: &Root) -> Option<u64> {
    parse(&std::fs::read_to_string(root.join("proc/meminfo")).ok()?)
}

/// The kernel writes `kB` and means KiB.
pub(super) fn parse(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read_as_the_kernel_writes_it() {
        let text = "MemTotal:       24601256 kB\nMemFree:         2123456 kB\n";
        assert_eq!(parse(text), Some(24_601_256 * 1024));
        assert_eq!(parse("MemFree: 1 kB\n"), None);
        assert_eq!(parse("MemTotal: many kB\n"), None);
        assert!(total(&Root::new("/")).is_some_and(|bytes| bytes > 1 << 20));
    }
}
