//! What a caller asks, borrowed from the message it came in.

use smallvec::SmallVec;

/// One entry of a descriptor; any bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    pub key: &'a [u8],
    pub value: &'a [u8],
}

/// One descriptor: a path of entries, and what applies to it alone.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Descriptor<'a> {
    pub entries: SmallVec<[Entry<'a>; 4]>,
    /// Replaces the limits of the matched rule.
    pub limit: Option<LimitOverride>,
    /// Its own hits: absent, the request's count; 0 looks only.
    pub hits: Option<u64>,
    /// Its hits are given back.
    pub is_negative_hits: bool,
}

/// A limit that comes with the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitOverride {
    pub requests_per_unit: u32,
    /// By its number in `envoy.type.v3.RateLimitUnit`; 7 is taken as a week.
    pub unit: i32,
    /// So many units; absent or 0 is one.
    pub unit_multiplier: Option<u32>,
}

/// One call of `ShouldRateLimit`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Request<'a> {
    pub domain: &'a [u8],
    pub descriptors: SmallVec<[Descriptor<'a>; 2]>,
    /// 0 counts as 1.
    pub hits_addend: u32,
}
