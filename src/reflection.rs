//! gRPC reflection in both versions that clients speak.

use tonic::service::Routes;
use tonic_reflection::server::Builder;

/// The longest message to reflection: it names a symbol.
const MAX_NAMING: usize = 4 << 10;

/// The routes, with reflection over encoded descriptor sets that are compiled in.
///
/// # Panics
/// For what is no descriptor set.
pub fn with_reflection(routes: Routes, sets: &[&'static [u8]]) -> Routes {
    let builder = || sets.iter().fold(Builder::configure(), |builder, set| builder.register_encoded_file_descriptor_set(set));
    let is_encoded = "the descriptor sets are compiled in";
    routes
        .add_service(builder().build_v1().expect(is_encoded).max_decoding_message_size(MAX_NAMING))
        .add_service(builder().build_v1alpha().expect(is_encoded).max_decoding_message_size(MAX_NAMING))
}
