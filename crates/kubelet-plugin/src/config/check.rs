//! Gives every value of the file its meaning.

use std::{
    ops::{Range, RangeInclusive},
    path::{Path, PathBuf},
};

use berth_proto::v1;
use toml::Spanned;

use super::{
    Baseline, Config, ConfigError, Delivery, Door, Limit, Resource, Selector,
    raw::{RawConfig, RawResource},
    size::bytes_of,
};

/// What the kernel takes as a socket's path, without the zero at its end.
const SOCKET_PATH_BYTES: usize = 107;

/// The text of a file, for errors that name a place in it.
struct Source<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn error(&self, span: Range<usize>, message: impl Into<String>, way_out: &str) -> ConfigError {
        let before = self.text.get(..span.start).unwrap_or("");
        ConfigError::Line {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            message: message.into(),
            way_out: way_out.to_owned(),
        }
    }

    fn path(
        &self,
        value: Option<&Spanned<PathBuf>>,
        default: &str,
    ) -> Result<PathBuf, ConfigError> {
        let Some(value) = value else { return Ok(PathBuf::from(default)) };
        let path = value.get_ref();
        // As berthd and berth write the path of a socket.
        let bare = path.to_str().and_then(|text| text.strip_prefix("unix:"));
        let path = bare.map_or(path.clone(), PathBuf::from);
        if path.is_absolute() {
            return Ok(path);
        }
        let message = format!("{} is not an absolute path", path.display());
        Err(self.error(value.span(), message, "begin the path with /"))
    }

    fn number(
        &self,
        value: Option<&Spanned<u64>>,
        default: u64,
        allowed: RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        let Some(value) = value else { return Ok(default) };
        if allowed.contains(value.get_ref()) {
            return Ok(*value.get_ref());
        }
        let way_out = format!("use {} to {}", allowed.start(), allowed.end());
        Err(self.error(value.span(), format!("{} is out of range", value.get_ref()), &way_out))
    }

    fn door(&self, value: &Spanned<String>) -> Result<Door, ConfigError> {
        Door::parse(value.get_ref()).map_err(|why| {
            let message = format!("metrics can't be served at {:?}: {why}", value.get_ref());
            self.error(value.span(), message, "write 127.0.0.1:9711 or unix:/PATH, or leave it out")
        })
    }

    /// A size of memory.
    fn size(&self, value: &Spanned<String>) -> Result<u64, ConfigError> {
        bytes_of(value.get_ref()).ok_or_else(|| {
            let message = format!("{:?} is not a size of memory", value.get_ref());
            self.error(value.span(), message, "write it like 16G or in bytes")
        })
    }

    /// One of some words, or the first of them.
    fn word<T: Copy>(
        &self,
        value: Option<&Spanned<String>>,
        key: &str,
        words: &[(&str, T)],
        default: T,
    ) -> Result<T, ConfigError> {
        let Some(value) = value else { return Ok(default) };
        if let Some((_, meaning)) = words.iter().find(|(word, _)| word == value.get_ref()) {
            return Ok(*meaning);
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let message = format!("{:?} can't be the {key} of a pod's devices", value.get_ref());
        Err(self.error(value.span(), message, &format!("use {}", known.join(" or "))))
    }
}

pub(super) fn resolve(file: &Path, text: &str) -> Result<Config, ConfigError> {
    let source = Source { file, text };
    let raw: RawConfig = toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        source.error(span, error.message().to_owned(), "see deploy/kubernetes/kubelet-plugin.toml")
    })?;
    let kubelet = source.path(raw.kubelet_dir.as_ref(), "/var/lib/kubelet")?;
    let config = Config {
        berthd: source.path(raw.berthd.as_ref(), "/run/berth/berthd.sock")?,
        handover: source.path(raw.handover.as_ref(), berth_handover::SOCKET)?,
        device_plugins: kubelet.join("device-plugins"),
        pod_resources: kubelet.join("pod-resources/kubelet.sock"),
        cdi_dir: source.path(raw.cdi_dir.as_ref(), "/var/run/cdi")?,
        state_dir: source.path(raw.state_dir.as_ref(), "/var/lib/berth-kubelet-plugin")?,
        socket_dir: source.path(raw.socket_dir.as_ref(), "/run/berth-kubelet-plugin")?,
        cgroup_root: source.path(raw.cgroup_root.as_ref(), "/sys/fs/cgroup")?,
        memlock: raw.memlock.as_ref().map(|value| memlock(value, &source)).transpose()?,
        runtime: raw.runtime.as_ref().map(|path| source.path(Some(path), "")).transpose()?,
        settle_ms: source.number(raw.settle_ms.as_ref(), 10_000, 100..=600_000)?,
        release_ms: source.number(raw.release_ms.as_ref(), 5_000, 100..=600_000)?,
        metrics: raw.metrics.as_ref().map(|door| source.door(door)).transpose()?,
        resources: resources(&raw.resource, &source)?,
    };
    let longest = config.socket_dir.join("a-000000000000").join(crate::handout::SOCKET);
    if longest.as_os_str().len() > SOCKET_PATH_BYTES {
        let span = raw.socket_dir.as_ref().map_or(0..0, Spanned::span);
        let message = format!("{}: the path of a socket is too long", longest.display());
        return Err(source.error(span, message, "name a directory with a shorter path"));
    }
    if config.resources.is_empty() {
        let way_out = "add a [[resource]] with a name such as example.com/gpu and a class";
        return Err(source.error(0..0, "there is no [[resource]]", way_out));
    }
    Ok(config)
}

fn memlock(value: &Spanned<String>, source: &Source<'_>) -> Result<Limit, ConfigError> {
    match value.get_ref().as_str() {
        "unlimited" => Ok(Limit::Unlimited),
        _ => source.size(value).map(Limit::Bytes),
    }
}

fn resources(raw: &[RawResource], source: &Source<'_>) -> Result<Vec<Resource>, ConfigError> {
    let mut found: Vec<Resource> = Vec::new();
    for raw in raw {
        let resource = resource(raw, source)?;
        // Also names that differ, but would fill the same variables or files.
        let same = |other: &&Resource| {
            other.env() == resource.env() || other.cdi_kind() == resource.cdi_kind()
        };
        if let Some(other) = found.iter().find(same) {
            let message = format!(
                "{:?} is the same as {:?} above in a container's environment ({}) or in CDI",
                resource.name,
                other.name,
                resource.env()
            );
            return Err(source.error(raw.name.span(), message, "give it another name"));
        }
        found.push(resource);
    }
    Ok(found)
}

fn resource(raw: &RawResource, source: &Source<'_>) -> Result<Resource, ConfigError> {
    let policies = [("group", v1::Policy::Group), ("exclusive", v1::Policy::Exclusive)];
    let backends = [
        ("auto", v1::Backend::Auto),
        ("type1", v1::Backend::Type1),
        ("iommufd", v1::Backend::Iommufd),
    ];
    let baselines = [("original", Baseline::Original), ("vfio", Baseline::Vfio)];
    let name = raw.name.get_ref();
    if let Err(message) = extended_resource(name) {
        let way_out = "use a domain of yours, a slash and a name, such as example.com/gpu";
        return Err(source.error(raw.name.span(), format!("{name:?}: {message}"), way_out));
    }
    let label = raw.label.as_ref().map_or("kubernetes", |label| label.get_ref());
    if label.is_empty() {
        let span = raw.label.as_ref().map_or(0..0, Spanned::span);
        return Err(source.error(span, "the label is empty", "leave it out or name a tenant"));
    }
    let policy = source.word(raw.policy.as_ref(), "policy", &policies, v1::Policy::Group)?;
    let backend = source.word(raw.backend.as_ref(), "back end", &backends, v1::Backend::Auto)?;
    let delivery =
        source.word(raw.delivery.as_ref(), "delivery", &Delivery::WORDS, Delivery::Node)?;
    if let Some((message, way_out)) = unfit(delivery, policy, backend) {
        let span = raw.delivery.as_ref().map_or(0..0, Spanned::span);
        return Err(source.error(span, message, way_out));
    }
    let baseline =
        source.word(raw.baseline.as_ref(), "baseline", &baselines, Baseline::Original)?;
    let take_from_host = raw.take_from_host.as_ref();
    if let Some(take) = take_from_host.filter(|take| *take.get_ref())
        && baseline == Baseline::Vfio
    {
        let message = "take_from_host takes from host drivers, and baseline = \"vfio\" offers \
                       nothing that has one";
        return Err(source.error(take.span(), message, "leave out one of them"));
    }
    Ok(Resource {
        name: name.clone(),
        selector: selector(raw, source)?,
        delivery,
        memory_bytes: raw.memory.as_ref().map(|value| source.size(value)).transpose()?,
        policy,
        backend,
        label: label.to_owned(),
        take_from_host: take_from_host.is_some_and(|take| *take.get_ref()),
        baseline,
    })
}

/// What berthd would refuse whoever asks, and the way out.
fn unfit(
    delivery: Delivery,
    policy: v1::Policy,
    backend: v1::Backend,
) -> Option<(&'static str, &'static str)> {
    match delivery {
        Delivery::Bound if policy == v1::Policy::Group => Some((
            "\"bound\" is not a delivery of policy group, whose owner attaches by itself",
            "use policy = \"exclusive\", or unbound, held or node",
        )),
        Delivery::Unbound if backend == v1::Backend::Type1 => Some((
            "\"unbound\" is not a delivery of type1, where nothing is bound",
            "use backend = \"iommufd\", or node",
        )),
        _ => None,
    }
}

fn selector(raw: &RawResource, source: &Source<'_>) -> Result<Selector, ConfigError> {
    let mut selector = Selector {
        numa_node: raw.numa_node.as_ref().map(|node| *node.get_ref()),
        ..Selector::default()
    };
    if let Some(word) = &raw.class {
        selector.class = class(word.get_ref()).ok_or_else(|| {
            let way_out = "use gpu, nic, nvme, or 2, 4 or 6 hexadecimal digits such as 0108";
            source.error(word.span(), format!("{:?} is not a class", word.get_ref()), way_out)
        })?;
    }
    if let Some(ids) = &raw.device {
        let (vendor, device) = ids_of(ids.get_ref()).ok_or_else(|| {
            let message = format!("{:?} is not a vendor or device", ids.get_ref());
            source.error(ids.span(), message, "write 10de or 10de:2330")
        })?;
        (selector.vendor, selector.device) = (Some(vendor), device);
    }
    if let Some(address) = &raw.address {
        let text = address.get_ref().to_lowercase();
        let known = |byte: u8| byte.is_ascii_hexdigit() || b":.*".contains(&byte);
        if text.is_empty() || !text.bytes().all(known) {
            let message = format!("{:?} is not a pattern of addresses", address.get_ref());
            return Err(source.error(address.span(), message, "write it like 0000:65:*"));
        }
        selector.address = Some(text);
    }
    Ok(selector)
}

/// What Kubernetes takes as the name of an extended resource.
fn extended_resource(name: &str) -> Result<(), &'static str> {
    let (domain, short) = name.split_once('/').ok_or("there is no domain")?;
    let inner = |text: &str, more: &[u8]| {
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
            && text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
            && text.bytes().last().is_some_and(|byte| byte.is_ascii_alphanumeric())
    };
    if domain.bytes().any(|byte| byte.is_ascii_uppercase()) || !inner(domain, b".-") {
        return Err("the domain is not a DNS name");
    }
    if domain == "kubernetes.io" || domain.ends_with(".kubernetes.io") {
        return Err("the domain is Kubernetes' own");
    }
    if domain.starts_with("requests.") {
        return Err("the domain must not begin with requests.");
    }
    if short.len() > 63 || !inner(short, b"-_.") {
        return Err("what follows the slash is not a name of at most 63 characters");
    }
    Ok(())
}

fn class(word: &str) -> Option<String> {
    let digits = match word {
        "gpu" => "03",
        "nic" => "02",
        "nvme" => "0108",
        digits => digits,
    };
    let code = matches!(digits.len(), 2 | 4 | 6) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    code.then(|| digits.to_ascii_lowercase())
}

fn ids_of(text: &str) -> Option<(u32, Option<u32>)> {
    let id = |text: &str| match text.len() {
        4 => u32::from_str_radix(text, 16).ok(),
        _ => None,
    };
    match text.split_once(':') {
        Some((vendor, device)) => Some((id(vendor)?, Some(id(device)?))),
        None => Some((id(text)?, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("p.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_resource_with_nothing_but_a_name_has_the_defaults() {
        let config = parse("[[resource]]\nname = \"example.com/gpu\"\n").unwrap();
        let resource = &config.resources[0];
        assert_eq!(resource.policy, v1::Policy::Group);
        assert_eq!(resource.env(), "EXAMPLE_COM_GPU");
        assert_eq!(resource.selector, Selector::default());
        assert_eq!(config.pod_resources, Path::new("/var/lib/kubelet/pod-resources/kubelet.sock"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_and_the_way_out() {
        let resource = |line: &str| format!("\n[[resource]]\nname = \"example.com/gpu\"\n{line}\n");
        for (text, expected) in [
            ("".to_owned(), "p.toml:1: there is no [[resource]]; add"),
            ("cdi_dir = \"cdi\"".to_owned(), "p.toml:1: cdi is not an absolute path; begin"),
            ("[[resource]]\nname = \"gpu\"".to_owned(), "p.toml:2: \"gpu\": there is no domain"),
            (
                "[[resource]]\nname = \"kubernetes.io/a\"".to_owned(),
                "p.toml:2: \"kubernetes.io/a\"",
            ),
            (resource("class = \"gpus\""), "p.toml:4: \"gpus\" is not a class; use gpu"),
            (resource("device = \"10de:1\""), "p.toml:4: \"10de:1\" is not a vendor"),
            (resource("address = \"x\""), "p.toml:4: \"x\" is not a pattern"),
            (resource("policy = \"shared\""), "p.toml:4: \"shared\" can't be the policy"),
            (resource("delivery = \"fd\""), "p.toml:4: \"fd\" can't be the delivery"),
            (resource("delivery = \"bound\""), "p.toml:4: \"bound\" is not a delivery of policy"),
            (
                resource("delivery = \"unbound\"\nbackend = \"type1\""),
                "p.toml:4: \"unbound\" is not a delivery of type1",
            ),
            (format!("socket_dir = \"/{}\"", "run/".repeat(20)), "p.toml:1: /run/run/"),
            (resource("baseline = \"none\""), "p.toml:4: \"none\" can't be the baseline"),
            (
                resource("baseline = \"vfio\"\ntake_from_host = true"),
                "p.toml:5: take_from_host takes from host drivers",
            ),
            (resource("memory = \"16 G\""), "p.toml:4: \"16 G\" is not a size of memory; write"),
            ("memlock = \"none\"".to_owned(), "p.toml:1: \"none\" is not a size of memory"),
            (resource("clas = 1"), "p.toml:4: unknown field `clas`"),
            ("metrics = \"0.0.0.0:9711\"".to_owned(), "p.toml:1: metrics can't be served at"),
            ("metrics = \"unix:here\"".to_owned(), "p.toml:1: metrics can't be served at"),
            ("metrics = \"/run/x\"".to_owned(), "p.toml:1: metrics can't be served at"),
            (
                resource("[[resource]]\nname = \"example/com.gpu\""),
                "p.toml:5: \"example/com.gpu\" is the same as",
            ),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.starts_with(expected), "{text}\n{error}");
        }
    }
}
