//! `berth device`, `berth kernel-dma`, `berth cordon`, `berth quarantine`.

use std::time::Duration;

use berth_proto::v1::{self, DeviceAddress};
use tonic::transport::Channel;

use super::{Devices, request_id, watched};
use crate::{
    address,
    args::{DeviceCommand, KernelDmaCommand, QuarantineCommand, WatchArgs},
    client::waited,
    error::CliError,
    progress::Waiting,
    quantity,
    render::{self, Output},
};

pub(super) async fn run(
    channel: Channel,
    command: DeviceCommand,
    output: &Output,
) -> Result<(), CliError> {
    let mut client = Devices::new(channel.clone()).max_decoding_message_size(usize::MAX);
    match command {
        DeviceCommand::List { all, watch: WatchArgs { watch } } => {
            watched::shown(&channel, watch, output, |output| {
                let mut client = client.clone();
                async move {
                    let mut list =
                        client.list_devices(v1::ListDevicesRequest {}).await?.into_inner();
                    list.devices.retain(|device| all || !device.is_bridge);
                    output.show(&list, |list| render::device::table(&list.devices))
                }
            })
            .await
        }
        DeviceCommand::Show { device } => {
            let request = v1::GetDeviceRequest { device: Some(device) };
            let device = client.get_device(request).await?.into_inner();
            output.show(&device, render::device::block)
        }
    }
}

pub(super) async fn kernel_dma(
    channel: Channel,
    command: KernelDmaCommand,
    output: &Output,
) -> Result<(), CliError> {
    let client = Devices::new(channel);
    let mut tried = false;
    let answer = match command {
        KernelDmaCommand::Query { device } => {
            let request = v1::QueryKernelDmaRequest { device: Some(device) };
            client.clone().query_kernel_dma(request).await?.into_inner()
        }
        KernelDmaCommand::Set { device, driver, dry_run, request_id: id } => {
            tried = dry_run;
            let request = v1::SetKernelDmaRequest {
                device: Some(device),
                driver: driver.unwrap_or_default(),
                request_id: request_id(id),
                wait_ms: 0,
                dry_run,
            };
            let named = address::text(request.device.as_ref());
            let waiting = Waiting::to(format!("give {named} to a driver"));
            waited(waiting, || {
                let (mut client, request) = (client.clone(), request.clone());
                async move { client.set_kernel_dma(request).await }
            })
            .await?
        }
        KernelDmaCommand::Release { device, host_uses_it_anyway, dry_run, request_id: id } => {
            tried = dry_run;
            let request = v1::ReleaseKernelDmaRequest {
                device: Some(device),
                host_uses_it_anyway,
                request_id: request_id(id),
                wait_ms: 0,
                dry_run,
            };
            let named = address::text(request.device.as_ref());
            let waiting = Waiting::to(format!("take {named} from its driver"));
            waited(waiting, || {
                let (mut client, request) = (client.clone(), request.clone());
                async move { client.release_kernel_dma(request).await }
            })
            .await?
        }
    };
    if tried {
        return output.tried(&answer, |answer| render::writes::plan(&answer.writes));
    }
    output.show(&answer, render::device::kernel_dma)
}

pub(super) async fn cordon(
    channel: Channel,
    device: DeviceAddress,
    note: String,
    term: Option<Duration>,
    output: &Output,
) -> Result<(), CliError> {
    let request = v1::CordonRequest {
        device: Some(device),
        note,
        request_id: request_id(None),
        ttl_ms: term.map(quantity::millis).unwrap_or_default(),
    };
    let device = Devices::new(channel).cordon(request).await?.into_inner();
    output.show(&device, render::device::block)
}

pub(super) async fn uncordon(
    channel: Channel,
    device: DeviceAddress,
    output: &Output,
) -> Result<(), CliError> {
    let request = v1::UncordonRequest { device: Some(device), request_id: request_id(None) };
    let device = Devices::new(channel).uncordon(request).await?.into_inner();
    output.show(&device, render::device::block)
}

pub(super) async fn quarantine(
    channel: Channel,
    command: QuarantineCommand,
    output: &Output,
) -> Result<(), CliError> {
    let QuarantineCommand::Clear { device, reason, request_id: id } = command;
    let request =
        v1::ClearQuarantineRequest { device: Some(device), reason, request_id: request_id(id) };
    let device = Devices::new(channel).clear_quarantine(request).await?.into_inner();
    output.show(&device, render::device::block)
}
