//! The benches that need devices behind an IOMMU: in a guest, on each of its kernels.

use std::{fs, path::Path};

use anyhow::Result;
use berth_testvm::{
    host::{bench, kernel::Kind, run::Options},
    wire::{Measuring, Profile},
};

use super::{Arguments, DMA_PROGRAM, PROGRAM, table::Row};
use crate::workspace;

/// The one that runs nowhere else.
pub(super) const ONLY: &str = "region";
const NAMES: [&str; 3] = [ONLY, "vm_death", "fd_claim"];
/// Those of the fast path, which run nowhere else either.
pub(super) const DMA: [&str; 6] =
    ["map_call", "map_batch", "unmap_range", "guest_ram", "big_region", "rust_vmm"];
/// An emulated machine has no time for more fetches.
const MOST_FETCHES: u64 = 2000;

/// What to run, and on which kernels.
#[derive(Debug)]
pub(super) struct Guests {
    kernels: Vec<Kind>,
    names: Vec<&'static str>,
    dma: Vec<&'static str>,
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
        let dma = DMA.into_iter().filter(|name| arguments.runs_dma(name)).collect();
        Ok(Self { kernels, names, dma, fetches: arguments.fetches.min(MOST_FETCHES) })
    }

    /// Whether any boots, and which of both programs run in it.
    pub(super) fn programs(&self) -> [bool; 2] {
        let boots = !self.kernels.is_empty();
        [boots && !self.names.is_empty(), boots && !self.dma.is_empty()]
    }

    fn runs(&self) -> Vec<Measuring> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let [daemon, dma] = self.programs();
        let mut runs = Vec::new();
        if daemon {
            let mut words: Vec<String> = owned(&self.names);
            words.extend(["--fetches".to_owned(), self.fetches.to_string()]);
            runs.push(Measuring { program: PROGRAM.to_owned(), words, beside: true });
        }
        if dma {
            let words = owned(&self.dma);
            runs.push(Measuring { program: DMA_PROGRAM.to_owned(), words, beside: false });
        }
        runs
    }

    /// Adds their rows, and says what failed or was missing.
    pub(super) fn run(&self, programs: &Path, peers: &Path, rows: &mut Vec<Row>) -> Vec<String> {
        let runs = self.runs();
        if runs.is_empty() {
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
            packages: None,
            long: false,
            strict: false,
        };
        let unmeasured = |what: &str, error: &anyhow::Error| {
            let names = [self.names.as_slice(), &self.dma].concat().join(", ");
            format!("{names}: not all measured on {what}: {error:#}")
        };
        let measured = fs::create_dir_all(options.target.join("vm"))
            .map_err(anyhow::Error::from)
            .and_then(|()| bench::bench(&options, &runs, peers));
        let measured = match measured {
            Ok(measured) => measured,
            Err(error) => return vec![unmeasured("a real kernel", &error)],
        };
        let mut failed = Vec::new();
        for one in measured {
            for text in &one.rows {
                match serde_json::from_str::<Vec<Row>>(text) {
                    Ok(more) => rows.extend(more),
                    Err(error) => failed.push(format!("the rows of {}: {error}", one.kernel)),
                }
            }
            if let Err(error) = one.outcome {
                failed.push(unmeasured(&format!("the kernel {}", one.kernel), &error));
            }
        }
        failed
    }
}
