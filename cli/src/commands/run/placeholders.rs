//! Placeholders in the words of any program.

use berth_proto::v1::Delivery;

use super::hand::{Device, Hand};
use crate::{address, error::CliError};

/// A word, taken apart.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Context(&'static str),
    OfDevice(Of, Option<String>),
}

/// What of a device is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Fd,
    Ioas,
    Node,
    Group,
    VfToken,
    Address,
}

const ALL: &str = "{iommufd}, {container}, {device:ADDRESS}, {ioas:ADDRESS}, {node:ADDRESS}, \
                   {group:ADDRESS}, {vf-token:ADDRESS} and {address} are known; {{ writes a brace";

/// Whether every word can be read, whatever is handed over.
pub(super) fn check(words: &[String]) -> Result<(), CliError> {
    arguments(words).try_for_each(|word| parts(word).map(drop))
}

/// The words with what was handed over.
pub(super) fn fill(words: &[String], hand: &Hand) -> Result<Vec<String>, CliError> {
    let program = words.iter().take(1).cloned().map(Ok);
    program.chain(arguments(words).map(|word| filled(word, hand))).collect()
}

/// The program's name is taken as it is.
fn arguments(words: &[String]) -> impl Iterator<Item = &String> {
    words.iter().skip(1)
}

fn filled(word: &str, hand: &Hand) -> Result<String, CliError> {
    let text = |part| match part {
        Part::Text(text) => Ok(text),
        Part::Context(what) => context(word, what, hand),
        Part::OfDevice(of, address) => of_device(word, of, address.as_deref(), hand),
    };
    parts(word)?.into_iter().map(text).collect()
}

fn parts(word: &str) -> Result<Vec<Part>, CliError> {
    let mut parts = Vec::new();
    let mut rest = word;
    while let Some((text, tail)) = rest.split_once('{') {
        parts.push(Part::Text(text.to_owned()));
        if let Some(tail) = tail.strip_prefix('{') {
            parts.push(Part::Text("{".to_owned()));
            rest = tail;
            continue;
        }
        let Some((inside, tail)) = tail.split_once('}') else {
            return Err(usage(word, &format!("a brace is not closed; {ALL}")));
        };
        parts.push(placeholder(word, inside)?);
        rest = tail;
    }
    parts.push(Part::Text(rest.to_owned()));
    Ok(parts)
}

fn placeholder(word: &str, inside: &str) -> Result<Part, CliError> {
    let (name, of) = match inside.split_once(':') {
        Some((name, of)) => (name, Some(of)),
        None => (inside, None),
    };
    let what = match name {
        "iommufd" if of.is_none() => return Ok(Part::Context("iommufd")),
        "container" if of.is_none() => return Ok(Part::Context("container")),
        "address" if of.is_none() => Of::Address,
        "device" => Of::Fd,
        "ioas" => Of::Ioas,
        "node" => Of::Node,
        "group" => Of::Group,
        "vf-token" => Of::VfToken,
        _ => return Err(usage(word, &format!("{{{inside}}} is no placeholder; {ALL}"))),
    };
    let full = |text| {
        let wrong = || format!("{text:?} is not a device; write it like 0000:65:00.0 or 65:00.0");
        address::full(text).ok_or_else(|| usage(word, &wrong()))
    };
    Ok(Part::OfDevice(what, of.map(full).transpose()?))
}

fn context(word: &str, what: &str, hand: &Hand) -> Result<String, CliError> {
    let fits = what == if hand.backend_word() == "iommufd" { "iommufd" } else { "container" };
    match &hand.context {
        Some(number) if fits => Ok(number.clone()),
        _ => Err(not_given(word, what, hand)),
    }
}

fn of_device(word: &str, of: Of, address: Option<&str>, hand: &Hand) -> Result<String, CliError> {
    let device = the_device(word, address, hand)?;
    let (what, value) = match of {
        Of::Fd => ("device", &device.fd),
        Of::Ioas => ("ioas", &device.ioas),
        Of::Node => ("node", &device.node),
        Of::Group => ("group", &device.group),
        Of::VfToken => return vf_token(word, device, hand),
        Of::Address => return Ok(device.address.clone()),
    };
    value.clone().ok_or_else(|| not_given(word, what, hand))
}

/// Only the fetch tells whether the kernel asks for one.
fn vf_token(word: &str, device: &Device, hand: &Hand) -> Result<String, CliError> {
    let opens_itself = matches!(hand.delivery, Delivery::Unbound | Delivery::Node);
    match &device.vf_token {
        Some(token) => Ok(token.clone()),
        None if !opens_itself => Err(not_given(word, "vf-token", hand)),
        None if hand.promised => Ok(format!("{{vf-token:{}}}", device.address)),
        None => {
            let text = format!("{} is opened without a VF token; leave it out", device.address);
            Err(usage(word, &text))
        }
    }
}

fn the_device<'a>(
    word: &str,
    address: Option<&str>,
    hand: &'a Hand,
) -> Result<&'a Device, CliError> {
    let all = || {
        let all: Vec<&str> = hand.devices.iter().map(|device| device.address.as_str()).collect();
        if all.is_empty() { "nothing that has an address".to_owned() } else { all.join(", ") }
    };
    match (address, hand.devices.as_slice()) {
        (None, [device]) => Ok(device),
        (None, _) => Err(usage(
            word,
            &format!("say which device: {} hands over {}", hand.reservation, all()),
        )),
        (Some(address), devices) => {
            let missing =
                || format!("{address} is not of {}, which hands over {}", hand.reservation, all());
            let found = devices.iter().find(|device| device.address == address);
            found.ok_or_else(|| usage(word, &missing()))
        }
    }
}

fn not_given(word: &str, what: &str, hand: &Hand) -> CliError {
    usage(
        word,
        &format!(
            "{} has no {{{what}}} to give: its delivery is {}, on {}",
            hand.reservation,
            hand.delivery_word(),
            hand.backend_word()
        ),
    )
}

fn usage(word: &str, message: &str) -> CliError {
    CliError::Usage(format!("in {word:?}: {message}"))
}

#[cfg(test)]
mod tests {
    use berth_proto::v1::{Backend, Delivery};

    use super::{
        super::testing::{TOKEN, by_token, hand},
        *,
    };

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn what_was_handed_over_stands_in_the_words() {
        let bound = hand(Delivery::Bound, Backend::Iommufd, 2);
        let container = hand(Delivery::Bound, Backend::Type1, 1);
        let cdevs = hand(Delivery::Node, Backend::Iommufd, 1);
        let groups = hand(Delivery::Node, Backend::Type1, 1);
        let one = hand(Delivery::Unbound, Backend::Iommufd, 1);
        for (hand, word, filled) in [
            (&bound, "--iommu={iommufd}", "--iommu=20"),
            (&bound, "{device:0000:65:00.0},{device:65:00.1}", "10,11"),
            (&bound, "{device:pci_0000_65_00_1}", "11"),
            (&bound, "{ioas:65:00.0}", "5"),
            (&container, "{container}/{device}", "20/10"),
            (&one, "{device}:{iommufd}:{address}", "10:20:0000:65:00.0"),
            (&cdevs, "{node}", "/dev/vfio/devices/vfio0"),
            (&groups, "{group:65:00.0}", "/dev/vfio/7"),
            (&one, "{{device}", "{device}"),
            (&one, "{{\"a\":{{\"b\":{device}}}", "{\"a\":{\"b\":10}}"),
            (&one, "}", "}"),
            (&one, "", ""),
        ] {
            let given = fill(&words(&["./driver", word]), hand);
            assert_eq!(given.unwrap(), ["./driver", filled], "{word}");
        }
    }

    #[test]
    fn the_program_s_name_has_no_placeholders() {
        let one = hand(Delivery::Unbound, Backend::Iommufd, 1);
        assert_eq!(fill(&words(&["./{x}"]), &one).unwrap(), ["./{x}"]);
        check(&words(&["./{x}", "{device}"])).unwrap();
    }

    #[test]
    fn what_can_t_be_filled_is_said() {
        let bound = hand(Delivery::Bound, Backend::Iommufd, 2);
        let container = hand(Delivery::Bound, Backend::Type1, 1);
        let held = hand(Delivery::Held, Backend::Iommufd, 1);
        let node = hand(Delivery::Node, Backend::Iommufd, 1);
        for (hand, word, said) in [
            (&bound, "{device}", "say which device"),
            (&bound, "{device:66:00.0}", "0000:66:00.0 is not of r-1"),
            (&bound, "{container}", "no {container} to give"),
            (&container, "{iommufd}", "on type1"),
            (&container, "{ioas}", "no {ioas}"),
            (&held, "{device}", "hands over nothing"),
            (&held, "{iommufd}", "its delivery is held"),
            (&node, "{device}", "its delivery is node"),
            (&node, "{group}", "no {group}"),
        ] {
            let Err(CliError::Usage(text)) = fill(&words(&["x", word]), hand) else {
                panic!("{word} was filled");
            };
            assert!(text.contains(said), "{word}: {text}");
            check(&words(&["x", word])).unwrap();
        }
    }

    #[test]
    fn a_vf_token_stands_where_the_kernel_asks_for_it() {
        let group = hand(Delivery::Node, Backend::Type1, 1);
        let line = words(&["./driver", "--vfio-vf-token={vf-token}", "{vf-token:65:00.0}"]);
        let given = fill(&line, &by_token(group.clone())).unwrap();
        assert_eq!(given[1..], [format!("--vfio-vf-token={TOKEN}"), TOKEN.to_owned()]);
        let promised = fill(&line, &Hand { promised: true, ..group.clone() }).unwrap();
        assert_eq!(promised[2], "{vf-token:0000:65:00.0}");
        for (hand, said) in [
            (group, "0000:65:00.0 is opened without a VF token"),
            (hand(Delivery::Bound, Backend::Iommufd, 1), "no {vf-token} to give"),
        ] {
            let Err(CliError::Usage(text)) = fill(&line, &hand) else { panic!("{said}: filled") };
            assert!(text.contains(said), "{text}");
        }
    }

    #[test]
    fn words_that_can_t_be_read_are_told_before_anything_is_asked() {
        for word in [
            "{",
            "a{b",
            "{}",
            "{Device}",
            "{device:}",
            "{device:nonsense}",
            "{iommufd:65:00.0}",
            "{fd}",
            "{ device }",
            "{\"driver\":\"x\"}",
            "{address:65:00.0}",
        ] {
            assert!(matches!(check(&words(&["x", word])), Err(CliError::Usage(_))), "{word}");
        }
    }
}
