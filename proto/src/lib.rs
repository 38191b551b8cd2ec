//! The berth.v1 protocol: generated types, JSON mapping, file descriptor set.
#![forbid(unsafe_code)]
