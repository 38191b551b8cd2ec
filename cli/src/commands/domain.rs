//! `berth domain`.

use berth_proto::v1;
use tonic::transport::Channel;

use super::{Domains, Reservations, request_id, watched};
use crate::{
    args::{DomainCommand, WatchArgs},
    client::{retried, waited},
    error::CliError,
    progress::Waiting,
    render::{self, Output},
};

pub(super) async fn run(
    channel: Channel,
    command: DomainCommand,
    output: &Output,
) -> Result<(), CliError> {
    let mut client = Domains::new(channel.clone());
    match command {
        DomainCommand::Create { context, label, backend, request_id: id } => {
            let request = v1::CreateDomainRequest {
                context: context.unwrap_or_default(),
                label: label.unwrap_or_default(),
                backend: v1::Backend::from(backend).into(),
                request_id: request_id(id),
            };
            let domain = retried(|| {
                let (mut client, request) = (client.clone(), request.clone());
                async move { client.create_domain(request).await }
            })
            .await?;
            output.show(&domain, render::domain::block)
        }
        DomainCommand::List(WatchArgs { watch }) => {
            watched::shown(&channel, watch, output, |output| {
                let mut client = client.clone();
                async move {
                    let list = client.list_domains(v1::ListDomainsRequest {}).await?.into_inner();
                    output.show(&list, |list| render::domain::table(&list.domains))
                }
            })
            .await
        }
        DomainCommand::Show { id } => {
            let domain = client.get_domain(v1::GetDomainRequest { id }).await?.into_inner();
            output.show(&domain, render::domain::block)
        }
        DomainCommand::Delete { id, request_id: given } => {
            let request = v1::DeleteDomainRequest { id: id.clone(), request_id: request_id(given) };
            let answer = client.delete_domain(request).await?.into_inner();
            output.show(&answer, |_| format!("domain {id} deleted"))
        }
        DomainCommand::Replace { reservation, domain, epoch, request_id: id } => {
            let request = v1::ReplaceRequest {
                id: reservation,
                epoch,
                domain,
                request_id: request_id(id),
                wait_ms: 0,
                no_wait: false,
            };
            let waiting = Waiting::about("replace the domain of", &channel, &request.id);
            let client = Reservations::new(channel);
            let reservation = waited(waiting, || {
                let (mut client, request) = (client.clone(), request.clone());
                async move { client.replace(request).await }
            })
            .await?;
            output.show(&reservation, render::reservation::block)
        }
    }
}
