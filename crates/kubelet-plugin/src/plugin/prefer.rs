//! Which devices the kubelet had better take: all on one NUMA node, and those that are only reset
//! together not parted, as what is left of such a set can't go to another pod.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::{Inventory, Offer};

/// Chooses `size` of `available`, with all of `must` among them.
pub(super) fn choose(
    inventory: &Inventory,
    available: &[String],
    must: &[String],
    size: usize,
) -> Vec<String> {
    let mut chosen: Vec<String> = must.to_vec();
    let mut left: Vec<&Offer> = available
        .iter()
        .filter(|id| !must.contains(id))
        .filter_map(|id| inventory.offers.get(id))
        .collect();
    let missing = |chosen: &Vec<String>| size.saturating_sub(chosen.len());
    // What is reset with a device that is in already comes first, wherever it is.
    for id in reset_with(inventory, must, &left) {
        if missing(&chosen) > 0 {
            chosen.push(id);
        }
    }
    left.retain(|offer| !chosen.contains(&offer.id));
    let near: BTreeSet<Option<i32>> =
        must.iter().filter_map(|id| inventory.offers.get(id)).map(|one| one.numa_node).collect();
    for node in order(&left, &near, missing(&chosen)) {
        let mut sets = sets(left.iter().filter(|offer| offer.numa_node == node).copied());
        while missing(&chosen) > 0 && !sets.is_empty() {
            // The largest set that fits whole; else the smallest is parted.
            let room = missing(&chosen);
            sets.sort_by_key(|set| {
                let fits = set.len() <= room;
                (!fits, if fits { usize::MAX - set.len() } else { set.len() }, set.clone())
            });
            let set = sets.remove(0);
            chosen.extend(set.into_iter().take(room));
        }
    }
    // What isn't known here any more is chosen last.
    let unknown: Vec<String> =
        available.iter().filter(|id| !chosen.contains(id)).cloned().collect();
    let room = missing(&chosen);
    chosen.extend(unknown.into_iter().take(room));
    chosen
}

/// Those of `left` that a reset of what is in would hit.
fn reset_with(inventory: &Inventory, must: &[String], left: &[&Offer]) -> Vec<String> {
    let hit: BTreeSet<&String> = must
        .iter()
        .filter_map(|id| inventory.offers.get(id))
        .flat_map(|one| &one.reset_with)
        .collect();
    let is_hit = |offer: &&&Offer| offer.members.iter().any(|member| hit.contains(&member.address));
    left.iter().filter(is_hit).map(|offer| offer.id.clone()).collect()
}

/// NUMA nodes in the order in which they are used up: where devices are in already, then the
/// fullest of those that have enough, then the one with the most.
fn order(left: &[&Offer], near: &BTreeSet<Option<i32>>, missing: usize) -> Vec<Option<i32>> {
    let mut count: BTreeMap<Option<i32>, usize> = BTreeMap::new();
    left.iter().for_each(|offer| *count.entry(offer.numa_node).or_default() += 1);
    let mut nodes: Vec<(Option<i32>, usize)> = count.into_iter().collect();
    nodes.sort_by_key(|(node, count)| {
        let enough = *count >= missing;
        let size = if enough { *count } else { usize::MAX - count };
        (!near.contains(node), node.is_none(), !enough, size)
    });
    nodes.into_iter().map(|(node, _)| node).collect()
}

/// The offers by what is reset together, each set in order of addresses.
fn sets<'a>(offers: impl Iterator<Item = &'a Offer>) -> Vec<Vec<String>> {
    let mut sets: Vec<(BTreeSet<String>, Vec<&Offer>)> = Vec::new();
    for offer in offers {
        let mut addresses: BTreeSet<String> = offer.reset_with.iter().cloned().collect();
        addresses.extend(offer.members.iter().map(|member| member.address.clone()));
        match sets.iter_mut().find(|(known, _)| !known.is_disjoint(&addresses)) {
            Some((known, members)) => {
                known.extend(addresses);
                members.push(offer);
            }
            None => sets.push((addresses, vec![offer])),
        }
    }
    let ids = |(_, mut members): (_, Vec<&Offer>)| {
        members.sort_by_key(|offer| offer.primary.clone());
        members.into_iter().map(|offer| offer.id.clone()).collect()
    };
    sets.into_iter().map(ids).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Member;

    fn inventory(offers: &[(&str, i32, &[&str])]) -> Inventory {
        let offers = offers.iter().map(|(id, node, with)| {
            let member =
                Member { address: (*id).to_owned(), vendor: 1, device: 1, class: 0x03_0200 };
            let offer = Offer {
                id: (*id).to_owned(),
                number: 1,
                resource: "example.com/gpu".to_owned(),
                primary: (*id).to_owned(),
                members: vec![member],
                numa_node: Some(*node).filter(|node| *node >= 0),
                reset_with: with.iter().map(|other| (*other).to_owned()).collect(),
                unhealthy: None,
            };
            (offer.id.clone(), offer)
        });
        Inventory { offers: offers.collect(), event: None }
    }

    fn chosen(inventory: &Inventory, must: &[&str], size: usize) -> Vec<String> {
        let all: Vec<String> = inventory.offers.keys().cloned().collect();
        let must: Vec<String> = must.iter().map(|id| (*id).to_owned()).collect();
        choose(inventory, &all, &must, size)
    }

    #[test]
    fn all_come_from_the_numa_node_that_they_fit_on_with_the_least_left() {
        let host = inventory(&[
            ("a", 0, &[]),
            ("b", 1, &[]),
            ("c", 0, &[]),
            ("d", 1, &[]),
            ("e", 0, &[]),
            ("u", -1, &[]),
        ]);
        assert_eq!(chosen(&host, &[], 2), ["b", "d"]);
        assert_eq!(chosen(&host, &[], 3), ["a", "c", "e"]);
        assert_eq!(chosen(&host, &["a"], 2), ["a", "c"]);
        assert_eq!(chosen(&host, &[], 4), ["a", "c", "e", "b"]);
    }

    #[test]
    fn what_is_reset_together_is_not_parted() {
        let host = inventory(&[("a", 0, &["b"]), ("b", 0, &["a"]), ("c", 0, &[]), ("d", 0, &[])]);
        assert_eq!(chosen(&host, &[], 1), ["c"]);
        assert_eq!(chosen(&host, &[], 2), ["a", "b"]);
        assert_eq!(chosen(&host, &["b"], 2), ["b", "a"]);
    }
}
