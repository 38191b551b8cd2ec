//! berth-kubelet-plugin.
#![forbid(unsafe_code)]

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use berth_kubelet_plugin::{
    config::{Config, FILE},
    metrics::Metrics,
    reload::reload,
    run::run_with,
};
use clap::{CommandFactory as _, Parser};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::EnvFilter;

/// Makes a host's IOMMU groups schedulable by Kubernetes.
///
/// A client of berthd, with the role orchestrator on its gRPC socket; a device plugin (v1beta1) of
/// the kubelet, which gives containers their devices by CDI.
#[derive(Debug, Parser)]
#[command(name = "berth-kubelet-plugin", version)]
struct Args {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = FILE)]
    config: PathBuf,
    /// Say whether the configuration can be used, or name the line that can't, and end.
    #[arg(long)]
    check_config: bool,
    /// Write the man page to a directory, and end.
    #[arg(long, value_name = "DIR")]
    man: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(dir) = &args.man {
        return berth_manual::write(Args::command(), dir);
    }
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("berth-kubelet-plugin: {error}");
            return ExitCode::FAILURE;
        }
    };
    if args.check_config {
        println!("{}: ok", args.config.display());
        for resource in &config.resources {
            println!("{} in PCI_RESOURCE_{}", resource.name, resource.env());
        }
        return ExitCode::SUCCESS;
    }
    match start(config, &args.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-kubelet-plugin: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config, file: &Path) -> Result<()> {
    let filter = EnvFilter::try_from_env("BERTH_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
        let mut hangup = signal(SignalKind::hangup()).context("watch for SIGHUP")?;
        let (turn, configs) = watch::channel(Arc::new(config));
        let metrics = Arc::new(Metrics::default());
        let reloading = async {
            while hangup.recv().await.is_some() {
                reload(file, &turn, &metrics);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = run_with(configs, Arc::clone(&metrics)) => ended,
            () = reloading => Ok(()),
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    });
    runtime.shutdown_background();
    result
}
