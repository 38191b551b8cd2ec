//! Questions by gRPC, and their answers in the words of the table.

use berth_ownership::{Cell, Policy};
use berth_proto::v1;
use prost::Message as _;
use tonic::Status;

use crate::world::World;

/// What differs from the table, in words.
pub(crate) type Verdict = Result<(), String>;

/// A refusal as a client sees it.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    pub(crate) reason: String,
    pub(crate) errno: i32,
    pub(crate) message: String,
}

/// An answer as a client sees it.
pub(crate) type Answer<T> = Result<T, Refused>;

/// How long a call waits for kernel work that must succeed.
const WAIT_MS: u64 = 60_000;
/// How long a call waits where the table refuses, or where the work can't end.
const GLANCE_MS: u64 = 20;

/// The label under which everything is reserved that may be shared.
pub(crate) const LABEL: &str = "blue";
/// Another one.
pub(crate) const OTHER_LABEL: &str = "red";

fn refused(status: Status) -> Refused {
    let found = tonic_types::pb::Status::decode(status.details()).ok().and_then(|details| {
        details
            .details
            .iter()
            .find(|any| any.type_url == berth_proto::REFUSAL_TYPE_URL)
            .and_then(|any| v1::Refusal::decode(&*any.value).ok())
    });
    match found {
        Some(refusal) => {
            Refused { reason: refusal.reason, errno: refusal.errno, message: refusal.message }
        }
        None => Refused {
            reason: format!("{:?} without a refusal", status.code()),
            errno: 0,
            message: status.message().to_owned(),
        },
    }
}

fn pci(address: &str) -> v1::DeviceAddress {
    v1::DeviceAddress { kind: Some(v1::device_address::Kind::Pci(address.to_owned())) }
}

fn policy_word(policy: Policy) -> v1::Policy {
    match policy {
        Policy::Exclusive => v1::Policy::Exclusive,
        Policy::Shared => v1::Policy::Shared,
        Policy::Group => v1::Policy::Group,
    }
}

/// A request for a device.
pub(crate) fn wish(policy: Policy, device: &str) -> v1::ReserveRequest {
    v1::ReserveRequest {
        holder: "vm".to_owned(),
        devices: vec![pci(device)],
        policy: policy_word(policy).into(),
        label: LABEL.to_owned(),
        wait_ms: WAIT_MS,
        ..v1::ReserveRequest::default()
    }
}

/// An order by gRPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Attach,
    Detach,
    /// To this domain.
    Replace(String),
    Release,
    Force,
    /// For so many milliseconds.
    Renew(u64),
}

/// Whether a call waits for its kernel work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Done,
    No,
}

impl Wait {
    /// Waits where the table allows: a refusal comes at once, and nobody waits for what must not
    /// have begun.
    pub(crate) fn for_cell<N>(cell: &Cell<N>) -> Self {
        match cell {
            Cell::Next(_) => Self::Done,
            Cell::Refuse(..) => Self::No,
        }
    }

    fn ms(self) -> u64 {
        match self {
            Self::Done => WAIT_MS,
            Self::No => GLANCE_MS,
        }
    }
}

impl World {
    fn reservations(
        &self,
    ) -> v1::reservations_client::ReservationsClient<tonic::transport::Channel> {
        v1::reservations_client::ReservationsClient::new(self.channel.clone())
    }

    fn devices(&self) -> v1::devices_client::DevicesClient<tonic::transport::Channel> {
        v1::devices_client::DevicesClient::new(self.channel.clone())
    }

    /// Asks for a reservation; what presents nothing is on the world's back end.
    pub(crate) async fn reserve(&self, mut request: v1::ReserveRequest) -> Answer<v1::Reservation> {
        if request.domain.is_empty() && request.join.is_empty() {
            request.backend = self.backend.into();
        }
        let answer = self.reservations().reserve(request).await;
        answer.map(tonic::Response::into_inner).map_err(refused)
    }

    pub(crate) async fn order(&self, id: &str, ask: &Ask, wait: Wait) -> Answer<v1::Reservation> {
        let id = id.to_owned();
        let mut client = self.reservations();
        let (wait_ms, no_wait) = (WAIT_MS, wait == Wait::No);
        let (epoch, request_id) = (0, String::new());
        let answer = match ask.clone() {
            Ask::Attach => {
                let request = v1::AttachRequest {
                    id,
                    epoch,
                    request_id,
                    wait_ms,
                    no_wait,
                    domain: String::new(),
                };
                client.attach(request).await
            }
            Ask::Detach => {
                let request = v1::DetachRequest { id, epoch, request_id, wait_ms, no_wait };
                client.detach(request).await
            }
            Ask::Replace(domain) => {
                let request =
                    v1::ReplaceRequest { id, epoch, domain, request_id, wait_ms, no_wait };
                client.replace(request).await
            }
            Ask::Release | Ask::Force => {
                let force = *ask == Ask::Force;
                let request = v1::ReleaseRequest {
                    id,
                    epoch,
                    force,
                    request_id,
                    wait_ms,
                    no_wait,
                    dry_run: false,
                };
                client.release(request).await
            }
            Ask::Renew(ttl_ms) => {
                client.renew(v1::RenewRequest { id, epoch, ttl_ms, request_id }).await
            }
        };
        answer.map(tonic::Response::into_inner).map_err(refused)
    }

    pub(crate) async fn reservation(&self, id: &str) -> Answer<v1::Reservation> {
        let request = v1::GetReservationRequest { id: id.to_owned() };
        let answer = self.reservations().get_reservation(request).await;
        answer.map(tonic::Response::into_inner).map_err(refused)
    }

    pub(crate) async fn group(&self, member: &str) -> Answer<v1::Group> {
        let mut client = v1::groups_client::GroupsClient::new(self.channel.clone());
        let answer = client.get_group(v1::GetGroupRequest { group: member.to_owned() }).await;
        answer.map(tonic::Response::into_inner).map_err(refused)
    }

    pub(crate) async fn device(&self, address: &str) -> Answer<v1::Device> {
        let request = v1::GetDeviceRequest { device: Some(pci(address)) };
        let answer = self.devices().get_device(request).await;
        answer.map(tonic::Response::into_inner).map_err(refused)
    }

    pub(crate) async fn cordon(&self, address: &str) -> Answer<v1::Device> {
        let request = v1::CordonRequest {
            device: Some(pci(address)),
            note: "walk".to_owned(),
            request_id: String::new(),
            ttl_ms: 0,
        };
        let answer = self.devices().cordon(request).await;
        answer.map(tonic::Response::into_inner).map_err(refused)
    }

    pub(crate) async fn set_kernel_dma(&self, address: &str, wait: Wait) -> Answer<v1::KernelDma> {
        let request = v1::SetKernelDmaRequest {
            device: Some(pci(address)),
            driver: "nvme".to_owned(),
            request_id: String::new(),
            wait_ms: wait.ms(),
            dry_run: false,
        };
        let answer = self.devices().set_kernel_dma(request).await;
        answer.map(tonic::Response::into_inner).map_err(refused)
    }

    pub(crate) async fn release_kernel_dma(
        &self,
        address: &str,
        anyway: bool,
        wait: Wait,
    ) -> Answer<v1::KernelDma> {
        let request = v1::ReleaseKernelDmaRequest {
            device: Some(pci(address)),
            host_uses_it_anyway: anyway,
            request_id: String::new(),
            wait_ms: wait.ms(),
            dry_run: false,
        };
        let answer = self.devices().release_kernel_dma(request).await;
        answer.map(tonic::Response::into_inner).map_err(refused)
    }

    /// A domain to replace a reservation's by: another one where its context can have two.
    pub(crate) async fn other_domain(&self, id: &str, domain: &str) -> Result<String, String> {
        match self.backend {
            v1::Backend::Type1 => Ok(domain.to_owned()),
            _ => arranging("a domain", self.create_domain(Some(id)).await),
        }
    }

    /// What follows where a cell allows a replace: a type1 container has one domain for good.
    pub(crate) fn then_replaced(&self) -> Then {
        match self.backend {
            v1::Backend::Type1 => Then::Refused("BACKEND_CANNOT"),
            _ => Then::Done,
        }
    }

    /// A domain in the context of a reservation, or in a new one for policy shared.
    pub(crate) async fn create_domain(&self, reservation: Option<&str>) -> Answer<String> {
        let (label, backend) = match reservation {
            None => (LABEL.to_owned(), self.backend),
            Some(_) => (String::new(), v1::Backend::Auto),
        };
        let request = v1::CreateDomainRequest {
            context: reservation.unwrap_or_default().to_owned(),
            label,
            backend: backend.into(),
            request_id: String::new(),
        };
        let mut client = v1::domains_client::DomainsClient::new(self.channel.clone());
        let answer = client.create_domain(request).await;
        answer.map(|answer| answer.into_inner().id).map_err(refused)
    }
}

/// What follows where a cell allows: the operation is done, or a rule that no cell has refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Done,
    /// By this reason.
    Refused(&'static str),
}

/// Compares an answer with a cell. `words` begin the message of a refusal by the table, so that
/// one by somebody else doesn't pass for it.
pub(crate) fn compare<N: std::fmt::Debug, T>(
    cell: &Cell<N>,
    words: &str,
    then: Then,
    answer: &Answer<T>,
) -> Verdict {
    match (cell, answer) {
        (Cell::Refuse(reason, errno), Err(refused)) => {
            let same = refused.reason == reason.name()
                && refused.errno == errno.number
                && refused.message.starts_with(words);
            same.then_some(()).ok_or_else(|| {
                format!(
                    "the table refuses with {reason} ({errno}) in \"{words} ...\", not {refused:?}"
                )
            })
        }
        (Cell::Refuse(reason, _), Ok(_)) => {
            Err(format!("the table refuses with {reason}; it is done"))
        }
        (Cell::Next(_), Ok(_)) if then == Then::Done => Ok(()),
        (Cell::Next(next), Ok(_)) => Err(format!("{next:?} and then {then:?}; it is done")),
        (Cell::Next(next), Err(refused)) => match then {
            Then::Refused(reason) if refused.reason == reason => Ok(()),
            _ => Err(format!("the table says {next:?} and then {then:?}, not {refused:?}")),
        },
    }
}

/// Words for what was to be arranged and wasn't.
pub(crate) fn arranging<T>(what: &str, answer: Answer<T>) -> Result<T, String> {
    answer.map_err(|refused| format!("arranging {what}: {refused:?}"))
}
