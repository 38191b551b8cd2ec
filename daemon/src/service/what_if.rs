//! What would become of groups if ports isolated better.

use std::collections::{BTreeMap, BTreeSet};

use berth_host::{
    GroupFacts, Inventory, PciAddress,
    grouping::{Assumed, Split, Stays, WhatIf, what_if},
    sim::Topology,
};
use berth_proto::v1;

use super::{Service, authorize::require};
use crate::{
    model::{ApiError, Call, Caller},
    view,
};

impl Service {
    /// Which groups would split by Access Control Services: of this machine, or of one whose snapshot
    /// is sent.
    ///
    /// # Errors
    /// The snapshot isn't one; a port or the object isn't in the machine.
    pub async fn what_if(
        &self,
        caller: &Caller,
        request: v1::WhatIfRequest,
    ) -> Result<v1::WhatIfResponse, ApiError> {
        require(caller, Call::WhatIf)?;
        let here = self.snapshot();
        let name = self.host.topology().unwrap_or_else(|| "this host".to_owned());
        tokio::task::spawn_blocking(move || {
            let (machine, inventory) = if request.snapshot.is_empty() {
                (name, (*here.inventory).clone())
            } else {
                recorded(&request.snapshot)?
            };
            let assumed = assumed(&inventory, &request.acs_on)?;
            let only = only(&inventory, &request.object)?;
            Ok(shown(machine, &inventory, what_if(&inventory, &assumed), only))
        })
        .await
        .map_err(|error| ApiError::internal("what-if", error.to_string()))?
    }
}

fn recorded(text: &str) -> Result<(String, Inventory), ApiError> {
    let topology = Topology::parse(text, "snapshot").map_err(|error| {
        ApiError::invalid_argument(
            "snapshot",
            error.to_string(),
            "send what `berth snapshot` wrote",
        )
    })?;
    Ok((topology.name().to_owned(), topology.inventory()))
}

fn assumed(machine: &Inventory, acs_on: &[String]) -> Result<Assumed, ApiError> {
    if acs_on.is_empty() {
        return Ok(Assumed::Everywhere);
    }
    let known: BTreeSet<PciAddress> = machine.devices.iter().map(|it| it.address).collect();
    let read = |text: &String| {
        let address = text.parse::<PciAddress>().ok().filter(|address| known.contains(address));
        address.ok_or_else(|| {
            let text = format!("acs_on: no function of the machine is called {text:?}");
            let way_out = "name ports by their addresses, like 0000:00:1c.0; none stands for all";
            ApiError::invalid_argument("acsOn", text, way_out)
        })
    };
    Ok(Assumed::On(acs_on.iter().map(read).collect::<Result<_, _>>()?))
}

/// The number of the one group that is asked about.
fn only(machine: &Inventory, object: &str) -> Result<Option<u32>, ApiError> {
    if object.is_empty() {
        return Ok(None);
    }
    let address = object.parse::<PciAddress>().ok();
    let named = |group: &&GroupFacts| {
        group.stable_id == object
            || object.parse() == Ok(group.number)
            || address.is_some_and(|address| group.members.contains(&address))
    };
    let found = machine.groups.iter().find(named);
    found.map(|group| Some(group.number)).ok_or_else(|| {
        ApiError::not_found(
            object,
            format!("no group or device of the machine is called {object:?}"),
        )
    })
}

fn shown(
    machine: String,
    inventory: &Inventory,
    answer: WhatIf,
    only: Option<u32>,
) -> v1::WhatIfResponse {
    let ids: BTreeMap<u32, &str> =
        inventory.groups.iter().map(|group| (group.number, group.stable_id.as_str())).collect();
    let id = |number: u32| ids.get(&number).copied().unwrap_or_default().to_owned();
    let asked = |number: u32| only.is_none_or(|only| only == number);
    let devices = |members: &[PciAddress]| {
        members.iter().map(|member| view::address(member.to_string())).collect()
    };
    let split = |split: &Split| v1::GroupSplit {
        group: id(split.number),
        number: split.number,
        parts: split.parts.iter().map(|part| v1::GroupPart { devices: devices(part) }).collect(),
        ports: split.ports.iter().map(ToString::to_string).collect(),
    };
    let stays = |stays: &Stays| v1::GroupStays {
        group: id(stays.number),
        number: stays.number,
        devices: devices(&stays.members),
        text: stays.text.clone(),
    };
    v1::WhatIfResponse {
        machine,
        splits: answer.splits.iter().filter(|it| asked(it.number)).map(split).collect(),
        stays: answer.stays.iter().filter(|it| asked(it.number)).map(stays).collect(),
        unexplained: answer.unexplained.iter().filter(|it| asked(it.number)).map(stays).collect(),
    }
}
