//! What the whole host lacks.

use berth_host::{Answer, Feature, GroupFacts};
use berth_proto::v1;

use super::{Code, Machine, finding, fixed_by};

const TURN_ON: &str = "turn on VT-d, AMD-Vi or SMMU in the firmware, boot with intel_iommu=on (Intel), and look again";

pub(super) fn findings(groups: &[GroupFacts], machine: &Machine<'_>) -> Vec<v1::Finding> {
    let Machine { features, .. } = *machine;
    if no(features, "iommu").is_some() {
        let cause = format!("nothing can be given away: {}", note(features, "iommu"));
        // What follows from it is no finding of its own.
        return vec![fixed_by(finding(Code::IommuOff, "", cause), TURN_ON)];
    }
    let mut found = Vec::new();
    found.extend(interrupts(machine));
    found.extend(backends(features));
    found.extend(vfio_pci(machine));
    if let Some(why) = no(features, "uevents") {
        let cause = format!("what happens to devices is seen by scans only: {why}");
        let fix = "let berthd open a netlink socket: RestrictAddressFamilies=AF_UNIX AF_NETLINK";
        found.push(fixed_by(finding(Code::NoUevents, "", cause), fix));
    }
    found.extend(passthrough(groups));
    found
}

fn interrupts(machine: &Machine<'_>) -> Option<v1::Finding> {
    let Machine { features, settings, .. } = *machine;
    let allowed: Vec<&str> = settings
        .unsafe_interrupts
        .iter()
        .filter_map(|(module, on)| on.then_some(module.as_str()))
        .collect();
    let why = no(features, "interrupt-remapping")?;
    if allowed.is_empty() {
        let cause = format!("VFIO refuses every device, as it could raise any interrupt: {why}");
        let finding = finding(Code::NoInterruptRemapping, "", cause);
        let finding = fixed_by(finding, "turn on interrupt remapping (x2APIC) in the firmware");
        let anyway = "where every holder is trusted: modprobe vfio_iommu_type1 \
                      allow_unsafe_interrupts=1, and the same of iommufd";
        return Some(fixed_by(finding, anyway));
    }
    let cause = format!(
        "a holder can raise any interrupt of the host, which {} allows: {why}",
        allowed.join(" and ")
    );
    let finding = finding(Code::UnsafeInterrupts, "", cause);
    Some(fixed_by(finding, "turn on interrupt remapping in the firmware, and the parameter off"))
}

fn backends(features: &[Feature]) -> Vec<v1::Finding> {
    let (iommufd, type1) = (no(features, "iommufd"), no(features, "type1"));
    let cdev = no(features, "cdev");
    if let (Some(iommufd), Some(type1)) = (iommufd.or(cdev), type1) {
        let cause = format!("neither back end works; iommufd: {iommufd}; type1: {type1}");
        let fix = "modprobe vfio_iommu_type1, or modprobe iommufd with a kernel of 6.6 or newer";
        return vec![fixed_by(finding(Code::NoBackend, "", cause), fix)];
    }
    let mut found = Vec::new();
    if let Some(why) = iommufd.or(cdev) {
        let cause =
            format!("only type1 works, without replace and without delivery unbound: {why}");
        let fix = "a kernel of 6.6 or newer with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV";
        found.push(fixed_by(finding(Code::NoIommufd, "", cause), fix));
    }
    if let Some(why) = no(features, "kernel-hold") {
        let cause = format!(
            "a reservation without claims is a hold of Berth's ledger only, and no other program \
             is kept out by the kernel: {why}"
        );
        let fix = "modprobe vfio_iommu_type1; the kernel needs CONFIG_VFIO_GROUP and \
                   CONFIG_VFIO_CONTAINER";
        found.push(fixed_by(finding(Code::NoKernelHold, "", cause), fix));
    }
    found
}

fn vfio_pci(machine: &Machine<'_>) -> Option<v1::Finding> {
    (machine.settings.vfio_pci == Some(false)).then(|| {
        let cause = "the driver vfio-pci isn't registered, so no device can be bound to it";
        let finding = finding(Code::NoVfioPci, "", cause);
        fixed_by(finding, "modprobe vfio-pci, and name it in /etc/modules-load.d/berth.conf")
    })
}

fn passthrough(groups: &[GroupFacts]) -> Option<v1::Finding> {
    let identity = groups.iter().filter(|group| group.iommu_type == "identity").count();
    (identity > 0).then(|| {
        let cause = format!(
            "{identity} of {} groups are in passthrough for the host's own drivers: their devices \
             reach all memory until they are given away",
            groups.len()
        );
        let finding = finding(Code::Passthrough, "", cause);
        fixed_by(finding, "where that matters, boot without iommu=pt and iommu.passthrough=1")
    })
}

/// Why a feature is known not to be there.
fn no<'f>(features: &'f [Feature], name: &str) -> Option<&'f str> {
    let found = features.iter().find(|feature| feature.name == name)?;
    (found.answer == Answer::No).then_some(found.note.as_str())
}

fn note<'f>(features: &'f [Feature], name: &str) -> &'f str {
    no(features, name).unwrap_or_default()
}
