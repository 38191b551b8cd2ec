//! The client of `berthd`: its gRPC socket for orders, its hand-over socket for the nodes.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use berth_handover::{Client, ClientError, NodeInfo};
use berth_proto::{
    REFUSAL_TYPE_URL,
    v1::{
        self, events_client::EventsClient, groups_client::GroupsClient,
        reservations_client::ReservationsClient,
    },
};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::net::UnixStream;
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint, Uri},
};

/// How the holders of our reservations are called: this, and the allocation's name.
pub const HOLDER_PREFIX: &str = "kubelet:";

/// How long an order waits for the kernel: the kubelet waits 30 s in all.
const WAIT_MS: u64 = 15_000;
/// The same of a release: the next one that asks finds it done, and others wait for their turn.
const RELEASE_WAIT_MS: u64 = 3_000;
/// How long any answer is waited for.
const PATIENCE: Duration = Duration::from_secs(25);

/// Why `berthd` didn't do it.
#[derive(Debug, thiserror::Error)]
pub enum BerthdError {
    /// It refused.
    #[error("{}", text_of(.0))]
    Refused(Box<v1::Refusal>),
    /// Another answer than a refusal, or none.
    #[error("berthd: {0}")]
    Status(Box<Status>),
    /// The hand-over socket.
    #[error(transparent)]
    HandOver(#[from] ClientError),
}

impl From<Status> for BerthdError {
    fn from(status: Status) -> Self {
        refusal_of(&status)
            .map_or_else(|| Self::Status(Box::new(status)), |refusal| Self::Refused(refusal.into()))
    }
}

impl BerthdError {
    /// Whether what was asked about isn't there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.reason == "NOT_FOUND",
            Self::Status(status) => status.code() == Code::NotFound,
            Self::HandOver(_) => false,
        }
    }
}

fn text_of(refusal: &v1::Refusal) -> String {
    let owner = refusal.owner.as_ref();
    let holder = owner.map(|owner| owner.holder.as_str()).filter(|holder| !holder.is_empty());
    let by = holder.map(|holder| format!("held by {holder}: ")).unwrap_or_default();
    let processes: Vec<String> = owner
        .iter()
        .flat_map(|owner| &owner.processes)
        .map(|process| format!("{} ({})", process.name, process.pid))
        .collect();
    let open =
        if processes.is_empty() { String::new() } else { format!("; by {}", processes.join(", ")) };
    let resolve = refusal.resolve.first().map(|way| format!("; {way}")).unwrap_or_default();
    format!("{by}{}: {}{open}{resolve}", refusal.reason, refusal.message)
}

fn refusal_of(status: &Status) -> Option<v1::Refusal> {
    let details = tonic_types::pb::Status::decode(status.details()).ok()?;
    let any = details.details.into_iter().find(|any| any.type_url == REFUSAL_TYPE_URL)?;
    v1::Refusal::decode(any.value.as_slice()).ok()
}

/// A channel over a unix socket, which connects when it is used and again when that was lost.
#[must_use]
pub(crate) fn channel(path: &Path) -> Channel {
    let path = path.to_owned();
    Endpoint::from_static("http://localhost").timeout(PATIENCE).connect_with_connector_lazy(
        tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }),
    )
}

/// `berthd`, as an orchestrator sees it.
#[derive(Debug, Clone)]
pub struct Berthd {
    channel: Channel,
    handover: PathBuf,
}

impl Berthd {
    /// By its sockets, which needn't be there yet.
    #[must_use]
    pub fn new(grpc: &Path, handover: &Path) -> Self {
        Self { channel: channel(grpc), handover: handover.to_owned() }
    }

    fn reservations(&self) -> ReservationsClient<Channel> {
        ReservationsClient::new(self.channel.clone())
    }

    /// All groups.
    ///
    /// # Errors
    /// No answer.
    pub async fn groups(&self) -> Result<v1::ListGroupsResponse, BerthdError> {
        let mut client = GroupsClient::new(self.channel.clone());
        Ok(client.list_groups(v1::ListGroupsRequest {}).await?.into_inner())
    }

    /// Every event after this one.
    ///
    /// # Errors
    /// No answer; `EVENTS_COMPACTED`.
    pub async fn watch(&self, since: u64) -> Result<Streaming<v1::Event>, BerthdError> {
        let mut client = EventsClient::new(self.channel.clone());
        let request = v1::WatchRequest { since_seq: Some(since), ..v1::WatchRequest::default() };
        Ok(client.watch(request).await?.into_inner())
    }

    /// All reservations, whoever's they are.
    ///
    /// # Errors
    /// No answer.
    pub async fn list(&self) -> Result<Vec<v1::Reservation>, BerthdError> {
        let answer = self.reservations().list_reservations(v1::ListReservationsRequest {}).await?;
        Ok(answer.into_inner().reservations)
    }

    /// One reservation; none where it isn't there any more.
    ///
    /// # Errors
    /// No answer.
    pub async fn get(&self, id: &str) -> Result<Option<v1::Reservation>, BerthdError> {
        let request = v1::GetReservationRequest { id: id.to_owned() };
        match self.reservations().get_reservation(request).await.map_err(BerthdError::from) {
            Ok(answer) => Ok(Some(answer.into_inner())),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reserves. The same request id gets the same answer.
    ///
    /// # Errors
    /// A refusal, or no answer.
    pub async fn reserve(
        &self,
        request: v1::ReserveRequest,
    ) -> Result<v1::Reservation, BerthdError> {
        let request = v1::ReserveRequest { wait_ms: WAIT_MS, ..request };
        Ok(self.reservations().reserve(request).await?.into_inner())
    }

    /// Attaches its devices.
    ///
    /// # Errors
    /// A refusal, or no answer.
    pub async fn attach(&self, id: &str, epoch: u64) -> Result<v1::Reservation, BerthdError> {
        let request = v1::AttachRequest {
            id: id.to_owned(),
            epoch,
            request_id: uuid::Uuid::new_v4().to_string(),
            wait_ms: WAIT_MS,
            ..v1::AttachRequest::default()
        };
        Ok(self.reservations().attach(request).await?.into_inner())
    }

    /// Gives back, if nobody has it open.
    ///
    /// # Errors
    /// `HOLDER_DRAINING` where somebody has; other refusals, or no answer.
    pub async fn release(&self, id: &str) -> Result<v1::Reservation, BerthdError> {
        let request = v1::ReleaseRequest {
            id: id.to_owned(),
            request_id: uuid::Uuid::new_v4().to_string(),
            wait_ms: RELEASE_WAIT_MS,
            ..v1::ReleaseRequest::default()
        };
        Ok(self.reservations().release(request).await?.into_inner())
    }

    /// Who has a device of a group open, by name and pid.
    ///
    /// # Errors
    /// No answer, or no such group.
    pub async fn open_in(&self, group: &str) -> Result<Vec<String>, BerthdError> {
        let mut client = GroupsClient::new(self.channel.clone());
        let object = group.to_owned();
        let request = v1::ExplainRequest { object, ..v1::ExplainRequest::default() };
        let answer = client.explain(request).await?.into_inner();
        let processes = answer.devices.into_iter().flat_map(|device| device.processes);
        Ok(processes.map(|process| format!("{} (pid {})", process.name, process.pid)).collect())
    }

    /// Makes this process the reservation's holder, drops the kernel's hold, and tells which nodes
    /// a container opens.
    ///
    /// # Errors
    /// A refusal of the hand-over socket, or no answer.
    pub async fn hand_over(&self, id: &str, epoch: u64) -> Result<Vec<NodeInfo>, BerthdError> {
        let (path, id) = (self.handover.clone(), id.to_owned());
        let fetch = move || {
            let client = Client::connect(path)?;
            client.wait_at_most(PATIENCE)?;
            client.fetch(&id, epoch)
        };
        let fetched = tokio::task::spawn_blocking(fetch).await;
        let fetched = fetched.map_err(|error| Status::internal(error.to_string()))??;
        Ok(fetched.nodes().to_vec())
    }
}
