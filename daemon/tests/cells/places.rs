//! The rows of the ownership axis, arranged.

use berth_host::sim::{Fault, Site};
use berth_ownership::{Command, DriverDma, HostUse, OwnershipRow as Row, Policy, table::Change};
use berth_proto::v1::{self, owner::Kind as Owner};
use rustix::io::Errno;

use crate::{
    ask::{Ask, Verdict, Wait, arranging, wish},
    door::process,
    natural::{PATIENCE, until},
    world::{Kind, Place, World, address},
};

impl World {
    pub(crate) async fn reserved(
        &self,
        policy: Policy,
        device: &str,
    ) -> Result<v1::Reservation, String> {
        arranging("a reservation", self.reserve(wish(policy, device)).await)
    }

    pub(crate) async fn ordered(&self, id: &str, ask: Ask) -> Result<v1::Reservation, String> {
        let what = format!("{ask:?} of {id}");
        arranging(&what, self.order(id, &ask, Wait::Done).await)
    }

    pub(crate) async fn attached(
        &self,
        policy: Policy,
        device: &str,
    ) -> Result<v1::Reservation, String> {
        let reservation = self.reserved(policy, device).await?;
        self.ordered(&reservation.id, Ask::Attach).await
    }

    /// A reservation that presents what another one has.
    pub(crate) fn joining(first: &v1::Reservation, device: &str) -> v1::ReserveRequest {
        if first.policy == i32::from(v1::Policy::Shared) {
            return v1::ReserveRequest {
                domain: first.domain.clone(),
                ..wish(Policy::Shared, device)
            };
        }
        v1::ReserveRequest { join: first.id.clone(), ..wish(Policy::Group, device) }
    }

    /// Others come to hold or own the group of a place, by its first device.
    pub(crate) async fn others(
        &self,
        row: Row,
        place: &Place,
    ) -> Result<Option<v1::Reservation>, String> {
        let policy = match row {
            Row::ExclusiveOther => Policy::Exclusive,
            Row::HoldOtherDomain
            | Row::HoldSameDomain
            | Row::SharedOtherDomain
            | Row::SharedSameDomain => Policy::Shared,
            _ => Policy::Group,
        };
        let other = match row {
            Row::HoldOther | Row::HoldSameToken | Row::HoldOtherDomain | Row::HoldSameDomain => {
                self.reserved(policy, &place.a).await?
            }
            Row::ExclusiveOther
            | Row::SharedOtherDomain
            | Row::SharedSameDomain
            | Row::GroupOther
            | Row::GroupSameAttached => self.attached(policy, &place.a).await?,
            Row::GroupSameDetached => {
                let first = self.attached(policy, &place.a).await?;
                self.ordered(&first.id, Ask::Detach).await?
            }
            _ => return Ok(None),
        };
        Ok(Some(other))
    }

    /// The host is seen to do something with the group of a place.
    pub(crate) async fn host_does(&self, row: Row, place: &Place) -> Result<(), String> {
        let nvme = || DriverDma::Kernel("nvme".to_owned());
        self.observe(&place.a, |facts| {
            let Some(device) = facts.devices.first_mut() else { return };
            match row {
                Row::HostUses => {
                    device.uses =
                        vec![HostUse { kind: "mount".to_owned(), what: "/srv".to_owned() }];
                }
                Row::Kernel | Row::KernelTaken => device.dma = nvme(),
                Row::Private => device.private_domain = true,
                Row::Foreign => facts.foreign_pids = vec![process().pid],
                _ => {}
            }
        })
        .await
    }

    /// The host driver of a place's first device attaches a domain of its own.
    pub(crate) fn driver_attaches(&self, place: &Place) -> Result<(), String> {
        let attached = self.sim.host_driver_attach(address(&place.a));
        attached.map_err(|errno| format!("a domain of the driver's own: {errno}"))
    }

    /// A host driver is on its way to the first device of a place, and never arrives.
    pub(crate) async fn host_is_busy(&self, place: &Place) -> Result<(), String> {
        self.hang(Site::Restore, &place.a);
        arranging("a stuck bind", self.set_kernel_dma(&place.a, Wait::No).await).map(drop)
    }

    /// Two reservations of one domain or token: the second has joined and has no claims.
    pub(crate) async fn joined(
        &self,
        row: Row,
    ) -> Result<(Place, v1::Reservation, v1::Reservation), String> {
        let place = self.place(Kind::Pair);
        let first = self.others(row, &place).await?.ok_or("nobody to join")?;
        let second = self.reserve(Self::joining(&first, &place.b)).await;
        Ok((place, first, arranging("a second reservation", second)?))
    }

    /// A reservation in a row of its own.
    pub(crate) async fn own(&self, row: Row) -> Result<(Place, v1::Reservation), String> {
        let exclusive = matches!(row, Row::OwnHoldExclusive | Row::OwnExclusive);
        let place = self.place(if exclusive { Kind::Single } else { Kind::Pair });
        let own = match row {
            Row::OwnHoldExclusive => self.reserved(Policy::Exclusive, &place.a).await?,
            Row::OwnHoldShared => self.reserved(Policy::Shared, &place.a).await?,
            Row::OwnHoldGroup => self.reserved(Policy::Group, &place.a).await?,
            Row::OwnExclusive => self.attached(Policy::Exclusive, &place.a).await?,
            Row::OwnShared => self.attached(Policy::Shared, &place.a).await?,
            Row::OwnSharedWithOthers => {
                let (place, _, second) = self.joined(Row::SharedSameDomain).await?;
                return Ok((place, self.ordered(&second.id, Ask::Attach).await?));
            }
            Row::OwnGroupAttached => self.attached(Policy::Group, &place.a).await?,
            Row::OwnGroupDetached => {
                let own = self.attached(Policy::Group, &place.a).await?;
                self.ordered(&own.id, Ask::Detach).await?
            }
            _ => return Err(format!("{row:?} is not a row of one's own")),
        };
        Ok((place, own))
    }

    /// Somebody is faster between the last close and the hold that is taken again. Under policy
    /// group a detach closes nothing, and a type1 container keeps its group: there it is told.
    pub(crate) async fn lose(
        &self,
        own: &v1::Reservation,
        policy: Policy,
        device: &str,
    ) -> Result<(), String> {
        if policy == Policy::Group || self.backend == v1::Backend::Type1 {
            let why = "a rival was faster".to_owned();
            return self.fact(Command::HoldLost { reservation: own.id.as_str().into(), why }).await;
        }
        self.ordered(&own.id, Ask::Attach).await?;
        let number = arranging("the group", self.group(device).await)?.number;
        self.sim.fault(Fault::at(Site::OpenGroup).group(number).errno(Errno::PERM));
        self.ordered(&own.id, Ask::Detach).await?;
        until(self, &own.id, v1::reservation::State::Lost, PATIENCE).await.map(drop)
    }

    /// A reservation that somebody else was faster than, and then what others do in its group.
    pub(crate) async fn lost_and_then(&self, row: Row) -> Result<(Place, v1::Reservation), String> {
        let (policy, kind) = match row {
            Row::HoldSameDomain => (Policy::Shared, Kind::Pair),
            Row::HoldSameToken => (Policy::Group, Kind::Pair),
            Row::DeviceTaken => (Policy::Shared, Kind::Single),
            _ => (Policy::Exclusive, Kind::Single),
        };
        let place = self.place(kind);
        let take_from_host = row == Row::KernelTaken;
        let request = v1::ReserveRequest { take_from_host, ..wish(policy, &place.a) };
        let own = arranging("a reservation to lose", self.reserve(request).await)?;
        if row == Row::HoldSameToken {
            arranging("a second one", self.reserve(Self::joining(&own, &place.b)).await)?;
        }
        self.lose(&own, policy, &place.a).await?;
        match row {
            Row::HoldSameDomain | Row::DeviceTaken => {
                arranging("a second one", self.reserve(Self::joining(&own, &place.b)).await)?;
            }
            Row::HostUses | Row::Kernel | Row::KernelTaken | Row::Private | Row::Foreign => {
                self.host_does(row, &place).await?;
            }
            Row::KernelBusy => self.host_is_busy(&place).await?,
            Row::HoldSameToken => {}
            _ => drop(self.others(row, &place).await?),
        }
        Ok((place, own))
    }
}

fn fact(holds: bool, what: &str, before: &v1::Group, after: &v1::Group) -> Verdict {
    let shown = |group: &v1::Group| {
        (group.ownership(), group.owner_cnt, group.owner.clone().unwrap_or_default().domain)
    };
    if holds {
        return Ok(());
    }
    Err(format!("{what}: from {:?} it went to {:?}", shown(before), shown(after)))
}

/// Whether a group went on as a cell says, by what gRPC shows of it. `own` is the reservation
/// after the operation.
pub(crate) fn went_on(
    change: Change,
    before: &v1::Group,
    after: &v1::Group,
    own: &v1::Reservation,
) -> Verdict {
    let (kind, count) = (after.ownership(), after.owner_cnt);
    let was = (before.ownership(), before.owner_cnt);
    let n = u32::try_from(own.targets.iter().map(|target| target.devices.len()).sum::<usize>())
        .unwrap_or(u32::MAX);
    let held = after.reservations.contains(&own.id);
    let domain = after.owner.clone().unwrap_or_default().domain;
    let ok = match change {
        Change::Stays => (kind, count) == was,
        Change::HoldBegins | Change::HoldTakes => (kind, count, held) == (Owner::Free, 0, true),
        Change::HoldJoins => (kind, count) == was && held,
        Change::ExclusiveBegins => (kind, count, held) == (Owner::Exclusive, 1, true),
        Change::SharedBegins => (kind, count, held) == (Owner::Shared, n, true),
        Change::SharedJoins => (kind, count, held) == (Owner::Shared, was.1 + n, true),
        Change::AdoptBegins => {
            [Owner::Exclusive, Owner::Group].contains(&kind) && (count, held) == (n, true)
        }
        Change::GroupBegins => (kind, count) == (Owner::Group, n) && held && domain == own.domain,
        Change::GroupJoins => {
            (kind, count) == (Owner::Group, was.1 + n) && held && domain == own.domain
        }
        Change::GroupAttaches | Change::Replaces => {
            (kind, count) == (Owner::Group, was.1) && domain == own.domain
        }
        Change::GroupBlocks => (kind, count) == (Owner::Group, was.1) && domain.is_empty(),
        Change::ClaimsEnd => (kind, count, held) == (Owner::Free, 0, true),
        Change::SharedLeaves => (kind, count, held) == (Owner::Shared, was.1 - n, true),
        Change::HoldEnds => !held && own.state() == v1::reservation::State::Released,
        Change::KernelGains => (kind, count) == (Owner::Kernel, was.1 + 1),
        Change::KernelLoses => match was.1 {
            0 | 1 => (kind, count) == (Owner::Free, 0),
            n => (kind, count) == (was.0, n - 1),
        },
    };
    fact(ok, change.text(), before, after)
}
