//! The calls about devices.

use berth_proto::v1;

use super::{Service, starting};
use crate::model::{ApiError, Caller};

impl Service {
    /// `list_devices`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn list_devices(
        &self,
        caller: &Caller,
        request: v1::ListDevicesRequest,
    ) -> Result<v1::ListDevicesResponse, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `get_device`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn get_device(
        &self,
        caller: &Caller,
        request: v1::GetDeviceRequest,
    ) -> Result<v1::Device, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `query_kernel_dma`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn query_kernel_dma(
        &self,
        caller: &Caller,
        request: v1::QueryKernelDmaRequest,
    ) -> Result<v1::KernelDma, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `set_kernel_dma`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn set_kernel_dma(
        &self,
        caller: &Caller,
        request: v1::SetKernelDmaRequest,
    ) -> Result<v1::KernelDma, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `release_kernel_dma`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn release_kernel_dma(
        &self,
        caller: &Caller,
        request: v1::ReleaseKernelDmaRequest,
    ) -> Result<v1::KernelDma, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `cordon`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn cordon(
        &self,
        caller: &Caller,
        request: v1::CordonRequest,
    ) -> Result<v1::Device, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `uncordon`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn uncordon(
        &self,
        caller: &Caller,
        request: v1::UncordonRequest,
    ) -> Result<v1::Device, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `clear_quarantine`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn clear_quarantine(
        &self,
        caller: &Caller,
        request: v1::ClearQuarantineRequest,
    ) -> Result<v1::Device, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }
}
