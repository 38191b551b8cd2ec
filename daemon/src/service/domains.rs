//! The calls about domains and contexts.

use berth_ownership::{Command, ContextId, DomainId, Policy, ReservationId, State};
use berth_proto::v1;

use super::{
    Service,
    authorize::{about, require},
    find, request, tenant,
    wait::Wait,
};
use crate::{
    model::{AnswerOf, ApiError, Call, Caller},
    view,
};

impl Service {
    /// All domains and contexts.
    ///
    /// # Errors
    /// The caller may not.
    pub async fn list_domains(
        &self,
        caller: &Caller,
        _request: v1::ListDomainsRequest,
    ) -> Result<v1::ListDomainsResponse, ApiError> {
        require(caller, Call::ListDomains)?;
        let snapshot = self.snapshot();
        let state = &*snapshot.state;
        Ok(v1::ListDomainsResponse {
            domains: state
                .domains()
                .filter(|domain| tenant::visible_domain(caller, state, Ok(domain)).is_ok())
                .map(|domain| view::domain(state, domain, self.domain_now(&domain.id)))
                .collect(),
            contexts: state
                .contexts()
                .filter(|context| tenant::may_see(caller, &context.label))
                .map(view::context)
                .collect(),
            resume_seq: snapshot.seq,
        })
    }

    /// One domain.
    ///
    /// # Errors
    /// There is no such domain.
    pub async fn get_domain(
        &self,
        caller: &Caller,
        request: v1::GetDomainRequest,
    ) -> Result<v1::Domain, ApiError> {
        require(caller, Call::GetDomain)?;
        let snapshot = self.snapshot();
        let found = find::domain(&snapshot, &request.id);
        let domain = tenant::visible_domain(caller, &snapshot.state, found)?;
        Ok(view::domain(&snapshot.state, domain, self.domain_now(&domain.id)))
    }

    /// Makes a domain: in a context, in a reservation's context, or in a new context for claims
    /// of policy shared.
    ///
    /// # Errors
    /// The context can't have it.
    pub async fn create_domain(
        &self,
        caller: &Caller,
        mut request: v1::CreateDomainRequest,
    ) -> Result<v1::Domain, ApiError> {
        let domain = DomainId::from(request::fresh("d-"));
        let id = std::mem::take(&mut request.request_id);
        let answer = AnswerOf::Domain(domain.clone());
        let meta = request::meta(caller, "create domain", &id, &request, answer.clone())?;
        let commands = if request.context.is_empty() {
            require(caller, Call::CreateContext)?;
            let context = ContextId::from(request::fresh("c-"));
            let label = tenant::label(caller, &request.label, &caller.identity)?;
            let backend = self.backend(request.backend)?;
            let policy = Policy::Shared;
            vec![
                Command::CreateContext { context: context.clone(), label, policy, backend },
                Command::CreateDomain { domain, context },
            ]
        } else {
            let context = self.context_for(caller, &request)?;
            vec![Command::CreateDomain { domain, context }]
        };
        let applied = self.ledger.submit_all(commands, meta).await?;
        self.answer(applied, Wait { wait_ms: 0, no_wait: true }, answer, |snapshot, about| {
            let AnswerOf::Domain(id) = about else {
                return Err(ApiError::internal(
                    "request_ids",
                    "the answer is about something else",
                ));
            };
            let domain = find::domain(snapshot, id.as_str())?;
            Ok(view::domain(&snapshot.state, domain, None))
        })
        .await
    }

    /// The context that a request names, by its own id or by a reservation's.
    fn context_for(
        &self,
        caller: &Caller,
        request: &v1::CreateDomainRequest,
    ) -> Result<ContextId, ApiError> {
        let snapshot = self.snapshot();
        let state: &State = &snapshot.state;
        if !request.label.is_empty() || request.backend != i32::from(v1::Backend::Auto) {
            return Err(ApiError::invalid_argument(
                "label",
                "label and backend are the context's: they can be given for a new context alone",
                "leave label and backend out, or leave context out",
            ));
        }
        if let Some(record) = state.reservation(&ReservationId::new(&request.context)) {
            let record = tenant::visible(caller, Ok(record))?;
            about(caller, Call::CreateDomain, record)?;
            return Ok(record.context.clone());
        }
        let id = ContextId::new(&request.context);
        let known = state.context(&id).filter(|it| tenant::may_see(caller, &it.label));
        let context = known.ok_or_else(|| {
            let text = format!("no context and no reservation is called {:?}", request.context);
            ApiError::not_found(&request.context, text)
        })?;
        let first = context.reservations.first().and_then(|id| state.reservation(id));
        match first {
            Some(record) => about(caller, Call::CreateDomain, record)?,
            None => require(caller, Call::CreateContext)?,
        }
        Ok(id)
    }

    /// Deletes a domain; a context that was made for it goes with its last one.
    ///
    /// # Errors
    /// `DOMAIN_IN_USE`.
    pub async fn delete_domain(
        &self,
        caller: &Caller,
        mut request: v1::DeleteDomainRequest,
    ) -> Result<v1::DeleteDomainResponse, ApiError> {
        require(caller, Call::DeleteDomain)?;
        let id = std::mem::take(&mut request.request_id);
        let meta = request::meta(caller, "delete domain", &id, &request, AnswerOf::Nothing)?;
        let snapshot = self.snapshot();
        let domain = DomainId::new(&request.id);
        if let Some(record) = snapshot.state.domain(&domain) {
            tenant::visible_domain(caller, &snapshot.state, Ok(record))?;
        }
        let mut commands = vec![Command::DeleteDomain { domain: domain.clone() }];
        let context = snapshot
            .state
            .domain(&domain)
            .and_then(|record| snapshot.state.context(&record.context));
        if let Some(context) = context {
            let last = context.domains.len() == 1 && context.reservations.is_empty();
            if last && !context.automatic {
                commands.push(Command::DeleteContext { context: context.id.clone() });
            }
        }
        let applied = self.ledger.submit_all(commands, meta).await?;
        match applied.replayed {
            Some(Err(refusal)) => Err(refusal.into()),
            Some(Ok(_)) | None => Ok(v1::DeleteDomainResponse {}),
        }
    }
}
