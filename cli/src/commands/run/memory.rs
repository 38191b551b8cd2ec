//! Whether the program may lock as much memory as its guest has: VFIO pins all of it.

use rustix::{
    process::{Resource, getrlimit},
    thread::{CapabilitySet, capabilities},
};

use crate::{args::VmmArg, quantity};

/// A warning where the guest is larger than what may be locked, and the hand-over won't raise that.
pub(super) fn warning(
    words: &[String],
    vmm: VmmArg,
    reservation: &str,
    stated: u64,
) -> Option<String> {
    let unlimited =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    let limit = getrlimit(Resource::Memlock).current.filter(|_| !unlimited)?;
    text(guest_bytes(words, vmm)?, limit, reservation, stated)
}

fn text(guest: u64, limit: u64, reservation: &str, stated: u64) -> Option<String> {
    if guest <= limit.max(stated) {
        return None;
    }
    let of_it = match stated {
        0 => "says nothing of memory, so the limit stays".to_owned(),
        stated => format!("has it raised for {} only", quantity::human(stated)),
    };
    Some(format!(
        "the guest has {}, and RLIMIT_MEMLOCK lets this process lock {}; {reservation} {of_it}\n  \
         to resolve: reserve with --memory {guest}, or raise the limit (ulimit -l {})",
        quantity::human(guest),
        quantity::human(limit),
        guest.div_ceil(1024)
    ))
}

/// The guest's memory as the command line says.
fn guest_bytes(words: &[String], vmm: VmmArg) -> Option<u64> {
    let after = |options: &[&str]| {
        let at = words.iter().rposition(|word| options.contains(&word.as_str()))?;
        words.get(at + 1)
    };
    match vmm {
        VmmArg::Qemu => {
            let value = after(&["-m", "--m"])?;
            let first = value.split(',').next()?;
            let named = value.split(',').find_map(|part| part.strip_prefix("size="));
            // Without a suffix it is MiB.
            size(named.unwrap_or(first), 20)
        }
        VmmArg::CloudHypervisor => {
            size(after(&["--memory"])?.split(',').find_map(|part| part.strip_prefix("size="))?, 0)
        }
        VmmArg::Other => None,
    }
}

/// `4G`, `1.5G`, `4096`.
fn size(text: &str, bare_shift: u32) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..)?.to_ascii_uppercase().as_str() {
        "" => bare_shift,
        "B" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
    let whole = whole.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    // Digits beyond these make less than a page of a difference.
    let part = part.get(..part.len().min(6))?;
    let scale = 10_u64.pow(u32::try_from(part.len()).ok()?);
    let part = part.parse::<u64>().ok()?.checked_mul(1 << shift)? / scale;
    whole.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_s_memory_is_read_as_the_vmm_reads_it() {
        for (vmm, line, bytes) in [
            (VmmArg::Qemu, "qemu -m 4G", Some(4 << 30)),
            (VmmArg::Qemu, "qemu -m 512", Some(512 << 20)),
            (VmmArg::Qemu, "qemu -m 1.5G", Some(3 << 29)),
            (VmmArg::Qemu, "qemu -m size=2G,slots=4,maxmem=8G", Some(2 << 30)),
            (VmmArg::Qemu, "qemu -m 1G -m 2G", Some(2 << 30)),
            (VmmArg::Qemu, "qemu -m", None),
            (VmmArg::Qemu, "qemu -m lots", None),
            (VmmArg::Qemu, "qemu", None),
            (VmmArg::CloudHypervisor, "ch --memory size=4G,shared=on", Some(4 << 30)),
            (VmmArg::CloudHypervisor, "ch --memory size=4096", Some(4096)),
            (VmmArg::Other, "x -m 4G", None),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(guest_bytes(&words, vmm), bytes, "{line}");
        }
    }

    #[test]
    fn only_what_will_not_do_is_warned_of() {
        assert_eq!(text(1 << 30, 1 << 30, "r-1", 0), None);
        assert_eq!(text(1 << 30, 8 << 20, "r-1", 1 << 30), None);
        let none = text(1 << 30, 8 << 20, "r-1", 0).unwrap();
        assert!(none.contains("1 GiB") && none.contains("8 MiB"), "{none}");
        assert!(none.contains("--memory 1073741824") && none.contains("says nothing"), "{none}");
        let little = text(1 << 30, 8 << 20, "r-1", 16 << 20).unwrap();
        assert!(little.contains("for 16 MiB only"), "{little}");
    }
}
