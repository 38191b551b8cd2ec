//! berth-kubelet-double DIR RESOURCE: a kubelet that does what it is told over its standard input, one
//! JSON line an order, and answers each with one line.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    io::{BufRead as _, Write as _},
    path::Path,
};

use berth_kubelet_double::Kubelet;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
enum Order {
    /// Which devices are listed: `[[id, healthy], …]`.
    List,
    /// Admit a container: `{"envs": {…}, "cdi": [name, …]}`, or `{"error": text}`.
    Allocate { ids: Vec<String> },
    /// Start a container: `{}` or `{"error": text}`.
    PreStart { ids: Vec<String> },
    /// What PodResources tells from now on.
    Pods { pods: Vec<(String, Vec<String>)> },
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(dir), Some(resource)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: berth-kubelet-double DIR RESOURCE");
        std::process::exit(2);
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let kubelet = runtime.block_on(async { Kubelet::start(Path::new(&dir), &resource) });
    let mut output = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line.unwrap()).unwrap();
        let answer = runtime.block_on(obey(&kubelet, order));
        writeln!(output, "{answer}").unwrap();
        output.flush().unwrap();
    }
}

async fn obey(kubelet: &Kubelet, order: Order) -> Value {
    match order {
        Order::List => {
            let listed = kubelet.list().into_iter();
            listed.map(|(id, healthy, _)| json!([id, healthy])).collect()
        }
        Order::Allocate { ids } => match kubelet.try_allocate(&words(&ids)).await {
            Ok(answer) => {
                let cdi: Vec<String> = answer.cdi_devices.into_iter().map(|cdi| cdi.name).collect();
                json!({"envs": answer.envs, "cdi": cdi})
            }
            Err(status) => json!({"error": status.message()}),
        },
        Order::PreStart { ids } => match kubelet.pre_start(&words(&ids)).await {
            Ok(()) => json!({}),
            Err(error) => json!({"error": error}),
        },
        Order::Pods { pods } => {
            let pods: Vec<(&str, Vec<&str>)> =
                pods.iter().map(|(name, ids)| (name.as_str(), words(ids))).collect();
            let pods: Vec<(&str, &[&str])> =
                pods.iter().map(|(name, ids)| (*name, ids.as_slice())).collect();
            kubelet.pods(&pods);
            json!({})
        }
    }
}

fn words(ids: &[String]) -> Vec<&str> {
    ids.iter().map(String::as_str).collect()
}
