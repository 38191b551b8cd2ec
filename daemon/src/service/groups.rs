//! The calls about groups.

use std::collections::HashMap;

use berth_ownership::DeviceId;
use berth_proto::v1;

use super::{Service, authorize::require, find, tenant};
use crate::{
    model::{ApiError, Call, Caller},
    view::{self, Asked, Machine, Scope},
};

impl Service {
    /// All groups.
    ///
    /// # Errors
    /// The caller may not.
    pub async fn list_groups(
        &self,
        caller: &Caller,
        _request: v1::ListGroupsRequest,
    ) -> Result<v1::ListGroupsResponse, ApiError> {
        require(caller, Call::ListGroups)?;
        let snapshot = self.snapshot();
        let shown = snapshot.state.groups().map(|group| view::group(&snapshot, group));
        let groups = shown.map(|group| tenant::show_group(caller, &snapshot, group)).collect();
        Ok(v1::ListGroupsResponse { groups, resume_seq: snapshot.seq })
    }

    /// One group by stable id, kernel number or member's address.
    ///
    /// # Errors
    /// There is no such group.
    pub async fn get_group(
        &self,
        caller: &Caller,
        request: v1::GetGroupRequest,
    ) -> Result<v1::Group, ApiError> {
        require(caller, Call::GetGroup)?;
        let snapshot = self.snapshot();
        let group = find::group(&snapshot, &request.group)?;
        Ok(tenant::show_group(caller, &snapshot, view::group(&snapshot, group)))
    }

    /// Why a group or device can or can't be given away. Looks at its devices again first.
    ///
    /// # Errors
    /// There is no such group or device.
    pub async fn explain(
        &self,
        caller: &Caller,
        request: v1::ExplainRequest,
    ) -> Result<v1::Explanation, ApiError> {
        require(caller, Call::Explain)?;
        let snapshot = self.snapshot();
        let (named, reservation) = find::explained(&snapshot, &request)?;
        let members: Vec<_> =
            named.devices.iter().filter_map(|id| id.as_str().parse().ok()).collect();
        let asked = members.clone();
        let (processes, features, kernel) = self
            .on_host("explain", move |host| {
                let mut processes = HashMap::new();
                for address in asked {
                    // A device that can't be asked has no processes to show.
                    processes.insert(address, host.users_of(address).unwrap_or_default());
                }
                (processes, host.features(), host.settings())
            })
            .await?;
        let refreshed = self.ledger.refresh(members, crate::model::Meta::internal("explain")).await;
        let snapshot = refreshed.map_or(snapshot, |applied| applied.snapshot);
        let group = find::group(&snapshot, named.id.as_str())?;
        let only: Option<DeviceId> = request
            .object
            .parse::<berth_host::PciAddress>()
            .ok()
            .map(|address| DeviceId::from(address.to_string()));
        let settings = self.config.get();
        let asked = Asked {
            label: &request.label,
            now: &self.ledger.clock().now(),
            processes: &processes,
            features: &features,
            only: only.as_ref(),
            rules: &settings.devices,
        };
        let mut explanation = view::explain(&snapshot, group, &asked);
        if let (Some(group), 1..) = (&explanation.group, request.memory_bytes) {
            let bytes = request.memory_bytes;
            explanation.memory_notes = view::memory_notes(group, reservation.as_ref(), bytes);
        }
        let in_force = self.in_force.get();
        let scope = Scope {
            machine: Machine { features: &features, settings: &kernel, config: &in_force },
            rules: &settings.devices,
            memory_bytes: request.memory_bytes,
            reservation: reservation.as_ref(),
        };
        explanation.findings = view::findings_of(&snapshot, group, &scope);
        Ok(explanation)
    }
}
