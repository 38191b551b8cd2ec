//! Compiles the .proto files without protoc: types, gRPC client and server, proto3 JSON.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 7] =
    ["types", "groups", "devices", "reservations", "domains", "events", "host"];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let files: Vec<PathBuf> =
        FILES.iter().map(|name| root.join(format!("berth/v1/{name}.proto"))).collect();
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let descriptors = protox::Compiler::new([&root])?
        .include_source_info(true)
        .include_imports(true)
        .open_files(&files)?
        .file_descriptor_set();
    let bytes = descriptors.encode_to_vec();
    fs::write(out.join("berth_v1.bin"), &bytes)?;
    tonic_prost_build::configure()
        .extern_path(".google.protobuf", "::pbjson_types")
        .extern_path(".google.protobuf.Timestamp", "crate::Timestamp")
        .compile_well_known_types(true)
        .btree_map(".")
        .compile_fds(descriptors)?;
    pbjson_build::Builder::new()
        .register_descriptors(&bytes)?
        .emit_fields()
        .build(&[".berth.v1"])?;
    Ok(())
}
