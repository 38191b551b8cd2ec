//! What a dry run says would be written to sysfs.

use berth_proto::v1;

use super::{Meaning, cell, table};

/// What a dry run says of a reservation: whom it would kill, then what it would write.
pub(crate) fn of_reservation(tried: &v1::Reservation) -> String {
    let plan = plan(&tried.writes);
    if tried.kills.is_empty() {
        return plan;
    }
    let rows = tried.kills.iter().map(|process| {
        [process.pid.to_string(), process.name.clone(), process.what.clone()]
            .map(|text| cell(text, Meaning::Plain))
            .to_vec()
    });
    format!("{}\n\n{plan}", table(&["KILLED", "NAME", "HAS OPEN"], rows))
}

/// The writes, in their order, each with what undoes it.
pub(crate) fn plan(writes: &[v1::SysfsWrite]) -> String {
    if writes.is_empty() {
        return "nothing is written to sysfs".to_owned();
    }
    let rows = writes.iter().map(|write| {
        [write.path.clone(), shown(&write.value), undone_by(write)]
            .map(|text| cell(text, Meaning::Plain))
            .to_vec()
    });
    table(&["WRITE", "VALUE", "UNDONE BY"], rows)
}

/// What undoes a write: a value for the same attribute, or for another one, or why nothing does.
fn undone_by(write: &v1::SysfsWrite) -> String {
    if !write.no_undo.is_empty() {
        return format!("nothing: {}", write.no_undo);
    }
    let value = shown(&write.undo);
    if write.undo_path.is_empty() || write.undo_path == write.path {
        return value;
    }
    format!("{value} > {}", write.undo_path)
}

/// An empty line is what clears an override.
fn shown(value: &str) -> String {
    value.replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_would_be_killed_comes_first() {
        assert_eq!(of_reservation(&v1::Reservation::default()), "nothing is written to sysfs");
        let (name, what) = ("qemu".to_owned(), "/dev/vfio/devices/vfio3".to_owned());
        let kills = vec![v1::Process { pid: 77, name, what, ..Default::default() }];
        let told = of_reservation(&v1::Reservation { kills, ..Default::default() });
        let lines: Vec<Vec<&str>> =
            told.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["KILLED", "NAME", "HAS", "OPEN"]);
        assert_eq!(lines[1], ["77", "qemu", "/dev/vfio/devices/vfio3"]);
        assert!(told.ends_with("nothing is written to sysfs"), "{told}");
    }

    #[test]
    fn an_undo_is_a_value_a_path_or_a_reason() {
        let path = "/sys/bus/pci/devices/0000:65:00.0/driver_override".to_owned();
        let undo_path = path.clone();
        let own = v1::SysfsWrite { path, undo: "\n".to_owned(), undo_path, ..Default::default() };
        assert_eq!(undone_by(&own), "\\n");
        let undo_path = "/sys/bus/pci/drivers/nvme/bind".to_owned();
        let undo = "0000:65:00.0".to_owned();
        let other = v1::SysfsWrite { undo, undo_path, ..own.clone() };
        assert_eq!(undone_by(&other), "0000:65:00.0 > /sys/bus/pci/drivers/nvme/bind");
        let no_undo = "a reset".to_owned();
        assert_eq!(undone_by(&v1::SysfsWrite { no_undo, ..own }), "nothing: a reset");
    }
}
