//! `berth-kubelet-plugin`: makes a host's IOMMU groups schedulable by Kubernetes.
//!
//! A gRPC client of `berthd`, which knows nothing of Kubernetes. [`core`] knows nothing of the
//! device plugin API: what may be given away, and what was; [`node`] looks at the node: kubelet's
//! PodResources, processes, control groups, CDI files; [`plugin`] speaks with the kubelet; [`handout`]
//! speaks with containers that get descriptors; [`metrics`] counts.
#![forbid(unsafe_code)]

pub mod config;
pub mod core;
pub mod handout;
pub mod metrics;
pub mod node;
pub mod plugin;
pub mod reload;
pub mod run;

/// The kubelet's APIs.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unused_qualifications,
    clippy::all,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated from the .proto files, whose comments are the documentation"
)]
pub mod api {
    /// Device plugins.
    pub mod v1beta1 {
        tonic::include_proto!("v1beta1");
    }
    /// PodResources.
    pub mod podresources {
        tonic::include_proto!("v1");
    }
}
