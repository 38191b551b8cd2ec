//! How it is asked, so that a refusal comes with all that is in it.

use std::{collections::BTreeSet, os::fd::AsFd};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::guest::{daemon::Daemon, handover, injector::Fault, memory::Memory};

/// The page that is kept equal to the code has every reason.
const OWNERSHIP: &str = include_str!("../../../../../docs/ownership.md");

/// Done, or refused with a document.
pub(super) type Answer = Result<Value, Value>;

/// Whether the fault hits a connection of berthd's own: who is at its other end hears nothing then.
pub(super) fn may_break(fault: Option<&Fault>) -> bool {
    fault.is_some_and(|fault| {
        let (call, object) = fault.site.split_once(':').unwrap_or_default();
        !call.contains('/') && object == "socket"
    })
}

pub(super) fn over_http(daemon: &Daemon, line: &str, body: &Value) -> Result<Answer> {
    let (status, document) = daemon.order(line, body)?;
    Ok(if status < 300 { Ok(document) } else { Err(document) })
}

pub(super) fn over_socket(
    daemon: &Daemon,
    request: &Value,
    memory: Option<&Memory>,
) -> Result<Answer> {
    let files = memory.map(Memory::file);
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let answer = handover::ask(&daemon.handover(), request, &fds)?.json;
    println!("hand-over: {request} -> {answer}");
    if answer["ok"] == true {
        return Ok(Ok(answer));
    }
    Ok(Err(answer["refusal"].clone()))
}

/// The closed list.
pub(super) fn reasons() -> Result<BTreeSet<&'static str>> {
    let (_, list) = OWNERSHIP.split_once("\n## Reasons\n").context("a page without reasons")?;
    let reasons: BTreeSet<&str> = list
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(reason, _)| reason)
        .collect();
    ensure!(reasons.contains("KERNEL_REFUSED"), "these are no reasons: {reasons:?}");
    Ok(reasons)
}
