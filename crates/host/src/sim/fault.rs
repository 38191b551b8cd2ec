//! Scripted faults: what goes wrong, where, how often, how slowly.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::io::Errno;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::PciAddress;

/// A call that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Site {
    /// Reading all of the machine.
    Scan,
    /// Opening `/dev/iommu` or `/dev/vfio/vfio`.
    OpenContext,
    /// `IOMMU_IOAS_ALLOC`.
    NewDomain,
    /// `IOMMU_DESTROY`.
    DeleteDomain,
    /// Opening `/dev/vfio/N` for a hold or a device; a probe has a site of its own.
    OpenGroup,
    /// `VFIO_GROUP_SET_CONTAINER`.
    SetContainer,
    /// `VFIO_SET_IOMMU`.
    SetIommu,
    /// `VFIO_GROUP_GET_DEVICE_FD`, or opening the cdev.
    OpenDevice,
    /// `VFIO_DEVICE_BIND_IOMMUFD`.
    BindIommufd,
    /// `VFIO_DEVICE_ATTACH_IOMMUFD_PT`.
    Attach,
    /// `VFIO_DEVICE_DETACH_IOMMUFD_PT`, or the unmap that stands for it on type1.
    Detach,
    /// `VFIO_DEVICE_RESET`.
    DeviceReset,
    /// Asking whether a group is free.
    ProbeFree,
    /// The next map or unmap in an address space that is opened after this is scripted.
    Map,
    /// [`Act::Bind`](crate::Act::Bind).
    Bind,
    /// [`Act::Unbind`](crate::Act::Unbind).
    Unbind,
    /// [`Act::Override`](crate::Act::Override).
    Override,
    /// [`Act::Restore`](crate::Act::Restore).
    Restore,
    /// [`Act::Sriov`](crate::Act::Sriov).
    Sriov,
    /// [`Act::Reset`](crate::Act::Reset): the outcome is then `failed`.
    Reset,
    /// [`Act::ReadConfig`](crate::Act::ReadConfig).
    ReadConfig,
    /// [`Act::WhoHolds`](crate::Act::WhoHolds), also when it is asked for a device.
    WhoHolds,
    /// [`Act::Prlimit`](crate::Act::Prlimit).
    Prlimit,
    /// [`Act::Kill`](crate::Act::Kill).
    Kill,
    /// [`Act::OpenIommu`](crate::Act::OpenIommu).
    OpenIommu,
    /// [`Act::Access`](crate::Act::Access).
    Access,
    /// Reading one device again.
    ReadDevice,
    /// A write to `driver_override`, inside an act.
    WriteOverride,
    /// A write to `driver/unbind`, inside an act.
    WriteUnbind,
    /// A write to `drivers_probe`, inside an act.
    WriteProbe,
    /// A write to `drivers/D/bind`, inside an act.
    WriteBind,
    /// Any of them: with `skip` a test walks through all.
    Any,
}

/// One scripted fault. Without an errno the call is only slow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The call.
    pub site: Site,
    /// Only on this device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<PciAddress>,
    /// Only on this group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    /// The answer, by name in a file: `errno = "EIO"`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "errno_to_name",
        deserialize_with = "errno_from_name"
    )]
    pub errno: Option<Errno>,
    /// How often; absent means always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// How many matching calls pass before the first fault.
    #[serde(default)]
    pub skip: u32,
    /// How long the call takes before it answers.
    #[serde(default)]
    pub delay_ms: u64,
    /// The call doesn't come back until the faults are cleared.
    #[serde(default)]
    pub hang: bool,
}

impl Fault {
    /// A fault that does nothing yet, once.
    #[must_use]
    pub fn at(site: Site) -> Self {
        Self {
            site,
            device: None,
            group: None,
            errno: None,
            times: Some(1),
            skip: 0,
            delay_ms: 0,
            hang: false,
        }
    }

    /// Only on this device.
    #[must_use]
    pub fn device(mut self, device: PciAddress) -> Self {
        self.device = Some(device);
        self
    }

    /// Only on this group.
    #[must_use]
    pub fn group(mut self, group: u32) -> Self {
        self.group = Some(group);
        self
    }

    /// Answers with an errno.
    #[must_use]
    pub fn errno(mut self, errno: Errno) -> Self {
        self.errno = Some(errno);
        self
    }

    /// So many times.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Every time.
    #[must_use]
    pub fn always(mut self) -> Self {
        self.times = None;
        self
    }

    /// Lets so many matching calls pass first.
    #[must_use]
    pub fn skip(mut self, calls: u32) -> Self {
        self.skip = calls;
        self
    }

    /// Takes so long first.
    ///
    /// # Units
    /// Milliseconds.
    #[must_use]
    pub fn delay_ms(mut self, delay_ms: u64) -> Self {
        self.delay_ms = delay_ms;
        self
    }

    /// Doesn't come back until the faults are cleared.
    #[must_use]
    pub fn hang(mut self) -> Self {
        self.hang = true;
        self
    }

    fn is_for(&self, at: &At) -> bool {
        (self.site == at.site || self.site == Site::Any)
            && self.times != Some(0)
            && (self.device.is_none() || self.device == at.device)
            && (self.group.is_none() || self.group == at.group)
    }
}

/// A call that is about to happen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At {
    pub(crate) site: Site,
    pub(crate) device: Option<PciAddress>,
    pub(crate) group: Option<u32>,
}

/// The faults that are scripted now.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    state: Mutex<State>,
    cleared: Condvar,
}

#[derive(Debug, Default)]
struct State {
    armed: Vec<Fault>,
    generation: u64,
    calls: u64,
}

impl Faults {
    pub(crate) fn script(&self, fault: Fault) {
        self.lock().armed.push(fault);
    }

    /// Forgets all faults and lets hanging calls go on.
    pub(crate) fn clear(&self) {
        let mut state = self.lock();
        state.armed.clear();
        state.generation += 1;
        self.cleared.notify_all();
    }

    /// How many calls could have failed so far.
    pub(crate) fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Whether a call would be slow.
    pub(crate) fn slow(&self, at: &At) -> bool {
        let state = self.lock();
        state.armed.iter().any(|fault| fault.is_for(at) && (fault.hang || fault.delay_ms > 0))
    }

    /// Waits as scripted and answers as scripted.
    pub(crate) fn pass(&self, at: &At) -> Result<(), Errno> {
        let Some(fault) = self.take(at) else { return Ok(()) };
        if fault.delay_ms > 0 {
            std::thread::sleep(Duration::from_millis(fault.delay_ms));
        }
        if fault.hang {
            let state = self.lock();
            let generation = state.generation;
            let _state = self
                .cleared
                .wait_while(state, |state| state.generation == generation)
                .unwrap_or_else(PoisonError::into_inner);
        }
        fault.errno.map_or(Ok(()), Err)
    }

    fn take(&self, at: &At) -> Option<Fault> {
        let mut state = self.lock();
        state.calls += 1;
        let fault = state.armed.iter_mut().find(|fault| fault.is_for(at))?;
        if fault.skip > 0 {
            fault.skip -= 1;
            return None;
        }
        if let Some(times) = &mut fault.times {
            *times -= 1;
        }
        Some(fault.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn errno_to_name<S: Serializer>(errno: &Option<Errno>, to: S) -> Result<S::Ok, S::Error> {
    errno.map(berth_uapi::errno_name).serialize(to)
}

fn errno_from_name<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Errno>, D::Error> {
    let name = String::deserialize(from)?;
    errno_by_name(&name)
        .map(Some)
        .ok_or_else(|| D::Error::custom(format!("{name:?} is no errno that VFIO or sysfs answer")))
}

/// The errno of a name such as `EPERM`.
pub(crate) fn errno_by_name(name: &str) -> Option<Errno> {
    (1..4095)
        .map(Errno::from_raw_os_error)
        .find(|errno| berth_uapi::errno_name(*errno) == name && name != "errno")
}
