//! The calls to make, encoded once: a table with one gRPC message for each key.

use std::str::FromStr;

use anyhow::{Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::api::proto::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use crate::api::proto::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use crate::api::proto::envoy::service::ratelimit::v3::RateLimitRequest;

/// The most keys in a table: a few hundred megabytes of messages.
const MAX_KEYS: u32 = 2_000_000;
/// What stands before a gRPC message: a flag for compression and four bytes of length.
const PREFIX: usize = 5;

/// Entries as they were typed; `{}` in a value stands for the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    entries: Vec<(String, String)>,
    hits: Option<u64>,
}

impl Descriptor {
    pub fn entries(&self) -> &[(String, String)] {
        &self.entries
    }

    /// Its own hits_addend.
    pub fn hits(&self) -> Option<u64> {
        self.hits
    }
}

impl FromStr for Descriptor {
    type Err = String;

    fn from_str(text: &str) -> Result<Descriptor, String> {
        let entry = |part: &str| match part.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(format!("{part:?}: expected key=value")),
        };
        let (entries, hits) = match text.rsplit_once(";hits=") {
            Some((entries, hits)) => {
                (entries, Some(hits.parse().map_err(|_| format!("{hits:?}: expected a whole number of hits"))?))
            }
            None => (text, None),
        };
        Ok(Descriptor { entries: entries.split(',').map(entry).collect::<Result<_, _>>()?, hits })
    }
}

/// How the next key is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    Uniform,
    Zipf,
}

/// One encoded message for each key.
#[derive(Clone, Debug)]
pub struct Requests {
    messages: Vec<Bytes>,
    /// For zipf: the share of the keys up to and including each.
    shares: Vec<f64>,
}

impl Requests {
    pub fn new(domain: &str, descriptors: &[Descriptor], hits: Option<u32>, keys: u32, choice: Choice) -> Result<Requests> {
        ensure!(keys <= MAX_KEYS, "--keys {keys}: at most {MAX_KEYS}");
        let varies = descriptors.iter().flat_map(|descriptor| &descriptor.entries).any(|(_, value)| value.contains("{}"));
        ensure!(keys == 1 || varies, "--keys {keys} changes nothing: no --descriptor has {{}} in a value");
        // One allocation, shared by all messages.
        let mut table = BytesMut::new();
        let mut ends = Vec::with_capacity(keys as usize);
        for key in 0..keys {
            let message = request(domain, descriptors, hits, &key.to_string());
            let length = u32::try_from(message.encoded_len())?;
            table.reserve(PREFIX + message.encoded_len());
            table.put_u8(0);
            table.put_u32(length);
            message.encode(&mut table)?;
            ends.push(table.len());
        }
        let table = table.freeze();
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let messages = starts.zip(&ends).map(|(start, &end)| table.slice(start..end)).collect();
        let shares = if choice == Choice::Zipf { zipf_shares(keys) } else { Vec::new() };
        Ok(Requests { messages, shares })
    }

    /// The message for the next draw.
    pub fn draw(&self, random: &mut Random) -> Bytes {
        let index = match self.messages.len() {
            1 => 0,
            count if self.shares.is_empty() => random.below(count),
            count => {
                let drawn = random.fraction();
                self.shares.partition_point(|&share| share < drawn).min(count - 1)
            }
        };
        self.messages[index].clone()
    }
}

fn request(domain: &str, descriptors: &[Descriptor], hits: Option<u32>, key: &str) -> RateLimitRequest {
    let entry = |(name, value): &(String, String)| Entry { key: name.clone().into(), value: value.replace("{}", key).into() };
    let descriptor = |descriptor: &Descriptor| RateLimitDescriptor {
        entries: descriptor.entries.iter().map(entry).collect(),
        hits_addend: descriptor.hits,
        ..RateLimitDescriptor::default()
    };
    RateLimitRequest {
        domain: domain.to_owned().into(),
        descriptors: descriptors.iter().map(descriptor).collect(),
        hits_addend: hits.unwrap_or(0),
    }
}

fn zipf_shares(keys: u32) -> Vec<f64> {
    let mut sum = 0.0;
    let mut shares: Vec<f64> = (1..=keys)
        .map(|n| {
            sum += 1.0 / f64::from(n);
            sum
        })
        .collect();
    shares.iter_mut().for_each(|share| *share /= sum);
    shares
}

/// SplitMix64: repeatable draws, for a few nanoseconds each.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    #[allow(clippy::cast_possible_truncation)] // below `count`, which is a usize
    fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.next()) * count as u128) >> 64) as usize
    }

    #[allow(clippy::cast_precision_loss)] // 53 bits are what an f64 holds exactly
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn requests(descriptors: &[&str], keys: u32, choice: Choice) -> Result<Requests> {
        let descriptors: Vec<Descriptor> = descriptors.iter().map(|text| text.parse().expect("a descriptor")).collect();
        Requests::new("api", &descriptors, Some(3), keys, choice)
    }

    fn decoded(message: &Bytes) -> RateLimitRequest {
        assert_eq!(message[0], 0);
        let length = u32::from_be_bytes(message[1..PREFIX].try_into().expect("four bytes"));
        assert_eq!(length as usize, message.len() - PREFIX);
        RateLimitRequest::decode(&message[PREFIX..]).expect("a request")
    }

    #[test]
    fn a_message_holds_what_was_typed() {
        let requests = requests(&["path=/a=b;c,user_id=u{};hits=0", "plan="], 3, Choice::Uniform).expect("a table");
        let last = decoded(&requests.messages[2]);
        assert_eq!((&last.domain[..], last.hits_addend, last.descriptors.len()), (&b"api"[..], 3, 2));
        let entries: Vec<(&[u8], &[u8])> =
            last.descriptors.iter().flat_map(|d| &d.entries).map(|entry| (&entry.key[..], &entry.value[..])).collect();
        assert_eq!(entries, [(&b"path"[..], &b"/a=b;c"[..]), (b"user_id", b"u2"), (b"plan", b"")]);
        assert_eq!(last.descriptors.iter().map(|descriptor| descriptor.hits_addend).collect::<Vec<_>>(), [Some(0), None]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for bad in ["user_id", "a=1,=2", "a=1;hits=", "a=1;hits=-1", ";hits=1"] {
            assert!(bad.parse::<Descriptor>().is_err(), "{bad}");
        }
        assert!(requests(&["a=b"], 2, Choice::Uniform).is_err());
        assert!(requests(&["a={}"], MAX_KEYS + 1, Choice::Uniform).is_err());
    }

    #[test]
    fn draws_follow_their_distribution() {
        let mut random = Random::new(1);
        for (choice, first) in [(Choice::Uniform, 1_000), (Choice::Zipf, 3_414)] {
            let requests = requests(&["a={}"], 10, choice).expect("a table");
            let mut seen: HashMap<Bytes, u32> = HashMap::new();
            (0..10_000).for_each(|_| *seen.entry(requests.draw(&mut random)).or_default() += 1);
            let of_first = seen[&requests.messages[0]];
            assert_eq!(seen.len(), 10);
            assert!(of_first.abs_diff(first) < 200, "{choice:?}: {of_first}");
        }
    }
}
