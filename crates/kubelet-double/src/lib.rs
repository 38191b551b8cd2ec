//! A kubelet that does what kubelet v1.36 was seen doing with device plugins: registrations, lists,
//! Allocate, PreStartContainer, PodResources. For tests of the plugin, and as the program
//! `berth-kubelet-double` for the real kernel's.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_kubelet_plugin::api::{podresources as pods, v1beta1 as api};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{UnixListener, UnixStream},
    task::AbortHandle,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};

/// Longer than the plugin waits for a call that was cut off as `berthd` stopped.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for something.
///
/// # Panics
/// With its name where it doesn't come.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
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

/// A channel over a unix socket.
#[must_use]
pub fn dial(path: &Path) -> Channel {
    let path = path.to_owned();
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(
        move |_: http::Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        },
    ))
}

/// A client of the plugin.
pub type Plugin = api::device_plugin_client::DevicePluginClient<Channel>;

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

/// A kubelet, in a directory as `/var/lib/kubelet`, that has pods of one resource.
pub struct Kubelet {
    dir: PathBuf,
    resource: String,
    shared: Shared,
    tasks: Vec<AbortHandle>,
}

impl std::fmt::Debug for Kubelet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubelet").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Kubelet {
    /// Makes its directories and starts it.
    #[must_use]
    pub fn start(dir: &Path, resource: &str) -> Self {
        for part in ["device-plugins", "pod-resources"] {
            std::fs::create_dir_all(dir.join(part)).unwrap();
        }
        let (shared, tasks) = (Shared::default(), Vec::new());
        let mut kubelet =
            Self { dir: dir.to_owned(), resource: resource.to_owned(), shared, tasks };
        kubelet.restart();
        kubelet
    }

    fn plugins(&self) -> PathBuf {
        self.dir.join("device-plugins")
    }

    /// As a kubelet starts, first half: it is away, and every socket in its directory with it.
    pub fn go(&mut self) {
        self.tasks.drain(..).for_each(|task| task.abort());
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
    }

    /// As a kubelet starts: every socket in the directory goes, and a new one comes.
    pub fn restart(&mut self) {
        self.go();
        let registry = Registry { dir: self.plugins(), shared: Arc::clone(&self.shared) };
        let listener = UnixListener::bind(self.plugins().join("kubelet.sock")).unwrap();
        let server = Server::builder()
            .add_service(api::registration_server::RegistrationServer::new(registry))
            .serve_with_incoming(UnixListenerStream::new(listener));
        self.tasks.push(tokio::spawn(server).abort_handle());
        let socket = self.dir.join("pod-resources/kubelet.sock");
        let _ = std::fs::remove_file(&socket);
        let lister = Lister(Arc::clone(&self.shared));
        let server = Server::builder()
            .add_service(pods::pod_resources_lister_server::PodResourcesListerServer::new(lister))
            .serve_with_incoming(UnixListenerStream::new(UnixListener::bind(socket).unwrap()));
        self.tasks.push(tokio::spawn(server).abort_handle());
    }

    /// The kubelet's list: (id, healthy, NUMA nodes).
    #[must_use]
    pub fn list(&self) -> Vec<(String, bool, Vec<i64>)> {
        let shared = self.shared.lock().unwrap();
        let list =
            shared.lists.get(&self.resource).map(|(list, _)| list.clone()).unwrap_or_default();
        let numa = |device: &api::Device| {
            device.topology.iter().flat_map(|topology| &topology.nodes).map(|n| n.id).collect()
        };
        list.iter().map(|one| (one.id.clone(), one.health == "Healthy", numa(one))).collect()
    }

    /// The list of any resource: (id, healthy). None where it was never registered.
    #[must_use]
    pub fn list_of(&self, resource: &str) -> Option<Vec<(String, bool)>> {
        let shared = self.shared.lock().unwrap();
        let (list, _) = shared.lists.get(resource)?;
        Some(list.iter().map(|one| (one.id.clone(), one.health == "Healthy")).collect())
    }

    /// Whether it lists a device as healthy; none while it doesn't list it.
    #[must_use]
    pub fn is_healthy(&self, id: &str) -> Option<bool> {
        let list = self.list_of(&self.resource)?;
        list.into_iter().find(|(one, _)| one == id).map(|(_, healthy)| healthy)
    }

    /// The healthy ids, once there are this many.
    pub async fn healthy(&self, count: usize) -> Vec<String> {
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

    /// How often a plugin has registered.
    #[must_use]
    pub fn registrations(&self) -> usize {
        self.shared.lock().unwrap().registrations
    }

    /// What each registration's plugin said of itself.
    #[must_use]
    pub fn options(&self) -> Vec<api::DevicePluginOptions> {
        self.shared.lock().unwrap().options.clone()
    }

    /// What the kubelet does when the old of two instances dies: it lets go of the resource's list,
    /// and tells nobody.
    pub fn disconnect(&self) {
        let mut shared = self.shared.lock().unwrap();
        // A kubelet that has just started knows it not yet.
        let Some((list, follower)) = shared.lists.get_mut(&self.resource) else { return };
        list.clear();
        follower.abort();
    }

    /// A client of the resource's plugin.
    #[must_use]
    pub fn plugin(&self) -> Plugin {
        self.plugin_of(&self.resource)
    }

    /// A client of any resource's plugin.
    #[must_use]
    pub fn plugin_of(&self, resource: &str) -> Plugin {
        let socket = format!("berth-{}.sock", resource.replace('/', "_"));
        Plugin::new(dial(&self.plugins().join(socket)))
    }

    /// Admits a container.
    ///
    /// # Panics
    /// The plugin refuses.
    pub async fn allocate(&self, ids: &[&str]) -> api::ContainerAllocateResponse {
        self.try_allocate(ids).await.unwrap()
    }

    /// Admits a container.
    ///
    /// # Errors
    /// The plugin refuses: a kubelet would end the pod.
    pub async fn try_allocate(
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

    /// Starts a container.
    ///
    /// # Errors
    /// Why it waits.
    pub async fn pre_start(&self, ids: &[&str]) -> Result<(), String> {
        self.pre_start_of(&self.resource, ids).await
    }

    /// Starts a container of any resource.
    ///
    /// # Errors
    /// Why it waits.
    pub async fn pre_start_of(&self, resource: &str, ids: &[&str]) -> Result<(), String> {
        let devices_ids = ids.iter().map(|id| (*id).to_owned()).collect();
        let request = api::PreStartContainerRequest { devices_ids };
        let answer = self.plugin_of(resource).pre_start_container(request).await;
        answer.map(drop).map_err(|status| status.message().to_owned())
    }

    /// What PodResources tells from now on.
    pub fn pods(&self, pods: &[(&str, &[&str])]) {
        let pods = pods.iter().map(|(name, ids)| pods::PodResources {
            name: (*name).to_owned(),
            namespace: "default".to_owned(),
            containers: vec![pods::ContainerResources {
                name: "vm".to_owned(),
                devices: ids
                    .iter()
                    .map(|id| pods::ContainerDevices {
                        resource_name: self.resource.clone(),
                        device_ids: vec![(*id).to_owned()],
                        topology: None,
                    })
                    .collect(),
                ..pods::ContainerResources::default()
            }],
        });
        self.shared.lock().unwrap().pods = pods.collect();
    }
}
