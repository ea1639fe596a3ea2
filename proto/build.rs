//! Compiles the `.proto` files with a compiler written in Rust: no `protoc` on the machine is needed.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message;

const FILES: [&str; 2] = ["heimdall/coordination/v1/coordination.proto", "heimdall/coordination/v1/agent.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=heimdall");
    let mut compiler = protox::Compiler::new(["."])?;
    let files = compiler.include_imports(true).include_source_info(true).open_files(FILES)?.file_descriptor_set();
    // Reflection serves this file: `compile_fds` does not write it.
    #[expect(
        clippy::disallowed_methods,
        reason = "cargo's own variable, and there is no reader of options in a build script"
    )]
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("heimdall_descriptor.bin"), files.encode_to_vec())?;
    // Kept in its wire form: see `src/batch.rs`.
    let batch = (".heimdall.coordination.v1.SessionBatch", "crate::batch::SessionBatch");
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(batch.0, batch.1)
        .codec_path("crate::codec::Prost")
        .compile_fds(files)?;
    Ok(())
}
