//! QEMU's command line: `-object iommufd` and `-device vfio-pci`.
//!
//! QEMU binds devices by itself, so it is served by deliveries `unbound` and `node`.

use berth_proto::v1::Backend;

use super::{
    binds_by_itself,
    hand::{Device, Hand},
    qemu_opts::Opts,
    shows_no_token,
};
use crate::{address, error::CliError};

/// Drivers that drive a VFIO PCI device.
const DRIVERS: [&str; 2] = ["vfio-pci", "vfio-pci-nohotplug"];

/// The options that are touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Device,
    Object,
}

/// The command line with the reservation's devices in it.
pub(super) fn fill(words: &[String], hand: &Hand) -> Result<Vec<String>, CliError> {
    binds_by_itself("QEMU", hand)?;
    let mut line = Line::read(words, hand)?;
    let iommufd = match hand.backend {
        Backend::Iommufd => Some(line.iommufd(hand)?),
        _ => None,
    };
    if iommufd.is_some() {
        shows_no_token("QEMU", hand, &["reserve with --delivery node --backend type1"])?;
    }
    for device in &hand.devices {
        line.serve(device, iommufd.as_deref(), hand)?;
    }
    Ok(line.words)
}

/// The words, and where in them devices and objects are.
struct Line {
    words: Vec<String>,
    found: Vec<(Kind, usize, Opts)>,
}

impl Line {
    /// # Errors
    /// A device of the reservation that stands there twice, or in a way that this delivery hasn't.
    fn read(words: &[String], hand: &Hand) -> Result<Self, CliError> {
        let kind = |word: &String| match word.as_str() {
            "-device" | "--device" => Some(Kind::Device),
            "-object" | "--object" => Some(Kind::Object),
            _ => None,
        };
        let mut found = Vec::new();
        for (at, pair) in words.windows(2).enumerate() {
            let [option, value] = pair else { continue };
            let opts = kind(option).and_then(|kind| Some((kind, Opts::read(value)?)));
            found.extend(opts.map(|(kind, opts)| (kind, at + 1, opts)));
        }
        let line = Self { words: words.to_vec(), found };
        let named: Vec<String> = line.devices().filter_map(|(_, opts)| address_of(opts)).collect();
        for (at, address) in named.iter().enumerate() {
            if hand.has(address) && named[..at].contains(address) {
                return Err(CliError::Usage(format!("{address} stands in two -device options")));
            }
        }
        Ok(line)
    }

    fn devices(&self) -> impl Iterator<Item = (usize, &Opts)> {
        let is_vfio = |opts: &Opts| opts.kind("driver").is_some_and(|d| DRIVERS.contains(&d));
        self.found
            .iter()
            .filter(move |(kind, _, opts)| *kind == Kind::Device && is_vfio(opts))
            .map(|(_, at, opts)| (*at, opts))
    }

    /// The `-device` that is there for a device of the reservation.
    fn device(&self, address: &str) -> Option<(usize, Opts)> {
        let found = self.devices().find(|(_, opts)| address_of(opts).as_deref() == Some(address));
        found.map(|(at, opts)| (at, opts.clone()))
    }

    /// The id of the iommufd that the devices share: of an object that is there already for one of
    /// them, else of a new one.
    fn iommufd(&mut self, hand: &Hand) -> Result<String, CliError> {
        let mut named: Vec<String> = self
            .devices()
            .filter(|(_, opts)| address_of(opts).is_some_and(|address| hand.has(&address)))
            .filter_map(|(_, opts)| opts.get("iommufd").map(str::to_owned))
            .collect();
        named.sort();
        named.dedup();
        match named.as_slice() {
            [] => Ok(self.new_iommufd(hand)),
            [id] => {
                self.fill_object(id, hand)?;
                Ok(id.clone())
            }
            [one, other, ..] => Err(CliError::Usage(format!(
                "the devices of {} share one iommufd, and -device options name {one} and {other}",
                hand.reservation
            ))),
        }
    }

    fn new_iommufd(&mut self, hand: &Hand) -> String {
        let taken = |id: &str| self.found.iter().any(|(_, _, opts)| opts.get("id") == Some(id));
        let id = (0_u32..).map(|n| format!("berth{n}")).find(|id| !taken(id)).unwrap_or_default();
        let fd = hand.context.as_ref().map(|fd| format!(",fd={fd}")).unwrap_or_default();
        self.words.extend(["-object".to_owned(), format!("iommufd,id={id}{fd}")]);
        id
    }

    fn fill_object(&mut self, id: &str, hand: &Hand) -> Result<(), CliError> {
        let is_it =
            |opts: &Opts| opts.kind("qom-type") == Some("iommufd") && opts.get("id") == Some(id);
        let found = self.found.iter().find(|(kind, _, o)| *kind == Kind::Object && is_it(o));
        let Some((_, at, opts)) = found else {
            return Err(CliError::Usage(format!(
                "iommufd={id}: there is no -object iommufd,id={id}"
            )));
        };
        let Some(fd) = &hand.context else { return Ok(()) };
        if opts.get("fd").is_some() {
            return Err(CliError::Usage(format!(
                "-object iommufd,id={id} has an fd already; leave fd out to have it filled in"
            )));
        }
        let mut opts = opts.clone();
        opts.replace(&["fd"], &[("fd", fd)]);
        self.words[*at] = opts.write();
        Ok(())
    }

    fn serve(
        &mut self,
        device: &Device,
        iommufd: Option<&str>,
        hand: &Hand,
    ) -> Result<(), CliError> {
        let address = &device.address;
        let Some((at, mut opts)) = self.device(address) else {
            let what = match &device.fd {
                Some(fd) => format!("fd={fd}"),
                None => format!("host={address}"),
            };
            let iommufd = iommufd.map(|id| format!(",iommufd={id}")).unwrap_or_default();
            let token = device.vf_token.as_ref().map(|token| format!(",vf-token={token}"));
            let token = token.unwrap_or_default();
            self.words.extend(["-device".to_owned(), format!("vfio-pci,{what}{iommufd}{token}")]);
            return Ok(());
        };
        let Some(iommufd) = iommufd else {
            if let Some(id) = opts.get("iommufd") {
                return Err(CliError::Usage(format!(
                    "-device for {address} has iommufd={id}, and {} is on type1: leave it out",
                    hand.reservation
                )));
            }
            if let Some(token) = &device.vf_token {
                opts.replace(&["vf-token"], &[("vf-token", token)]);
                self.words[at] = opts.write();
            }
            return Ok(());
        };
        match &device.fd {
            Some(fd) => {
                opts.replace(&["host", "sysfsdev", "iommufd"], &[("fd", fd), ("iommufd", iommufd)]);
            }
            None => opts.replace(&["iommufd"], &[("iommufd", iommufd)]),
        }
        self.words[at] = opts.write();
        Ok(())
    }
}

/// The device that a `-device` names by its place on the host.
fn address_of(opts: &Opts) -> Option<String> {
    if let Some(host) = opts.get("host") {
        return address::full(host);
    }
    address::full(opts.get("sysfsdev")?.trim_end_matches('/').rsplit('/').next()?)
}

#[cfg(test)]
#[path = "qemu_tests.rs"]
mod tests;
