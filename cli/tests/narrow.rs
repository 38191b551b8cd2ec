//! What a terminal of 60 columns shows: no line is wider, but for a command, and no id and no address is
//! broken. `BERTH_BLESS=1` rewrites the golden files.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic as tests do")]

mod daemon;

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use daemon::Daemon;

const COLUMNS: usize = 60;

fn printed(daemon: &Daemon, columns: usize, args: &[&str]) -> String {
    let output = daemon.command(args).env("COLUMNS", columns.to_string()).output().unwrap();
    // The doctor ends with another code where it finds a problem.
    assert!([Some(0), Some(3)].contains(&output.status.code()), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs of what ids, addresses, numbers and times are made of, and what is between them.
fn mapped(text: &str, mut word: impl FnMut(&str) -> String) -> String {
    let is_part = |part: char| part.is_ascii_alphanumeric() || ":.-_".contains(part);
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = if is_part(first) {
            rest.find(|part| !is_part(part)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (now, later) = rest.split_at(end);
        let bare = now.trim_end_matches(['.', ':']);
        out.push_str(&word(bare));
        out.push_str(&now[bare.len()..]);
        rest = later;
    }
    out
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.chars().all(|digit| digit.is_ascii_hexdigit())
}

/// A record's id: new on each machine, but for a group's.
fn is_id(word: &str) -> bool {
    let (kind, rest) = word.split_at_checked(2).unwrap_or_default();
    ["r-", "d-", "c-", "g-"].contains(&kind) && is_hex(rest, 12)
}

fn is_address(word: &str) -> bool {
    let parts: Vec<&str> = word.split([':', '.']).collect();
    matches!(parts.as_slice(), [domain, bus, slot, function]
        if is_hex(domain, 4) && is_hex(bus, 2) && is_hex(slot, 2) && is_hex(function, 1))
}

/// What is the same on each run.
fn masked(text: &str) -> String {
    mapped(text, |word| {
        let is_time = word.len() >= 20 && word.ends_with('Z') && word.contains('T');
        let is_epoch = word.len() == 13 && word.chars().all(|digit| digit.is_ascii_digit());
        match word.get(..2) {
            Some(kind) if is_id(word) && kind != "g-" => format!("{kind}0123456789ab"),
            _ if is_time => "2026-01-01T00:00:00.000Z".to_owned(),
            _ if is_epoch => "1000000000000".to_owned(),
            _ => word.to_owned(),
        }
    })
}

/// Ids and addresses that can be read.
fn names(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    mapped(text, |word| {
        if is_id(word) || is_address(word) {
            found.insert(word.to_owned());
        }
        String::new()
    });
    found
}

fn is_command(line: &str) -> bool {
    line.trim_start()
        .strip_prefix("to resolve: ")
        .is_some_and(|fix| fix.starts_with("berth ") || fix.contains(": berth "))
}

fn see(daemon: &Daemon, out: &mut String, args: &[&str]) {
    let narrow = printed(daemon, COLUMNS, args);
    for line in narrow.lines().filter(|line| !is_command(line)) {
        assert!(line.chars().count() <= COLUMNS, "{args:?}: too wide: {line}");
    }
    // As wide as it needs: what can be read there can be read here.
    let (wide, told) = (names(&printed(daemon, 1_000, args)), names(&narrow));
    assert!(wide.is_subset(&told), "{args:?}: of {wide:?} only {told:?}\n{narrow}");
    let _ = writeln!(out, "$ {}\n{}", masked(&args.join(" ")), masked(&narrow));
}

fn golden(name: &str, printed: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("BERTH_BLESS").is_some() {
        fs::write(&path, printed).unwrap();
    }
    let wanted = fs::read_to_string(&path).expect("the golden file");
    assert_eq!(printed, wanted, "{name} differs; BERTH_BLESS=1 rewrites it");
}

fn run(daemon: &Daemon, args: &[&str]) -> serde_json::Value {
    let output = daemon.berth(&[&["-o", "json"], args].concat());
    assert!(output.status.success(), "{args:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_narrow_terminal_shows_every_table_and_text_with_whole_names() {
    let daemon = Daemon::start(|_| String::new());
    let pair = ["reserve", "--holder", "vm-of-a-long-name", "--device", "02:01.0"];
    let made = run(&daemon, &[&pair[..], &["--policy", "group", "--delivery", "held"]].concat());
    let id = made["id"].as_str().unwrap();
    let domain = run(&daemon, &["attach", id])["domain"].as_str().unwrap().to_owned();
    run(&daemon, &["cordon", "04:00.0", "--note", "the fan is loud, look at 0000:04:00.0"]);
    let mut out = String::new();
    for args in [
        &["group", "list"][..],
        &["group", "show", "02:01.0"],
        &["device", "list"],
        &["device", "show", "02:01.0"],
        &["explain", "02:01.0"],
        &["explain", "05:00.0", "--memory", "512G"],
        &["explain", "--what-if", "acs=on"],
        &["kernel-dma", "query", "04:00.0"],
        &["reservation", "list"],
        &["reservation", "show", id],
        &["domain", "list"],
        &["domain", "show", &domain],
        &["history", "--limit", "8"],
        &["doctor"],
        &["quota"],
    ] {
        see(&daemon, &mut out, args);
    }
    golden("narrow.txt", &out);
}

#[test]
fn a_narrow_terminal_shows_how_the_link_of_a_device_runs() {
    let daemon = Daemon::start_on("sim:gpu-server", |_| String::new());
    daemon.until("devices are looked at", || {
        run(&daemon, &["device", "show", "1b:00.0"])["health"]["link"].is_object()
    });
    let mut out = String::new();
    see(&daemon, &mut out, &["device", "show", "1b:00.0"]);
    see(&daemon, &mut out, &["device", "show", "29:00.0"]);
    golden("device-show.txt", &out);
}
