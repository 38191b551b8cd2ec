//! SR-IOV of a physical function.

use berth_proto::v1;

use super::block as fields;
use crate::address;

/// How it is set.
pub(crate) fn block(sriov: &v1::Sriov) -> String {
    let functions: Vec<String> =
        sriov.functions.iter().map(|one| address::text(Some(one)).to_owned()).collect();
    let state = if sriov.under_way { "being changed" } else { "" };
    fields(&[
        ("device", address::text(sriov.device.as_ref()).to_owned()),
        ("state", state.to_owned()),
        ("VFs", sriov.vfs.to_string()),
        ("at most", sriov.total_vfs.to_string()),
        ("functions", functions.join("\n")),
        ("host drivers", offered(sriov.drivers_autoprobe).to_owned()),
        ("before", before(sriov)),
    ])
}

/// What there was before it was changed; empty while it is so.
pub(crate) fn before(sriov: &v1::Sriov) -> String {
    let words = |was: &v1::SriovBaseline| {
        format!("{}, host drivers {}", was.vfs, offered(was.drivers_autoprobe))
    };
    sriov.baseline.as_ref().map(words).unwrap_or_default()
}

fn offered(autoprobe: bool) -> &'static str {
    if autoprobe { "are offered VFs" } else { "are not offered VFs" }
}
