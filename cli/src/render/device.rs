//! Devices.

use berth_proto::v1;

use super::{Meaning, block as fields, cell, group, health, process, sriov, table as render, word};
use crate::{address, quantity};

/// One line a device.
pub(crate) fn table(devices: &[v1::Device]) -> String {
    render(
        &["DEVICE", "GROUP", "ID", "CLASS", "DRIVER", "KERNEL DMA", "NUMA", "CONDITION", "NAME"],
        devices.iter().map(|device| {
            vec![
                cell(address::text(device.address.as_ref()), Meaning::Plain),
                cell(or_dash(&device.group), Meaning::Plain),
                cell(format!("{:04x}:{:04x}", device.vendor_id, device.device_id), Meaning::Plain),
                cell(format!("{:04x}", device.class_code >> 8), Meaning::Plain),
                cell(or_dash(&device.driver), Meaning::Plain),
                cell(uses(device.uses_kernel_dma()), Meaning::Plain),
                cell(numa(device.numa_node), Meaning::Plain),
                group::condition_cell(device.condition(), health::short(device)),
                cell(name(device), Meaning::Plain),
            ]
        }),
    )
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn numa(node: i32) -> String {
    if node < 0 { "-".to_owned() } else { node.to_string() }
}

fn uses(uses: v1::kernel_dma::Uses) -> String {
    match uses {
        v1::kernel_dma::Uses::Unspecified => "-".to_owned(),
        other => word(other.as_str_name()),
    }
}

fn name(device: &v1::Device) -> String {
    let known = [&device.vendor_name, &device.device_name];
    let text = known.into_iter().filter(|t| !t.is_empty()).cloned().collect::<Vec<_>>().join(" ");
    if text.is_empty() { device.class_name.clone() } else { text }
}

/// Everything about one device.
pub(crate) fn block(device: &v1::Device) -> String {
    let addresses = |list: &[v1::DeviceAddress]| {
        list.iter().map(|a| address::text(Some(a)).to_owned()).collect::<Vec<_>>().join(" ")
    };
    let host: Vec<String> =
        device.host_uses.iter().map(|used| format!("{} {}", used.kind, used.detail)).collect();
    fields(&[
        ("device", address::text(device.address.as_ref()).to_owned()),
        ("name", name(device)),
        ("id", ids(device)),
        ("class", format!("{:06x} {}", device.class_code, device.class_name)),
        ("group", or_dash(&device.group)),
        ("why there", device.grouping.as_ref().map(|g| g.text.clone()).unwrap_or_default()),
        ("driver", or_dash(&device.driver)),
        ("kernel DMA", uses(device.uses_kernel_dma())),
        ("override", device.driver_override.clone()),
        ("baseline", device.baseline.as_ref().map(baseline).unwrap_or_default()),
        ("VFIO driver", device.vfio_driver.clone()),
        ("cdev", device.cdev.clone()),
        ("condition", group::noted(device.condition(), &device.condition_note)),
        ("cordon", device.cordon.as_ref().map(health::cordon).unwrap_or_default()),
        ("against it", device.health.as_ref().map(health::causes).unwrap_or_default()),
        ("note", device.health.as_ref().map(|it| it.notes.join("\n")).unwrap_or_default()),
        ("power", device.health.as_ref().map(health::power).unwrap_or_default()),
        ("link", device.health.as_ref().map(health::link).unwrap_or_default()),
        ("errors", device.health.as_ref().map(health::errors).unwrap_or_default()),
        ("host uses it", host.join("\n")),
        ("owned by", processes(&device.foreign)),
        ("NUMA node", numa(device.numa_node)),
        ("reset", reset(device)),
        ("BARs", device.bars.iter().map(bar).collect::<Vec<_>>().join("\n")),
        ("port", device.parent_port.clone()),
        (
            "PF",
            device
                .physical_function
                .as_ref()
                .map(|a| address::text(Some(a)).to_owned())
                .unwrap_or_default(),
        ),
        ("VFs", addresses(&device.virtual_functions)),
        (
            "VFs at most",
            if device.sriov_total_vfs == 0 {
                String::new()
            } else {
                device.sriov_total_vfs.to_string()
            },
        ),
        ("VFs before", device.sriov.as_ref().map(sriov::before).unwrap_or_default()),
    ])
}

fn ids(device: &v1::Device) -> String {
    format!(
        "{:04x}:{:04x} subsystem {:04x}:{:04x} revision {:02x}",
        device.vendor_id,
        device.device_id,
        device.subsystem_vendor_id,
        device.subsystem_device_id,
        device.revision
    )
}

fn baseline(baseline: &v1::Baseline) -> String {
    let driver = or_dash(&baseline.driver);
    if baseline.driver_override.is_empty() {
        format!("driver {driver}")
    } else {
        format!("driver {driver}, override {}", baseline.driver_override)
    }
}

fn reset(device: &v1::Device) -> String {
    let methods = if device.reset_methods.is_empty() {
        "not possible".to_owned()
    } else {
        device.reset_methods.join(" ")
    };
    if device.reset_with.is_empty() {
        return methods;
    }
    let with: Vec<&str> = device.reset_with.iter().map(|a| address::text(Some(a))).collect();
    format!("{methods}; only together with {}", with.join(" "))
}

fn bar(bar: &v1::Bar) -> String {
    let kind = match (bar.io, bar.memory64, bar.prefetchable) {
        (true, _, _) => "I/O ports",
        (false, true, true) => "64-bit prefetchable",
        (false, true, false) => "64-bit",
        (false, false, true) => "32-bit prefetchable",
        (false, false, false) => "32-bit",
    };
    format!("{}: {} {kind}", bar.index, quantity::human(bar.size_bytes))
}

/// The answer about kernel DMA.
pub(crate) fn kernel_dma(answer: &v1::KernelDma) -> String {
    let may = answer.may_attach.unwrap_or_default();
    let policies: Vec<&str> =
        [(may.exclusive, "exclusive"), (may.shared, "shared"), (may.group, "group")]
            .into_iter()
            .filter_map(|(yes, name)| yes.then_some(name))
            .collect();
    fields(&[
        ("device", address::text(answer.device.as_ref()).to_owned()),
        ("driver", or_dash(&answer.driver)),
        ("uses kernel DMA", uses(answer.uses_kernel_dma())),
        ("may attach", if policies.is_empty() { "none".to_owned() } else { policies.join(" ") }),
        ("because", answer.because.clone()),
    ])
}

/// A process list in one line.
pub(crate) fn processes(list: &[v1::Process]) -> String {
    list.iter().map(process).collect::<Vec<_>>().join("; ")
}
