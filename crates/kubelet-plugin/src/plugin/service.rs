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
};

/// How many lists the kubelet follows: none means that it has forgotten the plugin.
#[derive(Debug, Clone, Default)]
pub struct Streams(Arc<AtomicUsize>);

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
    resource: Arc<Resource>,
    inventory: watch::Receiver<Arc<Inventory>>,
    claims: Arc<Claims>,
    streams: Streams,
}

/// What the kubelet is told to call.
pub(super) fn options() -> api::DevicePluginOptions {
    api::DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true }
}

impl DevicePlugin {
    /// For a resource.
    #[must_use]
    pub fn new(
        resource: Resource,
        inventory: watch::Receiver<Arc<Inventory>>,
        claims: Arc<Claims>,
    ) -> Self {
        Self { resource: Arc::new(resource), inventory, claims, streams: Streams::default() }
    }

    /// The resource.
    #[must_use]
    pub fn resource(&self) -> &Resource {
        &self.resource
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
        let offers: Vec<&Offer> = ids
            .iter()
            .map(|id| {
                let known = inventory.offers.get(id);
                known.filter(|offer| offer.resource == self.resource.name).ok_or_else(|| {
                    let name = &self.resource.name;
                    Status::not_found(format!("{id} is not a group of {name} on this node"))
                })
            })
            .collect::<Result<_, _>>()?;
        let groups: BTreeSet<String> = ids.iter().cloned().collect();
        let allocation = self.claims.allocate(&self.resource, &groups);
        tracing::info!(
            resource = self.resource.name,
            allocation = allocation.name,
            groups = ids.join(","),
            "allocated"
        );
        let name = format!("{}={}", self.resource.cdi_kind(), allocation.name);
        Ok(api::ContainerAllocateResponse {
            envs: env::variables(&self.resource, &allocation, &offers),
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
#[derive(Debug)]
struct Lists<S> {
    lists: S,
    _open: OpenStream,
}

impl<S: Stream + Unpin> Stream for Lists<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
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
        let name = self.resource.name.clone();
        let mut last = None;
        let lists = WatchStream::new(self.inventory.clone()).filter_map(move |inventory| {
            let list = listed(&name, &inventory);
            // Another resource's change is none of this one.
            let new = last.as_ref() != Some(&list);
            last = Some(list.clone());
            new.then_some(Ok(list))
        });
        let lists = Lists { lists, _open: self.streams.begin() };
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
            .collect::<Result<_, _>>()?;
        Ok(Response::new(api::AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        request: Request<api::PreStartContainerRequest>,
    ) -> Result<Response<api::PreStartContainerResponse>, Status> {
        let groups: BTreeSet<String> = request.into_inner().devices_ids.into_iter().collect();
        // A call that the kubelet gives up on is finished all the same.
        let (claims, resource) = (Arc::clone(&self.claims), Arc::clone(&self.resource));
        let taken = tokio::spawn(async move { claims.take(&resource, &groups).await }).await;
        match taken.map_err(|error| Status::internal(error.to_string()))? {
            Ok(()) => Ok(Response::new(api::PreStartContainerResponse {})),
            Err(why) => {
                tracing::info!(resource = self.resource.name, %why, "a container waits");
                Err(Status::failed_precondition(why.to_string()))
            }
        }
    }
}
