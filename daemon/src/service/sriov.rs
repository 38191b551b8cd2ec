//! The call that makes virtual functions and takes them away.

use std::sync::Arc;

use berth_host::DeviceFacts;
use berth_ownership::{Command, DeviceId, Errno, Reason, Refusal, SriovTo};
use berth_proto::v1;

use super::{Service, authorize::require, find, parse, rehearse::Look, request, wait::Wait};
use crate::{
    acts::sriov::of,
    model::{AnswerOf, ApiError, Call, Caller, Meta, Snapshot},
    view,
};

impl Service {
    /// Makes virtual functions, takes them away, or brings back what there was.
    ///
    /// # Errors
    /// The refusal: somebody has one of them, or the physical function; why the kernel work failed.
    pub async fn set_sriov(
        &self,
        caller: &Caller,
        mut request: v1::SetSriovRequest,
    ) -> Result<v1::Sriov, ApiError> {
        require(caller, Call::SetSriov)?;
        let address = parse::device("device", request.device.as_ref())?;
        let snapshot = self.snapshot();
        find::group_of(&snapshot, find::device(&snapshot, address)?)?;
        let to = wanted(find::device(&snapshot, address)?, &request)?;
        let device = DeviceId::from(address.to_string());
        let wait = Wait::take(&mut request.wait_ms, &mut request.no_wait);
        let id = std::mem::take(&mut request.request_id);
        let about = AnswerOf::Sriov(device.clone());
        let meta = request::meta(caller, "set SR-IOV", &id, &request, about.clone())?;
        if request.dry_run {
            let from = of(find::device(&self.snapshot(), address)?);
            let command = Command::SriovSet { device, to, from };
            let tried = self.rehearse(Look::Machine, command).await?;
            let now = view::sriov(&tried.before, find::device(&tried.before, address)?);
            return Ok(v1::Sriov { writes: view::writes(tried.writes), ..now });
        }
        let snapshot = self.scanned().await?;
        let from = of(find::device(&snapshot, address)?);
        let command = Command::SriovSet { device, to, from };
        let applied = self.ledger.submit(command, meta).await?;
        self.answer(applied, wait, about, |snapshot, _| {
            Ok(view::sriov(snapshot, find::device(snapshot, address)?))
        })
        .await
    }

    /// The machine as it is now: who has functions open unknown to us is found by a scan alone. What
    /// was looked at meanwhile, the scan says nothing of.
    async fn scanned(&self) -> Result<Arc<Snapshot>, ApiError> {
        for _ in 1..SCANS {
            let before = self.snapshot().looks;
            let scanned = self.ledger.rescan(Meta::internal("set SR-IOV")).await?;
            if scanned.snapshot.looks == before {
                return Ok(scanned.snapshot);
            }
        }
        Ok(self.ledger.rescan(Meta::internal("set SR-IOV")).await?.snapshot)
    }
}

/// What a request asks for, where the device can have it.
fn wanted(facts: &DeviceFacts, request: &v1::SetSriovRequest) -> Result<SriovTo, ApiError> {
    let address = facts.address;
    if facts.sriov_total == 0 {
        return Err(no_functions(facts));
    }
    if request.restore {
        if request.vfs > 0 {
            let text = "vfs and restore are both given: one of them is meant";
            return Err(ApiError::invalid_argument("vfs", text, "leave one of them out"));
        }
        return Ok(SriovTo::Baseline);
    }
    match u16::try_from(request.vfs) {
        Ok(vfs) if vfs <= facts.sriov_total => Ok(SriovTo::Vfs(vfs)),
        _ => {
            let (asked, most) = (request.vfs, facts.sriov_total);
            let text =
                format!("{asked} VFs are more than {address} can have: {most} (sriov_totalvfs)");
            let refusal = Refusal::new(Reason::InvalidArgument, address, text)
                .with_errno(ERANGE)
                .with_resolve(vec![format!(
                    "berth sriov set {address} N, with N from 0 to {most}"
                )]);
            Err(refusal.into())
        }
    }
}

/// So often is scanned where devices change all the time.
const SCANS: u32 = 4;

/// The kernel's errno for more functions than there can be.
const ERANGE: i32 = 34;

fn no_functions(facts: &DeviceFacts) -> ApiError {
    let address = facts.address;
    let (text, way) = match facts.physical_function {
        Some(physical) => (
            format!("{address} is a virtual function of {physical}, and has none itself"),
            format!("name its physical function: {physical}"),
        ),
        None => (
            format!("{address} is no physical function: it has no SR-IOV capability"),
            "`berth device list` shows all; `berth device show` says `VFs at most` of one that has it"
                .to_owned(),
        ),
    };
    let refusal = Refusal::new(Reason::InvalidArgument, address, text)
        .with_errno(Errno::ENOENT.number)
        .with_resolve(vec![way]);
    refusal.into()
}
