//! What is done when a domain starts, runs and ends.

use std::{
    env, fs,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use berth_proto::v1::{self, reservation::State};
use rustix::process::{Pid, PidfdFlags, geteuid, pidfd_open};
use tonic::transport::Channel;

use super::{domain::Domain, place};
use crate::{
    args::{Global, LibvirtHookArgs},
    client::retried,
    commands::{Reservations, request_id},
    error::CliError,
    handover,
    quantity::millis,
};

/// What a device may take to leave its host driver, or to be reset.
const WAIT: Duration = Duration::from_mins(2);
/// What a holder may take to end that was there before its domain starts.
const LEFT: Duration = Duration::from_secs(10);
/// Between two looks at what takes time.
const LOOK: Duration = Duration::from_millis(200);

/// One call of the hook.
#[derive(Debug)]
pub(super) struct Steps<'a> {
    global: &'a Global,
    handover: Option<&'a str>,
    run_dir: PathBuf,
    pub(super) client: Reservations,
    domain: Domain,
}

impl<'a> Steps<'a> {
    pub(super) fn new(
        global: &'a Global,
        args: &'a LibvirtHookArgs,
        channel: Channel,
        domain: Domain,
    ) -> Self {
        let run_dir = args.run_dir.clone().unwrap_or_else(run_dir);
        let client = Reservations::new(channel);
        Self { global, handover: args.handover.as_deref(), run_dir, client, domain }
    }

    /// Reserves the domain's devices, and lets QEMU's user open their nodes.
    pub(super) async fn prepare(&self) -> Result<(), CliError> {
        // What is left of a start that libvirt didn't live to end.
        for left in self.reservations().await? {
            self.give_back(&left, LEFT).await?;
        }
        let uid = place::uid_of(self.domain.user.as_deref())?;
        let reserved = self.reserve(uid, false).await?;
        let handed = self.settled(reserved.clone()).await.and_then(|_| {
            let stand_in = place::start(&reserved.id, uid)?;
            self.hand_to(&reserved.id, stand_in)
        });
        let Err(error) = handed else { return Ok(()) };
        // The domain doesn't start, so nothing stays reserved for it.
        if let Err(also) = self.give_back(&reserved, WAIT).await {
            also.print();
        }
        Err(error)
    }

    /// QEMU runs: the devices are with it now.
    pub(super) async fn started(&self) -> Result<(), CliError> {
        match self.reservations().await?.first() {
            Some(reservation) => self.name_qemu(&reservation.id),
            None => Err(CliError::failed(format!(
                "domain {} has no reservation: was it prepared?",
                self.domain.name
            ))),
        }
    }

    /// libvirt came back, and the domain ran on: its end, and who has the devices, may have been missed.
    pub(super) async fn reconnect(&self) -> Result<(), CliError> {
        match self.reservations().await?.first() {
            Some(reservation) => self.name_qemu(&reservation.id),
            // It was started without the hook.
            None => {
                eprintln!(
                    "berth: domain {name} has devices and no reservation; to record it: berth adopt \
                     --pid $(cat {}) --holder {}",
                    self.pid_file().display(),
                    self.holder(),
                    name = self.domain.name,
                );
                Ok(())
            }
        }
    }

    /// The domain is over: its devices go back.
    pub(super) async fn release(&self) -> Result<(), CliError> {
        for reservation in self.reservations().await? {
            self.give_back(&reservation, WAIT).await?;
        }
        Ok(())
    }

    /// The trust label: two domains never share a context.
    fn label(&self) -> String {
        format!("libvirt/{}", self.domain.uuid)
    }

    /// The domain's name, without what a holder's name can't have.
    fn holder(&self) -> String {
        let plain = |c: char| if c.is_whitespace() || c.is_control() { '_' } else { c };
        let name: String = self.domain.name.chars().map(plain).collect();
        // 128 bytes are allowed; the label tells domains apart.
        if name.len() > 120 { self.label() } else { format!("libvirt/{name}") }
    }

    pub(super) async fn reservations(&self) -> Result<Vec<v1::Reservation>, CliError> {
        let list = self.client.clone().list_reservations(v1::ListReservationsRequest {}).await?;
        let (label, mut found) = (self.label(), list.into_inner().reservations);
        found.retain(|it| it.label == label && it.state() != State::Released);
        Ok(found)
    }

    async fn reserve(&self, uid: u32, dry_run: bool) -> Result<v1::Reservation, CliError> {
        let backend = if self.domain.iommufd { v1::Backend::Iommufd } else { v1::Backend::Type1 };
        let request = v1::ReserveRequest {
            holder: self.holder(),
            label: self.label(),
            devices: self.domain.devices.clone(),
            policy: v1::Policy::Group.into(),
            delivery: v1::Delivery::Node.into(),
            backend: backend.into(),
            for_identity: format!("uid:{uid}"),
            memory_bytes: self.domain.memory_bytes,
            take_from_host: true,
            request_id: request_id(None),
            wait_ms: millis(WAIT),
            dry_run,
            ..v1::ReserveRequest::default()
        };
        retried(|| {
            let (mut client, request) = (self.client.clone(), request.clone());
            async move { client.reserve(request).await }
        })
        .await
    }

    /// The reservation as it would be, with what would be written for it.
    pub(super) async fn reserve_tried(&self) -> Result<v1::Reservation, CliError> {
        self.reserve(place::uid_of(self.domain.user.as_deref())?, true).await
    }

    /// Waits until the work on a reservation is done.
    async fn settled(&self, mut reservation: v1::Reservation) -> Result<(), CliError> {
        let begin = Instant::now();
        while reservation.state() == State::Preparing && begin.elapsed() < WAIT {
            tokio::time::sleep(LOOK).await;
            let request = v1::GetReservationRequest { id: reservation.id.clone() };
            reservation = self.client.clone().get_reservation(request).await?.into_inner();
        }
        match reservation.state() {
            State::Reserved => Ok(()),
            State::Preparing => Err(CliError::TimedOut(WAIT)),
            state => Err(reservation.last_failure.map_or_else(
                || CliError::failed(format!("{} is {}", reservation.id, state.as_str_name())),
                |refusal| CliError::Refused(Box::new(refusal), 3),
            )),
        }
    }

    fn hand_to(&self, reservation: &str, process: OwnedFd) -> Result<(), CliError> {
        handover::fetch(self.global, self.handover, |client| {
            client.fetch_for(reservation, 0, process.as_fd())
        })
        .map(drop)
    }

    fn pid_file(&self) -> PathBuf {
        self.run_dir.join(format!("{}.pid", self.domain.name))
    }

    fn name_qemu(&self, reservation: &str) -> Result<(), CliError> {
        let path = self.pid_file();
        let failed =
            |what: String| CliError::failed(format!("QEMU of {}: {what}", self.domain.name));
        let text = fs::read_to_string(&path)
            .map_err(|error| failed(format!("read {}: {error}", path.display())))?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| failed(format!("{} has no pid", path.display())))?;
        let process = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|errno| failed(format!("process {}: {errno}", pid.as_raw_pid())))?;
        self.hand_to(reservation, process)?;
        place::end(reservation);
        Ok(())
    }

    /// Releases a reservation. Its holder, where there was one, is dead or about to be.
    async fn give_back(
        &self,
        reservation: &v1::Reservation,
        patience: Duration,
    ) -> Result<(), CliError> {
        place::end(&reservation.id);
        let begin = Instant::now();
        loop {
            let request = v1::ReleaseRequest {
                id: reservation.id.clone(),
                request_id: request_id(None),
                wait_ms: millis(WAIT),
                ..v1::ReleaseRequest::default()
            };
            let released = retried(|| {
                let (mut client, request) = (self.client.clone(), request.clone());
                async move { client.release(request).await }
            })
            .await;
            match released {
                Ok(_) => return Ok(()),
                // The daemon hasn't seen the end of the holder yet.
                Err(error) if error.exit_code() == 3 && begin.elapsed() < patience => {
                    tokio::time::sleep(LOOK).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Where libvirt has the pid files of its QEMUs.
fn run_dir() -> PathBuf {
    let session = env::var_os("XDG_RUNTIME_DIR").filter(|_| !geteuid().is_root());
    session.map_or_else(
        || PathBuf::from("/run/libvirt/qemu"),
        |dir| PathBuf::from(dir).join("libvirt/qemu/run"),
    )
}
