//! `berth run`: fetches a reservation's devices and becomes the program that uses them.
//!
//! The process that fetches is the holder, and it stays the same process through the exec: what the
//! record says of the holder is true of the program.

mod cloud_hypervisor;
mod exec;
mod hand;
mod memory;
mod placeholders;
mod qemu;
mod qemu_opts;
#[cfg(test)]
mod testing;

use std::path::Path;

use berth_proto::v1::{self, Backend, Delivery, reservation::State};
use serde::Serialize;
use tonic::{Code, transport::Channel};

use self::hand::Hand;
use super::{Reservations, host, request_id};
use crate::{
    args::{Global, RunArgs, VmmArg},
    client::{self, waited},
    error::CliError,
    handover,
    progress::Waiting,
    render::Output,
};

/// Runs the program in this process's place. Comes back only with `--dry-run`, or in vain.
pub(crate) async fn run(global: &Global, args: RunArgs, output: &Output) -> Result<(), CliError> {
    let vmm = args.vmm.unwrap_or_else(|| guess(&args.command));
    if vmm == VmmArg::Other {
        placeholders::check(&args.command)?;
    }
    let known = match look(global, &args.reservation, output).await {
        Err(CliError::Unreachable { .. }) if !args.dry_run => None,
        known => known?,
    };
    if let Some((_, reservation)) = &known {
        // What can't be filled in is told before anything is fetched.
        let words = fill(&args.command, vmm, &Hand::promised(reservation))?;
        if args.dry_run {
            return output.show(&DryRun { command: words }, |run| shell(&run.command));
        }
    } else if args.dry_run {
        return Err(CliError::failed(format!(
            "what {} hands over is not to be seen at {}; name a socket whose role is viewer or more",
            args.reservation, global.endpoint
        )));
    }
    if let Some((channel, reservation)) = known {
        let (id, stated) = (&reservation.id, reservation.memory_bytes);
        if let Some(text) = memory::warning(&args.command, vmm, id, stated) {
            output.remark(&text);
        }
        attach(channel, &reservation, args.epoch).await?;
    }
    let fetched = handover::fetch(global, args.handover.as_deref(), |client| {
        client.fetch(&args.reservation, args.epoch)
    })?;
    let hand = Hand::fetched(&args.reservation, &fetched)?;
    let words = fill(&args.command, vmm, &hand)?;
    Err(exec::become_program(&words, &args.reservation, fetched))
}

#[derive(Serialize)]
struct DryRun {
    command: Vec<String>,
}

fn guess(command: &[String]) -> VmmArg {
    let name = command.first().and_then(|program| Path::new(program).file_name()?.to_str());
    match name {
        Some("kvm" | "qemu-kvm") => VmmArg::Qemu,
        Some(name) if name.starts_with("qemu-system-") => VmmArg::Qemu,
        Some("cloud-hypervisor") => VmmArg::CloudHypervisor,
        _ => VmmArg::Other,
    }
}

fn fill(words: &[String], vmm: VmmArg, hand: &Hand) -> Result<Vec<String>, CliError> {
    match vmm {
        VmmArg::Qemu => qemu::fill(words, hand),
        VmmArg::CloudHypervisor => cloud_hypervisor::fill(words, hand),
        VmmArg::Other => placeholders::fill(words, hand),
    }
}

/// The reservation as the daemon shows it; `None` where this user may not look. The hand-over socket
/// is open to more people than the other one.
async fn look(
    global: &Global,
    id: &str,
    output: &Output,
) -> Result<Option<(Channel, v1::Reservation)>, CliError> {
    let channel = client::connect(global).await?;
    output.note_simulated(host::simulated(&channel).await);
    let request = v1::GetReservationRequest { id: id.to_owned() };
    match Reservations::new(channel.clone()).get_reservation(request).await {
        Ok(reservation) => Ok(Some((channel, reservation.into_inner()))),
        Err(status) if status.code() == Code::PermissionDenied => Ok(None),
        Err(status) => Err(status.into()),
    }
}

/// Attaches what the daemon attaches, where it isn't yet and is for this user. Of somebody else's
/// the fetch says why not.
async fn attach(
    channel: Channel,
    reservation: &v1::Reservation,
    epoch: u64,
) -> Result<(), CliError> {
    let ours = matches!(reservation.delivery(), Delivery::Held | Delivery::Bound);
    let waits = matches!(reservation.state(), State::Reserved | State::Preparing);
    let me = format!("uid:{}", rustix::process::geteuid().as_raw());
    let for_me = reservation.holder.as_ref().is_some_and(|holder| holder.for_identity == me);
    if !(ours && waits && for_me) {
        return Ok(());
    }
    let request = v1::AttachRequest {
        id: reservation.id.clone(),
        epoch,
        request_id: request_id(None),
        ..v1::AttachRequest::default()
    };
    let waiting = Waiting::about("attach", &channel, &request.id);
    let client = Reservations::new(channel);
    let attached = waited(waiting, || {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.attach(request).await }
    });
    attached.await.map(drop)
}

/// # Errors
/// The delivery is one that a VMM which binds devices by itself can't use.
fn binds_by_itself(vmm: &str, hand: &Hand) -> Result<(), CliError> {
    if matches!(hand.delivery, Delivery::Unbound | Delivery::Node) {
        return Ok(());
    }
    let ways = match hand.backend {
        Backend::Type1 => ["reserve with --delivery node"].as_slice(),
        _ => &["reserve with --delivery unbound", "reserve with --delivery node"],
    };
    let (id, delivery) = (&hand.reservation, hand.delivery_word());
    let refusal = v1::Refusal {
        reason: "UNSUPPORTED".to_owned(),
        object: id.clone(),
        message: format!("{vmm} binds devices by itself, and {id} has delivery {delivery}"),
        resolve: ways.iter().map(|way| (*way).to_owned()).collect(),
        ..v1::Refusal::default()
    };
    Err(CliError::Refused(Box::new(refusal), 3))
}

/// # Errors
/// The kernel asks for a VF token, and the VMM has no way to show one.
fn shows_no_token(vmm: &str, hand: &Hand, ways: &[&str]) -> Result<(), CliError> {
    let Some(device) = hand.devices.iter().find(|device| device.vf_token.is_some()) else {
        return Ok(());
    };
    let (id, address, backend) = (&hand.reservation, &device.address, hand.backend_word());
    let host_driver = "make the VFs under the PF's host driver, which takes no token".to_owned();
    let refusal = v1::Refusal {
        reason: "UNSUPPORTED".to_owned(),
        object: id.clone(),
        message: format!(
            "the PF of {address} is on vfio-pci, so the kernel asks who opens it for a VF token, and \
             {vmm} shows none on {backend}"
        ),
        resolve: ways.iter().map(|way| (*way).to_owned()).chain([host_driver]).collect(),
        ..v1::Refusal::default()
    };
    Err(CliError::Refused(Box::new(refusal), 3))
}

/// The words as a shell reads them.
fn shell(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    let quoted = |word: &String| match !word.is_empty() && word.chars().all(plain) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmm_is_known_by_its_name() {
        for (name, vmm) in [
            ("qemu-system-x86_64", VmmArg::Qemu),
            ("/usr/bin/qemu-system-aarch64", VmmArg::Qemu),
            ("/usr/libexec/qemu-kvm", VmmArg::Qemu),
            ("kvm", VmmArg::Qemu),
            ("./cloud-hypervisor", VmmArg::CloudHypervisor),
            ("qemu-img", VmmArg::Other),
            ("./driver", VmmArg::Other),
        ] {
            assert_eq!(guess(&[name.to_owned()]), vmm, "{name}");
        }
    }

    #[test]
    fn a_dry_run_can_be_pasted() {
        let words = ["qemu", "-device", "vfio-pci,fd={device:0000:65:00.0}", "it's", ""];
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let line = r"qemu -device 'vfio-pci,fd={device:0000:65:00.0}' 'it'\''s' ''";
        assert_eq!(shell(&words), line);
    }
}
