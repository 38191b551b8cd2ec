//! Dry runs: they tell, write by write, what the real call then writes, and what undoes it; they
//! change nothing; and what is refused is refused alike.

mod front_support;

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    time::Duration,
};

use berth_host::{Host as _, HostUse, PciAddress, sim::SimHost};
use front_support::{Answer, Running};
use serde_json::{Value, json};

/// Never due while a test runs.
const QUIET: &str = "[timeouts]\nrescan_ms = 3600000\n";

fn at(text: &str) -> PciAddress {
    text.parse().expect("an address")
}

/// What writes to sysfs change, of each device: driver, override, virtual functions, who is offered
/// them.
type Drivers = BTreeMap<PciAddress, (Option<String>, Option<String>, usize, bool)>;

fn drivers(sim: &SimHost) -> Drivers {
    let of = |it: berth_host::DeviceFacts| {
        let functions = it.virtual_functions.len();
        (it.address, (it.driver, it.driver_override, functions, it.sriov_autoprobe))
    };
    sim.scan().expect("a scan").devices.into_iter().map(of).collect()
}

/// All that a dry run must leave as it is.
#[derive(Debug)]
struct Everything {
    machine: berth_host::Inventory,
    written: Vec<(String, String)>,
    reservations: String,
    groups: String,
    devices: String,
    events: String,
    files: BTreeMap<PathBuf, u64>,
    looks: u64,
}

impl Everything {
    /// What is otherwise in another one.
    fn differs(&self, from: &Self) -> Vec<String> {
        let parts = [
            ("machine", self.machine == from.machine),
            ("writes", self.written == from.written),
            ("reservations", self.reservations == from.reservations),
            ("groups", self.groups == from.groups),
            ("devices", self.devices == from.devices),
            ("events", self.events == from.events),
            ("looks", self.looks == from.looks),
        ];
        let files = self.files.keys().chain(from.files.keys());
        let files = files.filter(|path| self.files.get(*path) != from.files.get(*path));
        let named = parts.iter().filter(|(_, same)| !same).map(|(name, _)| (*name).to_owned());
        named.chain(files.map(|path| path.display().to_string())).collect()
    }
}

fn files(dir: &Path, into: &mut BTreeMap<PathBuf, u64>) {
    for entry in std::fs::read_dir(dir).expect("the state's directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, into);
        } else if !path.to_string_lossy().ends_with("-shm") {
            // Readers leave their marks in the index of the WAL, and only there.
            let mut hash = DefaultHasher::new();
            std::fs::read(&path).expect("a file").hash(&mut hash);
            into.insert(path, hash.finish());
        }
    }
}

/// A daemon on a machine, and another machine of the same kind on which what dry runs tell is done by
/// hand: nobody holds anything there.
struct Stage {
    running: Running,
    hand: SimHost,
}

/// One call: method, path, body.
type Call<'a> = (&'a str, &'a str, Value);

impl Stage {
    async fn on(topology: &str) -> Self {
        let running = Running::on(topology, QUIET).await;
        running.host.note_writes();
        Self { running, hand: SimHost::builtin(topology).expect("a machine") }
    }

    async fn get(&self, path: &str) -> String {
        let answer = self.running.unix_raw("GET", path, None, "accept: application/json\r\n").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    /// All events, with their fields in one order.
    async fn events(&self) -> String {
        let answer = self.get("/api/v1/events?limit=1000").await;
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        answer["events"].to_string()
    }

    async fn everything(&self) -> Everything {
        let mut kept = BTreeMap::new();
        files(&self.running.dir.path().join("state"), &mut kept);
        Everything {
            machine: self.running.host.scan().expect("a scan"),
            written: self.running.host.written(),
            reservations: self.get("/api/v1/reservations").await,
            groups: self.get("/api/v1/groups").await,
            devices: self.get("/api/v1/devices").await,
            events: self.events().await,
            files: kept,
            looks: self.running.daemon.service().snapshot().looks,
        }
    }

    /// The same once nothing is at work any more: what the machine tells of the last call is looked at
    /// some time after its answer.
    async fn settled(&self) -> Everything {
        loop {
            let before = self.everything().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = self.everything().await;
            if now.differs(&before).is_empty() {
                return now;
            }
        }
    }

    async fn call(&self, (method, path, body): &Call<'_>, dry_run: bool) -> Answer {
        let mut body = body.clone();
        if dry_run {
            body["dryRun"] = json!(true);
        }
        self.running.unix(method, path, Some(&body)).await
    }

    /// Tries a call, which leaves everything as it is.
    async fn tried(&self, call: &Call<'_>) -> Answer {
        let before = self.settled().await;
        let answer = self.call(call, true).await;
        let after = self.everything().await;
        assert_eq!(after.differs(&before), Vec::<String>::new(), "by {call:?}");
        answer
    }

    /// Tries a call, does what it tells by hand elsewhere and undoes that, and makes the call: it
    /// writes just what was told. Answers the call's answer and the writes.
    async fn told_and_done(&self, call: Call<'_>) -> (Value, Vec<Value>) {
        let told = self.tried(&call).await;
        assert_eq!(told.status, 200, "{call:?}: {told:?}");
        let told = told.json()["writes"].as_array().expect("writes").clone();
        let before = self.running.host.written().len();
        let answer = self.call(&call, false).await;
        assert!(answer.status < 300, "{call:?}: {answer:?}");
        let written = self.running.host.written().split_off(before);
        let listed: Vec<(String, String)> =
            told.iter().map(|one| (text(one, "path"), text(one, "value"))).collect();
        assert_eq!(listed, written, "{call:?}");

        let start = drivers(&self.hand);
        for (path, value) in &listed {
            self.hand.write(path, value).unwrap_or_else(|error| panic!("{call:?}: {error}"));
        }
        assert_eq!(drivers(&self.hand), drivers(&self.running.host), "{call:?} by hand");
        for one in told.iter().rev() {
            let why = text(one, "noUndo");
            let (path, value) = (text(one, "undoPath"), text(one, "undo"));
            assert_ne!(why.is_empty(), path.is_empty(), "{one}");
            if why.is_empty() {
                let undone = self.hand.write(&path, &value);
                undone.unwrap_or_else(|error| panic!("{call:?}: undo {one}: {error}"));
            }
        }
        assert_eq!(drivers(&self.hand), start, "{call:?} undone");
        for (path, value) in &listed {
            self.hand.write(path, value).expect("as before");
        }
        (answer.json(), told)
    }

    async fn reserve(&self, ask: Value) -> (String, Vec<Value>) {
        let (made, told) = self.told_and_done(("POST", "/api/v1/reservations", ask)).await;
        (text(&made, "id"), told)
    }

    async fn attach(&self, id: &str) {
        let path = format!("/api/v1/reservations/{id}/attach");
        let answer = self.call(&("POST", &path, json!({})), false).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    async fn release(&self, id: &str) -> Vec<Value> {
        let path = format!("/api/v1/reservations/{id}");
        self.told_and_done(("DELETE", &path, json!({}))).await.1
    }

    /// Both are refused with the same words.
    async fn refused_alike(&self, call: Call<'_>, reason: &str) {
        let told = self.tried(&call).await.problem();
        assert_eq!(told["reason"], reason, "{told}");
        let real = self.call(&call, false).await.problem();
        for field in ["reason", "status", "detail", "errno", "resolve", "blockers", "owner"] {
            assert_eq!(told[field], real[field], "{field} of {call:?}");
        }
    }
}

fn text(of: &Value, field: &str) -> String {
    of[field].as_str().unwrap_or_default().to_owned()
}

fn ask(device: &str, policy: &str) -> Value {
    json!({
        "holder": "vm1", "label": "red", "policy": policy, "devices": [{"pci": device}],
        "takeFromHost": true, "hostUsesItAnyway": true,
    })
}

fn names(told: &[Value]) -> Vec<String> {
    let last = |path: String| path.rsplit('/').next().unwrap_or_default().to_owned();
    told.iter().map(|one| last(text(one, "path"))).collect()
}

/// Reserved, used, and given back; the reset is told with its method.
async fn given_and_back(stage: &Stage, device: &str, policy: &str) {
    let (id, taken) = stage.reserve(ask(device, policy)).await;
    assert!(!taken.is_empty(), "{device} is taken from its host driver");
    let untouched = stage.release(&id).await;
    assert!(!names(&untouched).contains(&"reset".to_owned()), "nobody had it");
    let (id, _) = stage.reserve(ask(device, policy)).await;
    stage.attach(&id).await;
    let back = stage.release(&id).await;
    let reset = back.iter().find(|one| text(one, "path").ends_with("/reset")).expect("a reset");
    let method = stage.running.host.device(at(device)).expect("it").reset_methods[0].clone();
    let why = text(reset, "noUndo");
    assert!(why.contains(device) && why.contains(&method), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_taken_from_its_host_driver_and_given_back() {
    let stage = Stage::on("small").await;
    given_and_back(&stage, "0000:03:00.0", "EXCLUSIVE").await;
    let (_, told) = stage.reserve(ask("0000:03:00.0", "EXCLUSIVE")).await;
    assert_eq!(names(&told), ["unbind", "driver_override", "drivers_probe"]);
    assert_eq!(text(&told[0], "undoPath"), "/sys/bus/pci/drivers/nvme/bind");
    assert_eq!((text(&told[1], "value"), text(&told[1], "undo")), ("vfio-pci".into(), "\n".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_with_what_the_host_uses_is_taken_whole() {
    let stage = Stage::on("desktop-no-acs").await;
    given_and_back(&stage, "0000:0a:00.0", "GROUP").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variant_driver_is_told_by_its_name() {
    let stage = Stage::on("gpu-server").await;
    let class = json!({
        "holder": "vm1", "policy": "EXCLUSIVE", "class": {"class": "gpu", "count": 3},
    });
    let (id, told) = stage.reserve(class).await;
    assert_eq!(told.len(), 6, "an override and a probe for each");
    stage.release(&id).await;
    let inventory = stage.running.host.scan().expect("a scan");
    let function = inventory.devices.iter().find(|it| it.physical_function.is_some());
    let function = function.expect("a virtual function").address.to_string();
    let (id, told) = stage.reserve(ask(&function, "EXCLUSIVE")).await;
    assert!(told.iter().any(|one| one["value"] == "mlx5-vfio-pci"), "{told:?}");
    stage.attach(&id).await;
    let path = format!("/api/v1/reservations/{id}/revoke");
    stage.told_and_done(("POST", &path, json!({}))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_of_the_group_still_need_stays() {
    let stage = Stage::on("small").await;
    let (first, _) = stage.reserve(ask("0000:05:00.0", "GROUP")).await;
    let mut joins = ask("0000:05:00.1", "GROUP");
    joins["join"] = json!(first);
    let (second, _) = stage.reserve(joins).await;
    stage.attach(&first).await;
    stage.attach(&second).await;
    stage.release(&first).await;
    let last = stage.release(&second).await;
    assert!(names(&last).contains(&"bind".to_owned()), "the host driver comes back: {last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn host_drivers_are_released_and_set() {
    let stage = Stage::on("small").await;
    let path = "/api/v1/devices/0000:04:00.0/kernel-dma";
    let release = json!({"action": "release"});
    let (_, told) = stage.told_and_done(("POST", path, release.clone())).await;
    assert_eq!(names(&told), ["unbind"]);
    let (_, told) = stage.told_and_done(("POST", path, json!({"action": "set"}))).await;
    assert_eq!(names(&told), ["bind"]);
    stage.told_and_done(("POST", path, release)).await;
    let named = json!({"action": "set", "driver": "e1000e"});
    stage.told_and_done(("POST", path, named)).await;
    stage.refused_alike(("POST", path, json!({"action": "set"})), "ALREADY_ATTACHED").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn virtual_functions_are_made_taken_away_and_restored() {
    let stage = Stage::on("sriov-nic").await;
    // The machine boots with functions that nobody has offered a driver yet.
    for function in 0..8 {
        let address = format!("0000:3b:01.{function}");
        for machine in [&stage.hand, &stage.running.host] {
            machine.write("/sys/bus/pci/drivers_probe", &address).expect("a probe");
        }
    }
    let path = "/api/v1/devices/0000:3b:00.0/sriov";
    for body in [json!({"vfs": 4}), json!({"vfs": 6}), json!({"vfs": 0}), json!({"restore": true})]
    {
        stage.told_and_done(("POST", path, body)).await;
    }
    given_and_back(&stage, "0000:3b:01.0", "EXCLUSIVE").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_had_an_override_gets_it_back() {
    let stage = Stage::on("small").await;
    let (disk, path) = (at("0000:03:00.0"), "/sys/bus/pci/devices/0000:03:00.0/driver_override");
    stage.running.host.write(path, "nvme").expect("an override");
    stage.hand.write(path, "nvme").expect("an override");
    given_and_back(&stage, "0000:03:00.0", "EXCLUSIVE").await;
    let facts = stage.running.host.device(disk).expect("the disk");
    assert_eq!(facts.driver_override.as_deref(), Some("nvme"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_refused_alike() {
    let stage = Stage::on("small").await;
    let reservations = "/api/v1/reservations";
    let mut careful = ask("0000:03:00.0", "EXCLUSIVE");
    careful["hostUsesItAnyway"] = json!(false);
    stage.refused_alike(("POST", reservations, careful), "HOST_USES_DEVICE").await;
    let disk = "/api/v1/devices/0000:03:00.0/kernel-dma";
    stage.refused_alike(("POST", disk, json!({"action": "release"})), "HOST_USES_DEVICE").await;
    stage.refused_alike(("DELETE", "/api/v1/reservations/r-0", json!({})), "NOT_FOUND").await;

    let (id, _) = stage.reserve(ask("0000:04:00.0", "EXCLUSIVE")).await;
    stage
        .refused_alike(("POST", reservations, ask("0000:04:00.0", "EXCLUSIVE")), "GROUP_OWNED")
        .await;
    let nic = "/api/v1/devices/0000:04:00.0/kernel-dma";
    stage.refused_alike(("POST", nic, json!({"action": "set"})), "GROUP_OWNED").await;
    let path = format!("{reservations}/{id}");
    stage.refused_alike(("DELETE", &path, json!({"epoch": "1"})), "STALE_EPOCH").await;
}

/// What only a new look finds is found, and isn't recorded by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_was_mounted_since_is_seen_and_not_recorded() {
    let stage = Stage::on("small").await;
    let used = HostUse::new("route", "default via 192.0.2.1");
    stage.running.host.set_uses(at("0000:04:00.0"), vec![used]).expect("a device");
    let mut careful = ask("0000:04:00.0", "EXCLUSIVE");
    careful["hostUsesItAnyway"] = json!(false);
    stage.refused_alike(("POST", "/api/v1/reservations", careful), "HOST_USES_DEVICE").await;
}

/// The refusal comes of the kernel work, which asks who has the device open.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_somebody_has_open_is_not_given_back() {
    let stage = Stage::on("small").await;
    let (id, _) = stage.reserve(ask("0000:04:00.0", "EXCLUSIVE")).await;
    stage.attach(&id).await;
    let stranger = stage.running.host.foreign("qemu");
    let fd = stage.running.daemon.engine().device_fd(at("0000:04:00.0")).expect("open");
    stranger.receive(fd).expect("received");
    let path = format!("/api/v1/reservations/{id}");
    stage.refused_alike(("DELETE", &path, json!({})), "HOLDER_DRAINING").await;
    let forced = ("POST", format!("{path}/revoke"), json!({}));
    let tried = stage.tried(&(forced.0, &forced.1, forced.2.clone())).await.json();
    let killed = tried["kills"].as_array().expect("whom it would kill").clone();
    assert_eq!(killed.len(), 1, "{tried}");
    assert_eq!((&killed[0]["pid"], &killed[0]["name"]), (&json!(stranger.pid()), &json!("qemu")));
    stage.told_and_done((forced.0, &forced.1, forced.2)).await;
    assert!(!stranger.running(), "the real call ends it, the dry run did not");
}
