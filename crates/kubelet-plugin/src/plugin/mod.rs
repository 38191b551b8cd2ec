//! The kubelet's device plugin API, v1beta1: one service and one registration for each resource.

mod classes;
mod env;
mod prefer;
mod register;
mod service;

pub use classes::Classes;
pub use register::serve;
pub use service::{DevicePlugin, Streams};
