//! QEMU's option values: `driver,key=value,...` where `,,` is a comma, or a JSON object.

use serde_json::{Map, Value};

/// One value. What isn't touched is written as it was read.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Opts {
    /// Keys, and what stands after `=`. The first may be the value of the implied key.
    Plain(Vec<(String, Option<String>)>),
    Json(Map<String, Value>),
}

impl Opts {
    /// Reads a value; `None` for JSON that isn't an object.
    pub(super) fn read(text: &str) -> Option<Self> {
        if text.starts_with('{') {
            return serde_json::from_str(text).ok().map(Self::Json);
        }
        let pair = |part: String| match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (part, None),
        };
        Some(Self::Plain(split(text).into_iter().map(pair).collect()))
    }

    /// What the implied key (`driver` of a device, `qom-type` of an object) says.
    pub(super) fn kind(&self, implied: &str) -> Option<&str> {
        match self {
            Self::Plain(parts) => match parts.first() {
                Some((kind, None)) => Some(kind),
                _ => self.get(implied),
            },
            Self::Json(_) => self.get(implied),
        }
    }

    /// The text of a key.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        match self {
            // The last one counts.
            Self::Plain(parts) => parts.iter().rfind(|(name, _)| name == key)?.1.as_deref(),
            Self::Json(map) => map.get(key)?.as_str(),
        }
    }

    /// Removes all of these keys, and puts the pairs where the first of them was, or at the end.
    pub(super) fn replace(&mut self, keys: &[&str], pairs: &[(&str, &str)]) {
        match self {
            Self::Plain(parts) => {
                let named = |(name, value): &(String, Option<String>)| {
                    value.is_some() && keys.contains(&name.as_str())
                };
                let at = parts.iter().position(named).unwrap_or(parts.len());
                parts.retain(|part| !named(part));
                let new =
                    pairs.iter().map(|(key, value)| ((*key).to_owned(), Some((*value).to_owned())));
                parts.splice(at..at, new);
            }
            Self::Json(map) => {
                map.retain(|name, _| !keys.contains(&name.as_str()));
                let new = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).into()));
                map.extend(new);
            }
        }
    }

    /// The value as QEMU reads it.
    pub(super) fn write(&self) -> String {
        match self {
            Self::Plain(parts) => parts
                .iter()
                .map(|(key, value)| match value {
                    Some(value) => format!("{key}={}", value.replace(',', ",,")),
                    None => key.replace(',', ",,"),
                })
                .collect::<Vec<_>>()
                .join(","),
            Self::Json(map) => Value::Object(map.clone()).to_string(),
        }
    }
}

/// Splits at single commas; two are one in the text.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, parts.last_mut()) {
            (',', Some(part)) if rest.peek() == Some(&',') => {
                rest.next();
                part.push(',');
            }
            (',', _) => parts.push(String::new()),
            (c, Some(part)) => part.push(c),
            (_, None) => {}
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_again() {
        for text in [
            "vfio-pci,host=0000:65:00.0,id=gpu",
            "driver=vfio-pci,host=65:00.0,bus=rp1,addr=0x0,x-igd-opregion=on",
            "virtio-9p-pci,fsdev=a,mount_tag=x,,y",
            "virtio-net,nomrg_rxbuf",
            "",
            "a,,b",
            r#"{"driver":"vfio-pci","host":"0000:65:00.0","multifunction":true}"#,
        ] {
            assert_eq!(Opts::read(text).unwrap().write(), text);
        }
        assert_eq!(Opts::read("[1]").unwrap().write(), "[1]");
        assert_eq!(Opts::read("{1}"), None);
    }

    #[test]
    fn keys_are_found_and_replaced_in_place() {
        let mut opts = Opts::read("vfio-pci,host=65:00.0,id=a,,b,host=66:00.0").unwrap();
        assert_eq!(opts.kind("driver"), Some("vfio-pci"));
        assert_eq!(opts.get("host"), Some("66:00.0"));
        assert_eq!(opts.get("id"), Some("a,b"));
        opts.replace(&["host", "fd"], &[("fd", "7"), ("iommufd", "i")]);
        assert_eq!(opts.write(), "vfio-pci,fd=7,iommufd=i,id=a,,b");
        let mut json = Opts::read(r#"{"driver":"vfio-pci","host":"65:00.0"}"#).unwrap();
        assert_eq!(json.kind("driver"), Some("vfio-pci"));
        json.replace(&["host"], &[("fd", "7")]);
        assert_eq!(json.write(), r#"{"driver":"vfio-pci","fd":"7"}"#);
        assert_eq!(Opts::read("driver=vfio-pci").unwrap().kind("driver"), Some("vfio-pci"));
        assert_eq!(Opts::read("host=1").unwrap().kind("driver"), None);
    }
}
