//! The one table of REST routes. The router and the OpenAPI document are both made from it.

use std::{future::Future, pin::Pin, sync::Arc};

use berth_proto::v1;
use http::Method;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    model::{ApiError, Caller},
    service::{Service, served},
};

/// An answer on its way: the proto3 JSON of the response.
pub(crate) type Answer = Pin<Box<dyn Future<Output = Result<Vec<u8>, ApiError>> + Send>>;

/// One method of one path.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) method: Method,
    /// Path and OpenAPI template at once.
    pub(crate) path: &'static str,
    /// Service and method in `berth.v1`.
    pub(crate) rpc: (&'static str, &'static str),
    /// Where the path's parameter goes.
    pub(crate) param: Option<Param>,
    /// Whether the request's other fields are in the body, else in the query.
    pub(crate) body: bool,
    /// Several calls can share a method and a path; the body's `action` chooses among them.
    pub(crate) action: Option<&'static str>,
    /// The status of success.
    pub(crate) status: u16,
    /// How the answer is given.
    pub(crate) answer: Reply,
    pub(crate) call: fn(Arc<Service>, Caller, Value) -> Answer,
}

/// How a call answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    /// One JSON document.
    Document,
    /// One JSON document that depends on nothing but what is published, the same for everybody who
    /// may read: it is kept while that is published.
    State,
    /// A JSON document, or server-sent events, by what the client accepts.
    DocumentOrEvents,
}

/// A path parameter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Param {
    /// Its name in the path.
    pub(crate) name: &'static str,
    /// The JSON name of the request's field.
    pub(crate) field: &'static str,
    pub(crate) kind: ParamKind,
}

/// What a path parameter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ParamKind {
    /// The field's text.
    Text,
    /// A device's address, in any form that is accepted.
    Address,
}

const NONE: Option<Param> = None;
const ID: Option<Param> = Some(Param { name: "id", field: "id", kind: ParamKind::Text });
const GROUP: Option<Param> = Some(Param { name: "group", field: "group", kind: ParamKind::Text });
const DEVICE: Option<Param> =
    Some(Param { name: "address", field: "device", kind: ParamKind::Address });
const GROUP_OBJECT: Option<Param> =
    Some(Param { name: "group", field: "object", kind: ParamKind::Text });
const DEVICE_OBJECT: Option<Param> =
    Some(Param { name: "address", field: "object", kind: ParamKind::Text });

/// Reads the request out of its JSON. The error names the field.
fn request<T: DeserializeOwned>(body: Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(body).map_err(|error| {
        let (place, cause) = (error.path().to_string(), error.inner().to_string());
        let way_out = "correct the field; /api/v1/openapi.json describes every request";
        if place == "." {
            return ApiError::invalid_argument("request", cause, way_out);
        }
        ApiError::invalid_argument(&place, format!("{place}: {cause}"), way_out)
    })
}

fn json<T: Serialize>(answer: &T) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(answer).map_err(|error| ApiError::internal("answer", error.to_string()))
}

macro_rules! routes {
    ($($verb:ident $path:literal $param:ident $(($action:literal))?, $body:ident, $status:literal
        $service:ident/$rpc:ident $method:ident($request:ident) $reply:ident;)*) => {
        /// Every route.
        pub(crate) static ROUTES: &[Route] = &[$(
            Route {
                method: Method::$verb,
                path: $path,
                rpc: (stringify!($service), stringify!($rpc)),
                param: $param,
                body: is_body(stringify!($body)),
                action: routes!(@action $($action)?),
                status: $status,
                answer: Reply::$reply,
                call: |service, caller, body| Box::pin(async move {
                    let request: v1::$request = request(body)?;
                    let answer = service.$method(&caller, request).await;
                    json(&served(&caller, stringify!($method), answer)?)
                }),
            },
        )*];
    };
    (@action) => { None };
    (@action $action:literal) => { Some($action) };
}

const fn is_body(word: &str) -> bool {
    matches!(word.as_bytes(), b"body")
}

routes! {
    GET "/api/v1/groups" NONE, query, 200
        Groups/ListGroups list_groups(ListGroupsRequest) State;
    GET "/api/v1/groups/{group}" GROUP, query, 200
        Groups/GetGroup get_group(GetGroupRequest) State;
    GET "/api/v1/groups/{group}/explain" GROUP_OBJECT, query, 200
        Groups/Explain explain(ExplainRequest) Document;

    GET "/api/v1/devices" NONE, query, 200
        Devices/ListDevices list_devices(ListDevicesRequest) State;
    GET "/api/v1/devices/{address}" DEVICE, query, 200
        Devices/GetDevice get_device(GetDeviceRequest) State;
    GET "/api/v1/devices/{address}/explain" DEVICE_OBJECT, query, 200
        Groups/Explain explain(ExplainRequest) Document;
    GET "/api/v1/devices/{address}/kernel-dma" DEVICE, query, 200
        Devices/QueryKernelDma query_kernel_dma(QueryKernelDmaRequest) Document;
    POST "/api/v1/devices/{address}/kernel-dma" DEVICE ("query"), body, 200
        Devices/QueryKernelDma query_kernel_dma(QueryKernelDmaRequest) Document;
    POST "/api/v1/devices/{address}/kernel-dma" DEVICE ("set"), body, 200
        Devices/SetKernelDma set_kernel_dma(SetKernelDmaRequest) Document;
    POST "/api/v1/devices/{address}/kernel-dma" DEVICE ("release"), body, 200
        Devices/ReleaseKernelDma release_kernel_dma(ReleaseKernelDmaRequest) Document;
    POST "/api/v1/devices/{address}/cordon" DEVICE, body, 200
        Devices/Cordon cordon(CordonRequest) Document;
    POST "/api/v1/devices/{address}/uncordon" DEVICE, body, 200
        Devices/Uncordon uncordon(UncordonRequest) Document;
    POST "/api/v1/devices/{address}/clear-quarantine" DEVICE, body, 200
        Devices/ClearQuarantine clear_quarantine(ClearQuarantineRequest) Document;
    POST "/api/v1/devices/{address}/sriov" DEVICE, body, 200
        Devices/SetSriov set_sriov(SetSriovRequest) Document;

    GET "/api/v1/reservations" NONE, query, 200
        Reservations/ListReservations list_reservations(ListReservationsRequest) State;
    POST "/api/v1/reservations" NONE, body, 201
        Reservations/Reserve reserve(ReserveRequest) Document;
    POST "/api/v1/reservations/adopt" NONE, body, 201
        Reservations/Adopt adopt(AdoptRequest) Document;
    GET "/api/v1/reservations/{id}" ID, query, 200
        Reservations/GetReservation get_reservation(GetReservationRequest) State;
    DELETE "/api/v1/reservations/{id}" ID, query, 200
        Reservations/Release release(ReleaseRequest) Document;
    POST "/api/v1/reservations/{id}/attach" ID, body, 200
        Reservations/Attach attach(AttachRequest) Document;
    POST "/api/v1/reservations/{id}/detach" ID, body, 200
        Reservations/Detach detach(DetachRequest) Document;
    POST "/api/v1/reservations/{id}/renew" ID, body, 200
        Reservations/Renew renew(RenewRequest) Document;
    POST "/api/v1/reservations/{id}/replace" ID, body, 200
        Reservations/Replace replace(ReplaceRequest) Document;
    POST "/api/v1/reservations/{id}/revoke" ID, body, 200
        Reservations/Revoke revoke(RevokeRequest) Document;

    GET "/api/v1/domains" NONE, query, 200
        Domains/ListDomains list_domains(ListDomainsRequest) Document;
    POST "/api/v1/domains" NONE, body, 201
        Domains/CreateDomain create_domain(CreateDomainRequest) Document;
    GET "/api/v1/domains/{id}" ID, query, 200
        Domains/GetDomain get_domain(GetDomainRequest) Document;
    DELETE "/api/v1/domains/{id}" ID, query, 200
        Domains/DeleteDomain delete_domain(DeleteDomainRequest) Document;

    GET "/api/v1/events" NONE, query, 200
        Events/ListEvents list_events(ListEventsRequest) DocumentOrEvents;

    GET "/api/v1/capabilities" NONE, query, 200
        Host/GetCapabilities get_capabilities(GetCapabilitiesRequest) Document;
    GET "/api/v1/snapshot" NONE, query, 200
        Host/GetSnapshot get_snapshot(GetSnapshotRequest) Document;
    GET "/api/v1/doctor" NONE, query, 200
        Host/Diagnose diagnose(DiagnoseRequest) Document;
    GET "/api/v1/quotas" NONE, query, 200
        Host/ListQuotas list_quotas(ListQuotasRequest) Document;
    GET "/api/v1/config" NONE, query, 200
        Host/GetConfig get_config(GetConfigRequest) Document;
    POST "/api/v1/web-sessions" NONE, body, 200
        Host/CreateWebSession create_web_session(CreateWebSessionRequest) Document;
    POST "/api/v1/what-if" NONE, body, 200
        Host/WhatIf what_if(WhatIfRequest) Document;
}
