//! Which calls fail, and with which errno.

use super::life::Kind;
use crate::guest::injector::{Fault, Site};

/// Each fails at least one call.
pub(super) const ERRNOS: [(i32, &str); 7] = [
    (28, "ENOSPC"),
    (5, "EIO"),
    (24, "EMFILE"),
    (12, "ENOMEM"),
    (4, "EINTR"),
    (1, "EPERM"),
    (16, "EBUSY"),
];

/// A call that is to fail, in which kind of life, and its errno's name.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) kind: Kind,
    pub(super) fault: Fault,
    pub(super) name: &'static str,
}

/// Of the sites that only look, so many take turns where there is little time.
const LOOKS: usize = 6;

/// With time each errno at several calls of each site; else one errno after the other. An emulated
/// machine has time for one call of each site that changes something, and for some of those that look.
pub(super) fn plan(sites: &[(Kind, Site)], long: bool, slow: bool) -> Vec<Planned> {
    let mut planned = Vec::new();
    let (mut looks, mut turn) = (0, 0);
    for (kind, site) in sites {
        if is_look(site) {
            looks += 1;
            if slow && !long && looks % LOOKS != 1 {
                continue;
            }
        }
        let numbers = match (long, slow) {
            (true, _) => numbers(site.calls, 3),
            (false, true) => vec![numbers(site.calls, 3)[turn % 3 % numbers(site.calls, 3).len()]],
            (false, false) => numbers(site.calls, 2),
        };
        for number in numbers {
            for (which, (errno, name)) in ERRNOS.into_iter().enumerate() {
                if long || turn % ERRNOS.len() == which {
                    let fault = Fault { site: site.name.clone(), number, errno };
                    planned.push(Planned { kind: *kind, fault, name });
                }
            }
            turn += 1;
        }
    }
    planned
}

/// The first of so many calls, and later ones; not the last, since not every life has as many.
fn numbers(calls: u64, most: u64) -> Vec<u64> {
    let mut chosen: Vec<u64> = (0..most).map(|part| 1 + calls * 3 / 4 * part / most).collect();
    chosen.dedup();
    chosen
}

/// Opening a file of sysfs or of `/proc` changes nothing.
fn is_look(site: &Site) -> bool {
    ["openat:/sys/", "openat:/proc/"].iter().any(|look| site.name.contains(look))
}
