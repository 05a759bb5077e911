//! What callers speak: Envoy's gRPC service, and the same messages as JSON. The only place that knows the protocol's types.

/// The messages of `proto/`, generated.
#[allow(clippy::all, missing_docs)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/weir_proto.rs"));
}

/// What reflection and the JSON mapping read: every file of `proto/`, encoded.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/weir_descriptors.bin"));
