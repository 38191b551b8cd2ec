//! The calls about devices.

use berth_host::{DeviceFacts, PciAddress};
use berth_ownership::{Command, DeviceId};
use berth_proto::v1;

use super::{
    Service, authorize::require, find, parse, rehearse::Look, request, reserve::ttl, tenant,
    wait::Wait,
};
use crate::{
    model::{AnswerOf, ApiError, Call, Caller, Meta, Snapshot},
    view,
};

impl Service {
    /// All devices.
    ///
    /// # Errors
    /// The caller may not.
    pub async fn list_devices(
        &self,
        caller: &Caller,
        _request: v1::ListDevicesRequest,
    ) -> Result<v1::ListDevicesResponse, ApiError> {
        require(caller, Call::ListDevices)?;
        let snapshot = self.snapshot();
        let shown = snapshot.devices().map(|facts| view::device(&snapshot, facts));
        let devices = shown.map(|device| tenant::show_device(caller, device)).collect();
        Ok(v1::ListDevicesResponse { devices, resume_seq: snapshot.seq })
    }

    /// One device.
    ///
    /// # Errors
    /// There is no such device.
    pub async fn get_device(
        &self,
        caller: &Caller,
        request: v1::GetDeviceRequest,
    ) -> Result<v1::Device, ApiError> {
        require(caller, Call::GetDevice)?;
        let address = parse::device("device", request.device.as_ref())?;
        let snapshot = self.snapshot();
        let device = view::device(&snapshot, find::device(&snapshot, address)?);
        Ok(tenant::show_device(caller, device))
    }

    /// What a device's driver does with kernel DMA, read again, and which policies may attach.
    ///
    /// # Errors
    /// There is no such device.
    pub async fn query_kernel_dma(
        &self,
        caller: &Caller,
        request: v1::QueryKernelDmaRequest,
    ) -> Result<v1::KernelDma, ApiError> {
        require(caller, Call::QueryKernelDma)?;
        let address = parse::device("device", request.device.as_ref())?;
        find::device(&self.snapshot(), address)?;
        let snapshot = self.look_again(address, "query kernel DMA").await?;
        let facts = find::device(&snapshot, address)?;
        Ok(view::kernel_dma_of(&snapshot, facts, &self.ledger.clock().now()))
    }

    /// Gives a device to a host driver.
    ///
    /// # Errors
    /// The group is owned, or the driver doesn't bind.
    pub async fn set_kernel_dma(
        &self,
        caller: &Caller,
        mut request: v1::SetKernelDmaRequest,
    ) -> Result<v1::KernelDma, ApiError> {
        require(caller, Call::SetKernelDma)?;
        let address = parse::device("device", request.device.as_ref())?;
        let driver = (!request.driver.is_empty()).then(|| request.driver.clone());
        if let Some(driver) = &driver {
            parse::driver(driver)?;
        }
        find::group_of(&self.snapshot(), find::device(&self.snapshot(), address)?)?;
        let device = DeviceId::from(address.to_string());
        let wait = Wait { wait_ms: std::mem::take(&mut request.wait_ms), no_wait: false };
        let id = std::mem::take(&mut request.request_id);
        let about = AnswerOf::KernelDma(device.clone());
        let meta = request::meta(caller, "set kernel DMA", &id, &request, about)?;
        if request.dry_run {
            let command = Command::KernelDmaSet { device, driver };
            return self.kernel_dma_tried(Look::Nothing, command, address).await;
        }
        self.kernel_dma(Command::KernelDmaSet { device, driver }, meta, wait, address).await
    }

    /// Takes the host driver off a device on purpose. What the host does with it is read again
    /// first.
    ///
    /// # Errors
    /// `HOST_USES_DEVICE`, or the unbind failed.
    pub async fn release_kernel_dma(
        &self,
        caller: &Caller,
        mut request: v1::ReleaseKernelDmaRequest,
    ) -> Result<v1::KernelDma, ApiError> {
        require(caller, Call::ReleaseKernelDma)?;
        let address = parse::device("device", request.device.as_ref())?;
        find::group_of(&self.snapshot(), find::device(&self.snapshot(), address)?)?;
        let device = DeviceId::from(address.to_string());
        let wait = Wait { wait_ms: std::mem::take(&mut request.wait_ms), no_wait: false };
        let id = std::mem::take(&mut request.request_id);
        let about = AnswerOf::KernelDma(device.clone());
        let meta = request::meta(caller, "release kernel DMA", &id, &request, about)?;
        let host_uses_it_anyway = request.host_uses_it_anyway;
        let command = Command::KernelDmaRelease { device, host_uses_it_anyway };
        if request.dry_run {
            let look = Look::Devices(self.group_members(address));
            return self.kernel_dma_tried(look, command, address).await;
        }
        self.look_again(address, "release kernel DMA").await?;
        self.kernel_dma(command, meta, wait, address).await
    }

    /// What a dry run answers: how it is now, and what would be written.
    async fn kernel_dma_tried(
        &self,
        look: Look,
        command: Command,
        address: PciAddress,
    ) -> Result<v1::KernelDma, ApiError> {
        let tried = self.rehearse(look, command).await?;
        let (before, now) = (&tried.before, self.ledger.clock().now());
        let shown = view::kernel_dma_of(before, find::device(before, address)?, &now);
        Ok(v1::KernelDma { writes: view::writes(tried.writes), ..shown })
    }

    async fn kernel_dma(
        &self,
        command: Command,
        meta: Meta,
        wait: Wait,
        address: PciAddress,
    ) -> Result<v1::KernelDma, ApiError> {
        let applied = self.ledger.submit(command, meta).await?;
        let about = AnswerOf::KernelDma(DeviceId::from(address.to_string()));
        let now = self.ledger.clock().now();
        self.answer(applied, wait, about, |snapshot, _| {
            Ok(view::kernel_dma_of(snapshot, find::device(snapshot, address)?, &now))
        })
        .await
    }

    /// Keeps new reservations away from a device.
    ///
    /// # Errors
    /// There is no such device.
    pub async fn cordon(
        &self,
        caller: &Caller,
        mut request: v1::CordonRequest,
    ) -> Result<v1::Device, ApiError> {
        require(caller, Call::Cordon)?;
        parse::text("note", &request.note)?;
        let ttl_ms = ttl(request.ttl_ms)?;
        let address = parse::device("device", request.device.as_ref())?;
        let id = std::mem::take(&mut request.request_id);
        let meta = self.device_meta(caller, "cordon", &id, &request, address)?;
        let why = if request.note.is_empty() { caller.identity.clone() } else { request.note };
        let device = DeviceId::from(address.to_string());
        self.device_order(Command::Cordon { device, why, ttl_ms }, meta, address).await
    }

    /// Lets new reservations in again.
    ///
    /// # Errors
    /// There is no such device.
    pub async fn uncordon(
        &self,
        caller: &Caller,
        mut request: v1::UncordonRequest,
    ) -> Result<v1::Device, ApiError> {
        require(caller, Call::Uncordon)?;
        let address = parse::device("device", request.device.as_ref())?;
        let id = std::mem::take(&mut request.request_id);
        let meta = self.device_meta(caller, "uncordon", &id, &request, address)?;
        let device = DeviceId::from(address.to_string());
        self.device_order(Command::Uncordon { device }, meta, address).await
    }

    /// An operator's word that a device may be given again.
    ///
    /// # Errors
    /// There is no such device; no reason is given.
    pub async fn clear_quarantine(
        &self,
        caller: &Caller,
        mut request: v1::ClearQuarantineRequest,
    ) -> Result<v1::Device, ApiError> {
        require(caller, Call::ClearQuarantine)?;
        parse::text("reason", &request.reason)?;
        if request.reason.trim().is_empty() {
            return Err(ApiError::invalid_argument(
                "reason",
                "reason is missing: it is kept in the history",
                "say why the device may be given again, e.g. `--reason \"power cycled\"`",
            ));
        }
        let address = parse::device("device", request.device.as_ref())?;
        let id = std::mem::take(&mut request.request_id);
        let meta = self.device_meta(caller, "clear quarantine", &id, &request, address)?;
        let device = DeviceId::from(address.to_string());
        let command = Command::ClearQuarantine { device, why: request.reason };
        self.device_order(command, meta, address).await
    }

    fn device_meta(
        &self,
        caller: &Caller,
        call: &str,
        request_id: &str,
        body: &impl prost::Message,
        address: PciAddress,
    ) -> Result<Meta, ApiError> {
        let snapshot = self.snapshot();
        let facts: &DeviceFacts = find::device(&snapshot, address)?;
        find::group_of(&snapshot, facts)?;
        let about = AnswerOf::Device(DeviceId::from(address.to_string()));
        request::meta(caller, call, request_id, body, about)
    }

    async fn device_order(
        &self,
        command: Command,
        meta: Meta,
        address: PciAddress,
    ) -> Result<v1::Device, ApiError> {
        let applied = self.ledger.submit(command, meta).await?;
        let about = AnswerOf::Device(DeviceId::from(address.to_string()));
        let wait = Wait { wait_ms: 0, no_wait: true };
        self.answer(applied, wait, about, |snapshot, _| {
            Ok(view::device(snapshot, find::device(snapshot, address)?))
        })
        .await
    }

    /// Looks at all devices of a device's group again.
    pub(super) async fn look_again(
        &self,
        address: PciAddress,
        cause: &str,
    ) -> Result<std::sync::Arc<Snapshot>, ApiError> {
        let members = self.group_members(address);
        let applied = self.ledger.refresh(members, Meta::internal(cause)).await?;
        Ok(applied.snapshot)
    }

    /// All devices of a device's group.
    fn group_members(&self, address: PciAddress) -> Vec<PciAddress> {
        let snapshot = self.snapshot();
        snapshot
            .group_of(address)
            .map(|group| group.devices.iter().filter_map(|id| id.as_str().parse().ok()).collect())
            .unwrap_or_else(|| vec![address])
    }
}
