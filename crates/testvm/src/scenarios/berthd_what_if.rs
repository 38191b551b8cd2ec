//! What would become of groups if their ports had Access Control Services: named and foretold of ports
//! that have none, and decided by the groups that the kernel made below ports alike that have them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::berthd_tools::text;
use crate::{
    guest::{Ctx, Outcome, Scenario, daemon::Daemon, sysfs},
    topology::{PORTS_WITHOUT_ACS, TWINS},
    wire::Capability,
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_what_if_names_ports", &[Capability::Daemon], names_ports),
    Scenario::new("berthd_what_if_foretells", &[Capability::Daemon], foretells),
];

/// Sets of functions that share a group.
type Shape = BTreeSet<BTreeSet<String>>;

/// Each port that lacks it is named, to whoever asks about the host or about what is below it; one that
/// has it isn't.
fn names_ports(ctx: &mut Ctx) -> Result<Outcome> {
    let daemon = Daemon::start(ctx)?;
    let found = |answer: &Value| -> Result<BTreeSet<String>> {
        let findings = answer["findings"].as_array().context("no findings")?.iter();
        findings.filter(|it| it["code"] == "MISSING_ACS").map(|it| text(it, "object")).collect()
    };
    let ports: BTreeSet<String> = PORTS_WITHOUT_ACS.map(str::to_owned).into();
    // It ends with another code where it finds a problem.
    let doctor = found(&daemon.cli(&["doctor"])?.json)?;
    ensure!(doctor == ports, "the doctor names {doctor:?}");
    for (without, with) in TWINS {
        let explained = found(&daemon.cli(&["explain", without])?.ok()?)?;
        ensure!(explained == ports, "of {without} it names {explained:?}");
        let explained = found(&daemon.cli(&["explain", with])?.ok()?)?;
        ensure!(explained.is_empty(), "of {with} it names {explained:?}");
    }
    Ok(Outcome::Pass)
}

/// The kernel's groups of these functions, each function by the name of its twin.
fn real_shape() -> Result<Shape> {
    let names: BTreeMap<&str, &str> =
        TWINS.iter().map(|(without, with)| (*with, *without)).collect();
    let mut shape = Shape::new();
    for (_, with) in TWINS {
        let group = sysfs::group(with).with_context(|| format!("{with} has no group"))?;
        let members = sysfs::group_members(&group)?;
        let named = members.iter().map(|member| {
            let name =
                names.get(member.as_str()).with_context(|| format!("{member} is a stranger"))?;
            Ok((*name).to_owned())
        });
        shape.insert(named.collect::<Result<_>>()?);
    }
    Ok(shape)
}

fn list<'v>(answer: &'v Value, name: &str) -> &'v [Value] {
    answer[name].as_array().map_or(&[], Vec::as_slice)
}

fn foretold(split: &Value) -> Result<Shape> {
    let address = |device: &Value| text(device, "pci");
    let parts = list(split, "parts").iter();
    parts.map(|part| list(part, "devices").iter().map(address).collect()).collect()
}

fn foretells(ctx: &mut Ctx) -> Result<Outcome> {
    let daemon = Daemon::start(ctx)?;
    let file = ctx.dir().join("snapshot.toml");
    let output = daemon.plain(&["snapshot"]).output().context("start berth")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::write(&file, &output.stdout)?;
    let of_snapshot = what_if(&daemon, "acs=on", Some(&file))?;
    let here = what_if(&daemon, "acs=on", None)?;
    ensure!(here["splits"] == of_snapshot["splits"], "the snapshot's is another: {here}");
    ensure!(list(&of_snapshot, "unexplained").is_empty(), "{of_snapshot}");
    let [split] = list(&of_snapshot, "splits") else { anyhow::bail!("not one: {of_snapshot}") };
    let (foretold, real) = (foretold(split)?, real_shape()?);
    ctx.say(format!("foretold {foretold:?}, real {real:?}"));
    ensure!(real.len() == 4, "the twin is no example: {real:?}");
    ensure!(foretold == real, "foretold {foretold:?}, real {real:?}");
    let ports: Vec<&str> = list(split, "ports").iter().filter_map(Value::as_str).collect();
    ensure!(ports == PORTS_WITHOUT_ACS, "by {ports:?}");
    let number = sysfs::group(PORTS_WITHOUT_ACS[0]).context("no group")?;
    ensure!(split["number"].as_u64() == number.parse().ok(), "of group {number}: {split}");

    // One port alone: only what is below it comes apart.
    let [first, _] = PORTS_WITHOUT_ACS;
    let one = what_if(&daemon, &format!("acs=on:{first}"), Some(&file))?;
    let [split] = list(&one, "splits") else { anyhow::bail!("not one: {one}") };
    let alone: Vec<BTreeSet<String>> =
        self::foretold(split)?.into_iter().filter(|part| part.len() == 1).collect();
    let wanted = [first, TWINS[2].0].map(|name| BTreeSet::from([name.to_owned()]));
    ensure!(alone == wanted, "{alone:?}");
    Ok(Outcome::Pass)
}

fn what_if(daemon: &Daemon, assumed: &str, snapshot: Option<&Path>) -> Result<Value> {
    let mut words = vec!["explain".into(), "--what-if".into(), assumed.to_owned()];
    if let Some(path) = snapshot {
        words.extend(["--snapshot".to_owned(), path.display().to_string()]);
    }
    daemon.cli(&words)?.ok()
}
