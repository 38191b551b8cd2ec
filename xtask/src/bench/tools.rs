//! Peers that are programs of the distribution.

use berth_testvm::host::packages::{self, Tool};

/// Installs `lspci` where that is allowed. The other lines of the table do without it.
pub(super) fn look_for_lspci() {
    let lspci = Tool { package: "pciutils", proof: "lspci" };
    if let Err(error) = packages::ensure(&[lspci]) {
        eprintln!("the line beside lspci will be missing: {error:#}");
    }
}
