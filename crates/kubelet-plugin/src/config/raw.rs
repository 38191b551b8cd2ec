//! The file as it is written.

use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) berthd: Option<Spanned<PathBuf>>,
    pub(super) handover: Option<Spanned<PathBuf>>,
    pub(super) kubelet_dir: Option<Spanned<PathBuf>>,
    pub(super) cdi_dir: Option<Spanned<PathBuf>>,
    pub(super) state_dir: Option<Spanned<PathBuf>>,
    pub(super) socket_dir: Option<Spanned<PathBuf>>,
    pub(super) cgroup_root: Option<Spanned<PathBuf>>,
    pub(super) memlock: Option<Spanned<String>>,
    pub(super) runtime: Option<Spanned<PathBuf>>,
    pub(super) settle_ms: Option<Spanned<u64>>,
    pub(super) release_ms: Option<Spanned<u64>>,
    pub(super) metrics: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) resource: Vec<RawResource>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawResource {
    pub(super) name: Spanned<String>,
    pub(super) class: Option<Spanned<String>>,
    pub(super) device: Option<Spanned<String>>,
    pub(super) numa_node: Option<Spanned<i32>>,
    pub(super) address: Option<Spanned<String>>,
    pub(super) policy: Option<Spanned<String>>,
    pub(super) delivery: Option<Spanned<String>>,
    pub(super) backend: Option<Spanned<String>>,
    pub(super) memory: Option<Spanned<String>>,
    pub(super) label: Option<Spanned<String>>,
    pub(super) baseline: Option<Spanned<String>>,
    pub(super) take_from_host: Option<Spanned<bool>>,
}
