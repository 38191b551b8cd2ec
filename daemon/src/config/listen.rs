//! The listeners that the file and the arguments ask for.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use toml::Spanned;

use super::{
    Access, Args, ConfigError, Endpoint, Listener, Serve, UidRule, check, error::Source,
    raw::RawListener, system,
};
use crate::model::Role;

/// Where sockets are by default.
pub(super) struct Places {
    /// Their directory.
    pub(super) run_dir: PathBuf,
}

pub(crate) const GRPC_NEEDS_TLS: &str = "gRPC over TCP needs TLS, which this version does not have";
const GRPC_WAY_OUT: &str = "listen at unix:PATH, and forward the socket with ssh -L where needed";
const SOCKET_MODE: u32 = 0o660;
/// Everybody may knock at the hand-over socket: its answers depend on the peer.
const HANDOVER_MODE: u32 = 0o666;

/// All listeners: those of an argument's kind, else those of the file, else the default ones.
pub(super) fn resolve(
    raw: Vec<Spanned<RawListener>>,
    source: &Source<'_>,
    args: &Args,
    places: &Places,
) -> Result<Vec<Listener>, ConfigError> {
    let mut of_file = Vec::new();
    for listener in raw {
        of_file.push(from_file(listener, source)?);
    }
    let mut all: Vec<Listener> = Vec::new();
    for serve in [Serve::Grpc, Serve::Http, Serve::Handover] {
        let given = match serve {
            Serve::Grpc => &args.listen_grpc,
            Serve::Http => &args.listen_http,
            Serve::Handover => &args.listen_handover,
        };
        let mut listeners: Vec<Listener> = if given.is_empty() {
            of_file.iter().filter(|listener| listener.serve == serve).cloned().collect()
        } else {
            given.iter().map(|text| from_argument(serve, text)).collect::<Result<_, _>>()?
        };
        if listeners.is_empty() {
            let grpc_is_elsewhere =
                all.iter().find_map(|listener| match (&listener.serve, &listener.endpoint) {
                    (Serve::Grpc, Endpoint::Unix { path, .. }) => path.parent(),
                    _ => None,
                });
            listeners = defaults(serve, grpc_is_elsewhere.unwrap_or(&places.run_dir));
        }
        all.extend(listeners);
    }
    Ok(all)
}

/// The role of those about whom nothing is said. At the hand-over socket everybody may knock, so
/// whoever is more than a holder there is named.
fn usual(serve: Serve) -> Role {
    match serve {
        Serve::Grpc | Serve::Http => Role::Operator,
        Serve::Handover => Role::Holder,
    }
}

fn defaults(serve: Serve, run_dir: &Path) -> Vec<Listener> {
    let unix = |name: &str, mode| {
        let endpoint = Endpoint::Unix { path: run_dir.join(name), mode, gid: None };
        Listener { serve, endpoint, access: Access::all(usual(serve)), given: false }
    };
    match serve {
        Serve::Grpc => vec![unix("berthd.sock", SOCKET_MODE)],
        Serve::Handover => vec![unix("handover.sock", HANDOVER_MODE)],
        Serve::Http => {
            let address = SocketAddr::from(([127, 0, 0, 1], 7711));
            let endpoint = Endpoint::Tcp { address, hosts: Vec::new() };
            vec![
                unix("http.sock", SOCKET_MODE),
                Listener { serve, endpoint, access: Access::all(Role::Viewer), given: false },
            ]
        }
    }
}

fn from_argument(serve: Serve, text: &str) -> Result<Listener, ConfigError> {
    let error = |message: &str, way_out: &str| ConfigError::Argument {
        argument: format!("--listen-{} {text}", serve.word()),
        message: message.to_owned(),
        way_out: way_out.to_owned(),
    };
    if let Some(path) = text.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() {
            return Err(error("the path is empty", "write unix:PATH"));
        }
        let path = std::path::absolute(path)
            .map_err(|_| error("the path can't be resolved", "write unix:/PATH"))?;
        let mode = if serve == Serve::Handover { HANDOVER_MODE } else { SOCKET_MODE };
        let endpoint = Endpoint::Unix { path, mode, gid: None };
        return Ok(Listener { serve, endpoint, access: Access::all(usual(serve)), given: true });
    }
    match serve {
        Serve::Grpc => return Err(error(GRPC_NEEDS_TLS, GRPC_WAY_OUT)),
        Serve::Handover => {
            return Err(error("descriptors travel over unix sockets only", "write unix:PATH"));
        }
        Serve::Http => {}
    }
    let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    let address = numeric
        .as_deref()
        .unwrap_or(text)
        .parse()
        .map_err(|_| error("not an address", "write unix:PATH or ADDRESS:PORT"))?;
    let endpoint = Endpoint::Tcp { address, hosts: Vec::new() };
    Ok(Listener { serve, endpoint, access: Access::all(Role::Viewer), given: true })
}

fn from_file(raw: Spanned<RawListener>, source: &Source<'_>) -> Result<Listener, ConfigError> {
    let span = raw.span();
    let raw = raw.into_inner();
    let Some(serve) = Serve::by_word(raw.serve.get_ref()) else {
        let message = format!("{:?} is not a kind of listener", raw.serve.get_ref());
        let way_out = "use grpc, http or handover";
        return Err(source.error(Some(raw.serve.span()), "listen.serve", message, way_out));
    };
    let (endpoint, most) = match (&raw.path, &raw.address) {
        (Some(path), None) => {
            (unix(serve, &raw, check::absolute(path, "listen.path", source)?, source)?, None)
        }
        (None, Some(address)) => (tcp(serve, &raw, address, source)?, Some(Role::Viewer)),
        _ => {
            let message = "a listener has exactly one of path and address";
            let way_out = "give one of them";
            return Err(source.error(Some(span), "[[listen]]", message, way_out));
        }
    };
    let access = access(&raw, most, usual(serve), source)?;
    Ok(Listener { serve, endpoint, access, given: true })
}

fn unix(
    serve: Serve,
    raw: &RawListener,
    path: PathBuf,
    source: &Source<'_>,
) -> Result<Endpoint, ConfigError> {
    if let Some(hosts) = &raw.hosts {
        let message = "a unix socket has no host names";
        let way_out = "remove the key or give an address";
        return Err(source.error(Some(hosts.span()), "listen.hosts", message, way_out));
    }
    let mode = match &raw.mode {
        None if serve == Serve::Handover => HANDOVER_MODE,
        None => SOCKET_MODE,
        Some(mode) => u32::from_str_radix(mode.get_ref(), 8)
            .ok()
            .filter(|bits| bits & !0o777 == 0)
            .ok_or_else(|| {
                let message = format!("{:?} is not a mode", mode.get_ref());
                let way_out = "use octal digits in quotes, e.g. \"0660\"";
                source.error(Some(mode.span()), "listen.mode", message, way_out)
            })?,
    };
    let gid = match &raw.group {
        None => None,
        Some(name) => Some(system::group_id(name.get_ref()).ok_or_else(|| {
            let message = format!("there is no group {:?}", name.get_ref());
            let way_out = format!("create it: groupadd --system {}", name.get_ref());
            source.error(Some(name.span()), "listen.group", message, way_out)
        })?),
    };
    Ok(Endpoint::Unix { path, mode, gid })
}

fn tcp(
    serve: Serve,
    raw: &RawListener,
    address: &Spanned<String>,
    source: &Source<'_>,
) -> Result<Endpoint, ConfigError> {
    match serve {
        Serve::Http => {}
        Serve::Grpc => {
            let span = Some(address.span());
            return Err(source.error(span, "listen.address", GRPC_NEEDS_TLS, GRPC_WAY_OUT));
        }
        Serve::Handover => {
            let message = "descriptors travel over unix sockets only";
            let span = Some(address.span());
            return Err(source.error(span, "listen.address", message, "give a path"));
        }
    }
    for (key, value) in [("listen.mode", &raw.mode), ("listen.group", &raw.group)] {
        if let Some(value) = value {
            let message = "an address has no owner and no mode";
            let way_out = "remove the key or give a path";
            return Err(source.error(Some(value.span()), key, message, way_out));
        }
    }
    let parsed = address.get_ref().parse().map_err(|_| {
        let message = format!("{:?} is not an address", address.get_ref());
        let way_out = "write ADDRESS:PORT, e.g. 127.0.0.1:7711";
        source.error(Some(address.span()), "listen.address", message, way_out)
    })?;
    let hosts = raw.hosts.as_ref().map(|hosts| hosts.get_ref().clone()).unwrap_or_default();
    Ok(Endpoint::Tcp { address: parsed, hosts })
}

/// The ceiling, the rules and the others of a listener; `most` is what its kind allows, `usual` what
/// whoever isn't named gets at most.
fn access(
    raw: &RawListener,
    most: Option<Role>,
    usual: Role,
    source: &Source<'_>,
) -> Result<Access, ConfigError> {
    let ceiling = most.unwrap_or(Role::Operator);
    let role = match &raw.role {
        None => ceiling.min(usual),
        Some(word) => role(word, "listen.role", source)?.ok_or_else(|| {
            let message = "a listener that lets nobody in is of no use";
            source.error(Some(word.span()), "listen.role", message, "remove the listener")
        })?,
    };
    if role > ceiling {
        let message = "TCP without TLS serves reading only";
        let way_out = "use role = \"viewer\", or a path for changes";
        let span = raw.role.as_ref().map(Spanned::span);
        return Err(source.error(span, "listen.role", message, way_out));
    }
    let others = match &raw.others {
        None => Some(role.min(usual)),
        Some(word) => narrower(word, role, "listen.others", source)?,
    };
    let mut rules: Vec<UidRule> = Vec::new();
    for rule in &raw.rule {
        let uid = *rule.uid.get_ref();
        if rules.iter().any(|earlier| earlier.uid == uid) {
            let message = format!("uid {uid} has two rules");
            let span = Some(rule.uid.span());
            return Err(source.error(span, "listen.rule.uid", message, "keep one of them"));
        }
        rules.push(UidRule { uid, role: narrower(&rule.role, role, "listen.rule.role", source)? });
    }
    Ok(Access { role, rules, others })
}

fn narrower(
    word: &Spanned<String>,
    ceiling: Role,
    key: &str,
    source: &Source<'_>,
) -> Result<Option<Role>, ConfigError> {
    let role = role(word, key, source)?;
    if role > Some(ceiling) {
        let message = "a rule can't give more than its listener's role";
        let way_out = "raise the listener's role and narrow the others";
        return Err(source.error(Some(word.span()), key, message, way_out));
    }
    Ok(role)
}

fn role(
    word: &Spanned<String>,
    key: &str,
    source: &Source<'_>,
) -> Result<Option<Role>, ConfigError> {
    if word.get_ref() == "none" {
        return Ok(None);
    }
    Role::by_name(word.get_ref()).map(Some).ok_or_else(|| {
        let message = format!("{:?} is not a role", word.get_ref());
        let way_out = "use viewer, holder, orchestrator, operator or none";
        source.error(Some(word.span()), key, message, way_out)
    })
}
