//! What the command line prints and exits with, against a daemon that answers from a script.
//! `BERTH_BLESS=1` rewrites the golden files.

mod fake;

use std::{
    fs::{self, File},
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
};

use fake::{Fake, SLOW};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

struct Printed {
    out: String,
    err: String,
    code: i32,
}

fn berth(fake: &Fake, columns: &str, args: &[&str]) -> Printed {
    let output = Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(args)
        .env("BERTH_ENDPOINT", fake.endpoint())
        .env("COLUMNS", columns)
        .env("NO_COLOR", "1")
        .output()
        .expect("run berth");
    Printed {
        out: String::from_utf8(output.stdout).expect("UTF-8"),
        err: String::from_utf8(output.stderr).expect("UTF-8"),
        code: output.status.code().expect("an exit code"),
    }
}

fn golden(name: &str, printed: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("BERTH_BLESS").is_some() {
        fs::write(&path, printed).expect("write the golden file");
    }
    let wanted = fs::read_to_string(&path).expect("the golden file");
    assert_eq!(printed, wanted, "{name} differs; BERTH_BLESS=1 rewrites it");
}

#[test]
fn lists_groups_wide_narrow_and_as_json() {
    let fake = Fake::start();
    let wide = berth(&fake, "120", &["group", "list"]);
    assert_eq!(wide.code, 0, "{}", wide.err);
    golden("groups-120.txt", &wide.out);
    let narrow = berth(&fake, "60", &["group", "list"]);
    golden("groups-60.txt", &narrow.out);
    assert!(narrow.out.lines().all(|line| line.chars().count() <= 60), "{}", narrow.out);
    golden("groups.json", &berth(&fake, "60", &["-o", "json", "group", "list"]).out);
}

#[test]
fn the_doctor_names_cause_and_fix_and_exits_with_three() {
    let fake = Fake::start();
    let printed = berth(&fake, "80", &["doctor"]);
    assert_eq!(printed.code, 3, "{}", printed.err);
    assert!(printed.err.contains("one problem keeps devices"), "{}", printed.err);
    golden("doctor.txt", &printed.out);
}

#[test]
fn what_if_names_what_would_split_what_stays_and_what_it_cant_tell() {
    let fake = Fake::start();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("snapshot.toml");
    fs::write(&file, "name = \"desktop\"\n").expect("written");
    let file = file.to_str().expect("UTF-8");
    let args = ["explain", "0a:00.0", "--what-if", "acs=on:00:01.1", "--snapshot", file];
    let printed = berth(&fake, "80", &args);
    assert_eq!(printed.code, 0, "{}", printed.err);
    golden("what-if.txt", &printed.out);
    let lacking = ["explain", "--what-if", "acs=on", "--snapshot", "/nonexistent.toml"];
    let printed = berth(&fake, "80", &lacking);
    assert_eq!(printed.code, 1);
    assert!(printed.err.contains("/nonexistent.toml"), "{}", printed.err);
    for wrong in [&["explain"][..], &["explain", "--what-if", "acs=off"]] {
        assert_eq!(berth(&fake, "80", wrong).code, 2, "{wrong:?}");
    }
}

#[test]
fn quotas_are_shown_beside_what_is_used_and_the_configuration_with_what_is_wrong() {
    let fake = Fake::start();
    let printed = berth(&fake, "120", &["quota"]);
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert!(printed.out.contains("2 of 2"), "{}", printed.out);
    golden("quota.txt", &printed.out);
    let printed = berth(&fake, "120", &["config"]);
    assert_eq!(printed.code, 0, "{}", printed.err);
    golden("config.txt", &printed.out);
}

#[test]
fn a_link_to_the_page_stands_alone_on_standard_output() {
    let fake = Fake::start();
    let printed = berth(&fake, "80", &["web"]);
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert_eq!(printed.out, "http://127.0.0.1:7711/#/sign-in/0123\n");
    assert!(printed.err.contains("as uid:1000, operator"), "{}", printed.err);
    let json = berth(&fake, "80", &["web", "-o", "json"]);
    assert_eq!((json.code, json.err.as_str()), (0, ""), "{}", json.out);
    golden("web.json", &json.out);
}

#[test]
fn says_that_the_host_is_simulated() {
    let fake = Fake::start();
    assert!(berth(&fake, "80", &["group", "list"]).err.contains("simulated host small"));
}

#[test]
fn explains_a_refusal_and_exits_with_three() {
    let fake = Fake::start();
    let refused = berth(
        &fake,
        "80",
        &["reserve", "--holder", "vm", "--device", "65:00.0", "--policy", "exclusive"],
    );
    assert_eq!(refused.code, 3);
    golden("refusal.txt", &refused.err);
}

#[test]
fn sends_again_with_the_same_request_id() {
    let fake = Fake::start();
    let released = berth(&fake, "80", &["release", "r-0123456789ab"]);
    assert_eq!(released.code, 0, "{}", released.err);
    let ids = fake.request_ids();
    assert_eq!(ids.len(), 2, "once refused as unavailable, once answered");
    assert!(!ids[0].is_empty());
    assert_eq!(ids[0], ids[1]);
}

#[test]
fn exit_codes() {
    let fake = Fake::start();
    assert_eq!(berth(&fake, "80", &["group", "show", "g-nothing"]).code, 4);
    assert_eq!(berth(&fake, "80", &["reservation", "show", "r-forbidden"]).code, 6);
    assert_eq!(berth(&fake, "80", &["device", "show", "nonsense"]).code, 2);
    assert_eq!(
        berth(&fake, "80", &["--timeout", "200ms", "reservation", "show", "r-slow"]).code,
        7
    );
    let away =
        berth(&fake, "80", &["--endpoint", "unix:/nonexistent/berthd.sock", "group", "list"]);
    assert_eq!(away.code, 5);
    assert!(away.err.contains("/nonexistent/berthd.sock"), "{}", away.err);
}

/// What a terminal shows of a command, its standard error, and what else it prints.
fn in_a_terminal(fake: &Fake, args: &[&str]) -> (String, String) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&ours).expect("grantpt");
    unlockpt(&ours).expect("unlockpt");
    let name = ptsname(&ours, Vec::new()).expect("its name");
    let its = File::options().write(true).open(name.to_str().expect("a path")).expect("its end");
    let mut berth = Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(args)
        .env("BERTH_ENDPOINT", fake.endpoint())
        .env("TERM", "xterm")
        .env("NO_COLOR", "1")
        .stdout(Stdio::piped())
        .stderr(its)
        .spawn()
        .expect("run berth");
    let mut seen = Vec::new();
    // EIO once nobody has the other end.
    let _ = File::from(ours).read_to_end(&mut seen);
    let mut out = String::new();
    berth.stdout.take().expect("its output").read_to_string(&mut out).expect("UTF-8");
    assert!(berth.wait().expect("berth ends").success());
    (String::from_utf8_lossy(&seen).into_owned(), out)
}

#[test]
fn a_terminal_is_told_what_takes_long_and_no_other_output() {
    let fake = Fake::start();
    let slow = ["-o", "json", "release", SLOW];
    let (seen, out) = in_a_terminal(&fake, &slow);
    let line = format!("release {SLOW} (attach first); Ctrl-C ends only the waiting");
    assert!(seen.contains(&line), "{seen}");
    assert!(seen.ends_with("\r\u{1b}[2K"), "the line goes: {seen:?}");
    assert!(out.contains(SLOW), "{out}");
    let printed = berth(&fake, "80", &slow);
    assert_eq!((printed.err.as_str(), printed.out), ("", out));
    let (quick, _) = in_a_terminal(&fake, &["group", "list"]);
    assert!(!quick.contains("Ctrl-C"), "{quick}");
}
