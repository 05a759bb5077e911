//! Keys that belong to other files (Envoy's, Kubernetes', another service's) and are pasted into rules by mistake, each with a
//! hint that says so: the nearest key of the rule language would mislead.

/// In the actions and settings of Envoy's configuration.
const ENVOY: [&str; 38] = [
    "actions",
    "apply_on_stream_done",
    "default_value",
    "descriptor_key",
    "descriptor_value",
    "destination_cluster",
    "disable_key",
    "disable_x_envoy_ratelimited_header",
    "dynamic_metadata",
    "enable_x_ratelimit_headers",
    "expect_match",
    "failure_mode_deny",
    "generic_key",
    "grpc_service",
    "header_name",
    "header_value_match",
    "hits_addend",
    "include_vh_rate_limits",
    "masked_remote_address",
    "metadata_key",
    "query_parameter_name",
    "query_parameter_value_match",
    "query_parameters",
    "rate_limit_service",
    "rate_limits",
    "rate_limited_as_resource_exhausted",
    "rate_limited_status",
    "remote_address",
    "request_headers",
    "request_type",
    "skip_if_absent",
    "source_cluster",
    "stage",
    "transport_api_version",
    "typed_config",
    "v4_prefix_mask_len",
    "v6_prefix_mask_len",
    "vh_rate_limits",
];

/// At the top of a Kubernetes object.
const KUBERNETES: [&str; 6] = ["apiVersion", "binaryData", "data", "kind", "spec", "stringData"];

/// In the limits of limitador.
const LIMITADOR: [&str; 5] = ["conditions", "max_value", "namespace", "seconds", "variables"];

/// What to write instead of a key of another file; `None` for a key that none of them has.
pub(super) fn hint(key: &str) -> Option<String> {
    if ENVOY.contains(&key) {
        return Some(format!(
            "`{key}` belongs in Envoy's configuration, where actions make descriptors; a rule names the entries that they \
             send, by `key` and `value`"
        ));
    }
    if KUBERNETES.contains(&key) {
        return Some(format!(
            "`{key}` belongs to a Kubernetes object; write the rules themselves here, which begin with `domain:` (in a \
             ConfigMap, they are the text below `data`)"
        ));
    }
    if LIMITADOR.contains(&key) {
        return Some(format!(
            "`{key}` belongs to limitador; here a descriptor has `key`, `value` and `rate_limit: {{requests: 10, window: 60s}}`"
        ));
    }
    let unit = ["requests_per_", "per_"].iter().find_map(|before| key.strip_prefix(before))?;
    let unit = crate::rules::Unit::parse(unit)?.name();
    Some(format!("write `requests_per_unit` and `unit: {unit}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::{self, Level};

    #[test]
    fn no_key_of_the_language_is_foreign() {
        for key in Level::ALL.into_iter().flat_map(keys::of) {
            assert_eq!(hint(key), None, "{key}");
        }
    }
}
