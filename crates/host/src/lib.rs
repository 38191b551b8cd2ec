//! The machine: discovery, drivers and VFIO, real or simulated.
#![forbid(unsafe_code)]
