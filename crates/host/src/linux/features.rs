//! What this machine can do, found by asking it.

use berth_uapi::{Answer as Asked, DevNodes, Features};

use super::{
    tree::{self, Root},
    uevents::KernelUevents,
};
use crate::{Answer, BackendKind, Feature};

/// The answers of one machine.
#[derive(Debug)]
pub(super) struct Abilities {
    features: Vec<Feature>,
}

impl Abilities {
    /// Asks. In another tree than the running machine only the IOMMU can be seen.
    pub(super) fn ask(root: &Root) -> Self {
        let mut features = vec![iommu(root), interrupt_remapping(root)];
        if root.is_live() {
            let asked = berth_uapi::probe(&DevNodes::default());
            features.extend(kernel(&asked));
            features.push(uevents());
        } else {
            for name in ["iommufd", "cdev", "map-file", "type1", "kernel-hold", "uevents"] {
                let note = format!("not asked: {} is not this machine", root.path().display());
                features.push(feature(name, Answer::CouldNotTell, note));
            }
        }
        Self { features }
    }

    /// All answers.
    pub(super) fn all(&self) -> Vec<Feature> {
        self.features.clone()
    }

    /// Whether a feature is known to be there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.answer(name) == Some(Answer::Yes)
    }

    /// Whether each question got an answer.
    pub(super) fn complete(&self) -> bool {
        self.features.iter().all(|found| found.answer != Answer::CouldNotTell)
    }

    fn answer(&self, name: &str) -> Option<Answer> {
        self.features.iter().find(|found| found.name == name).map(|found| found.answer)
    }

    /// The back ends that work, best first.
    pub(super) fn backends(&self) -> Vec<BackendKind> {
        let mut found = Vec::new();
        // Whether there are cdevs can't be told before the first VFIO driver is loaded; then it
        // shows at the first device that is bound.
        if self.has("iommu") && self.has("iommufd") && self.answer("cdev") != Some(Answer::No) {
            found.push(BackendKind::Iommufd);
        }
        if self.has("iommu") && self.has("type1") {
            found.push(BackendKind::Type1);
        }
        found
    }
}

fn feature(name: &str, answer: Answer, note: impl Into<String>) -> Feature {
    Feature { name: name.to_owned(), answer, note: note.into() }
}

fn iommu(root: &Root) -> Feature {
    let path = root.join("sys/kernel/iommu_groups");
    match tree::names_in(&path) {
        Ok(groups) if groups.is_empty() => feature(
            "iommu",
            Answer::No,
            "there is no IOMMU group: it is off in the firmware or on the kernel command line",
        ),
        Ok(groups) => feature("iommu", Answer::Yes, format!("{} groups", groups.len())),
        Err(rustix::io::Errno::NOENT) => {
            feature("iommu", Answer::No, "the kernel is built without IOMMU support")
        }
        Err(errno) => {
            feature("iommu", Answer::CouldNotTell, format!("{}: {errno}", path.display()))
        }
    }
}

/// On x86 the interrupt controllers' names tell it.
fn interrupt_remapping(root: &Root) -> Feature {
    const NAME: &str = "interrupt-remapping";
    let path = root.join("proc/interrupts");
    let Ok(text) = std::fs::read(&path) else {
        let note = format!("{} can't be read", path.display());
        return feature(NAME, Answer::CouldNotTell, note);
    };
    let text = String::from_utf8_lossy(&text);
    let mut words = text.split_ascii_whitespace();
    if words.clone().any(|word| word.starts_with("IR-")) {
        feature(NAME, Answer::Yes, "/proc/interrupts shows remapped interrupts")
    } else if words.any(|word| word == "IO-APIC" || word.starts_with("PCI-MSI")) {
        let note = "/proc/interrupts shows interrupts that aren't remapped: it is off in the \
                    firmware or on the kernel command line";
        feature(NAME, Answer::No, note)
    } else {
        feature(NAME, Answer::CouldNotTell, "this architecture doesn't show it")
    }
}

fn uevents() -> Feature {
    match KernelUevents::open() {
        Ok(_) => {
            feature("uevents", Answer::Yes, "the kernel tells what happens to devices by netlink")
        }
        Err(error) => {
            let note = format!("{error}: what happens to devices is found by scans only");
            feature("uevents", Answer::No, note)
        }
    }
}

fn kernel(asked: &Features) -> Vec<Feature> {
    let hold = match (&asked.container, &asked.type1v2) {
        (Asked::Yes, Asked::Yes) => Asked::Yes,
        (Asked::Yes, other) => other.clone(),
        (other, _) => other.clone(),
    };
    vec![
        translated("iommufd", &asked.iommufd, "/dev/iommu", "there is no /dev/iommu"),
        translated("cdev", &asked.cdev, "VFIO cdevs", "the kernel has no VFIO cdevs (6.6)"),
        translated("map-file", &asked.map_file, "IOMMU_IOAS_MAP_FILE", "needs Linux 6.13"),
        translated("type1", &asked.type1v2, "type1 v2 in /dev/vfio/vfio", "no type1 container"),
        translated("kernel-hold", &hold, "a group in an empty container", "no VFIO containers"),
    ]
}

fn translated(name: &str, asked: &Asked, yes: &str, no: &str) -> Feature {
    match asked {
        Asked::Yes => feature(name, Answer::Yes, yes),
        Asked::No => feature(name, Answer::No, no),
        Asked::Unknown(why) => feature(name, Answer::CouldNotTell, why.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::testing::{ConfigBytes, FakeDevice, FakeTree};

    #[test]
    fn another_tree_shows_its_iommu_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let tree = FakeTree::at(dir.path()).unwrap();
        let root = Root::new(dir.path());
        let before = Abilities::ask(&root);
        assert!(!before.has("iommu") && before.backends().is_empty());
        let config = ConfigBytes::conventional(0x1234, 0x11e8, 0x00_ff_00);
        let device = FakeDevice::new("0000:00:05.0".parse().unwrap(), &config).group(8);
        tree.add(&device).unwrap();
        let after = Abilities::ask(&root);
        assert!(after.has("iommu") && after.backends().is_empty());
        assert_eq!(after.all().len(), 8);
    }

    #[test]
    fn remapped_interrupts_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let tree = FakeTree::at(dir.path()).unwrap();
        let root = Root::new(dir.path());
        for (text, answer) in [
            (" 0: 9 IR-IO-APIC 2-edge timer\n24: 1 IR-PCI-MSI 1 nvme0q0\n", Answer::Yes),
            (" 0: 9 IO-APIC 2-edge timer\n24: 1 PCI-MSI 1 nvme0q0\n", Answer::No),
            (" 0: 9 GICv3 27 Level arch_timer\n", Answer::CouldNotTell),
        ] {
            tree.file("proc/interrupts", text).unwrap();
            assert_eq!(interrupt_remapping(&root).answer, answer);
        }
    }
}
