//! gRPC: the services of `berth.v1`, reflection and health.

mod services;
mod status;
mod watch;

use std::sync::Arc;

use axum::Router;
use berth_proto::v1;
use tonic::{Request, Response, Status, service::Routes};
use tonic_health::{ServingStatus, server::HealthReporter};

pub use self::status::status;
pub(crate) use self::status::status_after;
use crate::{
    listen::Admission,
    model::{ApiError, Caller},
    rest::{Front, Metrics},
};

/// The six services.
#[derive(Debug, Clone)]
pub(crate) struct Grpc {
    front: Arc<Front>,
}

/// Names of the services, for health.
const SERVICES: [&str; 7] = [
    "",
    "berth.v1.Groups",
    "berth.v1.Devices",
    "berth.v1.Reservations",
    "berth.v1.Domains",
    "berth.v1.Events",
    "berth.v1.Host",
];

/// The whole gRPC surface, and what tells its clients whether it serves.
///
/// # Errors
/// The embedded descriptors can't be read: the build is broken.
pub async fn router(
    front: &Arc<Front>,
) -> Result<(Router, HealthReporter), tonic_reflection::server::Error> {
    let grpc = Grpc { front: Arc::clone(front) };
    let (reporter, health) = tonic_health::server::health_reporter();
    set_serving(&reporter, false).await;
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(berth_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // Clients of before 2023, and Python's today, only know the first version.
    let (reflection, first_reflection) = (described().build_v1()?, described().build_v1alpha()?);
    let limit = front.body_bytes;
    let watch = watch::Watch(grpc.clone());
    let routes = Routes::default()
        .add_service(
            v1::groups_server::GroupsServer::new(grpc.clone()).max_decoding_message_size(limit),
        )
        .add_service(
            v1::devices_server::DevicesServer::new(grpc.clone()).max_decoding_message_size(limit),
        )
        .add_service(
            v1::reservations_server::ReservationsServer::new(grpc.clone())
                .max_decoding_message_size(limit),
        )
        .add_service(
            v1::domains_server::DomainsServer::new(grpc.clone()).max_decoding_message_size(limit),
        )
        .add_service(
            v1::events_server::EventsServer::new(grpc.clone()).max_decoding_message_size(limit),
        )
        .add_service(v1::host_server::HostServer::new(grpc).max_decoding_message_size(limit))
        .add_service(health)
        .add_service(reflection)
        .add_service(first_reflection);
    let router = routes.prepare().into_axum_router();
    Ok((router.route_service(watch::PATH, watch), reporter))
}

/// Says of every service whether it serves.
pub async fn set_serving(reporter: &HealthReporter, serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in SERVICES {
        reporter.set_service_status(service, status).await;
    }
}

impl Grpc {
    /// Takes the caller out of a request.
    fn open<T>(&self, request: Request<T>) -> Result<(Caller, T), ApiError> {
        self.front.check_ready()?;
        let (_, extensions, message) = request.into_parts();
        let admission = extensions
            .get::<Admission>()
            .ok_or_else(|| ApiError::internal("caller", "a request without a listener"))?;
        Ok((admission.caller()?.clone(), message))
    }
}

/// Answers, and counts the answer.
fn close<T>(metrics: &Metrics, answer: Result<T, ApiError>) -> Result<Response<T>, Status> {
    match answer {
        Ok(message) => {
            metrics.count_grpc(tonic::Code::Ok);
            Ok(Response::new(message))
        }
        Err(error) => {
            let status = status(&error);
            metrics.count_grpc(status.code());
            Err(status)
        }
    }
}
