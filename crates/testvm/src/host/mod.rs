//! The host side: kernels, initramfs, QEMU, results.

pub mod apt;
pub mod bench;
pub mod build_root;
pub mod cache;
pub mod initramfs;
pub mod inverse;
pub mod kernel;
pub mod machine;
pub mod packages;
pub mod qmp;
pub mod report;
mod root;
pub mod run;
pub mod session;
mod side_by_side;
mod tracer;
