//! Contexts and domains that are made and deleted by name.

use super::Decision;
use crate::command::Command;
use crate::event::Event;
use crate::ids::{ContextId, DomainId};
use crate::model::{Backend, Policy};
use crate::reason::Reason;
use crate::record::{Context, Domain};
use crate::refusal::Refusal;
use crate::state::State;

impl State {
    pub(super) fn decide_object(&self, cmd: &Command) -> Decision {
        match cmd {
            Command::CreateContext { context, label, policy, backend } => {
                if self.contexts.contains_key(context) {
                    return Err(exists(context));
                }
                let context = Context {
                    id: context.clone(),
                    label: label.clone(),
                    policy: *policy,
                    backend: *backend,
                    holder_owned: false,
                    automatic: false,
                    domains: Vec::new(),
                    reservations: Vec::new(),
                };
                Ok(vec![Event::ContextCreated { context }])
            }
            Command::DeleteContext { context } => self.delete_context(context),
            Command::CreateDomain { domain, context } => self.create_domain(domain, context),
            Command::DeleteDomain { domain } => self.delete_domain(domain),
            _ => Ok(Vec::new()),
        }
    }

    fn find_context(&self, id: &ContextId) -> Result<&Context, Box<Refusal>> {
        self.context(id)
            .ok_or_else(|| Refusal::new(Reason::NotFound, id, format!("no context is called {id}")))
    }

    fn create_domain(&self, id: &DomainId, context: &ContextId) -> Decision {
        if self.domains.contains_key(id) {
            return Err(exists(id));
        }
        let context = self.find_context(context)?;
        if context.holder_owned {
            let text = format!("create {id} in {}: the holder makes its own there", context.id);
            return Err(Refusal::new(Reason::HolderOwnsDomain, &context.id, text));
        }
        if !context.domains.is_empty() {
            check_second_domain(id, context)?;
        }
        let domain =
            Domain { id: id.clone(), context: context.id.clone(), label: context.label.clone() };
        Ok(vec![Event::DomainCreated { domain }])
    }

    fn delete_domain(&self, id: &DomainId) -> Decision {
        let domain = self.find_domain(id)?;
        let context = self.find_context(&domain.context)?;
        let mut users: Vec<String> = Vec::new();
        for reservation in context.reservations.iter().filter_map(|id| self.reservation(id)) {
            let pending = reservation.pending.as_ref().and_then(|pending| pending.domain.as_ref());
            let attached = reservation.targets.iter().any(|target| {
                let group = self.group(&target.group);
                group.is_some_and(|group| group.attached.as_ref() == Some(id))
            });
            if reservation.domain == *id || pending == Some(id) || attached {
                users.push(format!("{} for {}", reservation.id, reservation.holder));
            }
        }
        if users.is_empty() {
            return Ok(vec![Event::DomainDeleted { domain: id.clone() }]);
        }
        let text = format!("delete {id}: it is used by {}", users.join(", "));
        Err(Refusal::new(Reason::DomainInUse, id, text))
    }

    fn delete_context(&self, id: &ContextId) -> Decision {
        let context = self.find_context(id)?;
        if let Some(first) = context.reservations.first() {
            let text = format!("delete {id}: it is used by {first}");
            return Err(Refusal::new(Reason::DomainInUse, id, text));
        }
        let mut events: Vec<Event> = context
            .domains
            .iter()
            .map(|domain| Event::DomainDeleted { domain: domain.clone() })
            .collect();
        events.push(Event::ContextDeleted { context: id.clone() });
        Ok(events)
    }
}

/// Whoever holds one device of a context can attach it to any domain in it. So only a token's
/// owner may have several.
fn check_second_domain(id: &DomainId, context: &Context) -> Result<(), Box<Refusal>> {
    match (context.policy, context.backend) {
        (Policy::Group, Backend::Iommufd) => Ok(()),
        (Policy::Group, Backend::Type1) => Err(Refusal::new(
            Reason::BackendCannot,
            &context.id,
            format!("create {id} in {}: a type1 container has one domain", context.id),
        )),
        (Policy::Exclusive | Policy::Shared, _) => Err(Refusal::new(
            Reason::InvalidArgument,
            &context.id,
            format!(
                "create {id} in {}: a context of policy {} has exactly one domain",
                context.id, context.policy
            ),
        )),
    }
}

fn exists(id: impl ToString) -> Box<Refusal> {
    let id = id.to_string();
    Refusal::new(Reason::AlreadyExists, &id, format!("{id} exists already"))
}
