//! Who may open the nodes: root, and whom an access list names. A list goes with its node.

use std::collections::BTreeSet;

use rustix::io::Errno;

use super::Kernel;
use crate::Node;

/// Users that a node's access list lets in.
pub(crate) type AccessList = BTreeSet<u32>;

impl Kernel {
    /// The path of a node; ENOENT when it isn't there.
    pub(crate) fn node(&self, node: Node) -> Result<String, Errno> {
        let there = |is: bool, path: &str| is.then(|| path.to_owned()).ok_or(Errno::NOENT);
        match node {
            Node::Cdev(device) => {
                let vfio = self.dev(device)?.vfio.as_ref().ok_or(Errno::NOENT)?;
                let number = vfio.cdev.ok_or(Errno::NOENT)?;
                Ok(format!("/dev/vfio/devices/vfio{number}"))
            }
            Node::Group(number) => {
                let vfio = self.groups.get(&number).and_then(|group| group.vfio.as_ref());
                there(self.features.type1 && vfio.is_some(), &format!("/dev/vfio/{number}"))
            }
            Node::Iommu => there(self.features.iommufd, "/dev/iommu"),
            Node::Container => there(self.features.type1, "/dev/vfio/vfio"),
        }
    }

    /// A node's list; none for the container's node, which is open to all.
    fn list(&mut self, node: Node) -> Option<&mut AccessList> {
        match node {
            Node::Cdev(device) => Some(&mut self.devices.get_mut(&device)?.vfio.as_mut()?.access),
            Node::Group(number) => Some(&mut self.groups.get_mut(&number)?.vfio.as_mut()?.access),
            Node::Iommu => Some(&mut self.iommu_access),
            Node::Container => None,
        }
    }

    /// Lets a user in, or no more; a node that isn't there lets nobody in.
    pub(crate) fn set_access(&mut self, node: Node, uid: u32, allow: bool) -> Result<(), Errno> {
        match self.node(node) {
            Err(Errno::NOENT | Errno::NODEV) if !allow => return Ok(()),
            found => drop(found?),
        }
        if let Some(list) = self.list(node) {
            if allow {
                list.insert(uid)
            } else {
                list.remove(&uid)
            };
        }
        Ok(())
    }

    /// Whom a node's list names.
    pub(crate) fn access(&mut self, node: Node) -> AccessList {
        self.list(node).map(|list| list.clone()).unwrap_or_default()
    }

    /// EACCES for a user who may not open a node.
    pub(crate) fn may_open(&mut self, node: Node, uid: u32) -> Result<(), Errno> {
        self.node(node)?;
        let listed = self.list(node).is_none_or(|list| list.contains(&uid));
        if uid == 0 || listed { Ok(()) } else { Err(Errno::ACCESS) }
    }
}
