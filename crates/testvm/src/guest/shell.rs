//! A prompt in the guest, with `berthd` running.

use std::{
    fs::{self, OpenOptions},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use super::wait::eventually;
use crate::wire::{GuestConfig, Mode};

/// Starts `berthd` on its usual paths, if it was built, and a shell on the console.
///
/// # Errors
/// The shell can't be started.
pub fn run(config: &GuestConfig) -> Result<()> {
    let Mode::Shell { term, rows, columns } = &config.mode else {
        anyhow::bail!("not asked for a shell")
    };
    let berthd = config.bin_dir.join("berthd");
    if berthd.exists() {
        fs::create_dir_all("/run/berth")?;
        let log = OpenOptions::new().create(true).append(true).open("/run/berthd.log")?;
        let mut daemon = Command::new(&berthd)
            .args(["--host", "linux", "--state-dir", "/run/berth-state"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start berthd")?;
        let socket = fs::metadata("/run/berth/berthd.sock").map(drop);
        let waited = socket.or_else(|_| {
            eventually("berthd's socket", Duration::from_secs(60), || {
                daemon.try_wait().is_ok_and(|status| status.is_some())
                    || fs::metadata("/run/berth/berthd.sock").is_ok()
            })
        });
        match (waited, daemon.try_wait()?) {
            (_, Some(status)) => println!("berthd ended ({status}); see /run/berthd.log"),
            (Err(error), None) => println!("{error:#}; see /run/berthd.log"),
            (Ok(()), None) => println!("berthd is running; its log is /run/berthd.log"),
        }
    } else {
        println!("berthd was not built, so it is not running");
    }
    println!(
        "This is a guest over a copy of your files: nothing you write here stays. Leave: exit"
    );
    // The console has no job control; a session of its own with the terminal has.
    let script = format!("stty rows {rows} cols {columns} 2>/dev/null; exec bash -l");
    let path = format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        config.bin_dir.display()
    );
    let status = Command::new("setsid")
        .args(["--ctty", "--wait", "sh", "-c", &script])
        .env("TERM", term)
        .env("PATH", path)
        .env("PS1", "berth-vm:\\w# ")
        .stdin(console()?)
        .stdout(console()?)
        .stderr(console()?)
        .status()
        .context("start a shell")?;
    println!("the shell ended ({status})");
    Ok(())
}

/// The serial line itself: `/dev/console` can't be anybody's controlling terminal.
fn console() -> Result<fs::File> {
    let path = "/dev/ttyS0";
    OpenOptions::new().read(true).write(true).open(path).with_context(|| format!("open {path}"))
}
