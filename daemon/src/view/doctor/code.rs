//! The closed list of findings. Each has a section in `docs/doctor.md`.

use berth_proto::v1::finding::Level;

macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $name:literal $level:ident;)*) => {
        /// What was found.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Code {
            $($(#[$doc])* $code,)*
        }

        impl Code {
            /// All of them.
            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$code),*];

            /// The name on every surface.
            #[must_use]
            pub(super) fn name(self) -> &'static str {
                match self { $(Self::$code => $name,)* }
            }

            /// How bad it is.
            #[must_use]
            pub(super) fn level(self) -> Level {
                match self { $(Self::$code => Level::$level,)* }
            }
        }
    };
}

codes! {
    /// There is no IOMMU group.
    IommuOff = "IOMMU_OFF" Problem;
    /// Neither iommufd nor type1 works.
    NoBackend = "NO_BACKEND" Problem;
    /// A device may raise any interrupt.
    NoInterruptRemapping = "NO_INTERRUPT_REMAPPING" Problem;
    /// The same, and the kernel lets devices be given away all the same.
    UnsafeInterrupts = "UNSAFE_INTERRUPTS" Warning;
    /// No cdevs or no iommufd.
    NoIommufd = "NO_IOMMUFD" Warning;
    /// No VFIO groups or containers.
    NoKernelHold = "NO_KERNEL_HOLD" Warning;
    /// The driver vfio-pci isn't registered.
    NoVfioPci = "NO_VFIO_PCI" Problem;
    /// The kernel doesn't tell what happens to devices.
    NoUevents = "NO_UEVENTS" Warning;
    /// Host drivers' devices reach all memory.
    Passthrough = "PASSTHROUGH" Note;
    /// A port on the way to the root doesn't isolate what is below it.
    MissingAcs = "MISSING_ACS" Warning;
    /// A bridge gives all behind it one requester id.
    BehindBridge = "BEHIND_BRIDGE" Note;
    /// Functions of one device aren't isolated from each other.
    Multifunction = "MULTIFUNCTION" Note;
    /// The firmware wants memory mapped one to one.
    Firmware1to1 = "FIRMWARE_1TO1" Problem;
    /// No reset hits the device alone.
    ResetScope = "RESET_SCOPE" Note;
    /// There is no way to reset the device.
    NoReset = "NO_RESET" Warning;
    /// A virtual function is only opened with a secret.
    VfToken = "VF_TOKEN" Note;
    /// A host driver on one device keeps the others of its group.
    SiblingDriver = "SIBLING_DRIVER" Warning;
    /// A device is on a host driver.
    HostDriver = "HOST_DRIVER" Problem;
    /// The host has its disk, its route or its console there.
    HostUsesDevice = "HOST_USES_DEVICE" Problem;
    /// A rule of the configuration keeps a device.
    NotGivenAway = "NOT_GIVEN_AWAY" Problem;
    /// A reservation has it.
    Reserved = "RESERVED" Problem;
    /// A reservation has what is only reset together with it.
    ResetTogether = "RESET_TOGETHER" Problem;
    /// A guest's memory has to be locked.
    MemlockLimit = "MEMLOCK_LIMIT" Note;
    /// A guest's memory takes more mappings than there may be.
    MappingLimit = "MAPPING_LIMIT" Warning;
    /// Somebody has a group without Berth's knowing.
    ForeignOwner = "FOREIGN_OWNER" Problem;
    /// The kernel's truth differs from the record.
    Drift = "DRIFT" Problem;
    /// Kernel work on a device hangs.
    Wedged = "WEDGED" Problem;
    /// A device wasn't given back clean.
    Quarantined = "QUARANTINED" Problem;
    /// An operator keeps reservations away.
    Cordoned = "CORDONED" Warning;
    /// A device works less well than it should.
    Degraded = "DEGRADED" Warning;
    /// A device doesn't work.
    DeviceFailed = "DEVICE_FAILED" Problem;
    /// Only one label may have a device.
    OneLabelOnly = "ONE_LABEL_ONLY" Warning;
    /// A reservation has nothing any more.
    ReservationLost = "RESERVATION_LOST" Warning;
    /// A reservation's lease is over, and its claims stand.
    LeaseOver = "LEASE_OVER" Warning;
    /// A dead holder's device is open elsewhere.
    HolderDraining = "HOLDER_DRAINING" Warning;
    /// The configuration as it is on disk is not in force.
    ConfigRefused = "CONFIG_REFUSED" Warning;
    /// berthd itself could do more than it needs.
    NotConfined = "NOT_CONFINED" Warning;
}

impl Code {
    /// Its section, below the documentation's root.
    #[must_use]
    pub(super) fn docs(self) -> String {
        format!("docs/doctor.md#{}", self.name().to_ascii_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::Code;

    #[test]
    fn each_has_a_section_and_each_section_is_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/doctor.md");
        let text = std::fs::read_to_string(path).unwrap();
        let sections: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("### ")).collect();
        let names: Vec<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(sections, names);
    }
}
