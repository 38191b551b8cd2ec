//! A kubelet that does what kubelet v1.36 was seen doing, and the real daemon on a simulated host.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod more;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_host::sim::{SimHost, Topology};
use berth_kubelet_plugin::{
    api::{podresources as pods, v1beta1 as api},
    config::Config,
    run::run,
};
use berthd::{
    config::{Args, Config as DaemonConfig},
    run::Daemon,
};
use clap::Parser as _;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{UnixListener, UnixStream},
    task::{AbortHandle, JoinHandle},
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};

pub(crate) const RESOURCE: &str = "example.com/edu";
/// Longer than the plugin waits for a call that was cut off as `berthd` stopped.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for something; panics with its name where it doesn't come.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("never came: {what}"))
}

pub(crate) fn dial(path: &Path) -> Channel {
    let path = path.to_owned();
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(
        move |_: http::Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        },
    ))
}

pub(crate) type Plugin = api::device_plugin_client::DevicePluginClient<Channel>;

/// What the kubelet knows of a resource.
#[derive(Default)]
struct Endpoints {
    /// Resource to its list, and the task that follows it.
    lists: BTreeMap<String, (Vec<api::Device>, AbortHandle)>,
    registrations: usize,
    options: Vec<api::DevicePluginOptions>,
    pods: Vec<pods::PodResources>,
}

type Shared = Arc<Mutex<Endpoints>>;

#[derive(Clone)]
struct Registry {
    dir: PathBuf,
    shared: Shared,
}

#[tonic::async_trait]
impl api::registration_server::Registration for Registry {
    async fn register(
        &self,
        request: Request<api::RegisterRequest>,
    ) -> Result<Response<api::Empty>, Status> {
        let request = request.into_inner();
        assert_eq!(request.version, "v1beta1");
        // It dials back while Register waits: who doesn't serve yet is refused.
        let mut plugin = Plugin::new(dial(&self.dir.join(&request.endpoint)));
        let options = plugin.get_device_plugin_options(api::Empty {}).await?.into_inner();
        self.shared.lock().unwrap().options.push(options);
        let (shared, resource) = (Arc::clone(&self.shared), request.resource_name.clone());
        // Held until the endpoint is known, as the first list comes at once.
        let mut known = self.shared.lock().unwrap();
        let follower = tokio::spawn(async move {
            let Ok(lists) = plugin.list_and_watch(api::Empty {}).await else { return };
            let mut lists = lists.into_inner();
            while let Ok(Some(list)) = lists.message().await {
                if let Some(endpoint) = shared.lock().unwrap().lists.get_mut(&resource) {
                    endpoint.0 = list.devices;
                }
            }
            // The end of the stream: all its devices are unhealthy at once.
            if let Some(endpoint) = shared.lock().unwrap().lists.get_mut(&resource) {
                endpoint.0.iter_mut().for_each(|device| device.health = "Unhealthy".to_owned());
            }
        });
        known.registrations += 1;
        let new = (Vec::new(), follower.abort_handle());
        if let Some((_, old)) = known.lists.insert(request.resource_name, new) {
            old.abort();
        }
        Ok(Response::new(api::Empty {}))
    }
}

#[derive(Clone)]
struct Lister(Shared);

#[tonic::async_trait]
impl pods::pod_resources_lister_server::PodResourcesLister for Lister {
    async fn list(
        &self,
        _: Request<pods::ListPodResourcesRequest>,
    ) -> Result<Response<pods::ListPodResourcesResponse>, Status> {
        let pod_resources = self.0.lock().unwrap().pods.clone();
        Ok(Response::new(pods::ListPodResourcesResponse { pod_resources }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<pods::AllocatableResourcesRequest>,
    ) -> Result<Response<pods::AllocatableResourcesResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn get(
        &self,
        _: Request<pods::GetPodResourcesRequest>,
    ) -> Result<Response<pods::GetPodResourcesResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

/// The node: daemon, kubelet, plugin.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) sim: Arc<SimHost>,
    daemon: Option<Daemon>,
    shared: Shared,
    kubelet: Vec<AbortHandle>,
    plugin: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Node {
    /// On the topology `small`, whose edu devices are the resource.
    pub(crate) async fn start() -> Self {
        Self::on("small", "class = \"00\"").await
    }

    pub(crate) async fn on(topology: &str, selector: &str) -> Self {
        let mut node = Self::without_plugin(topology, selector).await;
        node.start_plugin();
        node
    }

    pub(crate) async fn without_plugin(topology: &str, selector: &str) -> Self {
        let sim = SimHost::from_topology(Topology::builtin(topology).unwrap());
        Self::on_host(Arc::new(sim), selector).await
    }

    /// The same on a machine that is there already.
    pub(crate) async fn on_host(sim: Arc<SimHost>, selector: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        std::fs::create_dir_all(at("kubelet/device-plugins")).unwrap();
        std::fs::create_dir_all(at("kubelet/pod-resources")).unwrap();
        std::fs::write(at("berthd.toml"), "").unwrap();
        let text = format!(
            "berthd = {:?}\nhandover = {:?}\nkubelet_dir = {:?}\ncdi_dir = {:?}\n\
             state_dir = {:?}\ncgroup_root = {:?}\nsettle_ms = 400\nrelease_ms = 100\n\
             [[resource]]\nname = \"{RESOURCE}\"\nbackend = \"type1\"\n{selector}\n",
            at("berthd.sock"),
            at("handover.sock"),
            at("kubelet"),
            at("cdi"),
            at("plugin"),
            at("cgroup"),
        );
        std::fs::write(at("plugin.toml"), text).unwrap();
        let daemon = daemon(dir.path(), &sim).await;
        let shared = Shared::default();
        let mut node =
            Self { dir, sim, daemon: Some(daemon), shared, kubelet: Vec::new(), plugin: None };
        node.start_kubelet();
        node
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn plugins(&self) -> PathBuf {
        self.path("kubelet/device-plugins")
    }

    /// As a kubelet starts: every socket in the directory goes, and a new one comes.
    pub(crate) fn start_kubelet(&mut self) {
        self.kubelet.drain(..).for_each(|task| task.abort());
        let mut shared = self.shared.lock().unwrap();
        for (_, (_, follower)) in std::mem::take(&mut shared.lists) {
            follower.abort();
        }
        drop(shared);
        for entry in std::fs::read_dir(self.plugins()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "sock") {
                std::fs::remove_file(path).unwrap();
            }
        }
        let registry = Registry { dir: self.plugins(), shared: Arc::clone(&self.shared) };
        let listener = UnixListener::bind(self.plugins().join("kubelet.sock")).unwrap();
        let server = Server::builder()
            .add_service(api::registration_server::RegistrationServer::new(registry))
            .serve_with_incoming(UnixListenerStream::new(listener));
        self.kubelet.push(tokio::spawn(server).abort_handle());
        let socket = self.path("kubelet/pod-resources/kubelet.sock");
        let _ = std::fs::remove_file(&socket);
        let lister = Lister(Arc::clone(&self.shared));
        let server = Server::builder()
            .add_service(pods::pod_resources_lister_server::PodResourcesListerServer::new(lister))
            .serve_with_incoming(UnixListenerStream::new(UnixListener::bind(socket).unwrap()));
        self.kubelet.push(tokio::spawn(server).abort_handle());
    }

    /// Another `berthd` on the same machine and state.
    pub(crate) async fn restart_daemon(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.stop().await;
        }
        self.daemon = Some(daemon(self.dir.path(), &self.sim).await);
    }

    pub(crate) fn start_plugin(&mut self) {
        let config = Config::load(&self.path("plugin.toml")).unwrap();
        self.plugin = Some(tokio::spawn(run(config)));
    }

    pub(crate) async fn stop_plugin(&mut self) {
        if let Some(plugin) = self.plugin.take() {
            plugin.abort();
            let _ = plugin.await;
        }
    }

    /// The kubelet's list: (id, healthy, NUMA nodes).
    pub(crate) fn list(&self) -> Vec<(String, bool, Vec<i64>)> {
        let shared = self.shared.lock().unwrap();
        let list = shared.lists.get(RESOURCE).map(|(list, _)| list.clone()).unwrap_or_default();
        let numa = |device: &api::Device| {
            device.topology.iter().flat_map(|topology| &topology.nodes).map(|n| n.id).collect()
        };
        list.iter().map(|one| (one.id.clone(), one.health == "Healthy", numa(one))).collect()
    }

    /// The healthy ids, once there are this many.
    pub(crate) async fn healthy(&self, count: usize) -> Vec<String> {
        until(&format!("{count} healthy devices"), async || {
            let healthy: Vec<String> = self
                .list()
                .into_iter()
                .filter(|(_, healthy, _)| *healthy)
                .map(|(id, _, _)| id)
                .collect();
            (healthy.len() == count).then_some(healthy)
        })
        .await
    }

    pub(crate) fn registrations(&self) -> usize {
        self.shared.lock().unwrap().registrations
    }

    pub(crate) fn options(&self) -> Vec<api::DevicePluginOptions> {
        self.shared.lock().unwrap().options.clone()
    }

    /// What the kubelet does when the old of two instances dies: it lets go of the resource's list,
    /// and tells nobody.
    pub(crate) fn disconnect(&self) {
        let mut shared = self.shared.lock().unwrap();
        // A kubelet that has just started knows it not yet.
        let Some((list, follower)) = shared.lists.get_mut(RESOURCE) else { return };
        list.clear();
        follower.abort();
    }

    pub(crate) fn plugin(&self) -> Plugin {
        Plugin::new(dial(&self.plugins().join("berth-example.com_edu.sock")))
    }

    pub(crate) async fn allocate(&self, ids: &[&str]) -> api::ContainerAllocateResponse {
        self.try_allocate(ids).await.unwrap()
    }

    pub(crate) async fn try_allocate(
        &self,
        ids: &[&str],
    ) -> Result<api::ContainerAllocateResponse, Status> {
        let request = api::ContainerAllocateRequest {
            devices_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        };
        let request = api::AllocateRequest { container_requests: vec![request] };
        let answer = self.plugin().allocate(request).await?.into_inner();
        assert_eq!(answer.container_responses.len(), 1);
        Ok(answer.container_responses.into_iter().next().unwrap())
    }

    pub(crate) async fn pre_start(&self, ids: &[&str]) -> Result<(), String> {
        let devices_ids = ids.iter().map(|id| (*id).to_owned()).collect();
        let request = api::PreStartContainerRequest { devices_ids };
        let answer = self.plugin().pre_start_container(request).await;
        answer.map(drop).map_err(|status| status.message().to_owned())
    }

    /// What PodResources tells from now on.
    pub(crate) fn pods(&self, pods: &[(&str, &[&str])]) {
        let pods = pods.iter().map(|(name, ids)| pods::PodResources {
            name: (*name).to_owned(),
            namespace: "default".to_owned(),
            containers: vec![pods::ContainerResources {
                name: "vm".to_owned(),
                devices: ids
                    .iter()
                    .map(|id| pods::ContainerDevices {
                        resource_name: RESOURCE.to_owned(),
                        device_ids: vec![(*id).to_owned()],
                        topology: None,
                    })
                    .collect(),
                ..pods::ContainerResources::default()
            }],
        });
        self.shared.lock().unwrap().pods = pods.collect();
    }

    /// The live reservations of `berthd`: (holder, groups).
    pub(crate) async fn reservations(&self) -> Vec<berth_proto::v1::Reservation> {
        let channel = dial(&self.path("berthd.sock"));
        let mut client = berth_proto::v1::reservations_client::ReservationsClient::new(channel);
        let request = berth_proto::v1::ListReservationsRequest {};
        client.list_reservations(request).await.unwrap().into_inner().reservations
    }

    /// The state of the only reservation.
    pub(crate) async fn state(&self) -> berth_proto::v1::reservation::State {
        let held = self.reservations().await;
        assert_eq!(held.len(), 1);
        held[0].state()
    }

    /// The kernel's number of a group.
    pub(crate) async fn group_number(&self, id: &str) -> u32 {
        let channel = dial(&self.path("berthd.sock"));
        let mut client = berth_proto::v1::groups_client::GroupsClient::new(channel);
        let request = berth_proto::v1::GetGroupRequest { group: id.to_owned() };
        client.get_group(request).await.unwrap().into_inner().number
    }

    /// The plugin as a program of its own.
    pub(crate) fn program(&self) -> std::process::Child {
        std::process::Command::new(env!("CARGO_BIN_EXE_berth-kubelet-plugin"))
            .arg("--config")
            .arg(self.path("plugin.toml"))
            .env("BERTH_LOG", "error")
            .spawn()
            .unwrap()
    }

    /// The CDI files by name.
    pub(crate) fn cdi(&self) -> BTreeMap<String, serde_json::Value> {
        let Ok(entries) = std::fs::read_dir(self.path("cdi")) else { return BTreeMap::new() };
        entries
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
            })
            .collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kubelet.iter().for_each(AbortHandle::abort);
        if let Some(plugin) = &self.plugin {
            plugin.abort();
        }
    }
}

async fn daemon(dir: &Path, sim: &Arc<SimHost>) -> Daemon {
    let at = |name: &str| dir.join(name).display().to_string();
    let unix = |name: &str| format!("unix:{}", at(name));
    let words = [
        "berthd".to_owned(),
        "--host".to_owned(),
        "sim:small".to_owned(),
        "--config".to_owned(),
        at("berthd.toml"),
        "--state-dir".to_owned(),
        at("state"),
        "--listen-grpc".to_owned(),
        unix("berthd.sock"),
        "--listen-http".to_owned(),
        unix("http.sock"),
        "--listen-handover".to_owned(),
        unix("handover.sock"),
    ];
    let mut config = DaemonConfig::load(&Args::try_parse_from(words).unwrap()).unwrap();
    config.timeouts.drain_ms = 5_000;
    // A call that was cut off as the last one stopped holds the store for as long as it waits.
    let begin = std::time::Instant::now();
    loop {
        match Daemon::start(&config, Arc::clone(sim) as Arc<dyn berth_host::Host>).await {
            Ok(daemon) => return daemon,
            Err(error) => assert!(begin.elapsed() < PATIENCE, "berthd doesn't start: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
