//! Entries that hold addresses: matched as they are, counted by network. Whoever has an IPv6 address has a whole /64 of them, so
//! all of a /64 are one subject, with one counter. What is no address is counted as it is.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::key::{self, EntriesText, Part};
use super::request::{Descriptor, Entry, Request};
use super::tree::{self, Match};

/// By how many leading bits addresses are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub ipv4: u8,
    pub ipv6: u8,
}

impl Default for Prefix {
    /// One IPv4 address; what one IPv6 caller is given.
    fn default() -> Prefix {
        Prefix { ipv4: 32, ipv6: 64 }
    }
}

impl Prefix {
    /// The network of an address, as it stands in keys: `192.0.2.1`, `2001:db8::/64`. `None`: no address.
    fn network(self, value: &[u8]) -> Option<String> {
        let address = tree::address(value)?;
        let bits = if address.is_ipv4() { self.ipv4 } else { self.ipv6 };
        let network = IpNet::new(address, bits).ok()?.trunc();
        Some(if bits == network.max_prefix_len() { network.addr().to_string() } else { network.to_string() })
    }
}

/// The keys of a domain's entries that hold addresses.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Addresses(Vec<(Box<[u8]>, Prefix)>);

impl FromIterator<(Box<[u8]>, Prefix)> for Addresses {
    fn from_iter<I: IntoIterator<Item = (Box<[u8]>, Prefix)>>(keys: I) -> Addresses {
        Addresses(keys.into_iter().collect())
    }
}

impl Addresses {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `None`: no address, or none that is counted by network.
    fn network(&self, key: &[u8], value: &[u8]) -> Option<String> {
        let (_, prefix) = self.0.iter().find(|(known, _)| **known == *key)?;
        prefix.network(value)
    }

    /// What the value of an entry is counted by.
    pub fn counted<'v>(&self, key: &[u8], value: &'v [u8]) -> Cow<'v, [u8]> {
        self.network(key, value).map_or(Cow::Borrowed(value), |network| Cow::Owned(network.into_bytes()))
    }

    /// A network that is written out, as it stands in keys. `None`: no network, or none that is counted by.
    fn named(&self, key: &[u8], value: &[u8]) -> Option<String> {
        let network = tree::network(std::str::from_utf8(value).ok()?.parse().ok()?).ok()?;
        let name = self.network(key, network.addr().to_string().as_bytes())?;
        let counted = name.parse::<IpNet>().or_else(|_| name.parse::<IpAddr>().map(IpNet::from)).ok()?;
        (network.trunc() == counted && name.as_bytes() != value).then_some(name)
    }

    /// A subject as it stands in counter keys, for one that names an address, or a network in whatever way: by its network.
    pub fn subject(&self, subject: &[u8]) -> Option<EntriesText> {
        let split = subject.iter().position(|byte| matches!(byte, b'=' | b'~')).filter(|&split| subject[split] == b'=')?;
        let (key, value) = (key::unescape(&subject[..split]), key::unescape(&subject[split + 1..]));
        let network = self.network(&key, &value).or_else(|| self.named(&key, &value))?;
        Some(key::subject(Part { key: &key, value: network.as_bytes(), shared: false }))
    }

    /// An address of the network that an entry was counted by: what rules match.
    pub fn matched<'v>(&self, key: &[u8], counted: &'v [u8]) -> &'v [u8] {
        let is_network = self.0.iter().any(|(known, _)| **known == *key)
            && std::str::from_utf8(counted).is_ok_and(|text| text.parse::<IpNet>().is_ok());
        let end = counted.iter().position(|&byte| byte == b'/').filter(|_| is_network);
        &counted[..end.unwrap_or(counted.len())]
    }

    /// The networks of a request's entries.
    pub(super) fn networks(&self, request: &Request<'_>) -> Networks {
        let of_entries = request.descriptors.iter().map(|descriptor| {
            let entries = descriptor.entries.iter();
            entries.map(|entry| self.network(entry.key, entry.value).map(String::into_boxed_str)).collect()
        });
        Networks(of_entries.collect())
    }
}

/// By descriptor and entry; `None` where there is no address.
pub(super) struct Networks(Vec<OfEntries>);

type OfEntries = SmallVec<[Option<Box<str>>; 4]>;

/// The rules of a request's descriptors, in order.
pub(super) type Found<'a> = SmallVec<[Option<Match<'a>>; 2]>;

impl Networks {
    /// The request with networks in place of addresses.
    pub(super) fn request<'n, 'r: 'n>(&'n self, request: &Request<'r>) -> Request<'n> {
        let descriptors = request.descriptors.iter().zip(&self.0).map(|(descriptor, networks)| Descriptor {
            entries: descriptor.entries.iter().zip(networks).map(|(entry, network)| counted(*entry, network.as_deref())).collect(),
            limit: descriptor.limit,
            hits: descriptor.hits,
            is_negative_hits: descriptor.is_negative_hits,
        });
        Request { domain: request.domain, descriptors: descriptors.collect(), hits_addend: request.hits_addend }
    }

    /// What was found for the request, likewise.
    pub(super) fn found<'n, 'r: 'n, 'f: 'n>(&'n self, request: &Request<'r>, found: &Found<'f>) -> Found<'n> {
        let of_entries = request.descriptors.iter().zip(&self.0);
        let of_descriptor = |((descriptor, networks), found): ((&Descriptor<'r>, &'n OfEntries), &Option<Match<'f>>)| {
            let found = found.as_ref()?;
            let known = |part: &Part<'f>| {
                let entries = descriptor.entries.iter().zip(networks);
                let mut same = entries.filter(|(entry, _)| !part.shared && (entry.key, entry.value) == (part.key, part.value));
                same.find_map(|(_, network)| network.as_deref()).map(str::as_bytes)
            };
            let part = |part: &Part<'f>| Part { key: part.key, value: known(part).unwrap_or(part.value), shared: part.shared };
            Some(Match { rule: found.rule, parts: found.parts.iter().map(part).collect() })
        };
        of_entries.zip(found).map(of_descriptor).collect()
    }
}

fn counted<'n>(entry: Entry<'n>, network: Option<&'n str>) -> Entry<'n> {
    Entry { value: network.map_or(entry.value, str::as_bytes), ..entry }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(value: &str) -> Option<String> {
        Prefix::default().network(value.as_bytes())
    }

    #[test]
    fn addresses_of_a_network_are_one() {
        let one = ["2001:db8:1:2::1", "2001:DB8:1:2:ffff::", "2001:0db8:0001:0002:0:0:0:9"];
        assert!(one.iter().all(|value| network(value).as_deref() == Some("2001:db8:1:2::/64")));
        assert_eq!(network("2001:db8:1:3::1").as_deref(), Some("2001:db8:1:3::/64"));
        assert_eq!(["192.0.2.1", "::ffff:192.0.2.1"].map(|value| network(value).unwrap()), ["192.0.2.1"; 2]);
        let coarse = Prefix { ipv4: 24, ipv6: 128 };
        assert_eq!(coarse.network(b"192.0.2.77").as_deref(), Some("192.0.2.0/24"));
        assert_eq!(coarse.network(b"2001:db8::1").as_deref(), Some("2001:db8::1"));
        for other in ["", "unknown", "192.0.2.1:80", "2001:db8::/64", "fe80::1%eth0", "\u{e9}"] {
            assert_eq!(network(other), None, "{other}");
        }
        assert_eq!(Prefix::default().network(b"\xff"), None);
    }

    #[test]
    fn subjects_are_named_by_any_address_of_theirs() {
        let addresses: Addresses = [(b"ip"[..].into(), Prefix::default())].into_iter().collect();
        let subject = |written: &str| addresses.subject(&key::subject_named(written).unwrap()).map(|text| key::shown(&text));
        assert_eq!(subject("ip=2001:db8::7").as_deref(), Some("ip=2001:db8::/64"));
        assert_eq!(subject("ip=192.0.2.1").as_deref(), Some("ip=192.0.2.1"));
        assert_eq!(subject("ip=2001:0DB8::/64").as_deref(), Some("ip=2001:db8::/64"));
        assert_eq!(subject("ip=::ffff:192.0.2.1/128").as_deref(), Some("ip=192.0.2.1"));
        assert_eq!(["ip=2001:db8::/64", "ip=2001:db8::/48", "ip=::ffff:0:0/90"].map(subject), [const { None }; 3]);
        assert_eq!(["user=2001:db8::7", "ip~2001:db8::7", "ip="].map(subject), [const { None }; 3]);
        let coarse: Addresses = [(b"ip"[..].into(), Prefix { ipv4: 24, ipv6: 48 })].into_iter().collect();
        let named = coarse.subject(&key::subject_named("ip=::ffff:192.0.2.0/120").unwrap()).map(|text| key::shown(&text));
        assert_eq!(named.as_deref(), Some("ip=192.0.2.0/24"));
        assert_eq!(addresses.matched(b"ip", b"2001:db8::/64"), b"2001:db8::");
        assert_eq!(addresses.matched(b"ip", b"a/b"), b"a/b");
        assert_eq!(addresses.matched(b"path", b"10.0.0.0/8"), b"10.0.0.0/8");
    }
}
