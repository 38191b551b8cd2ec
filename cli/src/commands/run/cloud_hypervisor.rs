//! cloud-hypervisor's command line: `--platform` and `--device`.
//!
//! It binds devices by itself, so it is served by deliveries `unbound` (descriptors of cdevs and of
//! the iommufd) and `node` (paths).

use berth_proto::v1::Backend;

use super::{
    binds_by_itself,
    hand::{Device, Hand},
    shows_no_token,
};
use crate::{address, error::CliError};

/// The command line with the reservation's devices in it.
pub(super) fn fill(words: &[String], hand: &Hand) -> Result<Vec<String>, CliError> {
    binds_by_itself("cloud-hypervisor", hand)?;
    shows_no_token("cloud-hypervisor", hand, &[])?;
    let mut words = split_equals(words);
    platform(&mut words, hand)?;
    devices(&mut words, hand)?;
    Ok(words)
}

/// `--device=VALUE` as `--device VALUE`, so that more values can follow.
fn split_equals(words: &[String]) -> Vec<String> {
    let apart = |word: &String| match word.split_once('=') {
        Some((option @ ("--device" | "--platform"), value)) => {
            vec![option.to_owned(), value.to_owned()]
        }
        _ => vec![word.clone()],
    };
    words.iter().flat_map(apart).collect()
}

fn platform(words: &mut Vec<String>, hand: &Hand) -> Result<(), CliError> {
    let at = words.iter().position(|word| word == "--platform").map(|at| at + 1);
    let there = at.and_then(|at| words.get(at)).map(|value| split(value)).unwrap_or_default();
    let get = |key: &str| {
        there.iter().find_map(|part| part.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned)
    };
    let iommufd = hand.backend == Backend::Iommufd;
    match get("iommufd").as_deref() {
        Some("on") if !iommufd => {
            let text =
                format!("--platform iommufd=on: {} is on type1, leave it out", hand.reservation);
            return Err(CliError::Usage(text));
        }
        Some("off") if iommufd => {
            let text = format!("--platform iommufd=off: {} is on iommufd", hand.reservation);
            return Err(CliError::Usage(text));
        }
        _ => {}
    }
    if let Some(fd) = get("iommufd_fd") {
        let text =
            format!("--platform has iommufd_fd={fd} already; leave it out to have it filled in");
        return Err(CliError::Usage(text));
    }
    if !iommufd {
        return Ok(());
    }
    let mut parts: Vec<String> = there.iter().map(|part| (*part).to_owned()).collect();
    if get("iommufd").is_none() {
        parts.push("iommufd=on".to_owned());
    }
    parts.extend(hand.context.as_ref().map(|fd| format!("iommufd_fd={fd}")));
    let value = parts.join(",");
    match at.filter(|at| *at < words.len()) {
        Some(at) => words[at] = value,
        None => words.extend(["--platform".to_owned(), value]),
    }
    Ok(())
}

fn devices(words: &mut Vec<String>, hand: &Hand) -> Result<(), CliError> {
    let option = words.iter().position(|word| word == "--device");
    let first = option.map_or(words.len(), |at| at + 1);
    let mut end = first;
    while words.get(end).is_some_and(|word| !word.starts_with('-')) {
        end += 1;
    }
    let mut served: Vec<&Device> = Vec::new();
    for word in &mut words[first..end] {
        let Some(device) = device_of(word, hand) else { continue };
        if served.contains(&device) {
            return Err(CliError::Usage(format!(
                "{} stands in two --device values",
                device.address
            )));
        }
        served.push(device);
        if let Some(fd) = &device.fd {
            let new = |part: &str| match part.starts_with("path=") {
                true => format!("fd={fd}"),
                false => part.to_owned(),
            };
            *word = split(word).into_iter().map(new).collect::<Vec<_>>().join(",");
        }
    }
    let missing = hand.devices.iter().filter(|device| !served.contains(device));
    let missing: Vec<String> = missing
        .map(|device| match &device.fd {
            Some(fd) => format!("fd={fd}"),
            None => format!("path=/sys/bus/pci/devices/{}/", device.address),
        })
        .collect();
    if option.is_none() && !missing.is_empty() {
        words.push("--device".to_owned());
        end = words.len();
    }
    words.splice(end..end, missing);
    Ok(())
}

/// The device of the reservation whose path a value names.
fn device_of<'a>(value: &str, hand: &'a Hand) -> Option<&'a Device> {
    let path = split(value).into_iter().find_map(|part| part.strip_prefix("path="))?;
    let address = address::full(path.trim_end_matches('/').rsplit('/').next()?)?;
    hand.devices.iter().find(|device| device.address == address)
}

/// Splits at commas that stand in no brackets and no quotes.
fn split(value: &str) -> Vec<&str> {
    let (mut depth, mut quoted, mut start) = (0_usize, false, 0);
    let mut parts = Vec::new();
    for (at, c) in value.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '[' if !quoted => depth += 1,
            ']' if !quoted => depth = depth.saturating_sub(1),
            ',' if !quoted && depth == 0 => {
                parts.extend(value.get(start..at));
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.extend(value.get(start..));
    parts
}

#[cfg(test)]
mod tests {
    use berth_proto::v1::Delivery;

    use super::{super::testing::hand, *};

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn devices_and_their_platform_are_filled_in() {
        let one = hand(Delivery::Unbound, Backend::Iommufd, 1);
        let two = hand(Delivery::Unbound, Backend::Iommufd, 2);
        let node = hand(Delivery::Node, Backend::Iommufd, 1);
        let type1 = hand(Delivery::Node, Backend::Type1, 2);
        for (hand, line, wanted) in [
            (
                &one,
                "ch --kernel k",
                "ch --kernel k --platform iommufd=on,iommufd_fd=20 --device fd=10",
            ),
            (&two, "ch", "ch --platform iommufd=on,iommufd_fd=20 --device fd=10 fd=11"),
            (
                &node,
                "ch",
                "ch --platform iommufd=on --device path=/sys/bus/pci/devices/0000:65:00.0/",
            ),
            (
                &type1,
                "ch",
                "ch --device path=/sys/bus/pci/devices/0000:65:00.0/ path=/sys/bus/pci/devices/0000:65:00.1/",
            ),
            (
                &one,
                "ch --device path=/sys/bus/pci/devices/0000:65:00.0/,id=gpu,x_exclude_mmap_bars=[0,2] --cpus boot=1",
                "ch --device fd=10,id=gpu,x_exclude_mmap_bars=[0,2] --cpus boot=1 --platform iommufd=on,iommufd_fd=20",
            ),
            (
                &two,
                "ch --device=path=/sys/bus/pci/devices/0000:65:00.1 --cpus boot=1",
                "ch --device fd=11 fd=10 --cpus boot=1 --platform iommufd=on,iommufd_fd=20",
            ),
            (
                &one,
                "ch --platform oem_strings=[a,b],iommufd=on",
                "ch --platform oem_strings=[a,b],iommufd=on,iommufd_fd=20 --device fd=10",
            ),
            (
                &one,
                "ch --platform=vfio_p2p_dma=off",
                "ch --platform vfio_p2p_dma=off,iommufd=on,iommufd_fd=20 --device fd=10",
            ),
            (
                &one,
                "ch --device path=/sys/bus/pci/devices/0000:66:00.0/",
                "ch --device path=/sys/bus/pci/devices/0000:66:00.0/ fd=10 --platform iommufd=on,iommufd_fd=20",
            ),
            (
                &type1,
                "ch --platform num_pci_segments=2 --device path=/sys/bus/pci/devices/0000:65:00.1/",
                "ch --platform num_pci_segments=2 --device path=/sys/bus/pci/devices/0000:65:00.1/ path=/sys/bus/pci/devices/0000:65:00.0/",
            ),
        ] {
            let filled = fill(&words(line), hand);
            let filled = filled.unwrap_or_else(|error| panic!("{line}: {error:?}"));
            // Where `--platform` is new it comes before the devices' place is looked for.
            assert_eq!(filled.join(" "), wanted);
        }
    }

    #[test]
    fn what_it_could_not_do_is_refused() {
        let bound = hand(Delivery::Bound, Backend::Iommufd, 1);
        assert!(matches!(fill(&words("ch"), &bound), Err(CliError::Refused(_, 3))));
        let one = hand(Delivery::Unbound, Backend::Iommufd, 1);
        let type1 = hand(Delivery::Node, Backend::Type1, 1);
        let twice = "ch --device path=/x/0000:65:00.0 path=/y/0000:65:00.0/";
        for (hand, line, said) in [
            (&one, "ch --platform iommufd=off", "is on iommufd"),
            (&one, "ch --platform iommufd_fd=4", "already"),
            (&type1, "ch --platform iommufd=on", "on type1"),
            (&one, twice, "two --device"),
        ] {
            let Err(CliError::Usage(text)) = fill(&words(line), hand) else {
                panic!("{line} was filled in");
            };
            assert!(text.contains(said), "{line}: {text}");
        }
    }
}
