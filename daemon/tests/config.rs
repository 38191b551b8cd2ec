//! The configuration: what is read, what is refused, and how that is said.

use std::{fs, path::Path, process::Command};

use berthd::{
    config::{Args, Config, Endpoint, Helper, HostChoice, Serve, SimTopology},
    model::{PeerId, Role},
};
use clap::Parser as _;

fn args(words: &[&str]) -> Args {
    Args::try_parse_from(std::iter::once("berthd").chain(words.iter().copied()))
        .expect("arguments of berthd")
}

fn load(text: &str, words: &[&str]) -> Result<Config, String> {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("berthd.toml");
    fs::write(&file, text).expect("written");
    let mut args = args(words);
    args.config = Some(file.clone());
    Config::load(&args)
        .map_err(|error| error.to_string().replace(&file.display().to_string(), "berthd.toml"))
}

#[test]
fn the_example_is_the_defaults() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/berthd.toml");
    let text = fs::read_to_string(example).expect("the example is there");
    // Each commented value, uncommented, must be read and change nothing.
    let values: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(value) if value.starts_with(|c: char| c.is_ascii_lowercase()) => value,
            _ => line,
        })
        .filter(|line| !line.starts_with("helper"))
        .fold(String::new(), |all, line| all + line + "\n");
    let mut from_example = load(&values, &[]).expect("the example can be used");
    let mut defaults = load("", &[]).expect("no settings can be used");
    (from_example.file, defaults.file) = (None, None);
    assert_eq!(from_example, defaults);
    assert!(values.contains("\nwait_ms = 30000\n"), "the values were uncommented");
}

#[test]
fn the_listeners_of_the_example_are_the_default_ones() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/berthd.toml");
    let text = fs::read_to_string(example).expect("the example is there");
    // The listener with TLS is an example: no default has certificates.
    let (before, with_tls) = text.split_once("# With TLS").expect("an example with TLS");
    let after = &with_tls[with_tls.find("# Descriptors:").expect("the hand-over")..];
    let text = format!("{before}{after}");
    let block = |line: &&str| {
        let line = line.trim_start_matches("# ").trim_start();
        line.starts_with("[[listen")
            || ["serve", "path", "address", "mode", "group", "role", "others", "uid", "hosts"]
                .iter()
                .any(|key| line.starts_with(&format!("{key} = ")))
    };
    // Rules for devices have addresses, too.
    let listeners: String = text
        .lines()
        .take_while(|line| !line.starts_with("[timeouts]"))
        .filter(block)
        .map(|line| line.trim_start_matches("# ").trim_start())
        .fold(String::new(), |all, line| all + line + "\n");
    let from_example = load(&listeners, &[]).expect("the example's listeners can be used");
    let defaults = load("", &[]).expect("no settings can be used");
    let ends = |config: &Config| -> Vec<(Serve, String)> {
        config.listen.iter().map(|one| (one.serve, one.endpoint.to_string())).collect()
    };
    assert_eq!(ends(&from_example), ends(&defaults));
    let access = &from_example.listeners(Serve::Grpc).next().expect("gRPC").access;
    assert_eq!(access.role_of(Some(64055)), Some(Role::Holder));
    assert_eq!(access.role_of(Some(1)), Some(Role::Operator));
    let access = &from_example.listeners(Serve::Handover).next().expect("hand-over").access;
    assert_eq!(access.role_of(Some(0)), Some(Role::Operator));
    assert_eq!(access.role_of(Some(1)), Some(Role::Holder));
}

#[test]
fn at_the_hand_over_socket_nobody_is_an_operator_unnamed() {
    let listener = "[[listen]]\nserve = \"handover\"\npath = \"/x\"\n";
    let rule = "[[listen.rule]]\nuid = 7\nrole = \"operator\"\n";
    for (text, named) in [
        (String::new(), Role::Holder),
        (listener.to_owned(), Role::Holder),
        (format!("{listener}role = \"operator\"\n"), Role::Holder),
        (format!("{listener}role = \"operator\"\n{rule}"), Role::Operator),
    ] {
        let config = load(&text, &[]).expect("a listener");
        let access = &config.listeners(Serve::Handover).next().expect("hand-over").access;
        for (uid, role) in [(0, Role::Holder), (7, named)] {
            assert_eq!(access.role_of(Some(uid)), Some(role), "{text}");
        }
    }
    let refused = load(&format!("{listener}{rule}"), &[]).expect_err("more than the ceiling");
    assert!(refused.contains("can't give more than its listener's role"), "{refused}");
}

#[test]
fn mistakes_are_named_with_line_key_and_way_out() {
    let cases = [
        ("stat_dir = \"/x\"\n", "berthd.toml:1: stat_dir: unknown field `stat_dir`"),
        ("\n[timeouts]\nwait_ms = \"soon\"\n", "berthd.toml:3: wait_ms: invalid type"),
        (
            "[timeouts]\nwait_ms = 0\n",
            "berthd.toml:2: timeouts.wait_ms: 0 is out of range; use 1 to",
        ),
        (
            "state_dir = \"relative\"\n",
            "berthd.toml:1: state_dir: relative is not an absolute path",
        ),
        ("host = \"windows\"\n", "berthd.toml:1: host: \"windows\" is not a host; use linux"),
        ("a = [1,\n2\n", "berthd.toml:"),
        (
            "[[listen]]\nserve = \"grpc\"\naddress = \"0.0.0.0:1\"\n",
            "berthd.toml:3: listen.address: gRPC over TCP needs TLS",
        ),
        (
            "[[listen]]\nserve = \"http\"\naddress = \"127.0.0.1:1\"\nrole = \"operator\"\n",
            "berthd.toml:4: listen.role: TCP without TLS serves reading only",
        ),
        (
            "[[listen]]\nserve = \"http\"\npath = \"/x\"\naddress = \"127.0.0.1:1\"\n",
            "berthd.toml:1: [[listen]]: a listener has exactly one of path and address",
        ),
        (
            "[[listen]]\nserve = \"http\"\npath = \"/x\"\nmode = \"9\"\n",
            "berthd.toml:4: listen.mode: \"9\" is not a mode; use octal",
        ),
        (
            "[[listen]]\nserve = \"http\"\npath = \"/x\"\ngroup = \"no-such-group-here\"\n",
            "berthd.toml:4: listen.group: there is no group \"no-such-group-here\"; create it",
        ),
        (
            "[[listen]]\nserve = \"http\"\npath = \"/x\"\nrole = \"viewer\"\n\
             [[listen.rule]]\nuid = 0\nrole = \"operator\"\n",
            "berthd.toml:7: listen.rule.role: a rule can't give more than its listener's role",
        ),
        (
            "helper = \"/x\"\nhelper_socket = \"/y\"\n",
            "berthd.toml:2: helper_socket: the file names a helper, too; remove",
        ),
        (
            "helper_socket = \"/nonexistent/s\"\n",
            "berthd.toml:1: helper_socket: there is no socket /nonexistent/s; start it",
        ),
        (
            "sysfs_root = \"/tree\"\nhelper_socket = \"/nonexistent/s\"\n",
            "berthd.toml:2: helper_socket: a helper behind a socket acts on this machine",
        ),
        (
            "[[reset]]\nclass = \"gpu\"\npolicy = \"maybe\"\n",
            "berthd.toml:3: reset.policy: \"maybe\"",
        ),
        (
            "[[reset]]\nclass = \"toaster\"\npolicy = \"none\"\n",
            "berthd.toml:2: reset.class: \"toaster\"",
        ),
    ];
    for (text, expected) in cases {
        let error = load(text, &[]).expect_err(text);
        assert!(error.starts_with(expected), "{text}\n  gave  {error}\n  not   {expected}");
        assert!(error.contains("; "), "{error} has no way out");
    }
}

#[test]
fn mistakes_about_certificates_and_rules_are_named_too() {
    let cases = [
        (
            "[[listen]]\nserve = \"http\"\npath = \"/x\"\n\
             [[listen.rule]]\nuri = \"spiffe://site/x\"\nrole = \"viewer\"\n",
            "berthd.toml:5: listen.rule.uri: only peers with a client certificate have a URI",
        ),
        (
            "[[listen]]\nserve = \"http\"\npath = \"/x\"\n[[listen.rule]]\nrole = \"viewer\"\n",
            "berthd.toml:5: [[listen.rule]]: a rule names exactly one of uid, gid and uri",
        ),
        (
            "[[listen]]\nserve = \"http\"\npath = \"/x\"\n\
             [[listen.rule]]\ngid = \"no-such-group-here\"\nrole = \"viewer\"\n",
            "berthd.toml:5: listen.rule.gid: there is no group \"no-such-group-here\"; create it",
        ),
        (
            "[[listen]]\nserve = \"grpc\"\naddress = \"127.0.0.1:1\"\n\
             tls = { cert = \"/nonexistent/c\", key = \"/k\", client_ca = \"/a\" }\n",
            "berthd.toml:4: listen.tls.cert: read certificates from /nonexistent/c: ",
        ),
        (
            "[[listen]]\nserve = \"grpc\"\naddress = \"127.0.0.1:1\"\n\
             tls = { cert = \"/c\", key = \"/k\", client_ca = \"/a\", min_version = \"1.1\" }\n",
            "berthd.toml:4: listen.tls.min_version: \"1.1\" is not a version of TLS",
        ),
        (
            "[[listen]]\nserve = \"grpc\"\npath = \"/x\"\n\
             tls = { cert = \"/c\", key = \"/k\", client_ca = \"/a\" }\n",
            "berthd.toml:4: listen.tls: a unix socket needs no TLS",
        ),
    ];
    for (text, expected) in cases {
        let error = load(text, &[]).expect_err(text);
        assert!(error.starts_with(expected), "{text}\n  gave  {error}\n  not   {expected}");
        assert!(error.contains("; "), "{error} has no way out");
    }
}

#[test]
fn mistakes_about_devices_are_named_too() {
    let cases = [
        ("[[device]]\nverdict = \"maybe\"\n", "berthd.toml:2: device.verdict: \"maybe\""),
        (
            "[[device]]\nverdict = \"deny\"\nvendor = \"nvidia\"\n",
            "berthd.toml:3: device.vendor: \"nvidia\"",
        ),
        (
            "[[device]]\nverdict = \"deny\"\naddress = \"0000:65\"\n",
            "berthd.toml:3: device.address: \"0000:65\"",
        ),
        (
            "[[device]]\nverdict = \"deny\"\nclass = \"gpus\"\n",
            "berthd.toml:3: device.class: \"gpus\"",
        ),
    ];
    for (text, expected) in cases {
        let error = load(text, &[]).expect_err(text);
        assert!(error.starts_with(expected), "{text}\n  gave  {error}\n  not   {expected}");
        assert!(error.contains("; "), "{error} has no way out");
    }
}

#[test]
fn arguments_override_the_file() {
    let text = "host = \"sim:gpu-server\"\nstate_dir = \"/from/file\"\n\
                [[listen]]\nserve = \"grpc\"\npath = \"/from/file.sock\"\n\
                [[listen]]\nserve = \"http\"\npath = \"/from/http.sock\"\n";
    let config = load(
        text,
        &[
            "--host",
            "sim:/tmp/t.toml",
            "--state-dir",
            "/from/args",
            "--listen-grpc",
            "unix:/a/g.sock",
        ],
    )
    .expect("it can be used");
    assert_eq!(config.host, HostChoice::Sim(SimTopology::File("/tmp/t.toml".into())));
    assert_eq!(config.state_dir, Path::new("/from/args"));
    let ends: Vec<String> = config.listen.iter().map(|one| one.endpoint.to_string()).collect();
    assert_eq!(ends, ["unix:/a/g.sock", "unix:/from/http.sock", "unix:/a/handover.sock"]);
}

#[test]
fn the_helper_is_a_program_or_behind_a_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("helper.sock");
    let _socket = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let text = format!("helper_socket = {:?}\n", path.display().to_string());
    let behind = Helper::Socket(path.clone());
    assert_eq!(load(&text, &[]).expect("it is there").helper, behind);
    let program = Helper::Forked(Some("/bin/helper".into()));
    let config = load(&text, &["--helper", "/bin/helper"]).expect("an argument overrides");
    assert_eq!(config.helper, program);
    let argument = path.display().to_string();
    let config = load("helper = \"/bin/helper\"\n", &["--helper-socket", &argument]);
    assert_eq!(config.expect("an argument overrides").helper, behind);
    let error = load("", &["--helper-socket", "/nonexistent/s"]).expect_err("it is not there");
    assert!(error.starts_with("--helper-socket /nonexistent/s: there is no socket"), "{error}");
    // A simulated machine has no use for it, and a file may say it all the same.
    load("helper_socket = \"/nonexistent/s\"\n", &["--host", "sim"]).expect("not asked for");
}

#[test]
fn grpc_over_tcp_is_refused_and_so_is_nonsense() {
    for words in [
        ["--listen-grpc", "127.0.0.1:5000"],
        ["--listen-handover", "127.0.0.1:5000"],
        ["--listen-http", "nowhere"],
        ["--listen-http", "unix:"],
        ["--host", "sim:"],
    ] {
        let error = load("", &words).expect_err(words[1]);
        assert!(error.starts_with(words[0]), "{error}");
        assert!(error.contains("; "), "{error} has no way out");
    }
}

#[test]
fn a_role_is_never_above_the_listeners_and_never_from_uid_0() {
    let text = "[[listen]]\nserve = \"http\"\npath = \"/x\"\nrole = \"orchestrator\"\n\
                others = \"viewer\"\n\
                [[listen.rule]]\nuid = 1000\nrole = \"holder\"\n\
                [[listen.rule]]\nuid = 1001\nrole = \"none\"\n";
    let config = load(text, &[]).expect("it can be used");
    let access = &config.listeners(Serve::Http).next().expect("a listener").access;
    assert_eq!(access.role_of(Some(0)), Some(Role::Viewer));
    assert_eq!(access.role_of(Some(1000)), Some(Role::Holder));
    assert_eq!(access.role_of(Some(1001)), None);
    assert_eq!(access.role_of(None), Some(Role::Viewer));
}

#[test]
fn a_rule_about_the_uid_outranks_those_about_groups() {
    let text = "[[listen]]\nserve = \"http\"\npath = \"/x\"\nothers = \"none\"\n\
                [[listen.rule]]\ngid = 500\nrole = \"orchestrator\"\n\
                [[listen.rule]]\ngid = \"root\"\nrole = \"viewer\"\n\
                [[listen.rule]]\nuid = 1001\nrole = \"none\"\n";
    let text = text.replace("gid = 500", "gid = \"500\"");
    let config = load(&text, &[]).expect("it can be used");
    let access = &config.listeners(Serve::Http).next().expect("a listener").access;
    let role = |uid, gids: &[u32]| access.grant(PeerId::Unix { uid, gids }).0;
    assert_eq!(role(1000, &[7, 0]), Some(Role::Viewer));
    assert_eq!(role(1000, &[0, 500]), Some(Role::Orchestrator), "the first rule counts");
    assert_eq!(role(1001, &[500]), None);
    assert_eq!(role(1000, &[7]), None, "outside of the groups");
    assert!(access.asks_for_groups());
}

#[test]
fn tcp_is_for_viewers() {
    let config = load("", &["--listen-http", "localhost:0"]).expect("it can be used");
    let listener = config.listeners(Serve::Http).next().expect("a listener");
    assert!(matches!(&listener.endpoint, Endpoint::Tcp { address, .. } if address.port() == 0));
    assert_eq!(listener.access.role_of(Some(0)), Some(Role::Viewer));
}

#[test]
fn check_config_answers_with_its_exit_status() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("berthd.toml");
    let check = || {
        Command::new(env!("CARGO_BIN_EXE_berthd"))
            .args(["--check-config", "--config"])
            .arg(&file)
            .output()
            .expect("berthd runs")
    };
    fs::write(&file, "[limits]\nstreams = 7\n").expect("written");
    let good = check();
    assert!(good.status.success(), "{good:?}");
    assert!(String::from_utf8_lossy(&good.stdout).contains("berthd.toml: ok"));
    fs::write(&file, "[limits]\n\nstraems = 7\n").expect("written");
    let bad = check();
    assert_eq!(bad.status.code(), Some(1));
    let text = String::from_utf8_lossy(&bad.stderr);
    assert!(text.contains("berthd.toml:3: straems: unknown field `straems`"), "{text}");
    fs::remove_file(&file).expect("removed");
    let missing = check();
    assert_eq!(missing.status.code(), Some(1));
}

#[test]
fn quotas_rates_and_labels_are_read_and_their_mistakes_named() {
    let text = "[[quota]]\nuid = 7\nreservations = 2\n[[quota]]\nlabel = \"red\"\npinned_bytes = 9\n\
                [[rate]]\ncommands_per_s = 5\n[[rate]]\nuri = \"spiffe://site/ns/*\"\nreads_per_s = 1\n\
                reads_burst = 8\n\
                [[listen]]\nserve = \"grpc\"\npath = \"/x\"\nlabel = \"red\"\n\
                [[listen.rule]]\nuid = 7\nrole = \"viewer\"\nlabel = \"blue\"\n\
                [[listen.rule]]\nuid = 8\nrole = \"viewer\"\n";
    let config = load(text, &[]).expect("it can be used");
    let quotas: Vec<String> = config.quotas.0.iter().map(|it| it.who.to_string()).collect();
    assert_eq!(quotas, ["uid 7", "label red"]);
    let [others, site] = &config.rates.0[..] else { panic!("{:?}", config.rates) };
    let burst = |pace: Option<berthd::model::Pace>| pace.map(|pace| pace.burst.get());
    assert_eq!((burst(others.commands), burst(others.reads)), (Some(5), None), "as in a second");
    assert_eq!(
        (site.who.to_string().as_str(), burst(site.reads)),
        ("uri spiffe://site/ns/*", Some(8))
    );
    let access = &config.listeners(Serve::Grpc).next().expect("gRPC").access;
    for (uid, label) in [(7, "blue"), (8, "red"), (9, "red")] {
        let (_, rule) = access.grant(PeerId::Unix { uid, gids: &[] });
        assert_eq!(access.tenant(rule), Some(label), "uid {uid}");
    }
    for (text, wanted) in [
        ("[[quota]]\nuid = 7\n", "berthd.toml:1: [[quota]]: a quota that limits nothing"),
        ("[[quota]]\nuid = 7\nlabel = \"x\"\n", "names at most one of uid, gid, uri and label"),
        (
            "[[quota]]\nreservations = 1\n[[quota]]\nreservations = 2\n",
            "berthd.toml:3: [[quota]]: others has two; keep one",
        ),
        ("[[quota]]\ngid = \"no-such-group\"\n", "berthd.toml:2: quota.gid: there is no group"),
        ("[[quota]]\nlabel = \"a b\"\n", "berthd.toml:2: quota.label: \"a b\" is not a label"),
        ("[[quota]]\nuri = \"x\"\n", "berthd.toml:2: quota.uri: \"x\" is not a URI"),
        ("[[rate]]\ncommands_per_s = 0\n", "berthd.toml:2: rate.commands_per_s: 0 lets nothing"),
        ("[[rate]]\nreads_burst = 1\n", "berthd.toml:2: rate.reads_burst: a burst without"),
        ("[[rate]]\nuid = 7\n", "berthd.toml:1: [[rate]]: a rate that limits nothing"),
        ("[limits]\nheader_bytes = 1\n", "limits.header_bytes: 1 is out of range; use 8192 to"),
        ("log = \"a=b=c\"\n", "berthd.toml:1: log: "),
    ] {
        let error = load(text, &[]).expect_err(text);
        assert!(error.contains(wanted), "{text}: {error}");
    }
}
