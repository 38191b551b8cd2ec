//! What a function shows of its health, read from its sysfs directory.
//!
//! Power states and error counters are the kernel's own notes. The configuration space and the link's
//! registers are the device's: reading them would wake one that sleeps.

use std::os::fd::AsFd;

use super::tree::{self, Root};
use crate::{AerCounters, Health, HostError, LinkRate, LinkState, PciAddress};

/// Bytes that tell whether a function answers. A function's command register has bits that are always
/// 0, so all ones come from nobody; the ids alone don't tell, as virtual functions have all ones there.
const ANSWER_BYTES: usize = 8;

/// Reads what one function shows.
///
/// # Errors
/// [`HostError::NoDevice`] when it is gone.
pub(super) fn read(root: &Root, address: PciAddress) -> Result<Health, HostError> {
    let dir = tree::open_dir(&root.device(address)).map_err(|_| HostError::NoDevice(address))?;
    let text = |name: &str| tree::text_at(&dir, name).unwrap_or_default();
    let mut health = Health {
        power_state: text("power_state"),
        runtime_status: text("power/runtime_status"),
        aer: counters(&dir),
        answers: None,
        link: None,
    };
    if !health.is_asleep() {
        health.answers = answers(&dir);
        health.link = health.answers.filter(|yes| *yes).and_then(|_| link(&dir));
    }
    Ok(health)
}

fn counters(dir: impl AsFd) -> Option<AerCounters> {
    let total = |name: &str| tree::text_at(&dir, name).map(|text| total(&text));
    Some(AerCounters {
        correctable: total("aer_dev_correctable")?,
        nonfatal: total("aer_dev_nonfatal")?,
        fatal: total("aer_dev_fatal")?,
    })
}

/// The last line has the sum of those before: `TOTAL_ERR_NONFATAL 3`.
fn total(text: &str) -> u64 {
    let count = |line: &str| line.rsplit(' ').next()?.parse::<u64>().ok();
    let sum = text.lines().find(|line| line.starts_with("TOTAL_ERR_")).and_then(count);
    sum.unwrap_or_else(|| text.lines().filter_map(count).fold(0, u64::saturating_add))
}

fn answers(dir: impl AsFd) -> Option<bool> {
    let mut bytes = [0; ANSWER_BYTES];
    match tree::read_at(dir, "config", &mut bytes) {
        Ok(read) if read.len() == ANSWER_BYTES => Some(read.iter().any(|byte| *byte != 0xff)),
        Ok(_) | Err(_) => None,
    }
}

/// The link above, where the function is what ends it: a virtual function has its physical one's.
fn link(dir: impl AsFd) -> Option<LinkState> {
    let current = rate(&dir, "current")?;
    let device = rate(&dir, "max")?;
    let is_link = current.width > 0 && device.width > 0;
    let port = tree::open_dir_at(&dir, "..").ok().and_then(|port| rate(port, "max"));
    is_link.then_some(LinkState { current, device, port })
}

fn rate(dir: impl AsFd, which: &str) -> Option<LinkRate> {
    let text = |what: &str| tree::text_at(&dir, format!("{which}_link_{what}"));
    // Where nothing is known of a link the kernel says 255 lanes.
    let width = text("width")?.parse().ok().filter(|lanes| *lanes != u8::MAX).unwrap_or(0);
    Some(LinkRate { width, speed: speed(&text("speed")?) })
}

/// `8.0 GT/s PCIe` in mega-transfers a second; 0 for `Unknown`.
fn speed(text: &str) -> u32 {
    let Some((number, _)) = text.split_once(" GT/s") else { return 0 };
    let (whole, tenths) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| text.parse::<u32>().ok();
    let tenth = tenths.get(..1).and_then(digits);
    let value = digits(whole)
        .zip(tenth)
        .and_then(|(whole, tenth)| whole.checked_mul(1_000)?.checked_add(tenth.checked_mul(100)?));
    value.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{speed, total};

    #[test]
    fn speeds_are_read_in_mega_transfers() {
        for (text, found) in [
            ("2.5 GT/s PCIe", 2_500),
            ("8.0 GT/s PCIe", 8_000),
            ("64.0 GT/s PCIe", 64_000),
            ("5 GT/s", 5_000),
            ("Unknown", 0),
            ("", 0),
            ("x GT/s", 0),
            ("4294967295.5 GT/s", 0),
        ] {
            assert_eq!(speed(text), found, "{text}");
        }
    }

    #[test]
    fn counters_are_summed_by_the_kernel_or_else_here() {
        assert_eq!(total("RxErr 1\nBadTLP 2\nTOTAL_ERR_COR 3\n"), 3);
        assert_eq!(total("Receiver Error 1\nBad TLP 4\n"), 5);
        assert_eq!(total(""), 0);
        assert_eq!(total("nonsense\n"), 0);
    }
}
