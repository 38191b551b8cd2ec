//! Gives every value of the file and the command line its meaning.

use std::path::{Path, PathBuf};

use berth_ownership::ResetPolicy;
use toml::Spanned;

use super::{
    Args, Config, ConfigError, HostChoice, ResetRule, condition, devices,
    error::Source,
    hardening,
    helper::{self, Machine},
    limits,
    listen::{self, Places},
    quotas, rates,
    raw::{RawConfig, RawReset},
    system, web,
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
        timeouts: limits::timeouts(&raw.timeouts, source)?,
        retention: limits::retention(&raw.retention, source)?,
        limits: limits::limits(&raw.limits, source)?,
        reset: reset(raw.reset, source)?,
        devices: devices::rules(raw.device, source)?,
        condition: condition::rules(&raw.condition, source)?,
        quotas: quotas::quotas(raw.quota, source)?,
        rates: rates::rates(raw.rate, source)?,
        log: log(raw.log, source)?,
        hardening: hardening::resolve(&raw.hardening, source)?,
        web: web::resolve(&raw.web, source)?,
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

/// What is logged; that it can be understood is seen now, not when it is to count.
fn log(raw: Option<Spanned<String>>, source: &Source<'_>) -> Result<String, ConfigError> {
    let Some(filter) = raw else { return Ok("info".to_owned()) };
    match tracing_subscriber::EnvFilter::try_new(filter.get_ref()) {
        Ok(_) => Ok(filter.into_inner()),
        Err(error) => {
            let way_out = "write it like info, or info,audit=debug";
            Err(source.error(Some(filter.span()), "log", error.to_string(), way_out))
        }
    }
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
