//! Every state of a group against every call, cell by cell.

use super::*;

const T: Token = Token::VfioGroup(1);
const OTHER: Token = Token::Iommufd(2);
const PAGING: GroupDomain = GroupDomain::Paging(7);

fn device() -> PciAddress {
    PciAddress::new(0, 1, 0, 0).expect("an address")
}

fn states() -> [(&'static str, Ownership); 6] {
    let idle = Ownership::idle(false);
    let of = |owner_cnt, owner, domain| Ownership { owner_cnt, owner, domain, ..idle };
    [
        ("idle", idle),
        ("kernel", of(1, None, GroupDomain::Default)),
        ("private", of(1, None, GroupDomain::Private(device()))),
        ("blocked", of(1, Some(T), GroupDomain::Blocking)),
        ("attached", of(1, Some(T), PAGING)),
        ("stray", of(0, None, GroupDomain::Private(device()))),
    ]
}

/// Runs one call on every state and compares answer and domain afterwards.
fn row(
    call: impl Fn(&mut Ownership) -> Result<(), Errno>,
    expected: [Result<(u32, GroupDomain), Errno>; 6],
) {
    for ((name, before), expected) in states().into_iter().zip(expected) {
        let mut state = before;
        let got = call(&mut state).map(|()| (state.owner_cnt, state.domain));
        assert_eq!(got, expected, "from {name}");
        if got.is_err() {
            assert_eq!(state, before, "a refusal changed {name}");
        }
    }
}

#[test]
fn a_host_driver_binds() {
    row(
        Ownership::use_default_domain,
        [
            Ok((1, GroupDomain::Default)),
            Ok((2, GroupDomain::Default)),
            Err(Errno::BUSY),
            Err(Errno::BUSY),
            Err(Errno::BUSY),
            Ok((1, GroupDomain::Private(device()))),
        ],
    );
}

#[test]
fn the_group_is_claimed() {
    row(
        |state| state.claim_group(T),
        [
            Ok((1, GroupDomain::Blocking)),
            Err(Errno::PERM),
            Err(Errno::PERM),
            Err(Errno::PERM),
            Err(Errno::PERM),
            Err(Errno::BUSY),
        ],
    );
}

#[test]
fn a_device_is_claimed_by_the_same_token() {
    row(
        |state| state.claim_device(T),
        [
            Ok((1, GroupDomain::Blocking)),
            Err(Errno::PERM),
            Err(Errno::PERM),
            Ok((2, GroupDomain::Blocking)),
            Ok((2, PAGING)),
            Err(Errno::BUSY),
        ],
    );
}

#[test]
fn a_device_is_claimed_by_another_token() {
    row(
        |state| state.claim_device(OTHER),
        [
            Ok((1, GroupDomain::Blocking)),
            Err(Errno::PERM),
            Err(Errno::PERM),
            Err(Errno::PERM),
            Err(Errno::PERM),
            Err(Errno::BUSY),
        ],
    );
}

#[test]
fn a_domain_is_attached() {
    row(
        |state| state.attach_group(PAGING),
        [
            Ok((0, PAGING)),
            Ok((1, PAGING)),
            Err(Errno::BUSY),
            Ok((1, PAGING)),
            Err(Errno::BUSY),
            Err(Errno::BUSY),
        ],
    );
}

#[test]
fn a_device_attaches_only_alone_in_its_group() {
    row(|state| state.attach_device(device(), 2), [Err(Errno::INVAL); 6]);
    let private = GroupDomain::Private(device());
    row(
        |state| state.attach_device(device(), 1),
        [
            Ok((0, private)),
            Ok((1, private)),
            Err(Errno::BUSY),
            Ok((1, private)),
            Err(Errno::BUSY),
            Err(Errno::BUSY),
        ],
    );
}

#[test]
fn leaving_blocks_an_owned_group_and_returns_an_unowned_one() {
    row(
        |state| {
            state.detach();
            Ok(())
        },
        [
            Ok((0, GroupDomain::Default)),
            Ok((1, GroupDomain::Default)),
            Ok((1, GroupDomain::Default)),
            Ok((1, GroupDomain::Blocking)),
            Ok((1, GroupDomain::Blocking)),
            Ok((0, GroupDomain::Default)),
        ],
    );
}

#[test]
fn the_last_release_gives_the_group_back() {
    let mut state = Ownership::idle(false);
    state.claim_device(T).unwrap();
    state.claim_device(T).unwrap();
    state.attach_group(PAGING).unwrap();
    state.release_device();
    assert_eq!((state.owner_cnt, state.owner, state.domain), (1, Some(T), PAGING));
    state.release_device();
    assert_eq!(state, Ownership::idle(false));
}

#[test]
fn a_reset_under_way_answers_busy() {
    for (_, mut state) in states() {
        state.recovering = 1;
        assert_eq!(state.replace(PAGING), Err(Errno::BUSY));
    }
    let mut idle = Ownership { recovering: 1, ..Ownership::idle(false) };
    assert_eq!(idle.claim_group(T), Err(Errno::BUSY));
    let (_, mut blocked) = states()[3];
    blocked.recovering = 1;
    assert_eq!(blocked.claim_device(T), Ok(()));
    assert_eq!(blocked.attach_group(PAGING), Err(Errno::BUSY));
}

#[test]
fn a_one_to_one_mapping_can_not_be_blocked() {
    let mut state = Ownership::idle(true);
    assert_eq!(state.claim_group(T), Err(Errno::INVAL));
    assert_eq!(state.claim_device(T), Err(Errno::INVAL));
    assert_eq!(state, Ownership::idle(true));
}
