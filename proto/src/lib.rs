//! The `berth.v1` protocol: message types, gRPC clients and servers, the proto3 JSON mapping and
//! the descriptors that reflection and the OpenAPI document are made from.
#![forbid(unsafe_code)]

/// Version 1 of the API.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unused_qualifications,
    clippy::all,
    clippy::too_many_lines,
    clippy::cast_possible_truncation,
    clippy::allow_attributes_without_reason,
    reason = "generated from the .proto files, whose comments are the documentation"
)]
pub mod v1 {
    tonic::include_proto!("berth.v1");
    include!(concat!(env!("OUT_DIR"), "/berth.v1.serde.rs"));
}

/// The encoded `FileDescriptorSet` of `berth.v1` and what it imports, with source comments.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/berth_v1.bin"));

mod timestamp;

pub use pbjson_types;
pub use timestamp::Timestamp;

/// Type URL under which a [`v1::Refusal`] stands among the details of a gRPC status.
pub const REFUSAL_TYPE_URL: &str = "type.googleapis.com/berth.v1.Refusal";
