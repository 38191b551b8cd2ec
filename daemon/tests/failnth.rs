//! Each call of a real `berthd` to its kernel fails once, with each errno: what is answered says why,
//! nothing is left half, and others are served.
//!
//! The sites are those that a run without faults comes by: `failnth.c` stops each call below the
//! program and counts it. On the simulated host the calls to VFIO and sysfs are the simulation's own:
//! they fail one by one in `acts/anywhere.rs`; the real ones in the guest, as `berthd_injected_*`.
#![cfg(target_arch = "x86_64")]

#[path = "failnth/faulty.rs"]
mod faulty;
#[path = "failnth/life.rs"]
mod life;

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use faulty::{Fault, Site, Tracer};

const ERRNOS: [(i32, &str); 7] = [
    (28, "ENOSPC"),
    (5, "EIO"),
    (24, "EMFILE"),
    (12, "ENOMEM"),
    (4, "EINTR"),
    (1, "EPERM"),
    (16, "EBUSY"),
];
/// So many run beside each other.
const AT_ONCE: usize = 3;
/// How many calls at one site fail, one in each run.
const CALLS: u64 = 3;
/// The same where there is time.
const CALLS_LONG: u64 = 12;

/// Which of a site's calls fail: the first, the last, and some between.
fn calls(site: &Site, most: u64) -> Vec<u64> {
    let mut chosen: Vec<u64> =
        (0..most).map(|at| 1 + at * (site.calls - 1) / (most - 1).max(1)).collect();
    chosen.dedup();
    chosen
}

fn faults(sites: &[Site]) -> Vec<Fault> {
    let long = std::env::var_os("BERTH_TEST_LONG").is_some();
    let mut found = Vec::new();
    for (number, site) in sites.iter().enumerate() {
        for (at, call) in calls(site, if long { CALLS_LONG } else { CALLS }).into_iter().enumerate()
        {
            for (which, (errno, name)) in ERRNOS.iter().enumerate() {
                // One errno after the other, unless there is time for all.
                if long || (number + at) % ERRNOS.len() == which {
                    found.push(Fault { site: site.name.clone(), call, errno: *errno, name });
                }
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_fails_anywhere_is_told_and_leaves_nothing_half() {
    let began = Instant::now();
    let tracer = Arc::new(Tracer::build());
    let clean = life::run(&tracer, None, usize::MAX).await.expect("a run without faults");
    let sites: Vec<Site> = clean.sites;
    for site in &sites {
        println!("  {:5} {}", site.calls, site.name);
    }
    let kinds: BTreeMap<&str, usize> = sites.iter().fold(BTreeMap::new(), |mut kinds, site| {
        *kinds.entry(site.name.split([':', '-']).next().unwrap_or_default()).or_default() += 1;
        kinds
    });
    let faults = faults(&sites);
    println!("{} sites {kinds:?}, {} faults", sites.len(), faults.len());
    let (mut hit, mut told, mut refused_start) = (0, 0, 0);
    let mut running = tokio::task::JoinSet::new();
    let mut waiting = faults.into_iter();
    loop {
        while running.len() < AT_ONCE
            && let Some(fault) = waiting.next()
        {
            let tracer = Arc::clone(&tracer);
            let descriptors = clean.descriptors;
            running.spawn(async move {
                let began = Instant::now();
                let seen = life::run(&tracer, Some(&fault), descriptors).await;
                println!("  {:.1?}: {fault:?}", began.elapsed());
                seen.unwrap_or_else(|wrong| panic!("{fault:?}: {wrong}"))
            });
        }
        let Some(seen) = running.join_next().await else { break };
        let seen = seen.expect("nothing is wrong");
        hit += usize::from(seen.hit);
        told += seen.refusals;
        refused_start += usize::from(!seen.started);
    }
    println!(
        "{hit} calls failed, {told} orders were refused for it, {refused_start} starts, {:.1?}",
        began.elapsed()
    );
    assert!(sites.len() > 12 && hit > 30 && told > 0, "too little failed");
}
