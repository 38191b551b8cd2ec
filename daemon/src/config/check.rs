//! Gives every value of the file and the command line its meaning.

use std::path::{Path, PathBuf};

use berth_ownership::ResetPolicy;
use toml::Spanned;

use super::{
    Args, Config, ConfigError, HostChoice, Limits, ResetRule, Retention, Timeouts, devices,
    error::Source,
    hardening,
    helper::{self, Machine},
    listen::{self, Places},
    raw::{RawConfig, RawLimits, RawReset, RawRetention, RawTimeouts},
    system,
};

/// The settings that the file and the arguments amount to.
pub(super) fn resolve(
    raw: RawConfig,
    source: &Source<'_>,
    args: &Args,
    file: Option<PathBuf>,
) -> Result<Config, ConfigError> {
    let host = host(&raw, source, args)?;
    let personal = host.is_simulated() && !system::is_root();
    let state_dir = state_dir(&raw, source, args, personal)?;
    let sysfs_root =
        args.sysfs_root.clone().or(raw.sysfs_root.clone()).unwrap_or_else(|| PathBuf::from("/"));
    let machine = match &host {
        HostChoice::Sim(_) => Machine::Simulated,
        HostChoice::Linux if sysfs_root == Path::new("/") => Machine::This,
        HostChoice::Linux => Machine::Tree,
    };
    let helper = helper::resolve(&raw, source, args, machine)?;
    let run_dir = if personal { state_dir.clone() } else { PathBuf::from("/run/berth") };
    Ok(Config {
        file,
        host,
        sysfs_root,
        state_dir,
        helper,
        listen: listen::resolve(raw.listen, source, args, &Places { run_dir })?,
        timeouts: timeouts(&raw.timeouts, source)?,
        retention: retention(&raw.retention, source)?,
        limits: limits(&raw.limits, source)?,
        reset: reset(raw.reset, source)?,
        devices: devices::rules(raw.device, source)?,
        hardening: hardening::resolve(&raw.hardening, source)?,
    })
}

const HOST_WAY_OUT: &str = "use linux, sim, sim:NAME (small, gpu-server, sriov-nic, desktop-no-acs, \
                            large) or sim:FILE with a / or . in it";

fn host(raw: &RawConfig, source: &Source<'_>, args: &Args) -> Result<HostChoice, ConfigError> {
    if let Some(text) = &args.host {
        return HostChoice::parse(text).ok_or_else(|| ConfigError::Argument {
            argument: format!("--host {text}"),
            message: "not a host".to_owned(),
            way_out: HOST_WAY_OUT.to_owned(),
        });
    }
    match &raw.host {
        None => Ok(HostChoice::Linux),
        Some(text) => HostChoice::parse(text.get_ref()).ok_or_else(|| {
            let message = format!("{:?} is not a host", text.get_ref());
            source.error(Some(text.span()), "host", message, HOST_WAY_OUT)
        }),
    }
}

fn state_dir(
    raw: &RawConfig,
    source: &Source<'_>,
    args: &Args,
    personal: bool,
) -> Result<PathBuf, ConfigError> {
    if let Some(dir) = &args.state_dir {
        return std::path::absolute(dir).map_err(|error| ConfigError::Argument {
            argument: format!("--state-dir {}", dir.display()),
            message: error.to_string().to_lowercase(),
            way_out: "name a directory".to_owned(),
        });
    }
    match &raw.state_dir {
        Some(dir) => absolute(dir, "state_dir", source),
        None if personal => Ok(system::user_state_dir()),
        None => Ok(PathBuf::from("/var/lib/berth")),
    }
}

/// A path of the file must be absolute: the daemon's directory says nothing to its reader.
pub(super) fn absolute(
    path: &Spanned<PathBuf>,
    key: &str,
    source: &Source<'_>,
) -> Result<PathBuf, ConfigError> {
    let value: &Path = path.get_ref();
    if value.is_absolute() {
        return Ok(value.to_owned());
    }
    let message = format!("{} is not an absolute path", value.display());
    Err(source.error(Some(path.span()), key, message, "begin the path with /"))
}

/// A number within its limits, or its default.
struct Range<'a, 'b> {
    source: &'a Source<'b>,
    section: &'static str,
}

impl Range<'_, '_> {
    fn get(
        &self,
        value: Option<&Spanned<u64>>,
        key: &str,
        default: u64,
        allowed: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        let Some(value) = value else { return Ok(default) };
        if allowed.contains(value.get_ref()) {
            return Ok(*value.get_ref());
        }
        Err(self.source.error(
            Some(value.span()),
            &format!("{}.{key}", self.section),
            format!("{} is out of range", value.get_ref()),
            format!("use {} to {}", allowed.start(), allowed.end()),
        ))
    }
}

const HOUR_MS: u64 = 3_600_000;

fn timeouts(raw: &RawTimeouts, source: &Source<'_>) -> Result<Timeouts, ConfigError> {
    let range = Range { source, section: "timeouts" };
    let default = Timeouts::default();
    Ok(Timeouts {
        wait_ms: range.get(raw.wait_ms.as_ref(), "wait_ms", default.wait_ms, 1..=HOUR_MS)?,
        act_ms: range.get(raw.act_ms.as_ref(), "act_ms", default.act_ms, 100..=HOUR_MS)?,
        header_ms: range.get(
            raw.header_ms.as_ref(),
            "header_ms",
            default.header_ms,
            100..=HOUR_MS,
        )?,
        drain_ms: range.get(raw.drain_ms.as_ref(), "drain_ms", default.drain_ms, 0..=HOUR_MS)?,
        rescan_ms: range.get(
            raw.rescan_ms.as_ref(),
            "rescan_ms",
            default.rescan_ms,
            1_000..=24 * HOUR_MS,
        )?,
    })
}

fn retention(raw: &RawRetention, source: &Source<'_>) -> Result<Retention, ConfigError> {
    let range = Range { source, section: "retention" };
    let default = Retention::default();
    Ok(Retention {
        events: range.get(raw.events.as_ref(), "events", default.events, 1_000..=1_000_000_000)?,
    })
}

fn limits(raw: &RawLimits, source: &Source<'_>) -> Result<Limits, ConfigError> {
    let range = Range { source, section: "limits" };
    let default = Limits::default();
    let size = |value: Option<&Spanned<u64>>, key, default: usize, allowed| {
        let default = u64::try_from(default).unwrap_or(u64::MAX);
        let number = range.get(value, key, default, allowed)?;
        Ok::<usize, ConfigError>(usize::try_from(number).unwrap_or(usize::MAX))
    };
    let streams =
        range.get(raw.streams.as_ref(), "streams", u64::from(default.streams), 1..=65_535)?;
    Ok(Limits {
        connections: size(
            raw.connections.as_ref(),
            "connections",
            default.connections,
            1..=1_000_000,
        )?,
        streams: u32::try_from(streams).unwrap_or(default.streams),
        body_bytes: size(
            raw.body_bytes.as_ref(),
            "body_bytes",
            default.body_bytes,
            1_024..=(64 << 20),
        )?,
        watchers: size(raw.watchers.as_ref(), "watchers", default.watchers, 1..=1_000_000)?,
    })
}

fn reset(raw: Vec<RawReset>, source: &Source<'_>) -> Result<Vec<ResetRule>, ConfigError> {
    raw.into_iter()
        .map(|rule| {
            let policy = match rule.policy.get_ref().as_str() {
                "require" => ResetPolicy::Require,
                "allow-same-label" => ResetPolicy::AllowSameLabel,
                "none" => ResetPolicy::None,
                other => {
                    return Err(source.error(
                        Some(rule.policy.span()),
                        "reset.policy",
                        format!("{other:?} is not a reset policy"),
                        "use require, allow-same-label or none",
                    ));
                }
            };
            let class = class(rule.class.get_ref()).ok_or_else(|| {
                let message = format!("{:?} is not a class", rule.class.get_ref());
                let way_out = "use gpu, nic, nvme, 2 to 6 hexadecimal digits such as 0108, or *";
                source.error(Some(rule.class.span()), "reset.class", message, way_out)
            })?;
            Ok(ResetRule { class, policy })
        })
        .collect()
}

/// The beginning of a class code; `Some(None)` for every class.
pub(super) fn class(word: &str) -> Option<Option<String>> {
    let digits = match word {
        "*" => return Some(None),
        "gpu" => "03",
        "nic" => "02",
        "nvme" => "0108",
        digits => digits,
    };
    let is_code =
        matches!(digits.len(), 2 | 4 | 6) && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_code.then(|| Some(digits.to_ascii_lowercase()))
}
