//! Access lists of nodes, for holders that open them by themselves.
//!
//! A node may be open to a user for several reservations at a time: `/dev/iommu` for all, a group's
//! for all of one token. So it is kept who was let in where and for what, and an entry goes with the
//! last that needs it.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Mutex,
};

use berth_host::{Act, BackendKind, Node, PciAddress};
use berth_ownership::{Delivery, Reason, Refusal, Reservation, ReservationId, ReservationState};
use rustix::io::Errno;

use super::{job::Job, runtime::lock, tools::Tools};

/// Who was let into which nodes, by reservation. Its lock is held while a list is changed, so that
/// two changes of one list don't cross; changing one waits for nothing in the kernel.
#[derive(Debug, Default)]
pub(crate) struct Access {
    given: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    given: HashMap<ReservationId, Given>,
    /// For how many reservations a user needs a node.
    needed: HashMap<(u32, Node), usize>,
}

impl Table {
    fn insert(&mut self, id: ReservationId, given: Given) {
        self.remove(&id);
        for node in &given.nodes {
            *self.needed.entry((given.uid, *node)).or_default() += 1;
        }
        self.given.insert(id, given);
    }

    fn remove(&mut self, id: &ReservationId) -> Option<Given> {
        let given = self.given.remove(id)?;
        for node in &given.nodes {
            if let Entry::Occupied(mut count) = self.needed.entry((given.uid, *node)) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
        Some(given)
    }

    fn needs(&self, uid: u32, node: Node) -> bool {
        self.needed.contains_key(&(uid, node))
    }
}

#[derive(Debug, Clone)]
struct Given {
    uid: u32,
    nodes: Vec<Node>,
    /// What acts on the lists are about in what is said of them.
    device: Option<PciAddress>,
}

impl Given {
    fn of(job: &Job) -> Option<Self> {
        let uid = job.identity.strip_prefix("uid:")?.parse().ok()?;
        Some(Self { uid, nodes: nodes_of(job), device: job.devices().next() })
    }
}

/// The nodes that the holder of a reservation opens.
pub(crate) fn nodes_of(job: &Job) -> Vec<Node> {
    match job.backend {
        BackendKind::Iommufd => job.devices().map(Node::Cdev).chain([Node::Iommu]).collect(),
        BackendKind::Type1 => job
            .groups
            .iter()
            .map(|group| Node::Group(group.number))
            .chain([Node::Container])
            .collect(),
    }
}

/// Whether the nodes of a reservation are its user's to open: from the hand-over to the end of the
/// holder and of what came of it. What others still have open lets nobody in.
pub(crate) fn lets_in(record: &Reservation) -> bool {
    record.delivery == Delivery::Node
        && record.is_handed_out()
        && record.state != ReservationState::Draining
}

/// Lets the reservation's user into its nodes, or leaves them as they are.
///
/// # Errors
/// `UNSUPPORTED` where nodes have no access lists; the helper's own.
pub(crate) fn grant(tools: &Tools, job: &Job) -> Result<(), Box<Refusal>> {
    let given = Given::of(job).ok_or_else(|| {
        let text = format!("{} is for {}, which is no user", job.reservation, job.identity);
        Refusal::new(Reason::InvalidArgument, &job.reservation, text)
            .with_resolve(vec!["reserve --for uid:N".to_owned()])
    })?;
    let mut table = lock(&tools.runtime.access.given);
    let is_new = |node: &Node| !table.needs(given.uid, *node);
    let new: Vec<Node> = given.nodes.iter().copied().filter(is_new).collect();
    // On the list before anything is done, so that what came of it is never forgotten.
    table.insert(job.reservation.clone(), given.clone());
    // Also what should be there already: others may have changed the list.
    let result = given.nodes.iter().try_for_each(|node| {
        set(tools, &given, *node, true)?;
        said(&given, *node, true, new.contains(node));
        Ok(())
    });
    if result.is_err()
        && let Err(refusal) = take_back(tools, &mut table, &job.reservation)
    {
        tracing::error!(reservation = %job.reservation, why = refusal.message, "access stays");
    }
    result
}

/// Lets the reservation's user in no more, where no other of its reservations needs it.
///
/// # Errors
/// The helper's own: it is tried again after the next work.
pub(crate) fn revoke(tools: &Tools, job: &Job) -> Result<(), Box<Refusal>> {
    if job.delivery != Delivery::Node {
        return Ok(());
    }
    let mut table = lock(&tools.runtime.access.given);
    if let Some(given) = Given::of(job) {
        // Also what the last daemon gave.
        if !table.given.contains_key(&job.reservation) {
            table.insert(job.reservation.clone(), given);
        }
    }
    take_back(tools, &mut table, &job.reservation)
}

/// What the record says was given by the last daemon, before anything of it is taken back.
pub(crate) fn remember(tools: &Tools, job: &Job) {
    if let Some(given) = Given::of(job) {
        lock(&tools.runtime.access.given).insert(job.reservation.clone(), given);
    }
}

/// Takes back what no record stands for any more: a reservation was lost, or an earlier try failed.
pub(crate) fn sweep(tools: &Tools) {
    let mut table = lock(&tools.runtime.access.given);
    if table.given.is_empty() {
        return;
    }
    let snapshot = tools.records.snapshot();
    let stands = |id: &ReservationId| snapshot.state.reservation(id).is_some_and(lets_in);
    let stale: Vec<ReservationId> = table.given.keys().filter(|id| !stands(id)).cloned().collect();
    for id in stale {
        if let Err(refusal) = take_back(tools, &mut table, &id) {
            tracing::error!(reservation = %id, why = refusal.message, "access stays for now");
        }
    }
}

fn take_back(tools: &Tools, table: &mut Table, id: &ReservationId) -> Result<(), Box<Refusal>> {
    let Some(given) = table.remove(id) else { return Ok(()) };
    let mut failed = None;
    let mut left = Vec::new();
    for node in given.nodes.iter().copied().filter(|node| !table.needs(given.uid, *node)) {
        match set(tools, &given, node, false) {
            Ok(()) => said(&given, node, false, true),
            Err(refusal) => {
                left.push(node);
                failed = Some(refusal);
            }
        }
    }
    let Some(refusal) = failed else { return Ok(()) };
    table.insert(id.clone(), Given { nodes: left, ..given });
    Err(refusal)
}

/// What was so before is no news.
fn said(given: &Given, node: Node, allow: bool, is_news: bool) {
    let uid = given.uid;
    if is_news {
        tracing::info!(%node, uid, allow, "access");
    } else {
        tracing::debug!(%node, uid, allow, "access");
    }
}

fn set(tools: &Tools, given: &Given, node: Node, allow: bool) -> Result<(), Box<Refusal>> {
    let act = Act::Access { node, uid: given.uid, allow };
    let error = match tools.host.perform(&act) {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    if error.errno() == Some(Errno::OPNOTSUPP.raw_os_error()) {
        let text = format!("uid:{} can't be let into {node}: {error}", given.uid);
        return Err(Refusal::new(Reason::Unsupported, node, text).with_resolve(vec![
            "use a kernel with access lists on /dev (CONFIG_TMPFS_POSIX_ACL)".to_owned(),
            "reserve with --delivery bound, or --delivery unbound on iommufd".to_owned(),
        ]));
    }
    Err(match given.device {
        Some(device) => super::explain_errno::host(&error, device),
        None => Refusal::new(Reason::HelperFailed, node, error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_needed_until_the_last_one_of_its_user_goes() {
        let mut table = Table::default();
        let given = |uid| Given { uid, nodes: vec![Node::Iommu, Node::Group(uid)], device: None };
        let [one, two, other] = ["r-1", "r-2", "r-3"].map(ReservationId::new);
        table.insert(one.clone(), given(7));
        table.insert(two.clone(), given(7));
        table.insert(other.clone(), given(8));
        // Once more is no more.
        table.insert(one.clone(), given(7));
        assert!(table.remove(&one).is_some() && table.remove(&one).is_none());
        assert!(table.needs(7, Node::Iommu) && table.needs(7, Node::Group(7)));
        assert!(!table.needs(7, Node::Group(8)));
        table.remove(&two);
        assert!(!table.needs(7, Node::Iommu) && table.needs(8, Node::Iommu));
        table.remove(&other);
        assert!(table.given.is_empty() && table.needed.is_empty());
    }
}
