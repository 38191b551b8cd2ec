//! Orders for a reservation: renew, attach, detach, replace, release, revoke.

use berth_ownership::{Command, DomainId, Epoch, Order, ReservationId};
use berth_proto::v1;
use prost::Message;

use super::{
    Service,
    authorize::{about, require},
    find,
    rehearse::Look,
    request,
    reserve::{show, ttl},
    tenant,
    wait::Wait,
};
use crate::{
    model::{AnswerOf, ApiError, Call, Caller, Meta},
    view,
};

/// What all orders have in common.
struct Given<'a> {
    right: Call,
    call: &'static str,
    id: &'a str,
    epoch: u64,
    request_id: &'a str,
    wait: Wait,
    dry_run: bool,
}

impl Service {
    /// Begins a lease anew.
    ///
    /// # Errors
    /// The refusal.
    pub async fn renew(
        &self,
        caller: &Caller,
        mut request: v1::RenewRequest,
    ) -> Result<v1::Reservation, ApiError> {
        let request_id = std::mem::take(&mut request.request_id);
        let given = Given {
            right: Call::Renew,
            call: "renew",
            id: &request.id,
            epoch: request.epoch,
            request_id: &request_id,
            wait: Wait { wait_ms: 0, no_wait: true },
            dry_run: false,
        };
        let ttl_ms = ttl(request.ttl_ms)?;
        self.order(caller, &given, &request, |order| Command::Renew { order, ttl_ms }).await
    }

    /// Binds and attaches the devices: the claims begin.
    ///
    /// # Errors
    /// The refusal; why the kernel work failed.
    pub async fn attach(
        &self,
        caller: &Caller,
        mut request: v1::AttachRequest,
    ) -> Result<v1::Reservation, ApiError> {
        let request_id = std::mem::take(&mut request.request_id);
        let wait = Wait::take(&mut request.wait_ms, &mut request.no_wait);
        let (id, epoch) = (request.id.clone(), request.epoch);
        let domain = Some(&request.domain).filter(|id| !id.is_empty()).map(DomainId::new);
        let given = Given {
            right: Call::Attach,
            call: "attach",
            id: &id,
            epoch,
            request_id: &request_id,
            wait,
            dry_run: false,
        };
        self.order(caller, &given, &request, |order| Command::Attach { order, domain }).await
    }

    /// Detaches the devices.
    ///
    /// # Errors
    /// The refusal; why the kernel work failed.
    pub async fn detach(
        &self,
        caller: &Caller,
        mut request: v1::DetachRequest,
    ) -> Result<v1::Reservation, ApiError> {
        let request_id = std::mem::take(&mut request.request_id);
        let wait = Wait::take(&mut request.wait_ms, &mut request.no_wait);
        let (id, epoch) = (request.id.clone(), request.epoch);
        let given = Given {
            right: Call::Detach,
            call: "detach",
            id: &id,
            epoch,
            request_id: &request_id,
            wait,
            dry_run: false,
        };
        self.order(caller, &given, &request, |order| Command::Detach { order }).await
    }

    /// Switches the reservation's groups to another domain of its context.
    ///
    /// # Errors
    /// The refusal; why the kernel work failed. The old domain stays attached then.
    pub async fn replace(
        &self,
        caller: &Caller,
        mut request: v1::ReplaceRequest,
    ) -> Result<v1::Reservation, ApiError> {
        require(caller, Call::Replace)?;
        if request.domain.is_empty() {
            return Err(ApiError::invalid_argument(
                "domain",
                "domain is missing",
                "name a domain of the reservation's context; `berth domain create` makes one",
            ));
        }
        let request_id = std::mem::take(&mut request.request_id);
        let wait = Wait::take(&mut request.wait_ms, &mut request.no_wait);
        let (id, epoch) = (request.id.clone(), request.epoch);
        let domain = DomainId::new(&request.domain);
        let given = Given {
            right: Call::Replace,
            call: "replace",
            id: &id,
            epoch,
            request_id: &request_id,
            wait,
            dry_run: false,
        };
        self.order(caller, &given, &request, |order| Command::Replace { order, domain }).await
    }

    /// Gives the devices back.
    ///
    /// # Errors
    /// The refusal; why the kernel work failed.
    pub async fn release(
        &self,
        caller: &Caller,
        mut request: v1::ReleaseRequest,
    ) -> Result<v1::Reservation, ApiError> {
        let request_id = std::mem::take(&mut request.request_id);
        let wait = Wait::take(&mut request.wait_ms, &mut request.no_wait);
        let (id, epoch) = (request.id.clone(), request.epoch);
        let forced = request.force;
        let right = if forced { Call::ForceRelease } else { Call::Release };
        let given = Given {
            right,
            call: "release",
            id: &id,
            epoch,
            request_id: &request_id,
            wait,
            dry_run: request.dry_run,
        };
        self.order(caller, &given, &request, |order| Command::Release { order, force: forced })
            .await
    }

    /// Cuts the holder's DMA and ends its claims, without its consent.
    ///
    /// # Errors
    /// The refusal; why the kernel work failed.
    pub async fn revoke(
        &self,
        caller: &Caller,
        mut request: v1::RevokeRequest,
    ) -> Result<v1::Reservation, ApiError> {
        let request_id = std::mem::take(&mut request.request_id);
        let wait = Wait::take(&mut request.wait_ms, &mut request.no_wait);
        let (id, epoch) = (request.id.clone(), request.epoch);
        let given = Given {
            right: Call::Revoke,
            call: "revoke",
            id: &id,
            epoch,
            request_id: &request_id,
            wait,
            dry_run: request.dry_run,
        };
        self.order(caller, &given, &request, |order| Command::Release { order, force: true }).await
    }

    async fn order(
        &self,
        caller: &Caller,
        given: &Given<'_>,
        body: &impl Message,
        command: impl FnOnce(Order) -> Command,
    ) -> Result<v1::Reservation, ApiError> {
        let snapshot = self.snapshot();
        let id = match find::reservation(&snapshot, given.id) {
            Ok(record) if !tenant::may_see(caller, &record.label) => {
                require(caller, given.right)?;
                return Err(find::no_reservation(given.id));
            }
            Ok(record) => {
                about(caller, given.right, record)?;
                record.id.clone()
            }
            // A repeated call gets its answer also when the reservation isn't remembered any more.
            Err(_) if !given.request_id.is_empty() && !given.id.is_empty() => {
                require(caller, given.right)?;
                ReservationId::new(given.id)
            }
            Err(error) => return Err(error),
        };
        let answer = AnswerOf::Reservation(id.clone());
        let meta: Meta = request::meta(caller, given.call, given.request_id, body, answer.clone())?;
        let epoch = (given.epoch != 0).then_some(Epoch(given.epoch));
        let order = Order { reservation: id, epoch };
        if given.dry_run {
            return self.order_tried(command(order), &answer).await;
        }
        let applied = self.ledger.submit(command(order), meta).await?;
        self.answer(applied, given.wait, answer, show).await
    }

    /// What a dry run answers: the reservation as it is, whom it would kill, and what would be written.
    async fn order_tried(
        &self,
        command: Command,
        about: &AnswerOf,
    ) -> Result<v1::Reservation, ApiError> {
        let tried = self.rehearse(Look::Nothing, command).await?;
        let shown = show(&tried.before, about)?;
        let kills = tried.kills.iter().map(view::user).collect();
        Ok(v1::Reservation { writes: view::writes(tried.writes), kills, ..shown })
    }
}
