//! The numbers and names of protobuf's JSON mapping that a request has.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

use crate::api::proto::envoy::r#type::v3::RateLimitUnit;
use crate::spelling::{listed, suggestion};

/// A whole number, also as a string, or written as a fraction of one.
pub(super) struct Number<T>(pub(super) T);

impl<'de, T> Deserialize<'de> for Number<T>
where
    T: TryFrom<u64> + FromStr,
    <T as FromStr>::Err: fmt::Display,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberVisitor(std::marker::PhantomData)).map(Number)
    }
}

struct NumberVisitor<T>(std::marker::PhantomData<T>);

impl<T> Visitor<'_> for NumberVisitor<T>
where
    T: TryFrom<u64> + FromStr,
    <T as FromStr>::Err: fmt::Display,
{
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an unsigned integer or decimal string")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        T::try_from(number).map_err(|_| E::custom("out of range"))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        u64::try_from(number).map_err(|_| E::custom("out of range")).and_then(|number| self.visit_u64(number))
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was looked at")]
    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        if number.fract() != 0.0 {
            return Err(E::custom("expected integer value"));
        }
        if !(0.0..=u64::MAX as f64).contains(&number) {
            return Err(E::custom("out of range"));
        }
        self.visit_u64(number as u64)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(|reason| E::custom(format!("expected a whole number: {reason}")))
    }
}

/// A unit, by its name or its number.
pub(super) struct Unit(pub(super) i32);

impl<'de> Deserialize<'de> for Unit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Unit, D::Error> {
        deserializer.deserialize_any(UnitVisitor).map(Unit)
    }
}

struct UnitVisitor;

const UNITS: [&str; 6] = ["SECOND", "MINUTE", "HOUR", "DAY", "MONTH", "YEAR"];

impl Visitor<'_> for UnitVisitor {
    type Value = i32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or integer")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<i32, E> {
        i32::try_from(number).map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<i32, E> {
        i32::try_from(number).map_err(E::custom)
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<i32, E> {
        let unit = RateLimitUnit::from_str_name(name);
        unit.map(|unit| unit as i32).ok_or_else(|| {
            let near = suggestion(name, UNITS.into_iter());
            E::custom(format!("unknown unit `{name}`: {}{near}", listed(UNITS.into_iter())))
        })
    }
}
