//! The service of one resource.

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt as _, wrappers::WatchStream};
use tonic::{Request, Response, Status};

use super::{env, prefer};
use crate::{
    api::v1beta1::{self as api, device_plugin_server},
    config::Resource,
    core::{Claims, Inventory, Offer},
    metrics::Metrics,
};

/// How many lists the kubelet follows: none means that it has forgotten the plugin.
#[derive(Debug, Clone, Default)]
pub struct Streams(pub(super) Arc<AtomicUsize>);

impl Streams {
    /// Now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    fn begin(&self) -> OpenStream {
        self.0.fetch_add(1, Ordering::AcqRel);
        OpenStream(self.clone())
    }
}

#[derive(Debug)]
struct OpenStream(Streams);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the kubelet calls, for one resource.
#[derive(Debug, Clone)]
pub struct DevicePlugin {
    resource: watch::Receiver<Arc<Resource>>,
    inventory: watch::Receiver<Arc<Inventory>>,
    claims: Arc<Claims>,
    metrics: Arc<Metrics>,
    streams: Streams,
}

/// What the kubelet is told to call.
pub(super) fn options() -> api::DevicePluginOptions {
    api::DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true }
}

impl DevicePlugin {
    /// For a resource, as it is at each call; its lists end with the sender.
    #[must_use]
    pub fn new(
        resource: watch::Receiver<Arc<Resource>>,
        inventory: watch::Receiver<Arc<Inventory>>,
        claims: Arc<Claims>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let streams = Streams(metrics.lists(&resource.borrow().name));
        Self { resource, inventory, claims, metrics, streams }
    }

    /// The resource, now.
    #[must_use]
    pub fn resource(&self) -> Arc<Resource> {
        Arc::clone(&self.resource.borrow())
    }

    /// Where it is counted.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The lists that are followed.
    #[must_use]
    pub fn streams(&self) -> Streams {
        self.streams.clone()
    }

    fn allocate_one(
        &self,
        inventory: &Inventory,
        ids: &[String],
    ) -> Result<api::ContainerAllocateResponse, Status> {
        let resource = self.resource();
        let offers: Vec<&Offer> = ids
            .iter()
            .map(|id| {
                let known = inventory.offers.get(id);
                known.filter(|offer| offer.resource == resource.name).ok_or_else(|| {
                    let name = &resource.name;
                    Status::not_found(format!("{id} is not a group of {name} on this node"))
                })
            })
            .collect::<Result<_, _>>()?;
        let groups: BTreeSet<String> = ids.iter().cloned().collect();
        let allocation = self.claims.allocate(&resource, &groups);
        tracing::info!(
            resource = resource.name,
            allocation = allocation.name,
            groups = ids.join(","),
            "allocated"
        );
        let name = format!("{}={}", resource.cdi_kind(), allocation.name);
        Ok(api::ContainerAllocateResponse {
            envs: env::variables(&resource, &allocation, &offers),
            cdi_devices: vec![api::CdiDevice { name }],
            ..api::ContainerAllocateResponse::default()
        })
    }
}

fn listed(resource: &str, inventory: &Inventory) -> api::ListAndWatchResponse {
    let devices = inventory.of_resource(resource).map(|offer| {
        let node = offer.numa_node.map(|node| api::NumaNode { id: node.into() });
        api::Device {
            id: offer.id.clone(),
            health: if offer.unhealthy.is_none() { "Healthy" } else { "Unhealthy" }.to_owned(),
            topology: node.map(|node| api::TopologyInfo { nodes: vec![node] }),
        }
    });
    api::ListAndWatchResponse { devices: devices.collect() }
}

/// A list that is followed, counted until the kubelet lets go of it.
struct Lists<S> {
    lists: S,
    ended: Pin<Box<dyn Future<Output = ()> + Send>>,
    _open: OpenStream,
}

impl<S: Stream + Unpin> Stream for Lists<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        if self.ended.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.lists).poll_next(context)
    }
}

type Answer = Result<api::ListAndWatchResponse, Status>;

#[tonic::async_trait]
impl device_plugin_server::DevicePlugin for DevicePlugin {
    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Answer> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<api::Empty>,
    ) -> Result<Response<api::DevicePluginOptions>, Status> {
        Ok(Response::new(options()))
    }

    async fn list_and_watch(
        &self,
        _: Request<api::Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let name = self.resource().name.clone();
        let metrics = Arc::clone(&self.metrics);
        let mut last = None;
        let lists = WatchStream::new(self.inventory.clone()).filter_map(move |inventory| {
            let list = listed(&name, &inventory);
            // Another resource's change is none of this one.
            let new = last.as_ref() != Some(&list);
            // The first list of a stream says how it is; no event led to it.
            let first = last.replace(list.clone()).is_none();
            if let Some(event) = inventory.event.filter(|_| new && !first) {
                metrics.listed(&name, event);
            }
            new.then_some(Ok(list))
        });
        let mut resource = self.resource.clone();
        let ended = Box::pin(async move { while resource.changed().await.is_ok() {} });
        let lists = Lists { lists, ended, _open: self.streams.begin() };
        Ok(Response::new(Box::pin(lists)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<api::PreferredAllocationRequest>,
    ) -> Result<Response<api::PreferredAllocationResponse>, Status> {
        let inventory = self.inventory.borrow().clone();
        let one = |one: api::ContainerPreferredAllocationRequest| {
            let size = usize::try_from(one.allocation_size).unwrap_or(0);
            let (available, must) = (&one.available_device_i_ds, &one.must_include_device_i_ds);
            let device_i_ds = prefer::choose(&inventory, available, must, size);
            api::ContainerPreferredAllocationResponse { device_i_ds }
        };
        let container_responses =
            request.into_inner().container_requests.into_iter().map(one).collect();
        Ok(Response::new(api::PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<api::AllocateRequest>,
    ) -> Result<Response<api::AllocateResponse>, Status> {
        let inventory = self.inventory.borrow().clone();
        let container_responses = request
            .into_inner()
            .container_requests
            .iter()
            .map(|one| self.allocate_one(&inventory, &one.devices_ids))
            .collect::<Result<_, _>>();
        self.metrics.allocate(&self.resource().name, container_responses.is_ok());
        let container_responses = container_responses?;
        Ok(Response::new(api::AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        request: Request<api::PreStartContainerRequest>,
    ) -> Result<Response<api::PreStartContainerResponse>, Status> {
        let groups: BTreeSet<String> = request.into_inner().devices_ids.into_iter().collect();
        // A call that the kubelet gives up on is finished all the same.
        let (claims, resource) = (Arc::clone(&self.claims), self.resource());
        let name = resource.name.clone();
        let taken = tokio::spawn(async move { claims.take(&resource, &groups).await }).await;
        match taken.map_err(|error| Status::internal(error.to_string()))? {
            Ok(()) => {
                self.metrics.let_in(&name);
                Ok(Response::new(api::PreStartContainerResponse {}))
            }
            Err(why) => {
                self.metrics.waits(&name, &why.reason());
                tracing::info!(resource = name, %why, "a container waits");
                Err(Status::failed_precondition(why.to_string()))
            }
        }
    }
}
