//! berthd as a library: its parts run in process in tests and benches.
//!
//! The way of a request: [`service`] authorizes it and makes a command of it, the [`ledger`]
//! decides it and makes it durable in the [`store`], an executor does the kernel work, and
//! [`view`] shows what came of it.
#![forbid(unsafe_code)]

pub mod acts;
mod audit;
pub mod config;
pub mod fdstore;
pub mod fdtable;
pub mod grpc;
pub mod handover;
pub mod hardening;
mod heartbeat;
mod json;
pub mod ledger;
pub mod listen;
pub mod model;
pub mod notify;
pub mod reconcile;
pub mod reload;
pub mod rest;
pub mod run;
pub mod service;
pub mod store;
pub mod view;
pub mod websession;
