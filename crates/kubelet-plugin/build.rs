//! Compiles the kubelet's .proto files without protoc: types, gRPC clients and servers.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("proto");
    for name in ["deviceplugin/v1beta1", "podresources/v1"] {
        let file = root.join(name).join("api.proto");
        println!("cargo:rerun-if-changed={}", file.display());
        let descriptors = protox::Compiler::new([&root])?.open_file(&file)?.file_descriptor_set();
        tonic_prost_build::configure().btree_map(".").compile_fds(descriptors)?;
    }
    Ok(())
}
