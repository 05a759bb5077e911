//! Entries that hold addresses, or networks as `masked_remote_address` sends them: matched as they are, counted by network.
//! Whoever has an IPv6 address has a whole /64 of them, so all of a /64 are one subject, with one counter. Anything else is
//! counted as it is.

use std::borrow::Cow;

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
    /// The network of an address, or of a network, as it stands in keys: `192.0.2.1`, `2001:db8::/64`. A network that is wider than
    /// this prefix is counted by itself. `None`: neither an address nor a network.
    fn network(self, value: &[u8]) -> Option<String> {
        let masked = tree::masked(value)?;
        let bits = self.bits(&masked).min(masked.prefix_len());
        let network = IpNet::new(masked.addr(), bits).ok()?.trunc();
        Some(if bits == network.max_prefix_len() { network.addr().to_string() } else { network.to_string() })
    }

    fn bits(self, network: &IpNet) -> u8 {
        if network.addr().is_ipv4() { self.ipv4 } else { self.ipv6 }
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

    fn prefix(&self, key: &[u8]) -> Option<Prefix> {
        self.0.iter().find(|(known, _)| **known == *key).map(|(_, prefix)| *prefix)
    }

    /// `None`: neither an address nor a network, or none that is counted by network.
    fn network(&self, key: &[u8], value: &[u8]) -> Option<String> {
        self.prefix(key)?.network(value)
    }

    /// What the value of an entry is counted by.
    pub fn counted<'v>(&self, key: &[u8], value: &'v [u8]) -> Cow<'v, [u8]> {
        self.network(key, value).map_or(Cow::Borrowed(value), |network| Cow::Owned(network.into_bytes()))
    }

    /// A subject as it stands in counter keys, for one that names an address or a network in another way.
    pub fn subject(&self, subject: &[u8]) -> Option<EntriesText> {
        let split = subject.iter().position(|byte| matches!(byte, b'=' | b'~')).filter(|&split| subject[split] == b'=')?;
        let (key, value) = (key::unescape(&subject[..split]), key::unescape(&subject[split + 1..]));
        let network = self.network(&key, &value).filter(|network| network.as_bytes() != &*value)?;
        Some(key::subject(Part { key: &key, value: network.as_bytes(), shared: false }))
    }

    /// What rules match of an entry that was counted by network: an address of it, or the network itself where it is wider than
    /// those of addresses are.
    pub fn matched<'v>(&self, key: &[u8], counted: &'v [u8]) -> &'v [u8] {
        let of_address =
            |prefix: &Prefix| tree::masked(counted).is_some_and(|network| network.prefix_len() >= prefix.bits(&network));
        let end = counted.iter().position(|&byte| byte == b'/').filter(|_| self.prefix(key).as_ref().is_some_and(of_address));
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
    /// The request with the networks that its entries are counted by.
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
        for other in ["", "unknown", "192.0.2.1:80", "[2001:db8::1]", "192.0.2.0/33", "fe80::1%eth0", "fe80::%eth0/64", "\u{e9}"] {
            assert_eq!(network(other), None, "{other}");
        }
        assert_eq!(Prefix::default().network(b"\xff"), None);
    }

    #[test]
    fn masked_networks_are_widened_to_the_prefix() {
        let prefix = Prefix { ipv4: 24, ipv6: 48 };
        let cases = [
            ("192.0.2.128/25", "192.0.2.0/24"),
            ("192.0.2.7/32", "192.0.2.0/24"),
            ("192.0.2.7/24", "192.0.2.0/24"),
            ("192.0.2.0/16", "192.0.0.0/16"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::ffff:192.0.2.128/121", "192.0.2.0/24"),
            ("::ffff:192.0.2.0/112", "192.0.0.0/16"),
            ("::ffff:0:0/90", "::/48"),
            ("2001:DB8:1:2::/64", "2001:db8:1::/48"),
            ("2001:db8::/32", "2001:db8::/32"),
        ];
        for (value, expected) in cases {
            assert_eq!(prefix.network(value.as_bytes()).as_deref(), Some(expected), "{value}");
        }
        assert_eq!(["192.0.2.1/32", "192.0.2.0/24"].map(|value| network(value).unwrap()), ["192.0.2.1", "192.0.2.0/24"]);
    }

    #[test]
    fn subjects_are_named_by_any_address_of_theirs() {
        let addresses: Addresses = [(b"ip"[..].into(), Prefix::default())].into_iter().collect();
        let subject = |written: &str| addresses.subject(&key::subject_named(written).unwrap()).map(|text| key::shown(&text));
        assert_eq!(subject("ip=2001:db8::7").as_deref(), Some("ip=2001:db8::/64"));
        assert_eq!(subject("ip=2001:0DB8::/64").as_deref(), Some("ip=2001:db8::/64"));
        assert_eq!(subject("ip=::ffff:192.0.2.1/128").as_deref(), Some("ip=192.0.2.1"));
        assert_eq!(subject("ip=2001:db8::1:0/112").as_deref(), Some("ip=2001:db8::/64"));
        assert_eq!(subject("ip=10.1.2.3/24").as_deref(), Some("ip=10.1.2.0/24"));
        assert_eq!(["ip=192.0.2.1", "ip=2001:db8::/64", "ip=2001:db8::/48", "ip=10.1.2.0/24"].map(subject), [const { None }; 4]);
        assert_eq!(["user=2001:db8::7", "ip~2001:db8::7", "ip="].map(subject), [const { None }; 3]);
        let coarse: Addresses = [(b"ip"[..].into(), Prefix { ipv4: 24, ipv6: 48 })].into_iter().collect();
        let named = coarse.subject(&key::subject_named("ip=::ffff:192.0.2.0/120").unwrap()).map(|text| key::shown(&text));
        assert_eq!(named.as_deref(), Some("ip=192.0.2.0/24"));
        assert_eq!(addresses.matched(b"ip", b"2001:db8::/64"), b"2001:db8::");
        assert_eq!(addresses.matched(b"ip", b"2001:db8::/48"), b"2001:db8::/48", "no address was counted by it");
        assert_eq!(addresses.matched(b"ip", b"10.1.2.0/24"), b"10.1.2.0/24");
        assert_eq!(coarse.matched(b"ip", b"10.1.2.0/24"), b"10.1.2.0");
        assert_eq!(addresses.matched(b"ip", b"a/b"), b"a/b");
        assert_eq!(addresses.matched(b"path", b"10.0.0.0/8"), b"10.0.0.0/8");
    }
}
