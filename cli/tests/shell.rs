//! What a person at a shell has of `berth`, with a real `berthd`: completion, lists that follow the
//! host, exports, man pages.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic as tests do")]

mod daemon;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Output, Stdio},
    sync::mpsc::{Receiver, channel},
};

use daemon::{Daemon, PATIENCE};
use serde_json::Value;

/// Free in the topology `small`.
const DEVICE: &str = "0000:00:05.0";

fn start() -> Daemon {
    Daemon::start(|_| String::new())
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn reserve(daemon: &Daemon) -> String {
    let args = ["-o", "json", "reserve", "--holder", "vm", "--device", DEVICE, "--policy", "group"];
    let made: Value = serde_json::from_str(&text(&daemon.berth(&args))).unwrap();
    made["id"].as_str().unwrap().to_owned()
}

/// What Bash would offer for words as it breaks them, the last of which is being typed.
fn bash(daemon: &Daemon, words: &[&str]) -> Vec<String> {
    let berth = std::path::Path::new(env!("CARGO_BIN_EXE_berth"));
    let path = format!("{}:{}", berth.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let script = "eval \"$(berth completions bash)\"; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
                  _berth 2>/dev/null; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let output = Command::new("bash")
        .args(["--norc", "-c", script, "bash"])
        .args(words)
        .env("PATH", path)
        .env("BERTH_ENDPOINT", daemon.endpoint())
        .output()
        .unwrap();
    text(&output).lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn bash_completes_verbs_and_what_the_daemon_has() {
    let daemon = start();
    assert_eq!(bash(&daemon, &["berth", "uncor"]), ["uncordon"]);
    assert!(bash(&daemon, &["berth", "device", "show", ""]).contains(&DEVICE.to_owned()));
    // It replaces what stands behind the last colon.
    assert_eq!(
        bash(&daemon, &["berth", "device", "show", "0000", ":", "00", ":", "05.0"]),
        ["05.0"]
    );
    let short = bash(&daemon, &["berth", "explain", "00", ":"]);
    assert!(short.contains(&"05.0".to_owned()), "{short:?}");
    let id = reserve(&daemon);
    assert_eq!(bash(&daemon, &["berth", "release", "r-"]), std::slice::from_ref(&id));
    assert!(bash(&daemon, &["berth", "history", "r-"]).contains(&id));
}

#[test]
fn a_shell_waits_for_no_daemon_that_is_away_or_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let hangs = dir.path().join("hangs.sock");
    // Connections are taken by the kernel, and nobody ever answers on them.
    let _listener = std::os::unix::net::UnixListener::bind(&hangs).unwrap();
    for socket in [hangs.as_path(), &dir.path().join("away.sock")] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_berth"))
            .args(["--", "berth", "release", ""])
            .env("BERTH_COMPLETE", "fish")
            .env("BERTH_ENDPOINT", format!("unix:{}", socket.display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let begin = std::time::Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begin.elapsed() > PATIENCE {
                child.kill().unwrap();
                panic!("it waits for {}", socket.display());
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let output = child.wait_with_output().unwrap();
        let offered = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        assert!(!offered.contains("r-"), "{offered}");
    }
}

#[test]
fn each_shell_has_a_script() {
    let daemon = start();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = text(&daemon.berth(&["completions", shell]));
        assert!(script.contains("BERTH_COMPLETE"), "{shell}: {script}");
    }
}

/// Lines of a program that goes on.
fn lines(daemon: &Daemon, args: &[&str]) -> (std::process::Child, Receiver<String>) {
    let mut command = daemon.command(args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    (child, lines)
}

#[test]
fn a_watched_list_shows_what_changes_also_after_a_restart() {
    let mut daemon = start();
    let (mut child, lines) = lines(&daemon, &["-o", "json", "reservation", "list", "--watch"]);
    let until = |count: usize| {
        loop {
            let line = lines.recv_timeout(PATIENCE).expect("another state of the list");
            let list: Value = serde_json::from_str(&line).expect("a line is a list");
            let held = list["reservations"]
                .as_array()
                .map_or(0, |all| all.iter().filter(|one| one["state"] == "RESERVED").count());
            if held == count {
                return;
            }
        }
    };
    until(0);
    let id = reserve(&daemon);
    until(1);
    daemon.restart();
    text(&daemon.berth(&["release", &id]));
    until(0);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_whole_history_is_exported_a_line_each_and_goes_on_where_it_ended() {
    let daemon = start();
    let id = reserve(&daemon);
    let export = |since: &str| -> Vec<Value> {
        let out = text(&daemon.berth(&["history", "export", "--since", since]));
        out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let all = export("0");
    let seqs: Vec<u64> =
        all.iter().map(|it| it["seq"].as_str().unwrap().parse().unwrap()).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
    assert!(all.iter().any(|it| it["kind"] == "reservation.created"), "{all:?}");
    text(&daemon.berth(&["release", &id]));
    let more = export(&seqs.len().to_string());
    assert!(more.iter().any(|it| it["kind"] == "reservation.released"), "{more:?}");
    assert!(more.iter().all(|it| it["kind"] != "reservation.created"), "{more:?}");
    let of_it = text(&daemon.berth(&["history", "export", &id]));
    assert!(of_it.lines().count() < all.len() + more.len(), "{of_it}");
    assert!(of_it.lines().all(|line| line.contains(&id)), "{of_it}");
    assert!(text(&daemon.berth(&["history", &id])).contains("reservation.created"));
}

#[test]
fn every_verb_has_a_man_page() {
    let daemon = start();
    let dir = tempfile::tempdir().unwrap();
    text(&daemon.berth(&["man", &dir.path().display().to_string()]));
    let page = |name: &str| fs::read_to_string(dir.path().join(name)).expect(name);
    assert!(page("berth.1").contains("berth\\-reserve(1)"), "{}", page("berth.1"));
    assert!(page("berth-reserve.1").contains("\\-\\-take\\-from\\-host"));
    assert!(page("berth-history-export.1").contains("JSON"));
    let failed = daemon.berth(&["man", "/nonexistent/berth"]);
    assert_eq!(failed.status.code(), Some(1));
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(
        said.contains("/nonexistent/berth") && said.contains("directory that is there"),
        "{said}"
    );
}
