use super::*;
use crate::{Host, sim::SimHost, sim::Topology};

const MODELLED: [&str; 4] = ["small", "gpu-server", "sriov-nic", "desktop-no-acs"];

fn machine(name: &str) -> Inventory {
    SimHost::builtin(name).unwrap().scan().unwrap()
}

fn at(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn parts(split: &Split) -> Vec<Vec<String>> {
    let names = |part: &Vec<PciAddress>| part.iter().map(ToString::to_string).collect();
    split.parts.iter().map(names).collect()
}

#[test]
fn the_rules_yield_the_groups_that_there_are() {
    for name in MODELLED {
        let answer = what_if(&machine(name), &Assumed::AsItIs);
        assert_eq!((answer.splits, answer.unexplained), (Vec::new(), Vec::new()), "{name}");
    }
}

#[test]
fn a_port_without_acs_is_all_that_joins_a_card_to_it() {
    let desktop = machine("desktop-no-acs");
    let answer = what_if(&desktop, &Assumed::On([at("0000:00:01.1")].into()));
    let [split] = answer.splits.as_slice() else { panic!("{answer:?}") };
    assert_eq!((split.number, &split.ports), (1, &vec![at("0000:00:01.1")]));
    let card = vec!["0000:0a:00.0", "0000:0a:00.1", "0000:0a:00.2"];
    assert_eq!(parts(split), [vec!["0000:00:01.1"], card]);
    // Conventional functions have no ACS that could be on.
    assert!(answer.stays.iter().any(|stays| stays.number == 4), "{answer:?}");

    let answer = what_if(&desktop, &Assumed::Everywhere);
    let [split] = answer.splits.as_slice() else { panic!("{answer:?}") };
    assert_eq!((split.parts.len(), split.ports.len()), (4, 4), "{split:?}");
    assert!(answer.stays[0].text.contains("0000:00:14.0"), "{answer:?}");
}

#[test]
fn functions_beside_the_first_are_of_several_whatever_their_headers_say() {
    let mut plain = machine("small");
    let second = plain.devices.iter_mut().find(|it| it.address == at("0000:05:00.1")).unwrap();
    second.isolation.as_mut().unwrap().multifunction = false;
    let answer = what_if(&plain, &Assumed::AsItIs);
    assert_eq!((answer.splits, answer.unexplained), (Vec::new(), Vec::new()));
}

#[test]
fn no_acs_takes_a_bridges_requester_id_away() {
    let answer = what_if(&machine("small"), &Assumed::Everywhere);
    let stays: Vec<u32> = answer.stays.iter().map(|stays| stays.number).collect();
    assert_eq!(stays, [5], "{answer:?}");
    assert!(answer.stays[0].text.contains("all behind 0000:01:00.0"), "{answer:?}");
    let [split] = answer.splits.as_slice() else { panic!("{answer:?}") };
    assert_eq!((split.number, parts(split).len()), (11, 2));
}

#[test]
fn what_the_rules_dont_explain_is_said_and_not_guessed() {
    let mut quirk = machine("desktop-no-acs");
    let odd = quirk.devices.iter_mut().find(|it| it.address == at("0000:0a:00.2")).unwrap();
    odd.group = Some(9);
    for group in &mut quirk.groups {
        group.members.retain(|member| *member != at("0000:0a:00.2"));
    }
    quirk.groups.push(GroupFacts {
        number: 9,
        members: vec![at("0000:0a:00.2")],
        ..GroupFacts::default()
    });
    let answer = what_if(&quirk, &Assumed::Everywhere);
    let numbers: Vec<u32> = answer.unexplained.iter().map(|it| it.number).collect();
    assert_eq!((numbers, answer.splits.len()), (vec![1, 9], 0), "{answer:?}");

    let mut joined = machine("small");
    joined.groups.retain(|group| group.number != 3);
    joined.groups[0].members.push(at("0000:00:06.0"));
    let answer = what_if(&joined, &Assumed::Everywhere);
    assert!(answer.unexplained[0].text.contains("several"), "{answer:?}");
}

#[test]
fn a_configuration_space_that_cant_be_read_is_named() {
    let mut blind = machine("desktop-no-acs");
    let port = blind.devices.iter_mut().find(|it| it.address == at("0000:00:01.1")).unwrap();
    port.isolation = None;
    let answer = what_if(&blind, &Assumed::Everywhere);
    assert!(answer.splits.is_empty(), "{answer:?}");
    let text = &answer.unexplained.iter().find(|it| it.number == 1).unwrap().text;
    assert!(text.contains("0000:00:01.1 can't be read"), "{text}");
}

#[test]
fn a_snapshot_says_the_same_as_the_machine() {
    let host = SimHost::builtin("desktop-no-acs").unwrap();
    let inventory = host.scan().unwrap();
    let uses = |address| host.uses(address).unwrap();
    let (name, serials) = ("copy", crate::sim::Serials::Hashed);
    let copy = Topology::from_inventory(name, "6.12", &inventory, &host.features(), &uses, serials);
    let read = Topology::parse(&copy.unwrap().to_toml().unwrap(), "copy").unwrap().inventory();
    for assumed in [Assumed::AsItIs, Assumed::Everywhere] {
        assert_eq!(what_if(&read, &assumed), what_if(&inventory, &assumed));
    }
}
