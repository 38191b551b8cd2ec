//! Serving and registering a resource, again whenever the kubelet has lost sight of it.
//!
//! One instance at a time: the kubelet knows a plugin by its resource alone, and when an old
//! instance ends after a new one has registered, it disconnects the new one.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustix::fs::{FlockOperation, flock};
use tokio::{net::UnixListener, task::AbortHandle};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use super::{DevicePlugin, service};
use crate::{
    api::v1beta1::{
        RegisterRequest, device_plugin_server::DevicePluginServer,
        registration_client::RegistrationClient,
    },
    core::channel,
    metrics::Registration,
};

/// How often the sockets are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// What the kubelet gets to open its list after a registration, and between two registrations.
const PATIENCE: Duration = Duration::from_secs(2);

/// Device, inode, and when it was made, as a new file may get an old one's inode.
type Identity = (u64, u64, Option<SystemTime>);

fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino(), file.created().ok()))
}

/// A served socket. Dropped, it is served no more, and removed if it is still this one.
#[derive(Debug)]
struct Served {
    path: PathBuf,
    identity: Option<Identity>,
    task: AbortHandle,
}

impl Served {
    fn start(path: &Path, plugin: &DevicePlugin) -> io::Result<Self> {
        // Of a former run: the lock says that nobody serves it.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        let server = Server::builder()
            .add_service(DevicePluginServer::new(plugin.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        let task = tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the plugin's socket is served no more");
            }
        })
        .abort_handle();
        Ok(Self { path: path.to_owned(), identity: identity(path), task })
    }

    fn is_there(&self) -> bool {
        !self.task.is_finished() && identity(&self.path) == self.identity
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
        if identity(&self.path) == self.identity {
            // It may have gone just now.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Serves a resource and keeps it registered. Returns only where that can't be done at all.
///
/// # Errors
/// Of the directory of device plugins.
pub async fn serve(plugin: DevicePlugin, dir: Arc<Path>) -> io::Result<()> {
    let resource = plugin.resource();
    let stem = resource.file_stem();
    let stands = |now| plugin.metrics().registration(&resource.name, now);
    stands(Registration::WaitsForInstance);
    fs::create_dir_all(&dir)?;
    let _alone = alone(&dir.join(format!(".{stem}.lock"))).await?;
    let (path, kubelet) = (dir.join(format!("{stem}.sock")), dir.join("kubelet.sock"));
    let mut served = Served::start(&path, &plugin)?;
    loop {
        if !served.is_there() {
            tracing::info!(socket = %path.display(), "the socket is gone: serving it again");
            drop(served);
            served = Served::start(&path, &plugin)?;
        }
        let Some(known) = identity(&kubelet) else {
            stands(Registration::WaitsForKubelet);
            tokio::time::sleep(LOOK).await;
            continue;
        };
        match register(&plugin, &kubelet, &path).await {
            Ok(()) => {
                stands(Registration::Registered);
                tracing::info!(resource = resource.name, "registered");
                until_forgotten(&plugin, &served, &kubelet, known).await;
            }
            Err(error) => {
                stands(Registration::Refused);
                tracing::warn!(resource = resource.name, %error, "not registered");
                tokio::time::sleep(PATIENCE).await;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until no other instance serves the resource.
async fn alone(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    let mut told = false;
    while let Err(errno) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if errno != rustix::io::Errno::WOULDBLOCK {
            return Err(errno.into());
        }
        if !told {
            tracing::warn!(lock = %path.display(), "another instance serves this resource: waiting");
            told = true;
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(file)
}

async fn register(
    plugin: &DevicePlugin,
    kubelet: &Path,
    path: &Path,
) -> Result<(), Box<tonic::Status>> {
    let endpoint = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let request = RegisterRequest {
        version: "v1beta1".to_owned(),
        endpoint: endpoint.unwrap_or_default(),
        resource_name: plugin.resource().name.clone(),
        options: Some(service::options()),
    };
    let mut client = RegistrationClient::new(channel(kubelet));
    client.register(request).await.map(drop).map_err(Box::new)
}

/// Returns when the kubelet started anew, when the plugin's socket went, or when the kubelet
/// follows no list: it disconnected the plugin, and tells nobody otherwise.
async fn until_forgotten(plugin: &DevicePlugin, served: &Served, kubelet: &Path, known: Identity) {
    let streams = plugin.streams();
    let resource = plugin.resource();
    let name = &resource.name;
    let mut followed = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(LOOK).await;
        if identity(kubelet) != Some(known) {
            tracing::info!(resource = name, "the kubelet started anew");
            return;
        }
        if !served.is_there() {
            return;
        }
        if streams.open() > 0 {
            followed = tokio::time::Instant::now();
        } else if followed.elapsed() > PATIENCE {
            tracing::warn!(resource = name, "the kubelet follows no list: registering again");
            return;
        }
    }
}
