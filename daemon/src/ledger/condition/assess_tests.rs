//! Evidence, and what comes of it.

use std::collections::BTreeSet;

use berth_host::{AerCounters, Health as Shown, LinkRate, LinkState};
use berth_ownership::{CauseCode, Condition, Health, Time, UnixMs};

use super::assess::{Evidence, assess, notes};

const NIC: u32 = 0x02_00_00;
const GPU: u32 = 0x03_02_00;
const QUIET_MS: u64 = 1_000_000;
const BEST: LinkRate = LinkRate { width: 16, speed: 16_000 };

/// A device over several looks.
struct Device {
    shown: Shown,
    class: u32,
    failed_resets: u32,
    first: bool,
    health: Health,
    suspects: BTreeSet<CauseCode>,
    now: Time,
}

fn well() -> Device {
    Device {
        shown: Shown {
            power_state: "D0".to_owned(),
            runtime_status: "active".to_owned(),
            aer: Some(AerCounters::default()),
            answers: Some(true),
            link: Some(LinkState { current: BEST, device: BEST, port: Some(BEST) }),
        },
        class: NIC,
        failed_resets: 0,
        first: false,
        health: Health::default(),
        suspects: BTreeSet::new(),
        now: Time { unix_ms: UnixMs(1_000), boot_ms: 10, boot_id: "boot".into() },
    }
}

impl Device {
    fn evidence(&self) -> Evidence<'_> {
        let Self { class, failed_resets, first, .. } = *self;
        Evidence { shown: &self.shown, class, failed_resets, first }
    }

    /// Looks once, and once more, some seconds later each time.
    fn look_twice(&mut self) -> (Condition, String) {
        self.look_after(10_000);
        self.look_after(10_000)
    }

    fn look_after(&mut self, ms: u64) -> (Condition, String) {
        self.now.boot_ms += ms;
        self.now.unix_ms.0 += ms;
        let mut suspects = std::mem::take(&mut self.suspects);
        self.health = assess(&self.health, &mut suspects, &self.evidence(), QUIET_MS, &self.now);
        self.suspects = suspects;
        self.first = false;
        (self.health.condition(), self.health.words())
    }

    fn errors(&mut self, nonfatal: u64, fatal: u64) {
        self.shown.aer = Some(AerCounters { correctable: 0, nonfatal, fatal });
    }

    fn unreadable(&mut self, answers: Option<bool>) {
        (self.shown.answers, self.shown.link) = (answers, None);
    }

    fn power(&mut self, state: &str, runtime: &str) {
        self.shown.power_state = state.to_owned();
        self.shown.runtime_status = runtime.to_owned();
        self.unreadable(None);
    }

    fn of_class(&mut self, class: u32) -> &mut Self {
        self.class = class;
        self
    }

    fn in_slot(&mut self, width: u8, speed: u32) -> &mut Self {
        self.link(|link| link.port = Some(LinkRate { width, speed }));
        self
    }

    fn runs(&mut self, width: u8, speed: u32) {
        self.link(|link| link.current = LinkRate { width, speed });
    }

    fn link(&mut self, change: impl FnOnce(&mut LinkState)) {
        change(self.shown.link.as_mut().expect("a link"));
    }
}

fn ok() -> (Condition, String) {
    (Condition::Ok, String::new())
}

fn degraded(words: &str) -> (Condition, String) {
    (Condition::Degraded, words.to_owned())
}

fn failed(words: &str) -> (Condition, String) {
    (Condition::Failed, words.to_owned())
}

/// What is shown, and what that comes to once it was seen twice.
type Row = (&'static str, fn(&mut Device), Condition, &'static str);

const MOMENTS: [Row; 6] = [
    ("nothing", |_| {}, Condition::Ok, ""),
    ("nothing told at all", |it| it.shown = Shown::default(), Condition::Ok, ""),
    ("gone", |it| it.unreadable(Some(false)), Condition::Failed, "CONFIG_GONE reads all ones"),
    ("resets", |it| it.failed_resets = 2, Condition::Degraded, "RESET_FAILED 2"),
    (
        "without power, though awake",
        |it| it.power("D3cold", "active"),
        Condition::Failed,
        "POWER_STATE D3cold while active",
    ),
    ("asleep", |it| it.power("D3cold", "suspended"), Condition::Ok, ""),
];

const ERRORS: [Row; 4] = [
    (
        "corrected",
        |it| it.shown.aer = Some(AerCounters { correctable: 9_999, ..AerCounters::default() }),
        Condition::Ok,
        "",
    ),
    ("nonfatal", |it| it.errors(3, 0), Condition::Degraded, "AER_NONFATAL 3"),
    ("fatal", |it| it.errors(0, 1), Condition::Failed, "AER_FATAL 1"),
    ("both", |it| it.errors(2, 1), Condition::Failed, "AER_FATAL 1, AER_NONFATAL 2"),
];

const LINKS: [Row; 8] = [
    ("a lane is lost", |it| it.runs(4, 16_000), Condition::Degraded, "LINK_WIDTH x4 of x16"),
    ("a narrow slot", |it| it.in_slot(4, 16_000).runs(4, 16_000), Condition::Ok, ""),
    (
        "narrower than the narrow slot",
        |it| it.in_slot(4, 16_000).runs(1, 16_000),
        Condition::Degraded,
        "LINK_WIDTH x1 of x4",
    ),
    ("slow", |it| it.runs(16, 2_500), Condition::Degraded, "LINK_SPEED 2.5 of 16.0 GT/s"),
    ("a slow slot", |it| it.in_slot(16, 8_000).runs(16, 8_000), Condition::Ok, ""),
    ("slow, and may save power", |it| it.of_class(GPU).runs(16, 2_500), Condition::Ok, ""),
    (
        "narrow, and may save power",
        |it| it.of_class(GPU).runs(8, 16_000),
        Condition::Degraded,
        "LINK_WIDTH x8 of x16",
    ),
    ("slow in a low-power state", low_power, Condition::Ok, ""),
];

fn low_power(device: &mut Device) {
    device.shown.power_state = "D1".to_owned();
    device.runs(16, 2_500);
}

#[test]
fn each_kind_of_evidence_has_its_condition() {
    for (name, change, condition, words) in MOMENTS.iter().chain(&ERRORS).chain(&LINKS) {
        let mut device = well();
        change(&mut device);
        assert_eq!(device.look_twice(), (*condition, (*words).to_owned()), "{name}");
    }
}

#[test]
fn a_device_goes_from_ok_to_failed_and_back() {
    let mut device = well();
    assert_eq!(device.look_twice(), ok());
    device.errors(2, 0);
    assert_eq!(device.look_after(10_000), degraded("AER_NONFATAL 2"));
    let since = device.health.causes[0].since_ms;
    device.shown.answers = Some(false);
    device.shown.link = None;
    assert_eq!(device.look_twice(), failed("CONFIG_GONE reads all ones, AER_NONFATAL 2"));
    let of = |device: &Device, at: usize| device.health.causes[at].since_ms;
    assert_eq!(of(&device, 1), since, "it stands since it began");
    assert!(of(&device, 0) > since);
    device.shown = Shown { aer: device.shown.aer, ..well().shown };
    assert_eq!(device.look_after(10_000), degraded("AER_NONFATAL 2"));
    assert_eq!(device.look_after(QUIET_MS), ok());
}

#[test]
fn what_is_seen_once_does_not_stand() {
    let mut device = well();
    for _ in 0..3 {
        device.link(|link| link.current.width = 1);
        assert_eq!(device.look_after(10), ok(), "a link in training");
        device.link(|link| link.current.width = 16);
        assert_eq!(device.look_after(10), ok());
    }
    device.link(|link| link.current.width = 1);
    assert_eq!(device.look_twice(), degraded("LINK_WIDTH x1 of x16"));
    device.link(|link| link.current.width = 2);
    assert_eq!(device.look_after(10), degraded("LINK_WIDTH x2 of x16"));
    device.link(|link| link.current.width = 16);
    assert_eq!(device.look_after(10), ok(), "what is well is so at once");
}

#[test]
fn what_can_not_be_looked_at_stands_as_before() {
    let mut device = well();
    device.link(|link| link.current.width = 1);
    device.look_twice();
    device.shown.power_state = "D3hot".to_owned();
    device.shown.runtime_status = "suspended".to_owned();
    (device.shown.answers, device.shown.link) = (None, None);
    assert_eq!(device.look_twice(), degraded("LINK_WIDTH x1 of x16"));
}

#[test]
fn errors_count_from_where_they_were_quiet() {
    let mut device = well();
    device.errors(5, 0);
    assert_eq!(device.look_after(10), degraded("AER_NONFATAL 5"));
    assert_eq!(device.look_after(QUIET_MS - 1), degraded("AER_NONFATAL 5"));
    device.errors(6, 0);
    assert_eq!(device.look_after(0), degraded("AER_NONFATAL 6"), "it begins anew");
    assert_eq!(device.look_after(QUIET_MS - 1), degraded("AER_NONFATAL 6"));
    assert_eq!(device.look_after(1), ok());
    device.errors(7, 0);
    assert_eq!(device.look_after(0), degraded("AER_NONFATAL 1"), "only new ones count");
}

#[test]
fn errors_in_a_stream_are_written_down_now_and_then() {
    let mut device = well();
    let mut written = 0;
    for count in 1..=360 {
        let before = device.health.clone();
        device.errors(count, 0);
        device.look_after(1_000);
        written += usize::from(before != device.health);
    }
    assert!((6..=7).contains(&written), "{written} times in 6 minutes");
    // Another kind is news at once, and the stream's end doesn't pass for quiet.
    device.errors(360, 1);
    let (condition, _) = device.look_after(10);
    assert_eq!(condition, Condition::Failed);
    device.errors(361, 1);
    assert_eq!(device.look_after(10), failed("AER_FATAL 1, AER_NONFATAL 360"));
    device.look_after(60_000);
    assert_eq!(device.look_after(QUIET_MS - 1), failed("AER_FATAL 1, AER_NONFATAL 361"));
}

#[test]
fn what_was_counted_before_anybody_looked_is_held_against_nobody() {
    let mut device = well();
    device.first = true;
    device.errors(9, 4);
    assert_eq!(device.look_after(10), ok());
    device.errors(10, 4);
    assert_eq!(device.look_after(10), degraded("AER_NONFATAL 1"));
    // What came between two looks of a known machine counts.
    let mut device = well();
    device.errors(9, 0);
    assert_eq!(device.look_after(10), degraded("AER_NONFATAL 9"));
}

#[test]
fn the_kernel_counts_anew_on_another_boot_and_for_another_device() {
    let mut device = well();
    device.errors(5, 1);
    assert_eq!(device.look_after(10), failed("AER_FATAL 1, AER_NONFATAL 5"));
    device.now.boot_id = "next".into();
    device.errors(0, 0);
    assert_eq!(device.look_after(10), ok());
    device.errors(5, 0);
    device.look_after(10);
    device.errors(2, 0);
    assert_eq!(device.look_after(10), degraded("AER_NONFATAL 2"));
}

#[test]
fn resets_that_failed_stand_until_one_works() {
    let mut device = well();
    device.failed_resets = 2;
    assert_eq!(device.look_after(10), degraded("RESET_FAILED 2"));
    device.failed_resets = 0;
    assert_eq!(device.look_after(10), ok());
}

#[test]
fn what_stands_against_nobody_is_noted() {
    let mut device = well();
    assert!(notes(&device.evidence()).is_empty());
    device.class = GPU;
    device.shown.runtime_status = "error".to_owned();
    device.link(|link| {
        link.current = LinkRate { width: 8, speed: 2_500 };
        link.port = Some(LinkRate { width: 8, speed: 8_000 });
    });
    let found = notes(&device.evidence());
    for part in ["x8 for a device of x16", "2.5 of 8.0 GT/s", "suspending or waking"] {
        assert!(found.iter().any(|note| note.contains(part)), "{part}: {found:?}");
    }
}

#[test]
fn every_cause_has_its_section() {
    let page = include_str!("../../../../docs/condition.md");
    let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let names: Vec<&str> = CauseCode::ALL.iter().map(|code| code.name()).collect();
    assert_eq!(sections, names);
}
