//! Two tenants on one host: each sees and touches what is under its own label alone, over gRPC, REST
//! and server-sent events, and at the hand-over socket.

mod front_support;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use berth_handover::{Client, ClientError};
use berth_proto::v1::{
    self, devices_client::DevicesClient, domains_client::DomainsClient,
    events_client::EventsClient, groups_client::GroupsClient, host_client::HostClient,
    reservations_client::ReservationsClient,
};
use front_support::{PATIENCE, Running, channel_at};
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt as _;

const RED: &str = "0000:00:05.0";
const BLUE: &str = "0000:00:06.0";

/// What tells of the red tenant, whatever it is told in.
const OF_RED: [&str; 3] = ["vm-red", "\"red\"", "label red"];

fn settings(dir: &Path) -> String {
    let at = dir.display();
    let mut text = format!("[[listen]]\nserve = \"handover\"\npath = \"{at}/handover.sock\"\n");
    text += &format!(
        "[[listen]]\nserve = \"handover\"\npath = \"{at}/blue-h.sock\"\nlabel = \"blue\"\n"
    );
    let uid = rustix::process::getuid().as_raw();
    for tenant in ["red", "blue"] {
        for (serve, end) in [("grpc", "sock"), ("http", "http")] {
            text += &format!(
                "[[listen]]\nserve = \"{serve}\"\npath = \"{at}/{tenant}.{end}\"\n\
                 [[listen.rule]]\nuid = {uid}\nrole = \"orchestrator\"\nlabel = \"{tenant}\"\n"
            );
        }
    }
    text
}

struct Site {
    running: Running,
    dir: tempfile::TempDir,
    red: v1::Reservation,
}

async fn reserve(
    channel: Channel,
    holder: &str,
    device: &str,
) -> Result<v1::Reservation, tonic::Status> {
    let request = v1::ReserveRequest {
        holder: holder.to_owned(),
        devices: vec![v1::DeviceAddress {
            kind: Some(v1::device_address::Kind::Pci(device.to_owned())),
        }],
        policy: v1::Policy::Exclusive.into(),
        delivery: v1::Delivery::Held.into(),
        ..Default::default()
    };
    ReservationsClient::new(channel).reserve(request).await.map(tonic::Response::into_inner)
}

impl Site {
    /// The red tenant has a device.
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let running = Running::with(&settings(dir.path())).await;
        let red = reserve(channel_at(dir.path().join("red.sock")).await, "vm-red", RED).await;
        Self { running, red: red.expect("free"), dir }
    }

    async fn channel(&self, tenant: &str) -> Channel {
        channel_at(self.dir.path().join(format!("{tenant}.sock"))).await
    }

    async fn rest(&self, tenant: &str, method: &str, path: &str) -> (u16, String) {
        let socket = self.dir.path().join(format!("{tenant}.http"));
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\naccept: application/json\r\n\
             connection: close\r\ncontent-length: 0\r\n\r\n"
        );
        let read = tokio::task::spawn_blocking(move || {
            let mut stream = UnixStream::connect(socket).expect("connected");
            stream.set_read_timeout(Some(PATIENCE)).expect("set");
            stream.write_all(head.as_bytes()).expect("written");
            let mut text = String::new();
            std::io::Read::read_to_string(&mut stream, &mut text).expect("an answer");
            text
        });
        let text = read.await.expect("no panic");
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("a status"), text)
    }
}

/// Nothing in a text tells of the red tenant.
fn tells_nothing(site: &Site, what: &str, text: &str) {
    assert!(!text.contains(&site.red.id), "{what} names the reservation: {text}");
    for of_red in OF_RED {
        assert!(!text.contains(of_red), "{what} tells {of_red}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_told_nothing_of_another_over_grpc() {
    let site = Site::start().await;
    let blue = site.channel("blue").await;
    let own = reserve(blue.clone(), "vm-blue", BLUE).await.expect("free");
    assert_eq!((own.label.as_str(), site.red.label.as_str()), ("blue", "red"));
    let mut reservations = ReservationsClient::new(blue.clone());
    let list = v1::ListReservationsRequest {};
    let listed = reservations.list_reservations(list).await.expect("listed").into_inner();
    let ids: Vec<&str> = listed.reservations.iter().map(|it| it.id.as_str()).collect();
    assert_eq!(ids, [own.id.as_str()]);
    let red = site.red.id.clone();
    // It is answered just as what was never there.
    let missing = |id: &str| v1::GetReservationRequest { id: id.to_owned() };
    let none = reservations.get_reservation(missing("r-none")).await.expect_err("none");
    let theirs = reservations.get_reservation(missing(&red)).await.expect_err("theirs");
    assert_eq!((theirs.code(), none.code()), (Code::NotFound, Code::NotFound));
    assert_eq!(theirs.message().replace(&red, "r-none"), none.message());
    let release = v1::ReleaseRequest { id: red.clone(), ..Default::default() };
    let refused = reservations.release(release).await.expect_err("theirs");
    assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
    let attach = v1::AttachRequest { id: red.clone(), ..Default::default() };
    assert_eq!(reservations.attach(attach).await.expect_err("theirs").code(), Code::NotFound);
    // What they have is taken, and nobody says by whom.
    let taken = reserve(blue.clone(), "vm-blue", RED).await.expect_err("taken");
    let info = taken.get_details_error_info().expect("an ErrorInfo");
    assert_eq!(info.reason, "GROUP_OWNED");
    tells_nothing(
        &site,
        "a refusal",
        &format!("{taken:?} {}", String::from_utf8_lossy(taken.details())),
    );
    let other = v1::ReserveRequest {
        holder: "x".to_owned(),
        label: "red".to_owned(),
        groups: vec!["6".to_owned()],
        policy: v1::Policy::Exclusive.into(),
        ..Default::default()
    };
    let refused = reservations.reserve(other).await.expect_err("another label");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");

    let groups = GroupsClient::new(blue.clone()).list_groups(v1::ListGroupsRequest {}).await;
    tells_nothing(&site, "groups", &format!("{:?}", groups.expect("listed")));
    let devices = DevicesClient::new(blue.clone()).list_devices(v1::ListDevicesRequest {}).await;
    tells_nothing(&site, "devices", &format!("{:?}", devices.expect("listed")));
    let domains = DomainsClient::new(blue.clone()).list_domains(v1::ListDomainsRequest {}).await;
    let domains = domains.expect("listed").into_inner();
    tells_nothing(&site, "domains", &format!("{domains:?}"));
    assert!(!domains.domains.iter().any(|domain| domain.id == site.red.domain), "{domains:?}");
    let domain = v1::GetDomainRequest { id: site.red.domain.clone() };
    let refused = DomainsClient::new(blue.clone()).get_domain(domain).await.expect_err("theirs");
    assert_eq!(refused.code(), Code::NotFound);
    let events =
        EventsClient::new(blue.clone()).list_events(v1::ListEventsRequest::default()).await;
    let events = events.expect("listed").into_inner().events;
    assert!(events.iter().any(|event| event.reservation == own.id), "its own are there");
    tells_nothing(&site, "events", &format!("{events:?}"));
    let mut host = HostClient::new(blue);
    let refused = host.diagnose(v1::DiagnoseRequest {}).await.expect_err("of the whole host");
    assert_eq!(refused.code(), Code::PermissionDenied);
    site.running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_told_nothing_of_another_over_rest() {
    let site = Site::start().await;
    let red = site.red.id.clone();
    // What is kept for one isn't given to the other.
    for tenant in ["red", "blue"] {
        for path in ["/api/v1/reservations", "/api/v1/groups", "/api/v1/devices", "/api/v1/events"]
        {
            for _ in 0..2 {
                let (status, text) = site.rest(tenant, "GET", path).await;
                assert_eq!(status, 200, "{path}: {text}");
                if tenant == "blue" {
                    tells_nothing(&site, path, &text);
                } else if path == "/api/v1/reservations" {
                    assert!(text.contains(&red), "{text}");
                }
            }
        }
    }
    let path = format!("/api/v1/reservations/{red}");
    assert_eq!(site.rest("red", "GET", &path).await.0, 200);
    assert_eq!(site.rest("blue", "GET", &path).await.0, 404);
    assert_eq!(site.rest("blue", "DELETE", &path).await.0, 404);
    let history = format!("/api/v1/events?object={red}");
    let (status, text) = site.rest("blue", "GET", &history).await;
    assert_eq!(status, 200);
    assert!(text.contains("\"events\":[]"), "{text}");
    let explain = format!("/api/v1/devices/{RED}/explain");
    let (status, text) = site.rest("blue", "GET", &explain).await;
    assert_eq!(status, 403, "{text}");
    tells_nothing(&site, "explain", &text);
    assert_eq!(site.rest("blue", "GET", "/metrics").await.0, 403, "they are of all labels");
    let (_, quotas) = site.rest("blue", "GET", "/api/v1/quotas").await;
    assert!(quotas.contains("label blue"), "{quotas}");
    tells_nothing(&site, "quotas", &quotas);
    assert_eq!(site.rest("red", "DELETE", &path).await.0, 200);
    site.running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_events_of_one_tenant_reach_no_other_that_follows() {
    let site = Site::start().await;
    let follow = v1::WatchRequest { since_seq: Some(0), ..Default::default() };
    let stream = EventsClient::new(site.channel("blue").await).watch(follow).await;
    let mut stream = stream.expect("it follows").into_inner();
    let socket = site.dir.path().join("blue.http");
    let sse = tokio::task::spawn_blocking(move || {
        let mut stream = UnixStream::connect(socket).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let head = b"GET /api/v1/events?since=0 HTTP/1.1\r\nhost: x\r\n\r\n";
        stream.write_all(head).expect("written");
        let mut seen = String::new();
        for line in BufReader::new(stream).lines() {
            seen.push_str(&line.expect("a line"));
            if seen.contains("reservation.released") {
                break;
            }
        }
        seen
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    // The red one ends first, the blue one begins and ends later.
    let release = |id: &str| v1::ReleaseRequest { id: id.to_owned(), ..Default::default() };
    let mut red = ReservationsClient::new(site.channel("red").await);
    red.release(release(&site.red.id)).await.expect("its own");
    let blue = site.channel("blue").await;
    let own = reserve(blue.clone(), "vm-blue", BLUE).await.expect("free");
    ReservationsClient::new(blue).release(release(&own.id)).await.expect("its own");
    let mut kinds = Vec::new();
    while kinds.last().is_none_or(|kind| kind != "reservation.released") {
        let next = tokio::time::timeout(PATIENCE, stream.message()).await.expect("in time");
        let event = next.expect("no error").expect("it goes on");
        assert_eq!(event.reservation, own.id, "{event:?}");
        kinds.push(event.kind);
    }
    assert_eq!(kinds.first().map(String::as_str), Some("reservation.created"));
    let seen = sse.await.expect("no panic");
    assert!(seen.contains(&own.id), "{seen}");
    tells_nothing(&site, "server-sent events", &seen);
    site.running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_s_hand_over_socket_knows_its_own_reservations_alone() {
    let site = Site::start().await;
    let (red, dir) = (site.red.id.clone(), site.dir.path().to_owned());
    let refusals = tokio::task::spawn_blocking(move || {
        let fetch = |socket: &str, id: &str| {
            let client = Client::connect(dir.join(socket)).expect("connected");
            match client.fetch(id, 0) {
                Err(ClientError::Refused(refusal)) => refusal,
                other => panic!("{other:?}"),
            }
        };
        [fetch("blue-h.sock", &red), fetch("blue-h.sock", "r-none"), fetch("handover.sock", &red)]
    });
    let [theirs, none, known] = refusals.await.expect("no panic");
    assert_eq!((theirs.reason.as_str(), none.reason.as_str()), ("NOT_FOUND", "NOT_FOUND"));
    assert_eq!(theirs.message.replace(&site.red.id, "r-none"), none.message);
    assert_eq!(known.reason, "NOT_ATTACHED", "elsewhere it is known: {}", known.message);
    site.running.daemon.stop().await;
}
