//! A daemon that answers from a script, over a real socket.

use std::{
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use berth_proto::{REFUSAL_TYPE_URL, v1};
use prost::Message as _;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status};

/// A reservation whose release takes seconds.
pub(crate) const SLOW: &str = "r-51005100510a";

type Ids = Arc<Mutex<Vec<String>>>;

/// Runs until the test ends.
pub(crate) struct Fake {
    directory: tempfile::TempDir,
    ids: Ids,
}

impl Fake {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("berthd.sock");
        let ids = Ids::default();
        let seen = Arc::clone(&ids);
        let (ready, wait) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let listener = UnixListener::bind(path).expect("listen");
                ready.send(()).expect("the test waits");
                tonic::transport::Server::builder()
                    .add_service(v1::groups_server::GroupsServer::new(Scripted(Ids::default())))
                    .add_service(v1::host_server::HostServer::new(Scripted(Ids::default())))
                    .add_service(v1::reservations_server::ReservationsServer::new(Scripted(seen)))
                    .serve_with_incoming(UnixListenerStream::new(listener))
                    .await
                    .expect("serve");
            });
        });
        wait.recv().expect("the daemon listens");
        Self { directory, ids }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("unix:{}", self.directory.path().join("berthd.sock").display())
    }

    /// Request ids of releases, in order.
    pub(crate) fn request_ids(&self) -> Vec<String> {
        self.ids.lock().expect("no panic").clone()
    }
}

struct Scripted(Ids);

fn pci(address: &str) -> v1::DeviceAddress {
    v1::DeviceAddress { kind: Some(v1::device_address::Kind::Pci(address.to_owned())) }
}

fn refusal(code: Code, refusal: &v1::Refusal) -> Status {
    let details = tonic_types::pb::Status {
        code: code.into(),
        message: refusal.message.clone(),
        details: vec![any(REFUSAL_TYPE_URL, refusal.encode_to_vec())],
    };
    Status::with_details(code, refusal.message.clone(), details.encode_to_vec().into())
}

fn any(type_url: &str, value: Vec<u8>) -> prost_types::Any {
    prost_types::Any { type_url: type_url.to_owned(), value }
}

fn device(address: &str, driver: &str) -> v1::Device {
    v1::Device {
        address: Some(pci(address)),
        vendor_id: 0x10de,
        device_id: 0x2330,
        class_code: 0x03_02_00,
        driver: driver.to_owned(),
        condition: v1::Condition::Ok.into(),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl v1::groups_server::Groups for Scripted {
    async fn list_groups(
        &self,
        _: Request<v1::ListGroupsRequest>,
    ) -> Result<Response<v1::ListGroupsResponse>, Status> {
        let free = v1::Group {
            stable_id: "g-0123456789ab".to_owned(),
            number: 17,
            devices: vec![device("0000:65:00.0", "")],
            ownership: v1::owner::Kind::Free.into(),
            condition: v1::Condition::Ok.into(),
            ..Default::default()
        };
        let shared = v1::Group {
            stable_id: "g-ba9876543210".to_owned(),
            number: 18,
            devices: vec![device("0000:66:00.0", "vfio-pci"), device("0000:66:00.1", "vfio-pci")],
            ownership: v1::owner::Kind::Shared.into(),
            owner: Some(v1::Owner {
                kind: v1::owner::Kind::Shared.into(),
                holder: "vm-blue".to_owned(),
                claims: 2,
                ..Default::default()
            }),
            owner_cnt: 2,
            condition: v1::Condition::Cordoned.into(),
            ..Default::default()
        };
        let groups = vec![free, shared];
        Ok(Response::new(v1::ListGroupsResponse { groups, resume_seq: 42 }))
    }

    async fn get_group(
        &self,
        request: Request<v1::GetGroupRequest>,
    ) -> Result<Response<v1::Group>, Status> {
        let group = request.into_inner().group;
        Err(Status::not_found(format!("no group is called {group}")))
    }

    async fn explain(
        &self,
        _: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::Explanation>, Status> {
        Err(Status::unimplemented("not in this script"))
    }
}

#[tonic::async_trait]
impl v1::host_server::Host for Scripted {
    async fn get_capabilities(
        &self,
        _: Request<v1::GetCapabilitiesRequest>,
    ) -> Result<Response<v1::Capabilities>, Status> {
        Ok(Response::new(v1::Capabilities {
            simulated: true,
            topology: "small".to_owned(),
            ..Default::default()
        }))
    }

    async fn diagnose(
        &self,
        _: Request<v1::DiagnoseRequest>,
    ) -> Result<Response<v1::Diagnosis>, Status> {
        let finding =
            |level: v1::finding::Level, object: &str, cause: &str, fix: &str| v1::Finding {
                level: level.into(),
                code: "QUARANTINED".to_owned(),
                object: object.to_owned(),
                cause: cause.to_owned(),
                fixes: vec![fix.to_owned()],
                docs: "docs/doctor.md#quarantined".to_owned(),
            };
        let problem = v1::finding::Level::Problem;
        let clear = "berth quarantine clear 0000:65:00.0 --reason TEXT";
        let findings = vec![
            finding(problem, "0000:65:00.0", "its reset failed", clear),
            finding(v1::finding::Level::Note, "", "groups are in passthrough", "boot without it"),
        ];
        Ok(Response::new(v1::Diagnosis { findings }))
    }

    async fn get_config(
        &self,
        _: Request<v1::GetConfigRequest>,
    ) -> Result<Response<v1::ConfigState>, Status> {
        Ok(Response::new(v1::ConfigState {
            file: "/etc/berth/berthd.toml".to_owned(),
            refused: "/etc/berth/berthd.toml:9: log: not a filter; write it like info".to_owned(),
            needs_restart: vec!["state_dir: /srv/berth".to_owned()],
            ..Default::default()
        }))
    }

    async fn list_quotas(
        &self,
        _: Request<v1::ListQuotasRequest>,
    ) -> Result<Response<v1::ListQuotasResponse>, Status> {
        let of = |account: &str, quota: &str, amounts| v1::QuotaUse {
            account: account.to_owned(),
            quota: quota.to_owned(),
            place: "/etc/berth/berthd.toml:9".to_owned(),
            amounts,
        };
        let quotas = vec![
            of("uid:60001", "others", amounts([2, 17, 4096], [Some(2), None, Some(8192)])),
            of("label red", "label red", amounts([1, 0, 0], [None, Some(64), None])),
        ];
        Ok(Response::new(v1::ListQuotasResponse { quotas }))
    }

    async fn create_web_session(
        &self,
        _: Request<v1::CreateWebSessionRequest>,
    ) -> Result<Response<v1::WebSessionLink>, Status> {
        Ok(Response::new(v1::WebSessionLink {
            url: "http://127.0.0.1:7711/#/sign-in/0123".to_owned(),
            expires_at: None,
            identity: "uid:1000".to_owned(),
            role: "operator".to_owned(),
            label: String::new(),
        }))
    }

    async fn what_if(
        &self,
        request: Request<v1::WhatIfRequest>,
    ) -> Result<Response<v1::WhatIfResponse>, Status> {
        let request = request.into_inner();
        let stays = |number, text: String| v1::GroupStays {
            group: "g-0123456789ac".to_owned(),
            number,
            devices: vec![pci("0000:02:01.0"), pci("0000:02:02.0")],
            text,
        };
        let part = |devices: &[&str]| v1::GroupPart {
            devices: devices.iter().map(|device| pci(device)).collect(),
        };
        let ports = request.acs_on;
        let asked = format!("asked of {:?} with {} bytes", request.object, request.snapshot.len());
        Ok(Response::new(v1::WhatIfResponse {
            machine: "desktop".to_owned(),
            splits: vec![v1::GroupSplit {
                group: "g-0123456789ab".to_owned(),
                number: 1,
                parts: vec![part(&["0000:00:01.1"]), part(&["0000:0a:00.0", "0000:0a:00.1"])],
                ports,
            }],
            stays: vec![stays(5, asked)],
            unexplained: vec![stays(7, "0000:00:1c.0 can't be read".to_owned())],
        }))
    }

    async fn get_snapshot(
        &self,
        _: Request<v1::GetSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        Err(Status::unimplemented("not in this script"))
    }
}

fn amounts(used: [u64; 3], limits: [Option<u64>; 3]) -> Vec<v1::QuotaAmount> {
    let names = ["reservations", "dma_entries", "pinned_bytes"];
    let amount = |((resource, used), limit): ((&str, u64), Option<u64>)| v1::QuotaAmount {
        resource: resource.to_owned(),
        used,
        limit,
    };
    names.into_iter().zip(used).zip(limits).map(amount).collect()
}

type Answer = Result<Response<v1::Reservation>, Status>;

#[tonic::async_trait]
impl v1::reservations_server::Reservations for Scripted {
    async fn list_reservations(
        &self,
        _: Request<v1::ListReservationsRequest>,
    ) -> Result<Response<v1::ListReservationsResponse>, Status> {
        Ok(Response::new(v1::ListReservationsResponse::default()))
    }

    async fn get_reservation(&self, request: Request<v1::GetReservationRequest>) -> Answer {
        let id = request.into_inner().id;
        if id == SLOW {
            let pending = "attach".to_owned();
            return Ok(Response::new(v1::Reservation { id, pending, ..Default::default() }));
        }
        if id == "r-slow" {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        Err(Status::permission_denied("the role viewer may not"))
    }

    async fn reserve(&self, _: Request<v1::ReserveRequest>) -> Answer {
        let refused = v1::Refusal {
            reason: "KERNEL_DMA".to_owned(),
            errno: 1,
            errno_name: "EPERM".to_owned(),
            object: "g-0123456789ab".to_owned(),
            message: "a host driver uses the DMA of g-0123456789ab".to_owned(),
            owner: Some(v1::Owner {
                kind: v1::owner::Kind::Kernel.into(),
                claims: 1,
                ..Default::default()
            }),
            blockers: vec![v1::Blocker {
                device: Some(pci("0000:65:00.1")),
                driver: "snd_hda_intel".to_owned(),
                processes: vec![v1::Process {
                    pid: 812,
                    name: "pipewire".to_owned(),
                    what: "/dev/snd/controlC0".to_owned(),
                    unit: String::new(),
                }],
                text: "uses kernel DMA".to_owned(),
                ..Default::default()
            }],
            resolve: vec!["berth kernel-dma release 0000:65:00.1".to_owned()],
        };
        Err(refusal(Code::FailedPrecondition, &refused))
    }

    async fn adopt(&self, _: Request<v1::AdoptRequest>) -> Answer {
        Err(Status::unimplemented("not in this script"))
    }

    async fn renew(&self, _: Request<v1::RenewRequest>) -> Answer {
        Err(Status::unimplemented("not in this script"))
    }

    async fn attach(&self, _: Request<v1::AttachRequest>) -> Answer {
        Err(Status::unimplemented("not in this script"))
    }

    async fn detach(&self, _: Request<v1::DetachRequest>) -> Answer {
        Err(Status::unimplemented("not in this script"))
    }

    async fn replace(&self, _: Request<v1::ReplaceRequest>) -> Answer {
        Err(Status::unimplemented("not in this script"))
    }

    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Answer {
        let request = request.into_inner();
        if request.id == SLOW {
            tokio::time::sleep(Duration::from_secs(3)).await;
            return Ok(Response::new(v1::Reservation { id: request.id, ..Default::default() }));
        }
        let mut ids = self.0.lock().expect("no panic");
        ids.push(request.request_id);
        if ids.len() == 1 {
            return Err(Status::unavailable("starting"));
        }
        Ok(Response::new(v1::Reservation { id: request.id, ..Default::default() }))
    }

    async fn revoke(&self, _: Request<v1::RevokeRequest>) -> Answer {
        Err(Status::unimplemented("not in this script"))
    }
}
