//! Groups.

use berth_proto::v1::{self, owner::Kind};

use super::{Meaning, block as fields, cell, owner_line, table as render, word};
use crate::address;

/// One line a group.
pub(crate) fn table(groups: &[v1::Group]) -> String {
    render(
        &["GROUP", "NR", "DEVICES", "OWNER", "CNT", "CONDITION", "HOLDER"],
        groups.iter().map(|group| {
            let devices: Vec<&str> =
                group.devices.iter().map(|device| address::text(device.address.as_ref())).collect();
            let owner = group.owner.as_ref();
            vec![
                cell(&group.stable_id, Meaning::Plain),
                cell(group.number.to_string(), Meaning::Plain),
                cell(devices.join(" "), Meaning::Plain),
                cell(word(group.ownership().as_str_name()), meaning(group.ownership())),
                cell(group.owner_cnt.to_string(), Meaning::Plain),
                condition(group.condition()),
                cell(owner.map(|owner| owner.holder.clone()).unwrap_or_default(), Meaning::Plain),
            ]
        }),
    )
}

pub(crate) fn meaning(kind: Kind) -> Meaning {
    match kind {
        Kind::Free => Meaning::Good,
        Kind::Exclusive | Kind::Shared | Kind::Group => Meaning::Used,
        Kind::Foreign => Meaning::Bad,
        Kind::Kernel | Kind::Private | Kind::Unspecified => Meaning::Plain,
    }
}

fn condition(condition: v1::Condition) -> comfy_table::Cell {
    condition_cell(condition, word(condition.as_str_name()))
}

/// A condition with other words.
pub(crate) fn condition_cell(condition: v1::Condition, text: String) -> comfy_table::Cell {
    let meaning = match condition {
        v1::Condition::Ok | v1::Condition::Unspecified => Meaning::Plain,
        v1::Condition::Degraded
        | v1::Condition::Failed
        | v1::Condition::Wedged
        | v1::Condition::Cordoned
        | v1::Condition::Quarantined => Meaning::Bad,
    };
    cell(text, meaning)
}

/// Everything about one group.
pub(crate) fn block(group: &v1::Group) -> String {
    let regions: Vec<String> = group
        .reserved_regions
        .iter()
        .map(|range| format!("{:#x}-{:#x} {}", range.first, range.last, range.kind))
        .collect();
    let head = fields(&[
        ("group", format!("{} (number {} now)", group.stable_id, group.number)),
        ("owner", group.owner.as_ref().map(owner_line).unwrap_or_default()),
        ("owner_cnt", group.owner_cnt.to_string()),
        ("condition", noted(group.condition(), &group.condition_note)),
        ("viable", if group.viable { "yes" } else { "no; ask `berth explain`" }.to_owned()),
        ("epoch", group.epoch.to_string()),
        ("reservations", group.reservations.join(" ")),
        ("iommu type", group.iommu_type.clone()),
        ("reserved", regions.join("\n")),
        ("drift", group.drift.clone()),
    ]);
    format!("{head}\n\n{}", super::device::table(&group.devices))
}

/// A condition with its note.
pub(crate) fn noted(condition: v1::Condition, note: &str) -> String {
    let name = word(condition.as_str_name());
    if note.is_empty() { name } else { format!("{name}: {note}") }
}
