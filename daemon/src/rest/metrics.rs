//! Numbers for Prometheus: what is owned, what is reserved, what was asked.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
};

use axum::response::{IntoResponse, Response};
use berth_proto::v1;
use http::{StatusCode, header};

mod condition;
mod confined;
mod dma;
mod limits;

use super::Front;
use crate::{model::Caller, view};

/// Which door a request came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surface {
    /// gRPC.
    Grpc,
    /// HTTP.
    Http,
}

const GRPC_CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// HTTP statuses from 100 to 599.
const STATUSES: usize = 500;

/// Counters. Counting takes one atomic addition.
#[derive(Debug)]
pub struct Metrics {
    grpc: [AtomicU64; GRPC_CODES.len()],
    http: Vec<AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            grpc: Default::default(),
            http: std::iter::repeat_with(AtomicU64::default).take(STATUSES).collect(),
        }
    }
}

impl Metrics {
    /// Counts an answered gRPC call.
    pub fn count_grpc(&self, code: tonic::Code) {
        let at = usize::try_from(i32::from(code)).unwrap_or(2);
        if let Some(counter) = self.grpc.get(at) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts an answered HTTP request.
    pub fn count_http(&self, status: StatusCode) {
        if let Some(counter) = self.http.get(usize::from(status.as_u16()) - 100) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn write(&self, text: &mut String) {
        head(text, "berth_requests_total", "counter", "Requests answered, by surface and code.");
        for (code, counter) in GRPC_CODES.iter().zip(&self.grpc) {
            sample(text, Surface::Grpc, code, counter.load(Ordering::Relaxed));
        }
        for (status, counter) in (100..).zip(&self.http) {
            let count = counter.load(Ordering::Relaxed);
            sample(text, Surface::Http, &i32::to_string(&status), count);
        }
    }
}

fn sample(text: &mut String, surface: Surface, code: &str, count: u64) {
    if count == 0 {
        return;
    }
    let surface = match surface {
        Surface::Grpc => "grpc",
        Surface::Http => "http",
    };
    // Writing to a String can't fail.
    let _ = writeln!(text, "berth_requests_total{{surface=\"{surface}\",code=\"{code}\"}} {count}");
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// The page of numbers, from the published state.
pub(super) async fn page(front: &Front) -> Response {
    let caller = Caller::internal();
    let mut text = String::new();
    head(&mut text, "berth_build_info", "gauge", "The daemon's version.");
    let version = env!("CARGO_PKG_VERSION");
    let _ = writeln!(text, "berth_build_info{{version=\"{version}\"}} 1");
    head(&mut text, "berth_ready", "gauge", "1 once the record agrees with the kernel.");
    let _ = writeln!(text, "berth_ready {}", u8::from(*front.ready.borrow()));
    write_degraded(&mut text, front);
    confined::write(&mut text);
    if let Ok(groups) = front.service.list_groups(&caller, v1::ListGroupsRequest {}).await {
        write_groups(&mut text, &groups);
    }
    if let Ok(devices) = front.service.list_devices(&caller, v1::ListDevicesRequest {}).await {
        condition::write(&mut text, &devices.devices);
    }
    let reservations =
        front.service.list_reservations(&caller, v1::ListReservationsRequest {}).await;
    if let Ok(reservations) = reservations {
        write_reservations(&mut text, &reservations);
    }
    dma::write(&mut text, &front.service);
    limits::write(&mut text, front);
    front.metrics.write(&mut text);
    head(&mut text, "berth_audit_total", "counter", "Changes and refusals, by kind.");
    for (kind, count) in crate::audit::counts() {
        let _ = writeln!(text, "berth_audit_total{{kind=\"{kind}\"}} {count}");
    }
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

fn write_degraded(text: &mut String, front: &Front) {
    let degraded = front.service.ledger().degraded();
    head(text, "berth_degraded", "gauge", "1 while the state can't be written, by errno.");
    let errno = degraded.as_ref().map_or_else(String::new, |it| view::errno_name(it.errno));
    let _ = writeln!(text, "berth_degraded{{errno=\"{errno}\"}} {}", u8::from(degraded.is_some()));
}

fn write_groups(text: &mut String, answer: &v1::ListGroupsResponse) {
    let mut owners = count_all((1..=7).filter_map(|kind| v1::owner::Kind::try_from(kind).ok()));
    let mut conditions = count_all((1..=6).filter_map(|kind| v1::Condition::try_from(kind).ok()));
    for group in &answer.groups {
        *owners.entry(group.ownership().as_str_name()).or_default() += 1;
        *conditions.entry(group.condition().as_str_name()).or_default() += 1;
    }
    head(text, "berth_groups", "gauge", "IOMMU groups by owner.");
    write_counts(text, "berth_groups", "owner", &owners);
    head(text, "berth_groups_by_condition", "gauge", "IOMMU groups by condition.");
    write_counts(text, "berth_groups_by_condition", "condition", &conditions);
    head(text, "berth_event_seq", "gauge", "The last event's sequence number.");
    let _ = writeln!(text, "berth_event_seq {}", answer.resume_seq);
}

fn write_reservations(text: &mut String, answer: &v1::ListReservationsResponse) {
    let known = (1..=8).filter_map(|state| v1::reservation::State::try_from(state).ok());
    let mut states = count_all(known);
    for reservation in &answer.reservations {
        *states.entry(reservation.state().as_str_name()).or_default() += 1;
    }
    head(text, "berth_reservations", "gauge", "Reservations by state.");
    write_counts(text, "berth_reservations", "state", &states);
}

/// Every kind at zero, so that a series doesn't vanish when its last member does.
fn count_all<T: Named>(kinds: impl Iterator<Item = T>) -> BTreeMap<&'static str, u64> {
    kinds.map(|kind| (kind.name(), 0)).collect()
}

trait Named {
    fn name(&self) -> &'static str;
}

impl Named for v1::owner::Kind {
    fn name(&self) -> &'static str {
        self.as_str_name()
    }
}

impl Named for v1::Condition {
    fn name(&self) -> &'static str {
        self.as_str_name()
    }
}

impl Named for v1::reservation::State {
    fn name(&self) -> &'static str {
        self.as_str_name()
    }
}

fn write_counts(text: &mut String, name: &str, label: &str, counts: &BTreeMap<&str, u64>) {
    for (kind, count) in counts {
        let _ = writeln!(text, "{name}{{{label}=\"{}\"}} {count}", kind.to_ascii_lowercase());
    }
}
