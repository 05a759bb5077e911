//! Response headers.

/// Rounded up: whoever comes back then is not early.
pub fn whole_seconds(time: &prost_types::Duration) -> u64 {
    u64::try_from(time.seconds).unwrap_or(0) + u64::from(time.nanos > 0)
}
