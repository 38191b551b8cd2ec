//! A node of Kubernetes: the plugin that is shipped, a kubelet's double, and what a runtime does with
//! CDI files: nodes and mounts in a container's own root.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io::{BufRead, BufReader, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount},
};
use serde_json::{Value, json};

use super::{Ctx, daemon::Daemon, wait_for};

/// The resource that the node offers.
pub const RESOURCE: &str = "example.com/edu";

/// A running kubelet and the plugin beside it. Dropping it ends both.
#[derive(Debug)]
pub struct Node {
    kubelet: Child,
    plugin: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    dir: PathBuf,
}

/// What the kubelet passes on to the runtime for one container.
#[derive(Debug)]
pub struct Admitted {
    /// Its environment.
    pub envs: BTreeMap<String, String>,
    /// Its CDI device.
    pub cdi: String,
}

impl Admitted {
    /// A variable by its name without the resource's.
    ///
    /// # Errors
    /// It isn't there.
    pub fn env(&self, name: &str) -> Result<&str> {
        let name = format!("{name}_EXAMPLE_COM_EDU");
        Ok(self.envs.get(&name).with_context(|| format!("no {name} in {:?}", self.envs))?)
    }
}

impl Node {
    /// Starts both; `resource` are the lines of the only resource.
    ///
    /// # Errors
    /// They can't be started.
    pub fn start(ctx: &Ctx, daemon: &Daemon, name: &str, resource: &str) -> Result<Self> {
        let dir = ctx.dir().join(name);
        fs::create_dir_all(&dir)?;
        fs::set_permissions(&dir, Permissions::from_mode(0o755))?;
        let mut kubelet = Command::new(ctx.program("berth-kubelet-double"))
            .arg(&dir)
            .arg(RESOURCE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the kubelet's double")?;
        let orders = kubelet.stdin.take().context("no stdin")?;
        let answers = BufReader::new(kubelet.stdout.take().context("no stdout")?);
        let text = format!(
            "berthd = {:?}\nhandover = {:?}\nkubelet_dir = {dir:?}\ncdi_dir = {:?}\n\
             state_dir = {:?}\nsocket_dir = {:?}\nsettle_ms = 1000\nrelease_ms = 500\n\
             [[resource]]\nname = \"{RESOURCE}\"\n{resource}\n",
            daemon.grpc(),
            daemon.handover(),
            dir.join("cdi"),
            dir.join("state"),
            dir.join("s"),
        );
        fs::write(dir.join("plugin.toml"), text)?;
        let plugin = Command::new(ctx.program("berth-kubelet-plugin"))
            .arg("--config")
            .arg(dir.join("plugin.toml"))
            .env("BERTH_LOG", "debug,h2=info,hyper=info,tower=info,tonic=info")
            .spawn()
            .context("start the plugin")?;
        Ok(Self { kubelet, plugin, orders, answers, dir })
    }

    fn order(&mut self, order: &Value) -> Result<Value> {
        writeln!(self.orders, "{order}").context("tell the kubelet's double")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        println!("kubelet: {order} -> {}", line.trim());
        serde_json::from_str(&line).with_context(|| format!("the answer to {order}: {line:?}"))
    }

    /// The only healthy device, once it is one.
    ///
    /// # Errors
    /// It doesn't come.
    pub fn device(&mut self, ctx: &Ctx) -> Result<String> {
        wait_for("a healthy device", ctx.patience(), || {
            let list = self.order(&json!({"do": "list"})).ok()?;
            let [device] = list.as_array()?.as_slice() else { return None };
            (device[1] == true).then(|| device[0].as_str().map(str::to_owned)).flatten()
        })
    }

    /// Admits a pod with one device; from now on PodResources lists it, and nothing else.
    ///
    /// # Errors
    /// The plugin refuses.
    pub fn admit(&mut self, pod: &str, id: &str) -> Result<Admitted> {
        let answer = self.order(&json!({"do": "allocate", "ids": [id]}))?;
        self.list(&[(pod, id)])?;
        let envs = serde_json::from_value(answer["envs"].clone())
            .with_context(|| format!("not admitted: {answer}"))?;
        let cdi = answer["cdi"][0].as_str().context("no CDI device")?.to_owned();
        Ok(Admitted { envs, cdi })
    }

    /// What PodResources lists from now on.
    ///
    /// # Errors
    /// The double has ended.
    pub fn list(&mut self, pods: &[(&str, &str)]) -> Result<()> {
        let pods: Vec<Value> = pods.iter().map(|(pod, id)| json!([pod, [id]])).collect();
        self.order(&json!({"do": "pods", "pods": pods})).map(drop)
    }

    /// Asks whether a container may start; the text says why not.
    ///
    /// # Errors
    /// The double has ended.
    pub fn pre_start(&mut self, id: &str) -> Result<Result<(), String>> {
        let answer = self.order(&json!({"do": "pre-start", "ids": [id]}))?;
        Ok(answer["error"].as_str().map_or(Ok(()), |why| Err(why.to_owned())))
    }

    /// Asks again and again, as the kubelet does.
    ///
    /// # Errors
    /// It may never start.
    pub fn starts(&mut self, ctx: &Ctx, id: &str) -> Result<()> {
        let mut last = String::new();
        let started = wait_for("a container to be let in", ctx.patience(), || {
            last = self.pre_start(id).ok()?.err().unwrap_or_default();
            last.is_empty().then_some(())
        });
        started.with_context(|| last)
    }

    /// The names of the CDI files.
    #[must_use]
    pub fn cdi_files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.join("cdi"));
        entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    }

    /// What a runtime makes of a container's CDI device: a root with its nodes, which are `uid`'s,
    /// and its mounts.
    ///
    /// # Errors
    /// No file has the device, or the kernel refuses.
    pub fn container(&self, admitted: &Admitted, uid: u32) -> Result<Root> {
        let (kind, name) = admitted.cdi.split_once('=').context("no CDI name")?;
        for file in self.cdi_files() {
            let spec: Value = serde_json::from_slice(&fs::read(&file)?)?;
            let devices = spec["devices"].as_array().cloned().unwrap_or_default();
            let device = devices.iter().find(|one| spec["kind"] == kind && one["name"] == name);
            if let Some(device) = device {
                println!("{}: {spec}", file.display());
                return Root::make(&self.dir.join(name), &device["containerEdits"], uid);
            }
        }
        bail!("no CDI file has {}", admitted.cdi)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for child in [&mut self.plugin, &mut self.kubelet] {
            // Both fail only when it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A container's own root. Dropping it unmounts what is mounted there.
#[derive(Debug)]
pub struct Root {
    dir: PathBuf,
    /// Its nodes, as they are called inside.
    pub nodes: Vec<String>,
    mounts: Vec<PathBuf>,
}

impl Root {
    fn make(dir: &Path, edits: &Value, uid: u32) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let mut root = Self { dir: dir.to_owned(), nodes: Vec::new(), mounts: Vec::new() };
        for node in edits["deviceNodes"].as_array().into_iter().flatten() {
            ensure!(node["uid"].is_null() && node["fileMode"].is_null(), "not the user's: {node}");
            let path = node["path"].as_str().context("a node without path")?;
            root.add_node(path, uid).with_context(|| format!("make {path}"))?;
        }
        for mount in edits["mounts"].as_array().into_iter().flatten() {
            let host = mount["hostPath"].as_str().context("a mount of nothing")?;
            let inside = mount["containerPath"].as_str().context("a mount to nowhere")?;
            root.add_mount(host, inside).with_context(|| format!("mount {host}"))?;
        }
        Ok(root)
    }

    /// Where something is, that is `path` inside.
    #[must_use]
    pub fn at(&self, path: &str) -> PathBuf {
        self.dir.join(path.trim_start_matches('/'))
    }

    fn add_node(&mut self, path: &str, uid: u32) -> Result<()> {
        let (number, at) = (fs::metadata(path)?.rdev(), self.at(path));
        fs::create_dir_all(at.parent().context("no directory")?)?;
        mknodat(CWD, &at, FileType::CharacterDevice, Mode::from_raw_mode(0o600), number)?;
        chown(&at, Some(uid), Some(uid))?;
        self.nodes.push(path.to_owned());
        Ok(())
    }

    fn add_mount(&mut self, host: &str, inside: &str) -> Result<()> {
        let at = self.at(inside);
        fs::create_dir_all(&at)?;
        mount_bind(host, &at)?;
        self.mounts.push(at.clone());
        let flags = MountFlags::BIND
            | MountFlags::RDONLY
            | MountFlags::NOSUID
            | MountFlags::NODEV
            | MountFlags::NOEXEC;
        Ok(mount_remount(&at, flags, "")?)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for at in &self.mounts {
            if let Err(error) = unmount(at, UnmountFlags::DETACH) {
                println!("unmount {}: {error}", at.display());
            }
        }
    }
}
