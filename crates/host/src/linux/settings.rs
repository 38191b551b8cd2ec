//! Settings of the kernel, from its modules' parameters.

use super::tree::{self, Root};
use crate::Settings;

/// Modules with the parameter `allow_unsafe_interrupts`.
const INTERRUPTS: [&str; 2] = ["vfio_iommu_type1", "iommufd"];

/// Reads them anew.
pub(super) fn read(root: &Root) -> Settings {
    let drivers = tree::names_in(&root.join("sys/bus/pci/drivers")).ok();
    Settings {
        unsafe_interrupts: INTERRUPTS
            .into_iter()
            .filter_map(|module| {
                let parameter = format!("sys/module/{module}/parameters/allow_unsafe_interrupts");
                let value = text(root, &parameter)?;
                Some((module.to_owned(), is_on(&value)))
            })
            .collect(),
        vfio_sriov: text(root, "sys/module/vfio_pci/parameters/enable_sriov")
            .is_some_and(|value| is_on(&value)),
        vfio_pci: drivers.map(|names| names.iter().any(|name| name == "vfio-pci")),
    }
}

fn is_on(value: &str) -> bool {
    value == "Y" || value == "1"
}

fn text(root: &Root, below: &str) -> Option<String> {
    let text = std::fs::read_to_string(root.join(below)).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Root, read};
    use std::fs;

    #[test]
    fn what_is_there_is_read_and_nothing_else_is_guessed() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        assert_eq!(read(&root), super::Settings::default());
        let parameters = dir.path().join("sys/module/vfio_iommu_type1/parameters");
        fs::create_dir_all(&parameters).unwrap();
        fs::create_dir_all(dir.path().join("sys/bus/pci/drivers/nvme")).unwrap();
        fs::write(parameters.join("allow_unsafe_interrupts"), "Y\n").unwrap();
        let found = read(&root);
        assert_eq!(found.unsafe_interrupts, [("vfio_iommu_type1".to_owned(), true)]);
        assert_eq!(found.vfio_pci, Some(false));
        fs::create_dir(dir.path().join("sys/bus/pci/drivers/vfio-pci")).unwrap();
        assert_eq!(read(&root).vfio_pci, Some(true));
        assert!(!read(&root).vfio_sriov);
        let parameters = dir.path().join("sys/module/vfio_pci/parameters");
        fs::create_dir_all(&parameters).unwrap();
        for (value, on) in [("Y\n", true), ("N\n", false)] {
            fs::write(parameters.join("enable_sriov"), value).unwrap();
            assert_eq!(read(&root).vfio_sriov, on);
        }
    }
}
