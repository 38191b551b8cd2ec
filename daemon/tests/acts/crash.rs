//! A crash at the k-th point: the thread that reaches it unwinds and so closes what it had open,
//! and nothing is recorded or asked of the host any more. Dropping the engine closes the rest, as
//! the kernel does for a process that died.

use std::{
    any::Any,
    collections::BTreeSet,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use berth_dma::AddressSpace;
use berth_host::{
    Act, ActOutcome, AttachedDevice, BackendKind, Context, DeviceFacts, DomainHandle, Feature,
    GroupHold, Health, Host, HostError, HostUse, Inventory, IovaRange, Node, PciAddress,
    ProcessUse, Settings, Uevents, VfioError, sim::SimHost,
};
use berth_uapi::VfToken;

/// What a crash unwinds with.
struct Crashed;

#[derive(Debug, Default)]
pub struct Crash {
    passed: AtomicU64,
    at: AtomicU64,
    dead: AtomicBool,
    place: Mutex<String>,
    /// How often one look told which of many devices are open, and how often who has one.
    pub looks: [AtomicU64; 2],
}

impl Crash {
    /// Crashes at the `at`-th point from now; 0 never does.
    pub fn arm(&self, at: u64) {
        quiet();
        self.passed.store(0, Ordering::SeqCst);
        self.dead.store(false, Ordering::SeqCst);
        self.at.store(at, Ordering::SeqCst);
    }

    pub fn happened(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Where it was.
    pub fn place(&self) -> String {
        self.place.lock().unwrap().clone()
    }

    pub fn point(&self, place: &str) {
        if self.happened() {
            std::panic::panic_any(Crashed);
        }
        let passed = self.passed.fetch_add(1, Ordering::SeqCst) + 1;
        if passed == self.at.load(Ordering::SeqCst) {
            self.dead.store(true, Ordering::SeqCst);
            *self.place.lock().unwrap() = place.to_owned();
            std::panic::panic_any(Crashed);
        }
    }
}

/// Planted crashes are not worth a backtrace each.
fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.payload().is::<Crashed>() {
                before(info);
            }
        }));
    });
}

/// The simulated host with a point before and after each call that changes something.
#[derive(Debug)]
pub struct CrashHost {
    pub sim: SimHost,
    pub crash: Arc<Crash>,
}

impl CrashHost {
    fn around<T>(&self, what: &str, call: impl FnOnce() -> T) -> T {
        around(&self.crash, what, call)
    }
}

fn around<T>(crash: &Crash, what: &str, call: impl FnOnce() -> T) -> T {
    crash.point(&format!("before {what}"));
    let answer = call();
    crash.point(&format!("after {what}"));
    answer
}

impl Host for CrashHost {
    fn simulated(&self) -> bool {
        true
    }
    fn topology(&self) -> Option<String> {
        self.sim.topology()
    }
    fn kernel_release(&self) -> String {
        self.sim.kernel_release()
    }
    fn boot_id(&self) -> String {
        "boot".to_owned()
    }
    fn features(&self) -> Vec<Feature> {
        self.sim.features()
    }
    fn settings(&self) -> Settings {
        self.sim.settings()
    }
    fn kernel_hold(&self) -> bool {
        self.sim.kernel_hold()
    }
    fn backends(&self) -> Vec<BackendKind> {
        self.sim.backends()
    }
    fn scan(&self) -> Result<Inventory, HostError> {
        self.sim.scan()
    }
    fn device(&self, address: PciAddress) -> Result<DeviceFacts, HostError> {
        self.sim.device(address)
    }
    fn health(&self, address: PciAddress) -> Result<Health, HostError> {
        self.sim.health(address)
    }
    fn uses(&self, address: PciAddress) -> Result<Vec<HostUse>, HostError> {
        self.sim.uses(address)
    }
    fn uevents(&self) -> Result<Box<dyn Uevents>, HostError> {
        self.sim.uevents()
    }
    fn users_of(&self, address: PciAddress) -> Result<Vec<ProcessUse>, HostError> {
        self.crash.looks[1].fetch_add(1, Ordering::SeqCst);
        self.sim.users_of(address)
    }
    fn used_among(&self, devices: &[PciAddress]) -> Result<BTreeSet<PciAddress>, HostError> {
        self.crash.looks[0].fetch_add(1, Ordering::SeqCst);
        let open = |device: &&PciAddress| self.sim.in_use(**device).unwrap_or(true);
        Ok(devices.iter().filter(open).copied().collect())
    }
    fn registered(&self, driver: &str) -> Result<String, HostError> {
        self.sim.registered(driver)
    }
    fn perform(&self, act: &Act) -> Result<ActOutcome, HostError> {
        self.around(&format!("{act:?}"), || self.sim.perform(act))
    }
    fn open_context(&self, backend: BackendKind) -> Result<Box<dyn Context>, VfioError> {
        let context = self.around("opening a context", || self.sim.open_context(backend))?;
        Ok(Box::new(CrashContext { inner: context, crash: Arc::clone(&self.crash) }))
    }
    fn hold(
        &self,
        group: u32,
        context: Option<&dyn Context>,
    ) -> Result<Box<dyn GroupHold>, VfioError> {
        self.around("a hold", || {
            let context = context.map(|context| {
                context.as_any().downcast_ref::<CrashContext>().map_or(context, |own| &*own.inner)
            });
            self.sim.hold(group, context)
        })
    }
    fn open_cdev(&self, device: PciAddress) -> Result<OwnedFd, VfioError> {
        self.around("opening a cdev", || self.sim.open_cdev(device))
    }
    fn bind_takes_vf_token(&self, device: PciAddress) -> Result<bool, VfioError> {
        self.sim.bind_takes_vf_token(device)
    }
    fn node(&self, node: Node) -> Result<String, HostError> {
        self.sim.node(node)
    }
    fn memory_bytes(&self) -> Option<u64> {
        self.sim.memory_bytes()
    }
    fn unbind_waits(&self, device: PciAddress) -> Result<bool, HostError> {
        self.sim.unbind_waits(device)
    }

    fn in_use(&self, device: PciAddress) -> Result<bool, HostError> {
        self.sim.in_use(device)
    }
    fn probe_free(&self, group: u32) -> Result<bool, VfioError> {
        self.sim.probe_free(group)
    }
    fn adopt_hold(
        &self,
        group: u32,
        context: Option<&dyn Context>,
        fds: Vec<OwnedFd>,
    ) -> Result<Box<dyn GroupHold>, VfioError> {
        let context = context.map(|context| {
            context.as_any().downcast_ref::<CrashContext>().map_or(context, |own| &*own.inner)
        });
        self.sim.adopt_hold(group, context, fds)
    }
    fn adopt_context(
        &self,
        backend: BackendKind,
        fd: OwnedFd,
    ) -> Result<Box<dyn Context>, VfioError> {
        let inner = self.sim.adopt_context(backend, fd)?;
        Ok(Box::new(CrashContext { inner, crash: Arc::clone(&self.crash) }))
    }
}

#[derive(Debug)]
struct CrashContext {
    inner: Box<dyn Context>,
    crash: Arc<Crash>,
}

impl Context for CrashContext {
    fn backend(&self) -> BackendKind {
        self.inner.backend()
    }
    fn new_domain(&self) -> Result<DomainHandle, VfioError> {
        around(&self.crash, "a domain", || self.inner.new_domain())
    }
    fn delete_domain(&self, domain: DomainHandle) -> Result<(), VfioError> {
        self.inner.delete_domain(domain)
    }
    fn open_device(&self, device: PciAddress) -> Result<Box<dyn AttachedDevice>, VfioError> {
        let inner = around(&self.crash, "opening a device", || self.inner.open_device(device))?;
        Ok(Box::new(CrashDevice { inner, crash: Arc::clone(&self.crash) }))
    }
    fn open_by_token(
        &self,
        device: PciAddress,
        token: &VfToken,
    ) -> Result<Box<dyn AttachedDevice>, VfioError> {
        let open = || self.inner.open_by_token(device, token);
        let inner = around(&self.crash, "opening a device by its token", open)?;
        Ok(Box::new(CrashDevice { inner, crash: Arc::clone(&self.crash) }))
    }
    fn adopt_device(
        &self,
        device: PciAddress,
        device_id: u32,
        domain: Option<DomainHandle>,
        fd: OwnedFd,
    ) -> Result<Box<dyn AttachedDevice>, VfioError> {
        let inner = self.inner.adopt_device(device, device_id, domain, fd)?;
        Ok(Box::new(CrashDevice { inner, crash: Arc::clone(&self.crash) }))
    }
    fn fd(&self) -> Result<OwnedFd, VfioError> {
        self.inner.fd()
    }
    fn address_space(&self, domain: DomainHandle) -> Result<AddressSpace, VfioError> {
        self.inner.address_space(domain)
    }
    fn ranges(&self, domain: DomainHandle) -> Result<Vec<IovaRange>, VfioError> {
        self.inner.ranges(domain)
    }
    fn unmap_all(&self, domain: DomainHandle) -> Result<u64, VfioError> {
        self.inner.unmap_all(domain)
    }
    fn bound_devices(&self, most: usize) -> Result<usize, VfioError> {
        self.inner.bound_devices(most)
    }
    fn unmap_everything(&self) -> Result<u64, VfioError> {
        self.inner.unmap_everything()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[derive(Debug)]
struct CrashDevice {
    inner: Box<dyn AttachedDevice>,
    crash: Arc<Crash>,
}

impl AttachedDevice for CrashDevice {
    fn address(&self) -> PciAddress {
        self.inner.address()
    }
    fn device_id(&self) -> u32 {
        self.inner.device_id()
    }
    fn attach(&mut self, domain: DomainHandle) -> Result<(), VfioError> {
        around(&self.crash, "an attach", || self.inner.attach(domain))
    }
    fn detach(&mut self) -> Result<(), VfioError> {
        around(&self.crash, "a detach", || self.inner.detach())
    }
    fn reset(&mut self) -> Result<(), VfioError> {
        self.inner.reset()
    }
    fn set_vf_token(&mut self, token: &VfToken) -> Result<(), VfioError> {
        around(&self.crash, "setting a VF token", || self.inner.set_vf_token(token))
    }
    fn fd(&self) -> Result<OwnedFd, VfioError> {
        self.inner.fd()
    }
    fn bound(&self) -> Result<bool, VfioError> {
        self.inner.bound()
    }
}
