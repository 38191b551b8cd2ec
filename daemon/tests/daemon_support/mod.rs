//! Settings of a `berthd` that has everything in a directory of its own.

use std::path::Path;

use berthd::config::{Args, Config};
use clap::Parser as _;

/// The settings in `text`, beside these arguments. State and sockets are in `dir`: `berthd.sock`,
/// `http.sock`, `handover.sock`, unless the text has listeners.
pub(crate) fn settings(dir: &Path, text: &str, words: &[&str]) -> Config {
    let path = |name: &str| dir.join(name).display().to_string();
    std::fs::write(dir.join("berthd.toml"), text).expect("written");
    let mut args = vec![
        "berthd".to_owned(),
        format!("--config={}", path("berthd.toml")),
        format!("--state-dir={}", path("state")),
    ];
    if !text.contains("[[listen]]") {
        args.extend([
            format!("--listen-grpc=unix:{}", path("berthd.sock")),
            format!("--listen-http=unix:{}", path("http.sock")),
            format!("--listen-handover=unix:{}", path("handover.sock")),
        ]);
    }
    args.extend(words.iter().map(|word| (*word).to_owned()));
    let args = Args::try_parse_from(args).expect("arguments of berthd");
    Config::load(&args).expect("settings that can be used")
}
