//! Days and months of a time zone, as tables made when the rules load, so that a decision looks edges up and computes none.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use jiff::civil::{Date, date};
use jiff::tz::TimeZone;
use parking_lot::Mutex;

use crate::limit::{Edges, MINUTE, Micros, Period};

/// What the tables reach over: far longer than a process runs. Fixed, so that a table is the zone's and not the day's.
const FIRST: Date = date(2020, 1, 1);
const LAST: Date = date(2070, 1, 1);
/// How far this process's clock may be ahead of the store's and still name the right period.
const SKEW: Micros = MINUTE;

/// The edges of a zone's days and months, ascending, in µs since the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calendar {
    days: Vec<Micros>,
    months: Vec<Micros>,
}

impl Calendar {
    /// # Errors
    /// When the zone cannot say when one of its days begins.
    pub fn new(zone: &TimeZone) -> Result<Calendar, jiff::Error> {
        let mut calendar = Calendar { days: Vec::new(), months: Vec::new() };
        let mut day = FIRST;
        while day < LAST {
            // The day's first moment: midnight, or what follows it where the clocks skip midnight.
            let start = day.to_zoned(zone.clone())?.start_of_day()?.timestamp().as_microsecond();
            let start = u64::try_from(start).unwrap_or(0);
            calendar.days.push(start);
            if day.day() == 1 {
                calendar.months.push(start);
            }
            day = day.tomorrow()?;
        }
        Ok(calendar)
    }

    /// The one of this zone, by its name in the IANA database; made when it is first asked for. `None`: there is no such zone.
    pub fn of_zone(name: &str) -> Option<Arc<Calendar>> {
        /// Some six hundred at most.
        static CALENDARS: LazyLock<Mutex<HashMap<Box<str>, Arc<Calendar>>>> = LazyLock::new(Mutex::default);
        let mut calendars = CALENDARS.lock();
        if let Some(known) = calendars.get(name) {
            return Some(known.clone());
        }
        let made = Arc::new(Calendar::new(&TimeZone::get(name).ok()?).ok()?);
        calendars.insert(name.into(), made.clone());
        Some(made)
    }

    /// The edges around a time: the period that it is in (or was in a minute ago), and the next.
    pub fn edges(&self, period: Period, now: Micros) -> Edges {
        let edges = match period {
            Period::Day => &self.days,
            Period::Month => &self.months,
        };
        let after = edges.partition_point(|&edge| edge <= now.saturating_sub(SKEW)).clamp(1, edges.len() - 2);
        [edges[after - 1], edges[after], edges[after + 1]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::{DAY, HOUR};

    fn at(text: &str) -> Micros {
        let time: jiff::Zoned = text.parse().expect("a time in a zone");
        u64::try_from(time.timestamp().as_microsecond()).expect("a time after 1970")
    }

    #[test]
    fn a_day_is_as_long_as_the_zone_makes_it() {
        let zone = TimeZone::get("Europe/Berlin").expect("a known zone");
        let calendar = Calendar::new(&zone).expect("a zone with days");
        let length = |text| {
            let [start, end, _] = calendar.edges(Period::Day, at(text));
            end - start
        };
        assert_eq!(length("2026-03-28T12:00[Europe/Berlin]"), DAY);
        assert_eq!(length("2026-03-29T12:00[Europe/Berlin]"), DAY - HOUR);
        assert_eq!(length("2026-10-25T12:00[Europe/Berlin]"), DAY + HOUR);
    }

    #[test]
    fn months_begin_at_the_zones_midnight() {
        let zone = TimeZone::get("America/New_York").expect("a known zone");
        let calendar = Calendar::new(&zone).expect("a zone with days");
        let edges = calendar.edges(Period::Month, at("2026-12-31T23:59[America/New_York]"));
        let months =
            ["2026-12-01T00:00[America/New_York]", "2027-01-01T00:00[America/New_York]", "2027-02-01T00:00[America/New_York]"];
        assert_eq!(edges, months.map(at));
    }

    #[test]
    fn a_clock_a_little_ahead_still_names_the_period_that_ends() {
        let calendar = Calendar::new(&TimeZone::UTC).expect("a zone with days");
        let edges = calendar.edges(Period::Day, at("2026-11-22T00:00:30[UTC]"));
        assert_eq!(edges, ["2026-11-21T00:00[UTC]", "2026-11-22T00:00[UTC]", "2026-11-23T00:00[UTC]"].map(at));
    }
}
