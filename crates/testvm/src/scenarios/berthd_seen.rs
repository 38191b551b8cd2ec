//! What `berthd` shows of a device after something went wrong, and what the kernel does: compared.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::berthd_tools::{Before, text};
use crate::guest::{
    Ctx,
    daemon::{Client, Daemon, Options},
    probe, sysfs,
};

/// What `berthd` shows of the group.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) ownership: String,
    pub(super) condition: String,
    /// Ids and states of the reservations that live.
    pub(super) live: Vec<(String, String)>,
}

impl Shown {
    /// Asks for it; the epoch, as it was at the last time, only grows.
    pub(super) fn of(daemon: &Daemon, device: &str, epoch: &mut u64) -> Result<Self> {
        let number = sysfs::group(device).with_context(|| format!("{device} has no group"))?;
        let group: Value = serde_json::from_str(&daemon.get(&format!("/api/v1/groups/{number}"))?)?;
        let now: u64 = group["epoch"].as_str().unwrap_or("0").parse()?;
        ensure!(now >= *epoch, "the epoch went back from {epoch} to {now}");
        *epoch = now;
        let reservations: Value = serde_json::from_str(&daemon.get("/api/v1/reservations")?)?;
        let list = reservations["reservations"].as_array().cloned().unwrap_or_default();
        let live = list
            .iter()
            .filter(|one| one["state"] != "RELEASED")
            .map(|one| Ok((text(one, "id")?, text(one, "state")?)))
            .collect::<Result<_>>()?;
        let (ownership, condition) = (text(&group, "ownership")?, text(&group, "condition")?);
        let shown = Self { ownership, condition, live };
        println!("{device}: {shown:?}");
        Ok(shown)
    }

    /// The group is said to be free, and nobody has it reserved.
    pub(super) fn is_free(&self) -> bool {
        self.live.is_empty() && self.ownership == "FREE"
    }

    pub(super) fn is_quarantined(&self) -> bool {
        self.condition == "QUARANTINED"
    }
}

/// What the kernel shows of the device to somebody who isn't Berth.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) driver: Option<String>,
    /// Whether a stranger is refused; never where it is on no VFIO driver.
    pub(super) busy: bool,
}

pub(super) fn kernel(device: &str) -> Kernel {
    let driver = sysfs::driver(device);
    let on_vfio = driver.as_deref() == Some("vfio-pci");
    let busy = on_vfio && {
        let stranger = probe::stranger(device);
        stranger.open_group.is_err() || stranger.bind_cdev.is_some_and(|answer| answer.is_err())
    };
    Kernel { driver, busy }
}

impl Kernel {
    pub(super) fn words(&self) -> String {
        let driver = self.driver.as_deref().unwrap_or("no driver");
        format!("{driver}{}", if self.busy { ", kept" } else { "" })
    }
}

/// The record and the kernel agree: one owner whom the kernel protects, or nobody and the device as
/// it was `before`. `by_itself` says that the holder attaches by itself.
pub(super) fn fits(shown: &Shown, now: &Kernel, before: &Before, by_itself: bool) -> Result<()> {
    ensure!(!(now.busy && shown.is_free()), "free, but not free");
    ensure!(shown.live.len() <= 1, "two owners");
    let Some((_, state)) = shown.live.first() else {
        let baseline = before.is_back().is_ok();
        ensure!(baseline || shown.is_quarantined(), "neither its baseline nor quarantined");
        return Ok(());
    };
    ensure!(now.driver.as_deref() == Some("vfio-pci"), "reserved, but not on VFIO");
    let handed = by_itself && state == "HANDED";
    ensure!(handed || ["RESERVED", "HELD"].contains(&state.as_str()), "state {state}");
    // Until its holder has taken it, root may take it too.
    let kept = now.busy || handed || state == "HELD" && by_itself;
    ensure!(kept, "the record says {state}, and the kernel lets anybody in");
    Ok(())
}

/// How to start a `berthd` that is traced. A helper that looks through all of /proc then stops at its
/// calls: that it takes long isn't that it hangs.
pub(super) fn patient(ctx: &Ctx) -> Result<Options> {
    let file = ctx.dir().join("berthd.toml");
    fs::write(&file, "[timeouts]\nact_ms = 100000\n")?;
    Ok(Options { arguments: vec!["--config".into(), file.into()], ..Options::default() })
}

/// No event is missing in what `berthd` keeps of the past.
pub(super) fn history_is_gapless(ctx: &Ctx, daemon: &Client) -> Result<()> {
    let history = daemon.cli(&["history", "--limit", "100000"])?.ok()?;
    let events = history["events"].as_array().context("no events")?;
    let mut last = None;
    for event in events {
        let seq: u64 = text(event, "seq")?.parse()?;
        if last.is_some_and(|last| seq != last + 1) {
            bail!("event {seq} follows {last:?}");
        }
        last = Some(seq);
    }
    ctx.say(format!("{} events, none is missing", events.len()));
    Ok(())
}
