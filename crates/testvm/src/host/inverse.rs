//! The test of the tests: with a build whose attach does nothing, every scenario that lets a device
//! move bytes must fail.

use std::{fs, path::PathBuf};

use anyhow::Result;

use super::{
    report::{Line, Report},
    run::{self, Options},
};
use crate::wire::{Profile, Verdict};

/// Scenarios that are decided by bytes which a device moved.
pub const DMA: &[&str] = &[
    "raw_dma_iommufd",
    "raw_dma_map_file",
    "raw_dma_type1",
    "dma_buffer_iommufd",
    "dma_buffer_type1",
    "dma_file_iommufd",
    "dma_file_type1",
    "dma_batch_iommufd",
    "dma_batch_type1",
    "dma_arena_iommufd",
    "dma_arena_type1",
    "dma_copy_iommufd",
    "dma_hugetlb_iommufd",
    "dma_hugetlb_type1",
    "dma_nvme_iommufd",
    "dma_nvme_type1",
    "host_attach_iommufd",
    "host_attach_type1",
    "berthd_exclusive_iommufd",
    "berthd_exclusive_type1",
    "berthd_shared_iommufd",
    "berthd_shared_type1",
    "berthd_group_iommufd",
    "berthd_group_type1",
    "berthd_held_iommufd",
    "berthd_held_type1",
    "berthd_regions_iommufd",
    "berthd_regions_type1",
    "berthd_regions_bound_iommufd",
    "berthd_regions_bound_type1",
    "host_unbound",
    "berthd_unbound",
    "berthd_unbound_pair",
    "berthd_unbound_named",
    "berthd_unbound_restart",
    "berthd_node_iommufd",
    "berthd_node_type1",
    "berthd_hotplug_iommufd",
    "berthd_regroup_iommufd",
];

/// The same, of those that run under systemd.
pub const SYSTEMD_DMA: &[&str] = &["systemd_device_iommufd", "systemd_device_type1"];

/// Scenarios without DMA: they pass with that build too, so the others fail for want of an attach.
pub const CONTROL: &[&str] =
    &["raw_hold_by_group", "daemon_starts_and_stops", "berthd_hold_iommufd", "berthd_hold_type1"];

/// The same under systemd.
pub const SYSTEMD_CONTROL: &[&str] = &["systemd_rights"];

/// What must fail on a machine, and what must not.
const fn of(profile: Profile) -> (&'static [&'static str], &'static [&'static str]) {
    match profile {
        Profile::Systemd => (SYSTEMD_DMA, SYSTEMD_CONTROL),
        Profile::Default | Profile::NoIntremap => (DMA, CONTROL),
    }
}

/// Builds the programs with an attach that does nothing, runs those scenarios, and turns the
/// results of those with DMA around. Of `options` the kernels and the machines are used.
///
/// # Errors
/// The programs can't be built, or what all boots need is missing.
pub fn scenarios(options: &Options) -> Result<Report> {
    let programs = build(options)?;
    println!("attach does nothing in these programs: what moves bytes must fail");
    // A machine runs what is its own of these.
    let all = options.profiles.iter().map(|profile| of(*profile));
    let names: Vec<&str> =
        all.flat_map(|(dma, control)| dma.iter().chain(control)).copied().collect();
    let report = run::scenarios(&Options {
        filter: names.join(","),
        programs: Some(programs),
        // A skip is judged by its scenario's usual run.
        strict: false,
        ..options.clone()
    })?;
    let mut turned = Report { lines: report.lines.into_iter().map(turn).collect() };
    add_missing(options, &mut turned);
    Ok(turned)
}

/// How many scenarios turned red, of how many that ran.
#[must_use]
pub fn red(report: &Report) -> (usize, usize) {
    let dma = || report.lines.iter().filter(|line| line.name.starts_with("no-op "));
    let ran = dma().filter(|line| !matches!(line.verdict, Verdict::Skip { .. })).count();
    (dma().filter(|line| line.verdict == Verdict::Pass).count(), ran)
}

fn turn(line: Line) -> Line {
    if !of(line.profile).0.contains(&line.name.as_str()) {
        return line;
    }
    let verdict = match line.verdict {
        Verdict::Fail { reason } => {
            println!("{} turned red: {}", line.name, reason.lines().next().unwrap_or_default());
            Verdict::Pass
        }
        Verdict::Pass => {
            Verdict::Fail { reason: "it passes with an attach that does nothing".to_owned() }
        }
        skip @ Verdict::Skip { .. } => skip,
    };
    Line { name: format!("no-op {}", line.name), verdict, ..line }
}

/// A scenario that was not run proves nothing.
fn add_missing(options: &Options, report: &mut Report) {
    for &kernel in &options.kernels {
        for &profile in &options.profiles {
            for name in of(profile).0.iter().map(|name| format!("no-op {name}")) {
                let ran = report
                    .lines
                    .iter()
                    .any(|l| (l.kernel, l.profile, &l.name) == (kernel, profile, &name));
                if !ran {
                    let verdict = Verdict::Fail { reason: "it was not run".to_owned() };
                    report.lines.push(Line { kernel, profile, name, verdict, seconds: 0.0 });
                }
            }
        }
    }
}

/// Programs in a directory of their own, so that nobody takes them for real ones; what they are
/// made of is shared with the usual build.
fn build(options: &Options) -> Result<PathBuf> {
    let target = options.target.join("no-op-attach");
    fs::create_dir_all(&target)?;
    let mut command = run::cargo(&options.root);
    command.env("CARGO_TARGET_DIR", &target).env("CARGO_BUILD_BUILD_DIR", &options.target);
    command.args(["build", "--quiet", "-p", "berth-uapi", "--lib", "--bins"]);
    command.args(["--features", "berth-uapi/attach-does-nothing"]);
    for (_, package) in run::PROGRAMS {
        command.args(["-p", package]);
    }
    run::succeed(command)?;
    Ok(target.join("debug"))
}

#[cfg(test)]
mod tests {
    use super::{DMA, red, turn};
    use crate::{
        host::{
            kernel::Kind,
            report::{Line, Report},
        },
        wire::{Profile, Verdict},
    };

    fn line(name: &str, verdict: Verdict) -> Line {
        let (kernel, profile) = (Kind::Own, Profile::Default);
        Line { kernel, profile, name: name.to_owned(), verdict, seconds: 0.1 }
    }

    #[test]
    fn what_passes_though_attach_does_nothing_is_a_failure() {
        let fail = || Verdict::Fail { reason: "no bytes moved".to_owned() };
        let lines = vec![
            turn(line(DMA[0], fail())),
            turn(line(DMA[1], Verdict::Pass)),
            turn(line("daemon_starts_and_stops", Verdict::Pass)),
        ];
        let report = Report { lines };
        assert_eq!(red(&report), (1, 2));
        let counts = report.counts();
        assert_eq!((counts.passed, counts.failed), (2, 1));
    }

    #[test]
    fn what_has_no_dma_is_not_turned() {
        let same = turn(line("boot", Verdict::Fail { reason: "panic".to_owned() }));
        assert!(matches!(same.verdict, Verdict::Fail { .. }));
    }

    #[test]
    #[cfg(feature = "guest")]
    fn there_are_such_scenarios() {
        let names: Vec<&str> = crate::scenarios::all().iter().map(|one| one.name).collect();
        let (dma, control) = (DMA.iter().chain(super::SYSTEMD_DMA), super::CONTROL.iter());
        for name in dma.chain(control).chain(super::SYSTEMD_CONTROL) {
            assert!(names.contains(name), "no scenario {name}");
        }
    }
}
