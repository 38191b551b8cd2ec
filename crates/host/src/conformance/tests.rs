use std::collections::BTreeMap;

use super::*;
use crate::sim::{Rule, SimHost};

fn seats() -> Seats {
    let address = |text: &str| text.parse().unwrap();
    Seats {
        single: address("0000:00:05.0"),
        pair: [address("0000:02:01.0"), address("0000:02:02.0")],
        mixed: Some(Mixed {
            device: address("0000:05:00.0"),
            sibling: address("0000:05:00.1"),
            driver: "e1000".to_owned(),
        }),
    }
}

fn small() -> SimHost {
    SimHost::builtin("small").unwrap()
}

fn recorded(count: u64) -> Vec<Trace> {
    (0..count)
        .map(|seed| {
            let host = small();
            let trace = record(&host, &seats(), &Options::default(), seed).unwrap();
            host.check().unwrap();
            trace
        })
        .collect()
}

#[test]
fn a_simulated_host_answers_the_same_again() {
    for trace in recorded(300) {
        let line = serde_json::to_string(&trace).unwrap();
        let trace: Trace = serde_json::from_str(&line).unwrap();
        let difference = replay(&trace, &small(), &seats()).unwrap();
        assert!(difference.is_none(), "{}", difference.unwrap());
    }
}

#[test]
fn sequences_reach_every_operation_and_many_answers() {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for trace in recorded(400) {
        for entry in trace.entries {
            let op = serde_json::to_value(entry.op).unwrap();
            let key = format!("{} {}", op["op"].as_str().unwrap(), entry.got);
            *seen.entry(key).or_default() += 1;
        }
    }
    for wanted in [
        "hold ok",
        "hold EBUSY",
        "hold EPERM",
        "hold ENOENT",
        "open-device ok",
        "open-device EBUSY",
        "open-device EPERM",
        "open-device EINVAL",
        "open-device ENOENT",
        "attach ok",
        "attach EINVAL",
        "attach ENOENT",
        "attach EADDRINUSE",
        "attach EOPNOTSUPP",
        "delete-domain ok",
        "delete-domain EBUSY",
        "delete-domain ENOENT",
        "map ok",
        "map EEXIST",
        "map EINVAL",
        "bind-host ok",
        "bind-host EBUSY",
        "detach ok",
        "bound ok true",
        "open-cdev ok",
        "open-cdev ENOENT",
        "close-cdev ok",
        "bound-devices ok 0",
        "bound-devices ok 1",
        "bound-devices EOPNOTSUPP",
        "finish ok",
    ] {
        assert!(seen.contains_key(wanted), "{wanted} never happened; seen: {seen:#?}");
    }
    assert!(!seen.keys().any(|key| key.starts_with("finish") && key != "finish ok"), "{seen:#?}");
}

#[test]
fn every_broken_rule_is_caught() {
    let traces = recorded(300);
    for rule in Rule::ALL {
        let caught = traces.iter().filter(|trace| {
            let host = small();
            host.break_rule(rule);
            // A rule can be broken so badly that the stage can't be set any more.
            !matches!(replay(trace, &host, &seats()), Ok(None))
        });
        let caught = caught.count();
        println!("{rule:?}: caught by {caught} of {} sequences", traces.len());
        assert!(caught > 0, "{rule:?} is broken and nobody noticed");
    }
}

#[test]
fn a_divergence_is_told_with_both_answers() {
    let host = small();
    let trace = recorded(1).remove(0);
    host.break_rule(Rule::LastCloseReleases);
    let found = (0..50)
        .filter_map(|seed| {
            let trace = record(&small(), &seats(), &Options::default(), seed).unwrap();
            replay(&trace, &host, &seats()).ok().flatten()
        })
        .next()
        .expect("a broken rule shows");
    let text = found.to_string();
    assert!(text.contains("recorded {") && text.contains("replayed {"), "{text}");
    assert_eq!(trace.seed, 0);
}
