//! What the dashboard and the alert rules of `deploy/` ask for is what `berthd` and the plugin tell:
//! each name, each label, each word of a closed list.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod double;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use berth_host::AerCounters;
use berth_proto::v1;
use double::{Node, until};
use serde_json::Value;

/// Labels that Prometheus adds itself.
const ITS_OWN: [&str; 2] = ["job", "instance"];
/// Labels that have the same words on every host, at zero where nothing has them.
const CLOSED: [&str; 7] = ["condition", "owner", "state", "health", "severity", "means", "outcome"];
/// What has no sample on a host where nothing goes wrong.
const WITHOUT_SAMPLES: [(&str, &str); 1] = [("berth_refused_system_calls_total", "call")];

/// Label, operator and value.
type Matcher = (String, String, String);

/// What is told: of each metric its labels, and their values.
type Told = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(deploy(name)).unwrap()
}

/// Reads a page of numbers. A histogram is known by all its names.
fn told(page: &str) -> Told {
    let mut told = Told::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            told.entry(rest.split(' ').next().unwrap().to_owned()).or_default();
        } else if !line.starts_with('#') && !line.is_empty() {
            let name: String = line.chars().take_while(|c| is_part_of_a_name(*c)).collect();
            let labels = told.entry(name.clone()).or_default();
            if let Some(rest) = line[name.len()..].strip_prefix('{') {
                for (label, _, value) in matchers(rest) {
                    labels.entry(label).or_default().insert(value);
                }
            }
        }
    }
    for (name, label) in WITHOUT_SAMPLES {
        told.entry(name.to_owned()).or_default().entry(label.to_owned()).or_default();
    }
    told
}

fn is_part_of_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// `label="value", ...}`: label, operator and value of each.
fn matchers(text: &str) -> Vec<Matcher> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.trim_start().starts_with('}') {
        let at = rest.find(|c| "=!".contains(c)).expect(text);
        let label = rest[..at].trim_matches([' ', ',']).to_owned();
        let quote = rest.find('"').expect(text);
        let operator = rest[at..quote].to_owned();
        let end = quote + 1 + rest[quote + 1..].find('"').expect(text);
        found.push((label, operator, rest[quote + 1..end].to_owned()));
        rest = &rest[end + 1..];
    }
    found
}

/// The metrics of Berth that an expression has, with what stands in their braces.
fn used(expression: &str) -> Vec<(String, Vec<Matcher>)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = expression[at..].find("berth_").map(|start| at + start) {
        let name: String =
            expression[start..].chars().take_while(|c| is_part_of_a_name(*c)).collect();
        at = start + name.len();
        let braces = expression[at..].strip_prefix('{');
        found.push((name, braces.map(matchers).unwrap_or_default()));
    }
    found
}

/// The labels of `by (...)` and `on (...)`.
fn grouped_by(expression: &str) -> Vec<String> {
    let lists = ["by (", "on ("].into_iter().flat_map(|word| expression.split(word).skip(1));
    let names = lists.flat_map(|rest| rest.split(')').next().unwrap_or_default().split(','));
    names.map(|name| name.trim().to_owned()).collect()
}

/// What is wrong with an expression.
fn wrong(expression: &str, told: &Told) -> Vec<String> {
    let mut wrong = Vec::new();
    let metrics = used(expression);
    for (name, matchers) in &metrics {
        let Some(labels) = told.get(name) else {
            wrong.push(format!("nobody tells {name}"));
            continue;
        };
        for (label, operator, value) in matchers {
            if ITS_OWN.contains(&label.as_str()) {
                continue;
            }
            let Some(values) = labels.get(label) else {
                wrong.push(format!("{name} has no label {label}"));
                continue;
            };
            let words = if operator.ends_with('~') {
                value.split('|').collect()
            } else {
                vec![value.as_str()]
            };
            let unknown = words.into_iter().filter(|word| !values.contains(*word));
            if CLOSED.contains(&label.as_str()) {
                wrong.extend(unknown.map(|word| format!("{name} has no {label} {word}")));
            }
        }
    }
    let known = |label: &String| {
        ITS_OWN.contains(&label.as_str())
            || metrics
                .iter()
                .any(|(name, _)| told.get(name).is_some_and(|it| it.contains_key(label)))
    };
    let unknown = grouped_by(expression).into_iter().filter(|label| !known(label));
    wrong.extend(unknown.map(|label| format!("none of them has a label {label}")));
    wrong
}

/// All texts under a key, anywhere.
fn texts(value: &Value, key: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get(key).and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|inner| texts(inner, key, found));
        }
        Value::Array(all) => all.iter().for_each(|inner| texts(inner, key, found)),
        _ => {}
    }
}

fn get(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// A host with a plugin, a domain and a device that counts errors.
async fn busy() -> Node {
    let mut node = Node::without_plugin("small", "class = \"00\"").await;
    std::fs::write(node.path("berthd.toml"), "[condition]\npoll_ms = 100\n").unwrap();
    node.restart_daemon().await;
    node.with_metrics();
    node.start_plugin();
    let ids = node.healthy(3).await;
    let counters = AerCounters { correctable: 1, nonfatal: 0, fatal: 0 };
    let device = "0000:00:06.0".parse().unwrap();
    node.sim.set_health(device, |health| health.aer = Some(counters)).unwrap();
    let channel = double::dial(&node.path("berthd.sock"));
    let mut client = v1::reservations_client::ReservationsClient::new(channel);
    let request = v1::ReserveRequest {
        holder: "vm".to_owned(),
        groups: vec![ids[2].clone()],
        policy: v1::Policy::Exclusive.into(),
        delivery: v1::Delivery::Held.into(),
        request_id: "r".to_owned(),
        ..v1::ReserveRequest::default()
    };
    let id = client.reserve(request).await.unwrap().into_inner().id;
    let order = v1::AttachRequest { id, ..v1::AttachRequest::default() };
    client.attach(order).await.unwrap();
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn dashboard_and_rules_ask_for_what_is_told() {
    let node = busy().await;
    let socket = node.path("http.sock");
    until("the errors are counted", async || {
        let page = get(&socket);
        let there = ["berth_device_aer_errors_total{", "berth_domain_mappings{"];
        there.iter().all(|sample| page.contains(sample)).then_some(())
    })
    .await;
    let mut all = told(&get(&socket));
    // With the head of the answer.
    let of_plugin = node.metrics();
    all.extend(told(of_plugin.split_once("\r\n\r\n").unwrap().1));
    let mut expressions = Vec::new();
    let dashboard: Value = serde_json::from_str(&read("grafana/berth.json")).unwrap();
    texts(&dashboard, "expr", &mut expressions);
    assert!(expressions.len() > 30, "{expressions:?}");
    texts(&dashboard, "definition", &mut expressions);
    let before = expressions.len();
    let rules: Value = serde_saphyr::from_str(&read("prometheus/berth.rules.yaml")).unwrap();
    texts(&rules, "expr", &mut expressions);
    assert!(expressions.len() > before + 15, "{expressions:?}");
    let wrong: Vec<String> = expressions
        .iter()
        .flat_map(|one| wrong(one, &all).into_iter().map(move |what| format!("{what}: {one}")))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // What is told is looked at, but for facts that no picture is made of.
    let looked_at: BTreeSet<String> =
        expressions.iter().flat_map(|one| used(one)).map(|(name, _)| name).collect();
    let of_no_use = ["berth_timeout_ms", "berth_kubelet_build_info", "berth_kubelet_reservations"];
    let forgotten: Vec<&String> = all
        .keys()
        .filter(|name| !looked_at.iter().any(|used| used.starts_with(name.as_str())))
        .filter(|name| !["_bucket", "_sum", "_count"].iter().any(|end| name.ends_with(end)))
        .filter(|name| !name.starts_with("berth_limit_") && !of_no_use.contains(&name.as_str()))
        .collect();
    assert!(forgotten.is_empty(), "neither in the dashboard nor in a rule: {forgotten:?}");
}

#[test]
fn every_alert_has_a_test() {
    let rules: Value = serde_saphyr::from_str(&read("prometheus/berth.rules.yaml")).unwrap();
    let tests = read("prometheus/berth.test.yaml");
    let mut alerts = Vec::new();
    texts(&rules, "alert", &mut alerts);
    assert!(!alerts.is_empty());
    for alert in alerts {
        assert!(tests.contains(&format!("{{alertname=\"{alert}\"}}")), "{alert} has no test");
    }
}

#[test]
fn what_is_asked_for_in_vain_is_found() {
    let all = told(
        "# TYPE a gauge\n# TYPE berth_x gauge\nberth_x{state=\"held\",device=\"d\"} 1\n\
         # TYPE berth_y histogram\nberth_y_bucket{le=\"1\"} 2\n",
    );
    let fine = "sum by (state) (rate(berth_x{job=\"b\", state=~\"held\"}[5m])) / berth_y_bucket";
    assert_eq!(wrong(fine, &all), Vec::<String>::new());
    assert_eq!(wrong("berth_z > 0", &all), ["nobody tells berth_z"]);
    assert_eq!(wrong("berth_x{owner=\"held\"}", &all), ["berth_x has no label owner"]);
    assert_eq!(wrong("berth_x{state=~\"held|lost\"}", &all), ["berth_x has no state lost"]);
    assert_eq!(
        wrong("sum by (le, group) (berth_y_bucket)", &all),
        ["none of them has a label group"]
    );
}
