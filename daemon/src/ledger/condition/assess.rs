//! What a device's health comes to: which causes stand against it, and since when. Pure: the same
//! evidence gives the same answer.
//!
//! What can be seen at any time (power, configuration space, link) has to be seen twice before it
//! stands, as a link may be in training just then, and goes when it isn't seen any more. What could not
//! be looked at stands as before. Errors are counted from a base, and that moves up to the present count
//! when none came for a while.

use std::collections::{BTreeMap, BTreeSet};

use berth_host::{AerCounters, Health as Shown, LinkState};
use berth_ownership::{Cause, CauseCode, Counted, Errors, Health, Time};

/// Errors that keep coming are written down again after this, in milliseconds.
const AGAIN_MS: u64 = 60_000;

/// What a device shows, and what is known of it beside.
#[derive(Debug)]
pub(super) struct Evidence<'a> {
    /// What it shows.
    pub(super) shown: &'a Shown,
    /// Its class: 24 bits.
    pub(super) class: u32,
    /// How many of its resets failed since one worked.
    pub(super) failed_resets: u32,
    /// Nobody ever looked at this machine: what was counted before is held against nobody.
    pub(super) first: bool,
}

/// What stands against a device now. `suspects` is what was seen once at the last look, and becomes
/// what was at this one.
pub(super) fn assess(
    before: &Health,
    suspects: &mut BTreeSet<CauseCode>,
    evidence: &Evidence<'_>,
    quiet_ms: u64,
    now: &Time,
) -> Health {
    let mut stands = momentary(before, suspects, evidence);
    let counted = count(before.counted.as_ref(), evidence, quiet_ms, now);
    if let Some(Counted { base, seen, .. }) = &counted {
        let mut add = |code, seen: u64, base: u64| {
            let new = seen.saturating_sub(base);
            if new > 0 {
                stands.insert(code, new.to_string());
            }
        };
        add(CauseCode::AerFatal, seen.fatal, base.fatal);
        add(CauseCode::AerNonfatal, seen.nonfatal, base.nonfatal);
    }
    if evidence.failed_resets > 0 {
        stands.insert(CauseCode::ResetFailed, evidence.failed_resets.to_string());
    }
    let cause = |(code, what)| Cause {
        code,
        what,
        since_ms: find(before, code).map_or(now.unix_ms, |known| known.since_ms),
    };
    Health { causes: stands.into_iter().map(cause).collect(), counted }
}

/// What is worth knowing and stands against nobody.
pub(super) fn notes(evidence: &Evidence<'_>) -> Vec<String> {
    let shown = evidence.shown;
    let mut notes = Vec::new();
    if let Some(link) = &shown.link {
        let best = link.reachable();
        if best.width < link.device.width {
            let (slot, card) = (best.width, link.device.width);
            notes.push(format!("the port above has x{slot} for a device of x{card}"));
        }
        if is_slow(link) && saves_power(evidence) {
            notes.push(format!("link at {}, as it may be to save power", speeds(link)));
        }
    }
    if shown.runtime_status == "error" {
        notes.push("the kernel gave up on suspending or waking it".to_owned());
    }
    notes
}

fn find(health: &Health, code: CauseCode) -> Option<&Cause> {
    health.causes.iter().find(|cause| cause.code == code)
}

/// What can be seen at any time, as far as it was seen before.
fn momentary(
    before: &Health,
    suspects: &mut BTreeSet<CauseCode>,
    evidence: &Evidence<'_>,
) -> BTreeMap<CauseCode, String> {
    let seen = seen(evidence);
    let mut stands = BTreeMap::new();
    for cause in &before.causes {
        if !was_looked_at(cause.code, evidence.shown) {
            stands.insert(cause.code, cause.what.clone());
        }
    }
    for (code, what) in &seen {
        if suspects.contains(code) || find(before, *code).is_some() {
            stands.insert(*code, what.clone());
        }
    }
    *suspects = seen.into_keys().collect();
    stands
}

fn was_looked_at(code: CauseCode, shown: &Shown) -> bool {
    match code {
        CauseCode::ConfigGone => shown.answers.is_some(),
        CauseCode::LinkWidth | CauseCode::LinkSpeed => shown.link.is_some(),
        CauseCode::PowerState
        | CauseCode::AerFatal
        | CauseCode::AerNonfatal
        | CauseCode::ResetFailed => true,
    }
}

fn seen(evidence: &Evidence<'_>) -> BTreeMap<CauseCode, String> {
    let shown = evidence.shown;
    let mut seen = BTreeMap::new();
    if shown.answers == Some(false) {
        seen.insert(CauseCode::ConfigGone, "reads all ones".to_owned());
    }
    // The kernel notes D3cold of a device that it could not wake, too.
    let awake = matches!(shown.runtime_status.as_str(), "active" | "error");
    if awake && shown.power_state == "D3cold" {
        seen.insert(CauseCode::PowerState, format!("D3cold while {}", shown.runtime_status));
    }
    if let Some(link) = &shown.link {
        let best = link.reachable();
        if link.current.width < best.width {
            let what = format!("x{} of x{}", link.current.width, best.width);
            seen.insert(CauseCode::LinkWidth, what);
        }
        if is_slow(link) && !saves_power(evidence) {
            seen.insert(CauseCode::LinkSpeed, speeds(link));
        }
    }
    seen
}

fn is_slow(link: &LinkState) -> bool {
    link.current.speed > 0 && link.current.speed < link.reachable().speed
}

fn speeds(link: &LinkState) -> String {
    let text = |speed: u32| format!("{}.{}", speed / 1_000, speed % 1_000 / 100);
    format!("{} of {} GT/s", text(link.current.speed), text(link.reachable().speed))
}

/// Whether a slow link may be the device's own doing: graphics and accelerators slow theirs down while
/// they idle, which can't be seen from outside, and so may all in a low-power state.
fn saves_power(evidence: &Evidence<'_>) -> bool {
    const DISPLAY: u32 = 0x03;
    const ACCELERATOR: u32 = 0x12;
    matches!(evidence.class >> 16, DISPLAY | ACCELERATOR)
        || matches!(evidence.shown.power_state.as_str(), "D1" | "D2")
}

/// How far errors are counted now; `None` where none ever were on this boot.
fn count(
    before: Option<&Counted>,
    evidence: &Evidence<'_>,
    quiet_ms: u64,
    now: &Time,
) -> Option<Counted> {
    let before = before.filter(|known| known.boot_id == now.boot_id);
    let Some(AerCounters { nonfatal, fatal, .. }) = evidence.shown.aer else {
        return before.cloned();
    };
    let errors = Errors { nonfatal, fatal };
    // Fewer than before were counted by another device, or by the kernel anew.
    let same = |known: &&Counted| known.seen.nonfatal <= nonfatal && known.seen.fatal <= fatal;
    let Some(known) = before.filter(same) else {
        let base = if evidence.first { errors } else { Errors::default() };
        let counted =
            Counted { base, seen: errors, grew_boot_ms: now.boot_ms, boot_id: now.boot_id.clone() };
        return (errors != Errors::default()).then_some(counted);
    };
    let passed = now.boot_ms.saturating_sub(known.grew_boot_ms);
    if known.seen == errors {
        let base = if passed >= quiet_ms { errors } else { known.base };
        return Some(Counted { base, ..known.clone() });
    }
    let begins = (known.seen.fatal == known.base.fatal && fatal > known.base.fatal)
        || (known.seen.nonfatal == known.base.nonfatal && nonfatal > known.base.nonfatal);
    if passed < AGAIN_MS && !begins {
        return Some(known.clone());
    }
    Some(Counted { seen: errors, grew_boot_ms: now.boot_ms, ..known.clone() })
}
