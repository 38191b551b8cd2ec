//! `google.protobuf.Timestamp` with the JSON that proto3 prescribes: UTC as `Z`, and no, three, six
//! or nine digits of a second.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
    ser,
};

/// A point in time, independent of any time zone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 UTC.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds of the second, never negative.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Timestamp {
    fn utc(self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp(self.seconds, self.nanos.try_into().ok()?)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let out_of_range = || ser::Error::custom("a timestamp is out of range");
        let time = self.utc().ok_or_else(out_of_range)?;
        serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text)
    }
}

/// Reads a timestamp from any RFC 3339 text, with whatever offset.
struct Text;

impl Visitor<'_> for Text {
    type Value = Timestamp;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a time like 2026-01-31T12:00:00.5Z")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
        let time = DateTime::parse_from_rfc3339(text).map_err(E::custom)?.to_utc();
        let nanos = i32::try_from(time.timestamp_subsec_nanos()).map_err(E::custom)?;
        Ok(Timestamp { seconds: time.timestamp(), nanos })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_proto3_json_says() {
        for (seconds, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (1_795_450_331, 7_000_000, "2026-11-23T16:12:11.007Z"),
            (1_795_450_331, 7_000, "2026-11-23T16:12:11.000007Z"),
            (1_795_450_331, 1, "2026-11-23T16:12:11.000000001Z"),
            (-62_135_596_800, 0, "0001-01-01T00:00:00Z"),
        ] {
            let time = Timestamp { seconds, nanos };
            assert_eq!(serde_json::to_value(time).unwrap(), text);
            assert_eq!(serde_json::from_value::<Timestamp>(text.into()).unwrap(), time);
        }
    }

    #[test]
    fn any_offset_is_read_and_nonsense_is_not() {
        let read = |text: &str| serde_json::from_value::<Timestamp>(text.into());
        assert_eq!(read("2026-11-23T17:12:11+01:00").unwrap().seconds, 1_795_450_331);
        assert_eq!(read("2026-11-23T16:12:11.5+00:00").unwrap().nanos, 500_000_000);
        for nonsense in ["", "now", "2026-11-23", "2026-13-23T16:12:11Z"] {
            assert!(read(nonsense).is_err(), "{nonsense}");
        }
        let never = Timestamp { seconds: i64::MAX, nanos: 0 };
        assert!(serde_json::to_string(&never).is_err());
        assert!(serde_json::to_string(&Timestamp { seconds: 0, nanos: -1 }).is_err());
    }

    #[test]
    fn it_is_the_well_known_type_on_the_wire() {
        use prost::Message as _;
        let here = Timestamp { seconds: 1_795_450_331, nanos: 7_000_000 };
        let there = pbjson_types::Timestamp { seconds: here.seconds, nanos: here.nanos };
        assert_eq!(here.encode_to_vec(), there.encode_to_vec());
    }
}
