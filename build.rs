//! Compiles `proto/` without a system protoc: the messages that prost generates, and the descriptor set that
//! reflection and the JSON mapping use.
//!
//! Envoy copies header bytes into descriptors as they come, so a domain, key or value need not be UTF-8, and a call
//! that fails to decode would let its caller through. They are `string` in the published API and in the descriptor
//! set, and decoded as `bytes`, which is the same on the wire.

use std::env;
use std::path::{Path, PathBuf};

use prost::Message;
use prost_types::FileDescriptorSet;
use prost_types::field_descriptor_proto::Type;

/// (file, message path, field) of every string that a caller's bytes may stand in.
const RAW_STRINGS: [(&str, &[&str], &str); 4] = [
    ("envoy/service/ratelimit/v3/rls.proto", &["RateLimitRequest"], "domain"),
    ("envoy/extensions/common/ratelimit/v3/ratelimit.proto", &["RateLimitDescriptor", "Entry"], "key"),
    ("envoy/extensions/common/ratelimit/v3/ratelimit.proto", &["RateLimitDescriptor", "Entry"], "value"),
    ("weir/v1/reservation.proto", &["ReserveRequest"], "domain"),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_file("envoy/service/ratelimit/v3/rls.proto")?;
    compiler.open_file("weir/v1/reservation.proto")?;
    let published = compiler.file_descriptor_set();
    std::fs::write(out.join("weir_descriptors.bin"), without_comments(published.clone()).encode_to_vec())?;
    generate(decoding_raw_strings(published)?, &out, "weir_proto.rs")?;

    // Apart, so that what callers reflect upon has nothing of it. Its comments are what the HTTP API's description says.
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_file("weir/admin/v1/admin.proto")?;
    let admin = compiler.file_descriptor_set();
    std::fs::write(out.join("weir_admin_descriptors.bin"), admin.encode_to_vec())?;
    generate(admin, &out, "weir_admin.rs")
}

/// Reflection clients have no use for comments and positions.
fn without_comments(mut files: FileDescriptorSet) -> FileDescriptorSet {
    for file in &mut files.file {
        file.source_code_info = None;
    }
    files
}

fn decoding_raw_strings(mut files: FileDescriptorSet) -> Result<FileDescriptorSet, String> {
    for (file, path, field) in RAW_STRINGS {
        let file = files.file.iter_mut().find(|f| f.name() == file).ok_or_else(|| format!("no file {file}"))?;
        let (first, rest) = path.split_first().ok_or("an empty message path")?;
        let mut message = file.message_type.iter_mut().find(|m| m.name() == *first).ok_or_else(|| format!("no message {first}"))?;
        for name in rest {
            message = message.nested_type.iter_mut().find(|m| m.name() == *name).ok_or_else(|| format!("no message {name}"))?;
        }
        let field = message.field.iter_mut().find(|f| f.name() == field).ok_or_else(|| format!("no field {field}"))?;
        field.set_type(Type::Bytes);
    }
    Ok(files)
}

fn generate(files: FileDescriptorSet, out: &Path, include: &str) -> Result<(), Box<dyn std::error::Error>> {
    tonic_prost_build::configure()
        .build_client(true)
        .build_transport(false)
        .out_dir(out)
        .include_file(include)
        .compile_fds(files)?;
    Ok(())
}
