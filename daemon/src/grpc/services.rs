//! One method per call: caller in, status out. What it does is in [`crate::service`].

use std::pin::Pin;

use berth_proto::v1;
use futures::Stream;
use tonic::{Request, Response, Status};

use super::{Grpc, close};
use crate::{service::served, view};

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
                        Ok((caller, message)) => {
                            let answer = self.front.service.$method(&caller, message).await;
                            served(&caller, stringify!($method), answer)
                        }
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
    set_sriov: SetSriovRequest => Sriov,
});

service!(reservations_server::Reservations {
    list_reservations: ListReservationsRequest => ListReservationsResponse,
    get_reservation: GetReservationRequest => Reservation,
    reserve: ReserveRequest => Reservation,
    adopt: AdoptRequest => Reservation,
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
    diagnose: DiagnoseRequest => Diagnosis,
    list_quotas: ListQuotasRequest => ListQuotasResponse,
    get_config: GetConfigRequest => ConfigState,
    create_web_session: CreateWebSessionRequest => WebSessionLink,
    what_if: WhatIfRequest => WhatIfResponse,
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
            Ok((caller, message)) => {
                let answer = self.front.service.list_events(&caller, message).await;
                served(&caller, "list_events", answer)
            }
            Err(error) => Err(error),
        };
        close(&self.front.metrics, answer)
    }

    // The router has `super::watch` at this path.
    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<EventStream>, Status> {
        self.watch_as(request, |event| view::event(event.record())).await
    }
}
