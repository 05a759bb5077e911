//! What callers speak: Envoy's gRPC service, the same messages as JSON, and reservations. The only place that knows the protocol's
//! types.

mod bounds;
pub mod convert;
mod decode;
pub mod headers;
pub mod json;
mod metadata;
pub mod reservations;
pub mod rls;
pub mod unary;

pub use bounds::MessageBounds;

/// The messages of `proto/`, generated.
#[allow(clippy::all, missing_docs)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/weir_proto.rs"));
}

/// What reflection and the JSON mapping read: every file of `proto/`, encoded.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/weir_descriptors.bin"));

/// What the settings say about every answer, whatever its domain says.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AnswerSettings {
    /// Every answer about a limit carries the legacy headers.
    pub legacy_headers: bool,
    pub legacy_names: LegacyNames,
    /// Every answer carries the request and the metadata of the rules that let it pass.
    pub dynamic_metadata: bool,
}

/// What the legacy headers are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegacyNames {
    pub limit: String,
    pub remaining: String,
    pub reset: String,
}

impl Default for LegacyNames {
    fn default() -> LegacyNames {
        let [limit, remaining, reset] = ["RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"].map(String::from);
        LegacyNames { limit, remaining, reset }
    }
}
