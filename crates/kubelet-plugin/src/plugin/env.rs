//! What a container finds in its environment.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    config::Resource,
    core::{Allocation, Offer},
    handout::container_socket,
    node::ALLOCATION_ENV,
};

/// For KubeVirt, for what knows the SR-IOV plugin, and Berth's own. The reservation is made later, so
/// what is delivered by socket is asked for by the allocation's name.
///
/// KubeVirt takes as many addresses as host devices were asked for, by position: so it gets the
/// primary function of each group, and nothing of its siblings.
pub(super) fn variables(
    resource: &Resource,
    allocation: &Allocation,
    offers: &[&Offer],
) -> BTreeMap<String, String> {
    let suffix = resource.env();
    let primary: Vec<&str> = offers.iter().map(|offer| offer.primary.as_str()).collect();
    let primary = primary.join(",");
    let mut variables = BTreeMap::from([
        (format!("PCI_RESOURCE_{suffix}"), primary.clone()),
        (format!("PCIDEVICE_{suffix}"), primary),
        (format!("{ALLOCATION_ENV}{suffix}"), allocation.name.clone()),
        (format!("BERTH_DEVICES_{suffix}"), all(resource, allocation, offers).to_string()),
    ]);
    if allocation.delivery.by_socket() {
        variables.insert(format!("BERTH_RESERVATION_{suffix}"), allocation.name.clone());
        variables.insert(format!("BERTH_HANDOVER_{suffix}"), container_socket(&allocation.name));
    } else {
        variables.insert(format!("PCIDEVICE_{suffix}_INFO"), sriov_info(offers).to_string());
    }
    variables
}

fn sriov_info(offers: &[&Offer]) -> Value {
    let one = |offer: &&Offer| {
        let node = format!("/dev/vfio/{}", offer.number);
        let info = json!({"vfio": {"mount": "/dev/vfio/vfio", "dev-mount": node}});
        (offer.primary.clone(), info)
    };
    Value::Object(offers.iter().map(one).collect())
}

fn all(resource: &Resource, allocation: &Allocation, offers: &[&Offer]) -> Value {
    let group = |offer: &&Offer| {
        let devices: Vec<Value> = offer
            .members
            .iter()
            .map(|member| {
                json!({
                    "address": member.address,
                    "id": format!("{:04x}:{:04x}", member.vendor, member.device),
                    "class": format!("{:06x}", member.class),
                    "primary": member.address == offer.primary,
                })
            })
            .collect();
        json!({"group": offer.id, "numaNode": offer.numa_node, "devices": devices})
    };
    json!({
        "resource": resource.name,
        "allocation": allocation.name,
        "groups": offers.iter().map(group).collect::<Vec<Value>>(),
    })
}
