//! Which pods the kubelet says have which devices. It leaves out a pod that was deleted by force,
//! though its container may still run: what isn't here is not free for that.

use std::{path::Path, time::Duration};

use tonic::{Status, transport::Channel};

use crate::{
    api::podresources::{ListPodResourcesRequest, pod_resources_lister_client},
    core::Allocation,
};

/// How long the list is waited for: containers that start wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// The kubelet's PodResources socket.
#[derive(Debug, Clone)]
pub struct Pods {
    channel: Channel,
}

/// One device of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// `namespace/name`.
    pub pod: String,
    /// The resource.
    pub resource: String,
    /// The device.
    pub device: String,
}

impl Pods {
    /// By its socket, which needn't be there yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { channel: crate::core::channel(socket) }
    }

    /// All devices of all active pods.
    ///
    /// # Errors
    /// The kubelet doesn't answer.
    pub async fn list(&self) -> Result<Vec<Listed>, Box<Status>> {
        let mut client =
            pod_resources_lister_client::PodResourcesListerClient::new(self.channel.clone());
        let answer = tokio::time::timeout(PATIENCE, client.list(ListPodResourcesRequest {})).await;
        let answer = answer.map_err(|_| Status::deadline_exceeded("no answer in time"))?;
        let answer = answer.map_err(Box::new)?.into_inner();
        let mut found = Vec::new();
        for pod in answer.pod_resources {
            let name = format!("{}/{}", pod.namespace, pod.name);
            for devices in pod.containers.into_iter().flat_map(|container| container.devices) {
                found.extend(devices.device_ids.into_iter().map(|device| Listed {
                    pod: name.clone(),
                    resource: devices.resource_name.clone(),
                    device,
                }));
            }
        }
        Ok(found)
    }
}

impl Listed {
    /// Whether it is one of an allocation's.
    #[must_use]
    pub fn is_of(&self, allocation: &Allocation) -> bool {
        self.resource == allocation.resource && allocation.groups.contains(&self.device)
    }
}
