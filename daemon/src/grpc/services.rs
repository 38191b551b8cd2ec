//! One method per call: caller in, status out. What it does is in [`crate::service`].

use std::{pin::Pin, sync::Arc};

use berth_ownership::Reason;
use berth_proto::v1;
use futures::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::{Grpc, close, status};
use crate::model::ApiError;

macro_rules! service {
    ($module:ident::$trait:ident { $($method:ident: $request:ident => $response:ident,)* }) => {
        #[tonic::async_trait]
        impl v1::$module::$trait for Grpc {
            $(
                async fn $method(
                    &self,
                    request: Request<v1::$request>,
                ) -> Result<Response<v1::$response>, Status> {
                    let answer = match self.open(request) {
                        Ok((caller, message)) => self.front.service.$method(&caller, message).await,
                        Err(error) => Err(error),
                    };
                    close(&self.front.metrics, answer)
                }
            )*
        }
    };
}

service!(groups_server::Groups {
    list_groups: ListGroupsRequest => ListGroupsResponse,
    get_group: GetGroupRequest => Group,
    explain: ExplainRequest => Explanation,
});

service!(devices_server::Devices {
    list_devices: ListDevicesRequest => ListDevicesResponse,
    get_device: GetDeviceRequest => Device,
    query_kernel_dma: QueryKernelDmaRequest => KernelDma,
    set_kernel_dma: SetKernelDmaRequest => KernelDma,
    release_kernel_dma: ReleaseKernelDmaRequest => KernelDma,
    cordon: CordonRequest => Device,
    uncordon: UncordonRequest => Device,
    clear_quarantine: ClearQuarantineRequest => Device,
});

service!(reservations_server::Reservations {
    list_reservations: ListReservationsRequest => ListReservationsResponse,
    get_reservation: GetReservationRequest => Reservation,
    reserve: ReserveRequest => Reservation,
    renew: RenewRequest => Reservation,
    attach: AttachRequest => Reservation,
    detach: DetachRequest => Reservation,
    replace: ReplaceRequest => Reservation,
    release: ReleaseRequest => Reservation,
    revoke: RevokeRequest => Reservation,
});

service!(domains_server::Domains {
    list_domains: ListDomainsRequest => ListDomainsResponse,
    get_domain: GetDomainRequest => Domain,
    create_domain: CreateDomainRequest => Domain,
    delete_domain: DeleteDomainRequest => DeleteDomainResponse,
});

service!(host_server::Host {
    get_capabilities: GetCapabilitiesRequest => Capabilities,
    get_snapshot: GetSnapshotRequest => Snapshot,
});

type EventStream = Pin<Box<dyn Stream<Item = Result<v1::Event, Status>> + Send>>;

#[tonic::async_trait]
impl v1::events_server::Events for Grpc {
    type WatchStream = EventStream;

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        let answer = match self.open(request) {
            Ok((caller, message)) => self.front.service.list_events(&caller, message).await,
            Err(error) => Err(error),
        };
        close(&self.front.metrics, answer)
    }

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let answer = self.watch_events(request).await;
        close(&self.front.metrics, answer)
    }
}

impl Grpc {
    async fn watch_events(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<EventStream, ApiError> {
        let (caller, message) = self.open(request)?;
        let permit = Arc::clone(&self.front.watchers).try_acquire_owned().map_err(|_| {
            ApiError::new(Reason::Unavailable, "events", "too many clients follow the events")
        })?;
        let events = self.front.service.watch(&caller, message).await?;
        let stopping = self.front.stopping.clone();
        let events = events
            .map(move |event| {
                // The permit lives as long as the stream does.
                let _counted = &permit;
                event.map_err(|error| status(&error))
            })
            .take_until(stopping.cancelled_owned());
        Ok(Box::pin(events))
    }
}
