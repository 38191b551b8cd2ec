//! The benches that need devices behind an IOMMU: in a guest, on each of its kernels.

use std::{fs, path::Path};

use anyhow::Result;
use berth_testvm::{
    host::{bench, kernel::Kind, run::Options},
    wire::Profile,
};

use super::{Arguments, table::Row};
use crate::workspace;

/// The one that runs nowhere else.
pub(super) const ONLY: &str = "region";
const NAMES: [&str; 3] = [ONLY, "vm_death", "fd_claim"];
/// An emulated machine has no time for more fetches.
const MOST_FETCHES: u64 = 2000;

/// What to run, and on which kernels.
#[derive(Debug)]
pub(super) struct Guests {
    kernels: Vec<Kind>,
    names: Vec<&'static str>,
    fetches: u64,
}

impl Guests {
    pub(super) fn of(arguments: &Arguments) -> Result<Self> {
        let kernels = match arguments.kernel.as_str() {
            "none" => Vec::new(),
            "all" => Kind::all(),
            one => vec![one.parse().map_err(anyhow::Error::msg)?],
        };
        let names = NAMES.into_iter().filter(|name| arguments.runs(name)).collect();
        Ok(Self { kernels, names, fetches: arguments.fetches.min(MOST_FETCHES) })
    }

    /// Adds their rows, and says what failed or was missing.
    pub(super) fn run(&self, programs: &Path, peers: &Path, rows: &mut Vec<Row>) -> Vec<String> {
        if self.kernels.is_empty() || self.names.is_empty() {
            return Vec::new();
        }
        let options = Options {
            root: workspace::root(),
            target: workspace::target(),
            logs: workspace::target().join("vm"),
            filter: String::new(),
            kernels: self.kernels.clone(),
            profiles: vec![Profile::Default],
            programs: Some(programs.to_owned()),
            long: false,
            strict: false,
        };
        let mut words: Vec<String> = self.names.iter().map(|name| (*name).to_owned()).collect();
        words.extend(["--fetches".to_owned(), self.fetches.to_string()]);
        let unmeasured = |what: &str, error: &anyhow::Error| {
            format!("{}: not measured on {what}: {error:#}", self.names.join(", "))
        };
        let measured = fs::create_dir_all(options.target.join("vm"))
            .map_err(anyhow::Error::from)
            .and_then(|()| bench::bench(&options, &words, peers));
        let measured = match measured {
            Ok(measured) => measured,
            Err(error) => return vec![unmeasured("a real kernel", &error)],
        };
        let mut failed = Vec::new();
        for one in measured {
            let more: serde_json::Result<Vec<Row>> =
                serde_json::from_str(one.rows.as_deref().unwrap_or("[]"));
            match more {
                Ok(more) => rows.extend(more),
                Err(error) => failed.push(format!("the rows of {}: {error}", one.kernel)),
            }
            if let Err(error) = one.outcome {
                failed.push(unmeasured(&format!("the kernel {}", one.kernel), &error));
            }
        }
        failed
    }
}
