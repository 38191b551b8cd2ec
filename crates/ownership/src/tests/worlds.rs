//! The small worlds that are searched. Together they come by every cell of the tables.

use super::world::{D1, D2, D3, DOUBLE, SINGLE, World};
use crate::{Backend, Delivery, Policy};

const HELD: &[Delivery] = &[Delivery::Held];
const BOTH: &[Delivery] = &[Delivery::Held, Delivery::Unbound];
const IOMMUFD: &[Backend] = &[Backend::Iommufd];
const ALL: &[Policy] = &Policy::ALL;
const TOKEN: &[Policy] = &[Policy::Group];
const NO_LABELS: [&str; 3] = ["a", "a", "b"];
const STRANGERS: [&str; 3] = ["a", "b", "a"];

type Targets = &'static [&'static [(&'static str, &'static [&'static str])]];
const WHOLE: Targets = &[&[(SINGLE, &[])], &[(DOUBLE, &[])]];
const SINGLES: Targets = &[&[(SINGLE, &[])], &[(DOUBLE, &[D2])], &[(DOUBLE, &[D3])]];
const ACROSS: Targets = &[&[(DOUBLE, &[D2])], &[(SINGLE, &[D1]), (DOUBLE, &[D3])]];
const SHARE: Targets = &[&[(DOUBLE, &[D2])], &[(DOUBLE, &[D3])]];

const BASE: World = World {
    name: "",
    owners: 0,
    labels: NO_LABELS,
    policies: ALL,
    deliveries: HELD,
    backends: IOMMUFD,
    targets: SINGLES,
    leases: false,
    holders: false,
    failures: false,
    host: false,
    conditions: false,
    prepare: false,
    atomic: false,
    adopt: false,
    host_groups: &[],
    tombstones: false,
};
const HOLDERS: World = World { deliveries: BOTH, holders: true, ..BASE };

pub(super) fn worlds() -> Vec<World> {
    let mut worlds = owners();
    worlds.extend(leases());
    worlds.extend(host());
    worlds.extend(conditions());
    worlds
}

fn owners() -> Vec<World> {
    vec![
        World { name: "three owners", owners: 3, atomic: true, ..BASE },
        World { name: "two groups at once", owners: 2, targets: ACROSS, failures: true, ..BASE },
        World {
            name: "holders",
            owners: 2,
            targets: SHARE,
            policies: TOKEN,
            deliveries: HELD,
            ..HOLDERS
        },
        World {
            name: "holders and failures",
            owners: 1,
            targets: WHOLE,
            failures: true,
            tombstones: true,
            leases: true,
            ..HOLDERS
        },
    ]
}

fn leases() -> Vec<World> {
    vec![
        World { name: "leases", owners: 2, leases: true, atomic: true, targets: SHARE, ..HOLDERS },
        World {
            name: "preparing",
            owners: 2,
            adopt: true,
            labels: STRANGERS,
            prepare: true,
            failures: true,
            targets: WHOLE,
            ..BASE
        },
        World {
            name: "preparing under a lease",
            owners: 1,
            prepare: true,
            leases: true,
            holders: true,
            targets: SHARE,
            ..BASE
        },
        World {
            name: "host",
            owners: 1,
            adopt: true,
            host: true,
            host_groups: &[SINGLE],
            targets: WHOLE,
            ..HOLDERS
        },
    ]
}

fn host() -> Vec<World> {
    vec![
        World {
            name: "adopted beside another owner",
            owners: 2,
            policies: &[Policy::Exclusive],
            host: true,
            host_groups: &[SINGLE],
            adopt: true,
            atomic: true,
            targets: &[&[(SINGLE, &[])]],
            ..HOLDERS
        },
        World {
            name: "host, one token",
            owners: 2,
            policies: TOKEN,
            host: true,
            host_groups: &[DOUBLE],
            atomic: true,
            targets: SHARE,
            ..BASE
        },
        World {
            name: "host, across labels",
            owners: 2,
            labels: STRANGERS,
            policies: &[Policy::Shared],
            host: true,
            host_groups: &[DOUBLE],
            atomic: true,
            targets: WHOLE,
            ..BASE
        },
        World {
            name: "lost and remembered",
            owners: 2,
            holders: true,
            tombstones: true,
            atomic: true,
            ..BASE
        },
        World {
            name: "conditions, two labels",
            owners: 2,
            labels: STRANGERS,
            policies: TOKEN,
            conditions: true,
            atomic: true,
            targets: &[&[(DOUBLE, &[])]],
            ..BASE
        },
        World {
            name: "host, crowded",
            owners: 1,
            policies: &[Policy::Exclusive],
            host: true,
            host_groups: &[DOUBLE],
            atomic: true,
            targets: WHOLE,
            ..BASE
        },
    ]
}

fn conditions() -> Vec<World> {
    vec![
        World {
            name: "crowded by a device that comes back",
            owners: 2,
            policies: &[Policy::Exclusive],
            conditions: true,
            atomic: true,
            targets: &[&[(DOUBLE, &[])]],
            ..BASE
        },
        World {
            name: "conditions, alone",
            owners: 1,
            conditions: true,
            targets: &[&[(DOUBLE, &[])]],
            ..BASE
        },
        World {
            name: "conditions and host drivers",
            conditions: true,
            host: true,
            host_groups: &[DOUBLE],
            ..BASE
        },
    ]
}
