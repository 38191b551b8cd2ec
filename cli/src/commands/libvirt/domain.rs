//! What the hook has to know of a domain, read from the XML that libvirt gives it.
//!
//! Shapes: libvirt's `formatdomain` (elements `hostdev`, `interface`, `disk`, `memory`, `seclabel`).

use berth_proto::v1::DeviceAddress;
use roxmltree::{Document, Node};

use crate::address;

/// A domain, as far as devices of the host go.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Domain {
    pub(super) name: String,
    pub(super) uuid: String,
    /// What its guest has.
    pub(super) memory_bytes: u64,
    /// The PCI devices that it takes from the host, without repetition.
    pub(super) devices: Vec<DeviceAddress>,
    /// Its devices go through iommufd; through type1 otherwise.
    pub(super) iommufd: bool,
    /// The user that its QEMU runs as, where the domain says so: a name, or `+` and a number.
    pub(super) user: Option<String>,
}

impl Domain {
    /// Reads the XML of `virsh dumpxml`, which is what hooks get on standard input.
    ///
    /// # Errors
    /// What is wrong, in words that name the element.
    pub(super) fn parse(xml: &str) -> Result<Self, String> {
        let document = Document::parse(xml).map_err(|error| format!("not XML: {error}"))?;
        let root = document.root_element();
        if !root.has_tag_name("domain") {
            return Err(format!("its root is <{}> and not <domain>", root.tag_name().name()));
        }
        let text = |name: &str| {
            let found = child(root, name).and_then(|node| node.text()).map(str::trim);
            found.filter(|text| !text.is_empty()).ok_or(format!("it has no <{name}>"))
        };
        let (mut devices, mut iommufd) = (Vec::new(), Vec::new());
        for element in elements(root, "devices").filter(is_passed_through) {
            let device = device(element)?;
            if !devices.contains(&device) {
                devices.push(device);
            }
            iommufd.push(says_yes(child(element, "driver"), "iommufd"));
        }
        let everywhere = says_yes(child(root, "iommufd"), "enabled");
        if !everywhere && iommufd.contains(&true) && iommufd.contains(&false) {
            return Err("some of its devices have <driver iommufd='yes'/> and some have not".into());
        }
        Ok(Self {
            name: text("name")?.to_owned(),
            uuid: text("uuid")?.to_owned(),
            memory_bytes: child(root, "memory").map_or(Ok(0), memory)?,
            devices,
            iommufd: everywhere || iommufd.contains(&true),
            user: user(root),
        })
    }
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.has_tag_name(name))
}

/// The elements below an element of the root.
fn elements<'a, 'input>(
    root: Node<'a, 'input>,
    name: &str,
) -> impl Iterator<Item = Node<'a, 'input>> {
    child(root, name).into_iter().flat_map(|node| node.children()).filter(Node::is_element)
}

fn says_yes(node: Option<Node<'_, '_>>, attribute: &str) -> bool {
    node.and_then(|node| node.attribute(attribute)) == Some("yes")
}

/// Whether an element below `devices` takes a PCI device from the host.
fn is_passed_through(element: &Node<'_, '_>) -> bool {
    match element.tag_name().name() {
        "hostdev" => {
            element.attribute("type") == Some("pci")
                // The only other mode is for containers.
                && element.attribute("mode").is_none_or(|mode| mode == "subsystem")
        }
        "interface" => {
            // Of a network's pool it isn't known yet which, so there is no source address.
            element.attribute("type") == Some("hostdev")
                && address_of(*element).is_some_and(|address| {
                    address.attribute("type").is_none_or(|kind| kind == "pci")
                })
        }
        "disk" => {
            element.attribute("type") == Some("nvme")
                && child(*element, "source").and_then(|source| source.attribute("type"))
                    == Some("pci")
        }
        _ => false,
    }
}

fn address_of<'a, 'input>(element: Node<'a, 'input>) -> Option<Node<'a, 'input>> {
    child(element, "source").and_then(|source| child(source, "address"))
}

fn device(element: Node<'_, '_>) -> Result<DeviceAddress, String> {
    let kind = element.tag_name().name();
    let address =
        address_of(element).ok_or(format!("a <{kind}> has no <source><address/></source>"))?;
    let part = |name: &str, or: Option<&str>| {
        let text = address.attribute(name).or(or).unwrap_or_default();
        let number = match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        number.map_err(|_| format!("<{kind}>: {name}='{text}' is not a number"))
    };
    let (domain, bus) = (part("domain", Some("0"))?, part("bus", None)?);
    let (slot, function) = (part("slot", None)?, part("function", Some("0"))?);
    address::parse(&format!("{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"))
        .map_err(|fault| format!("<{kind}>: {fault}"))
}

/// A size with its `unit`, KiB where it has none.
fn memory(node: Node<'_, '_>) -> Result<u64, String> {
    let unit = node.attribute("unit").unwrap_or("KiB");
    let scale: u64 = match unit {
        "b" | "bytes" => 1,
        "KB" => 1_000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => return Err(format!("<memory>: unit='{unit}' is not a unit")),
    };
    let text = node.text().unwrap_or_default().trim();
    let number = text.parse::<u64>().ok().and_then(|number| number.checked_mul(scale));
    number.ok_or_else(|| format!("<memory>: '{text}' is not a size"))
}

/// The user of the label that libvirt's DAC driver runs QEMU under.
fn user(root: Node<'_, '_>) -> Option<String> {
    let mut labels = root
        .children()
        .filter(|node| node.has_tag_name("seclabel") && node.attribute("model") == Some("dac"));
    let label = labels.find_map(|node| child(node, "label")?.text())?;
    let user = label.trim().split(':').next()?;
    (!user.is_empty()).then(|| user.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(inside: &str) -> Result<Domain, String> {
        Domain::parse(&format!(
            "<domain type='kvm'><name>vm</name><uuid>0f5e</uuid>{inside}</domain>"
        ))
    }

    fn devices(inside: &str) -> Result<Vec<String>, String> {
        let domain = parse(&format!("<devices>{inside}</devices>"))?;
        Ok(domain.devices.iter().map(|device| address::text(Some(device)).to_owned()).collect())
    }

    const AT: &str =
        "<source><address domain='0x0000' bus='0x65' slot='0x1f' function='0x7'/></source>";

    #[test]
    fn every_way_to_pass_a_pci_device_is_seen() {
        for element in [
            format!("<hostdev mode='subsystem' type='pci' managed='yes'>{AT}</hostdev>"),
            format!("<hostdev type='pci'>{AT}</hostdev>"),
            "<interface type='hostdev'><source><address type='pci' domain='0x0000' bus='0x65' \
             slot='0x1f' function='0x7'/></source></interface>"
                .to_owned(),
            "<disk type='nvme' device='disk'><source type='pci' managed='yes' namespace='1'>\
             <address domain='0x0000' bus='101' slot='31' function='7'/></source></disk>"
                .to_owned(),
        ] {
            assert_eq!(devices(&element), Ok(vec!["0000:65:1f.7".to_owned()]), "{element}");
        }
    }

    #[test]
    fn what_is_no_pci_device_of_the_host_is_passed_over() {
        for element in [
            "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source><address uuid='1'/>\
             </source></hostdev>",
            "<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/></source></hostdev>",
            "<hostdev mode='capabilities' type='storage'><source/></hostdev>",
            "<interface type='network'><source network='pool'/></interface>",
            "<interface type='hostdev'><source network='pool'/></interface>",
            "<disk type='file'><source file='/x'/><address type='pci' bus='0x01' slot='0x00'/></disk>",
            "<controller type='pci'><address type='pci' bus='0x01' slot='0x00'/></controller>",
        ] {
            assert_eq!(devices(element), Ok(Vec::new()), "{element}");
        }
    }

    #[test]
    fn a_device_that_is_named_twice_is_one() {
        let twice = format!("<hostdev type='pci'>{AT}</hostdev>").repeat(2);
        assert_eq!(devices(&twice).map(|found| found.len()), Ok(1));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (xml, fault) in [
            ("<hostdev type='pci'/>", "a <hostdev> has no <source><address/></source>"),
            (
                "<hostdev type='pci'><source><address bus='0xzz' slot='0x0'/></source></hostdev>",
                "<hostdev>: bus='0xzz' is not a number",
            ),
            (
                "<hostdev type='pci'><source><address bus='0x1'/></source></hostdev>",
                "<hostdev>: slot='' is not a number",
            ),
        ] {
            assert_eq!(devices(xml), Err(fault.to_owned()));
        }
        let far = "<hostdev type='pci'><source><address bus='0x100' slot='0'/></source></hostdev>";
        assert!(devices(far).is_err_and(|fault| fault.starts_with("<hostdev>: ")));
        assert!(Domain::parse("<domain").is_err_and(|fault| fault.starts_with("not XML: ")));
        assert_eq!(Domain::parse("<domain/>"), Err("it has no <name>".to_owned()));
        let network = Domain::parse("<network/>");
        assert_eq!(network, Err("its root is <network> and not <domain>".to_owned()));
    }

    #[test]
    fn memory_has_a_unit() {
        for (xml, bytes) in [
            ("<memory>4</memory>", 4 << 10),
            ("<memory unit='KiB'> 4194304 </memory>", 4 << 30),
            ("<memory unit='GB'>1</memory>", 1_000_000_000),
            ("<memory unit='bytes'>77</memory>", 77),
            ("", 0),
        ] {
            assert_eq!(parse(xml).map(|domain| domain.memory_bytes), Ok(bytes), "{xml}");
        }
        for xml in [
            "<memory unit='pages'>1</memory>",
            "<memory>-1</memory>",
            "<memory unit='T'>99999999999</memory>",
        ] {
            assert!(parse(xml).is_err_and(|fault| fault.starts_with("<memory>: ")), "{xml}");
        }
    }

    #[test]
    fn the_back_end_is_the_same_for_all_devices() {
        let device = |driver: &str| format!("<hostdev type='pci'>{driver}{AT}</hostdev>");
        let iommufd = |inside: &str| parse(inside).map(|domain| domain.iommufd);
        let with = device("<driver name='vfio' iommufd='yes'/>");
        let without = device("");
        assert_eq!(iommufd(&format!("<devices>{with}</devices>")), Ok(true));
        assert_eq!(iommufd(&format!("<devices>{without}</devices>")), Ok(false));
        assert!(iommufd(&format!("<devices>{with}{without}</devices>")).is_err());
        let enabled = "<iommufd enabled='yes'/>";
        assert_eq!(iommufd(&format!("{enabled}<devices>{without}</devices>")), Ok(true));
    }

    #[test]
    fn the_user_is_that_of_the_dac_label() {
        let user = |inside: &str| parse(inside).ok().and_then(|domain| domain.user);
        let label = |model: &str, text: &str| {
            format!("<seclabel type='dynamic' model='{model}'><label>{text}</label></seclabel>")
        };
        assert_eq!(user(&label("dac", "+64055:+64055")).as_deref(), Some("+64055"));
        assert_eq!(user(&label("dac", "qemu:kvm")).as_deref(), Some("qemu"));
        assert_eq!(user(&label("selinux", "system_u:x")), None);
        assert_eq!(user("<seclabel type='none' model='dac'/>"), None);
    }
}
