//! `berth libvirt-hook`: libvirt's qemu hook, so that the domains of libvirt have reservations.
//!
//! libvirt calls it with a domain's name, an operation, a suboperation and one word more, and the
//! domain's XML on standard input. It waits for the end, and where `prepare` or `started` fails it
//! doesn't start the domain, and shows what the hook said.

mod domain;
mod place;
mod steps;
mod tried;

use std::io::Read as _;

pub(super) use self::place::stand_in;
use self::{domain::Domain, steps::Steps};
use crate::{
    args::{Global, LibvirtHookArgs},
    client,
    error::CliError,
    render::Output,
};

/// Does what the operation asks for.
pub(super) async fn hook(
    global: &Global,
    args: LibvirtHookArgs,
    output: &Output,
) -> Result<(), CliError> {
    let step = match (args.operation.as_str(), args.suboperation.as_str()) {
        ("prepare", "begin") => Step::Prepare,
        ("started", "begin") => Step::Started,
        ("reconnect", "begin") => Step::Reconnect,
        ("release", "end") => Step::Release,
        // What libvirt says beside, and what later versions may.
        _ => return Ok(()),
    };
    if args.dry_run && matches!(step, Step::Started | Step::Reconnect) {
        return Ok(());
    }
    let domain = read(&args.domain)?;
    if domain.devices.is_empty() {
        return Ok(());
    }
    let channel = client::connect(global).await?;
    let steps = Steps::new(global, &args, channel, domain);
    if args.dry_run {
        return steps.tried(matches!(step, Step::Prepare), output).await;
    }
    match step {
        Step::Prepare => steps.prepare().await,
        Step::Started => steps.started().await,
        Step::Reconnect => steps.reconnect().await,
        Step::Release => steps.release().await,
    }
}

enum Step {
    Prepare,
    Started,
    Reconnect,
    Release,
}

fn read(name: &str) -> Result<Domain, CliError> {
    let mut xml = String::new();
    let read = std::io::stdin().read_to_string(&mut xml);
    read.map_err(|error| CliError::failed(format!("read the domain's XML: {error}")))?;
    let domain = Domain::parse(&xml)
        .map_err(|fault| CliError::Usage(format!("the XML of domain {name:?}: {fault}")))?;
    if domain.name == name {
        return Ok(domain);
    }
    Err(CliError::Usage(format!(
        "asked about domain {name:?}, and the XML on standard input is of {:?}",
        domain.name
    )))
}
