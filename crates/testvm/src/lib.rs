//! The real kernel: a QEMU guest with a virtual IOMMU and what runs in it.
//!
//! Three programs share this crate. The *host side* ([`host`]) finds or builds a kernel, packs an
//! initramfs, starts QEMU and collects results. The *init* (`berth-testvm-init`) is the guest's
//! process 1: it loads modules, puts a writable overlay over the host's own root file system and
//! starts the runner. The *runner* (`berth-testvm-guest`, the `guest` and `scenarios` modules) runs
//! one scenario after the other and reports over a virtio-serial port in the words of [`wire`].
//!
//! The machine and its addresses are in [`topology`]; `README.md` says how to add a scenario.

#[cfg(feature = "guest")]
pub mod guest;
pub mod host;
#[cfg(feature = "guest")]
pub mod scenarios;
pub mod topology;
pub mod wire;
