//! Numbers about the condition of devices.

use std::fmt::Write as _;

use berth_proto::v1::{self, device_address::Kind};

use super::{count_all, head, write_counts};

/// Writes what is known of devices, bridges left out.
pub(super) fn write(text: &mut String, devices: &[v1::Device]) {
    let devices: Vec<&v1::Device> = devices.iter().filter(|device| !device.is_bridge).collect();
    let mut conditions = count_all((1..=6).filter_map(|kind| v1::Condition::try_from(kind).ok()));
    for device in &devices {
        *conditions.entry(device.condition().as_str_name()).or_default() += 1;
    }
    let name = "berth_devices_by_condition";
    head(text, name, "gauge", "Devices by condition.");
    write_counts(text, name, "condition", &conditions);
    let name = "berth_device_aer_errors_total";
    head(text, name, "counter", "PCIe errors that the kernel counted, by device and severity.");
    for device in devices {
        let Some(aer) = device.health.as_ref().and_then(|health| health.aer) else { continue };
        let Some(Kind::Pci(address)) = device.address.as_ref().and_then(|it| it.kind.as_ref())
        else {
            continue;
        };
        for (severity, count) in
            [("correctable", aer.correctable), ("nonfatal", aer.nonfatal), ("fatal", aer.fatal)]
        {
            let _ =
                writeln!(text, "{name}{{device=\"{address}\",severity=\"{severity}\"}} {count}");
        }
    }
}
