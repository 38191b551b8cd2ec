//! The listeners that the file and the arguments ask for.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use toml::Spanned;

use super::{
    Access, Args, ConfigError, Endpoint, Listener, Serve, Tls, access, check,
    error::Source,
    raw::{RawListener, RawTls},
    system,
};
use crate::{listen::TlsPart, model::Role};

/// Where sockets are by default.
pub(super) struct Places {
    /// Their directory.
    pub(super) run_dir: PathBuf,
}

pub(crate) const GRPC_NEEDS_TLS: &str = "gRPC over TCP needs TLS";
const GRPC_WAY_OUT: &str =
    "listen at unix:PATH, or give the [[listen]] of the file tls = { cert, key, client_ca }";
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
            let endpoint = Endpoint::Tcp { address, hosts: Vec::new(), tls: None };
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
    let endpoint = Endpoint::Tcp { address, hosts: Vec::new(), tls: None };
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
    let endpoint = match (&raw.path, &raw.address) {
        (Some(path), None) => {
            unix(serve, &raw, check::absolute(path, "listen.path", source)?, source)?
        }
        (None, Some(address)) => tcp(serve, &raw, address, source)?,
        _ => {
            let message = "a listener has exactly one of path and address";
            let way_out = "give one of them";
            return Err(source.error(Some(span), "[[listen]]", message, way_out));
        }
    };
    let certified = matches!(&endpoint, Endpoint::Tcp { tls: Some(_), .. });
    let most = match &endpoint {
        Endpoint::Tcp { tls: None, .. } => Role::Viewer,
        Endpoint::Tcp { tls: Some(_), .. } | Endpoint::Unix { .. } => Role::Operator,
    };
    let kind = access::Kind { most, usual: usual(serve), certified };
    let access = access::resolve(&raw, kind, source)?;
    Ok(Listener { serve, endpoint, access, given: true })
}

fn unix(
    serve: Serve,
    raw: &RawListener,
    path: PathBuf,
    source: &Source<'_>,
) -> Result<Endpoint, ConfigError> {
    if let Some(tls) = &raw.tls {
        let message = "a unix socket needs no TLS: the kernel says who the peer is";
        let way_out = "remove the key or give an address";
        return Err(source.error(Some(tls.span()), "listen.tls", message, way_out));
    }
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
        Serve::Grpc if raw.tls.is_some() => {}
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
    let tls = raw.tls.as_ref().map(|raw| tls(raw.get_ref(), source)).transpose()?;
    if let (Some(_), Some(hosts)) = (&tls, &raw.hosts) {
        let message = "with TLS the certificate says who is meant";
        return Err(source.error(Some(hosts.span()), "listen.hosts", message, "remove the key"));
    }
    Ok(Endpoint::Tcp { address: parsed, hosts, tls })
}

/// The files of TLS. That they can be used is seen when berthd listens, and by --check-config.
fn tls(raw: &RawTls, source: &Source<'_>) -> Result<Tls, ConfigError> {
    let oldest = match raw.min_version.as_ref().map(|word| (word.get_ref().as_str(), word.span())) {
        None | Some(("1.3", _)) => false,
        Some(("1.2", _)) => true,
        Some((other, span)) => {
            let message = format!("{other:?} is not a version of TLS that is spoken");
            let way_out = "use \"1.3\", or \"1.2\" for old clients";
            return Err(source.error(Some(span), "listen.tls.min_version", message, way_out));
        }
    };
    let tls = Tls {
        cert: check::absolute(&raw.cert, "listen.tls.cert", source)?,
        key: check::absolute(&raw.key, "listen.tls.key", source)?,
        client_ca: check::absolute(&raw.client_ca, "listen.tls.client_ca", source)?,
        tls12: oldest,
    };
    if let Err(error) = crate::listen::check_tls(&tls) {
        let (span, key) = match error.part {
            TlsPart::Cert => (raw.cert.span(), "listen.tls.cert"),
            TlsPart::Key => (raw.key.span(), "listen.tls.key"),
            TlsPart::ClientCa => (raw.client_ca.span(), "listen.tls.client_ca"),
        };
        return Err(source.error(Some(span), key, error.message, error.way_out));
    }
    Ok(tls)
}
