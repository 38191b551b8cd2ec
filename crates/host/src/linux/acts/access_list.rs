//! A file's access list (POSIX ACL), as the kernel keeps it in an extended attribute: parsed,
//! changed for one user, and written again.
//!
//! # Source
//! `include/uapi/linux/posix_acl_xattr.h`, `fs/posix_acl.c`. A version, then entries of tag,
//! permissions and id, sorted by tag. What the group, named users and named groups may is what
//! their entry and the mask have in common. A list of nothing but owner, group and others is kept as
//! the file's mode, and the attribute goes.

/// The attribute.
pub(super) const NAME: &str = "system.posix_acl_access";

/// Reading and writing.
pub(super) const READ_WRITE: u16 = 6;

const VERSION: u32 = 2;
const ENTRY_BYTES: usize = 8;
/// The id of entries that are about nobody in particular.
const NO_ID: u32 = u32::MAX;

const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OF_FILE: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    tag: u16,
    id: u32,
    perm: u16,
}

/// An access list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::linux) struct AccessList {
    entries: Vec<Entry>,
}

impl AccessList {
    /// The list that a mode stands for.
    pub(super) fn of_mode(mode: u32) -> Self {
        let perm = |shift: u32| u16::try_from(mode >> shift & 7).unwrap_or(0);
        let entry = |tag, shift| Entry { tag, id: NO_ID, perm: perm(shift) };
        Self { entries: vec![entry(OWNER, 6), entry(GROUP_OF_FILE, 3), entry(OTHERS, 0)] }
    }

    /// Reads the attribute; `None` when it is none that this knows.
    pub(in crate::linux) fn parse(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != VERSION || rest.len() % ENTRY_BYTES != 0 {
            return None;
        }
        let entry = |bytes: &[u8]| {
            let (tag, rest) = bytes.split_first_chunk::<2>()?;
            let (perm, rest) = rest.split_first_chunk::<2>()?;
            let (id, _) = rest.split_first_chunk::<4>()?;
            let (tag, perm) = (u16::from_le_bytes(*tag), u16::from_le_bytes(*perm));
            Some(Entry { tag, id: u32::from_le_bytes(*id), perm })
        };
        let entries: Option<Vec<Entry>> = rest.chunks(ENTRY_BYTES).map(entry).collect();
        let list = Self { entries: entries? };
        let whole = [OWNER, GROUP_OF_FILE, OTHERS].iter().all(|tag| list.perm(*tag).is_some());
        whole.then_some(list)
    }

    /// The attribute's bytes.
    pub(in crate::linux) fn bytes(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            bytes.extend(entry.tag.to_le_bytes());
            bytes.extend(entry.perm.to_le_bytes());
            bytes.extend(entry.id.to_le_bytes());
        }
        bytes
    }

    fn perm(&self, tag: u16) -> Option<u16> {
        self.entries.iter().find(|entry| entry.tag == tag).map(|entry| entry.perm)
    }

    /// What the owner may.
    pub(super) fn owner(&self) -> u16 {
        self.perm(OWNER).unwrap_or(0)
    }

    /// Whether everybody may read and write, whoever it is.
    pub(super) fn open_to_all(&self) -> bool {
        self.entries.iter().all(|entry| entry.perm & READ_WRITE == READ_WRITE)
    }

    /// What a named user may; `None` without an entry.
    pub(in crate::linux) fn user(&self, uid: u32) -> Option<u16> {
        let own = self.entries.iter().find(|entry| entry.tag == USER && entry.id == uid)?;
        Some(own.perm & self.perm(MASK).unwrap_or(7))
    }

    /// Lets a user read and write. What others may stays.
    pub(in crate::linux) fn allow(&mut self, uid: u32) {
        self.settle_mask();
        self.remove(uid);
        self.entries.push(Entry { tag: USER, id: uid, perm: READ_WRITE });
        self.set_mask();
    }

    /// The user's entry goes. What others may stays.
    pub(in crate::linux) fn forbid(&mut self, uid: u32) {
        self.settle_mask();
        self.remove(uid);
        self.set_mask();
    }

    fn remove(&mut self, uid: u32) {
        self.entries.retain(|entry| entry.tag != USER || entry.id != uid);
    }

    /// What the mask takes away is taken from the entries, so that a wider one gives nothing.
    fn settle_mask(&mut self) {
        let mask = self.perm(MASK).unwrap_or(7);
        for entry in &mut self.entries {
            if [USER, GROUP_OF_FILE, GROUP].contains(&entry.tag) {
                entry.perm &= mask;
            }
        }
    }

    /// The mask that takes nothing away; none where nobody is named.
    fn set_mask(&mut self) {
        self.entries.retain(|entry| entry.tag != MASK);
        let named = |entry: &&Entry| [USER, GROUP].contains(&entry.tag);
        if self.entries.iter().any(|entry| named(&entry)) {
            let group = self.perm(GROUP_OF_FILE).unwrap_or(0);
            let perm = self.entries.iter().filter(named).fold(group, |all, it| all | it.perm);
            self.entries.push(Entry { tag: MASK, id: NO_ID, perm });
        }
        self.entries.sort_unstable();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(entries: &[(u16, u32, u16)]) -> AccessList {
        let entries = entries.iter().map(|&(tag, id, perm)| Entry { tag, id, perm }).collect();
        AccessList { entries }
    }

    #[test]
    fn a_node_of_root_alone_opens_for_one_user_and_is_as_before() {
        let before = AccessList::of_mode(0o20600);
        let mut now = before.clone();
        now.allow(60001);
        assert_eq!(
            now,
            list(&[
                (OWNER, NO_ID, 6),
                (USER, 60001, 6),
                (GROUP_OF_FILE, NO_ID, 0),
                (MASK, NO_ID, 6),
                (OTHERS, NO_ID, 0),
            ])
        );
        assert_eq!(now.bytes()[..12], [2, 0, 0, 0, 1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(AccessList::parse(&now.bytes()), Some(now.clone()));
        now.forbid(60001);
        assert_eq!(now, before);
    }

    #[test]
    fn a_mask_that_keeps_others_out_goes_on_doing_so() {
        let mut now = list(&[
            (OWNER, NO_ID, 6),
            (USER, 7, 6),
            (GROUP_OF_FILE, NO_ID, 6),
            (GROUP, 8, 7),
            (MASK, NO_ID, 4),
            (OTHERS, NO_ID, 0),
        ]);
        assert_eq!(now.user(7), Some(4));
        now.allow(60001);
        assert_eq!((now.user(7), now.user(60001)), (Some(4), Some(6)));
        now.forbid(60001);
        assert_eq!((now.user(7), now.user(60001)), (Some(4), None));
        assert_eq!(now.perm(MASK), Some(4));
    }

    #[test]
    fn what_is_no_list_is_not_taken_for_one() {
        let good = AccessList::of_mode(0o666).bytes();
        for bad in [&good[..0], &good[..4], &good[..good.len() - 1], &[9; 28]] {
            assert_eq!(AccessList::parse(bad), None, "{bad:?}");
        }
        assert!(AccessList::of_mode(0o666).open_to_all());
        assert!(!AccessList::of_mode(0o606).open_to_all());
    }

    fn lists() -> impl Strategy<Value = AccessList> {
        let named = prop::collection::vec((any::<bool>(), 0_u32..6, 0_u16..8), 0..5);
        (0_u32..0o1000, named, prop::option::of(0_u16..8)).prop_map(|(mode, named, mask)| {
            let mut list = AccessList::of_mode(mode);
            for (user, id, perm) in named {
                let tag = if user { USER } else { GROUP };
                list.entries.retain(|entry| (entry.tag, entry.id) != (tag, id));
                list.entries.push(Entry { tag, id, perm });
            }
            list.set_mask();
            if let (Some(perm), Some(_)) = (mask, list.perm(MASK)) {
                list.entries.retain(|entry| entry.tag != MASK);
                list.entries.push(Entry { tag: MASK, id: NO_ID, perm });
                list.entries.sort_unstable();
            }
            list
        })
    }

    /// What an entry gives, the mask counted in.
    fn effective(list: &AccessList) -> Vec<(u16, u32, u16)> {
        let mask = list.perm(MASK).unwrap_or(7);
        let given = |entry: &Entry| match entry.tag {
            USER | GROUP_OF_FILE | GROUP => entry.perm & mask,
            _ => entry.perm,
        };
        let all = list.entries.iter().filter(|entry| entry.tag != MASK);
        all.map(|entry| (entry.tag, entry.id, given(entry))).collect()
    }

    proptest! {
        /// Nobody but the user is let in or shut out, and the user is.
        #[test]
        fn only_the_user_is_concerned(before in lists(), uid in 0_u32..6) {
            let others = |list: &AccessList| {
                let mut rest = effective(list);
                rest.retain(|(tag, id, _)| (*tag, *id) != (USER, uid));
                rest
            };
            let mut now = before.clone();
            now.allow(uid);
            prop_assert_eq!(now.user(uid), Some(READ_WRITE));
            prop_assert_eq!(others(&now), others(&before));
            prop_assert_eq!(AccessList::parse(&now.bytes()), Some(now.clone()));
            now.forbid(uid);
            prop_assert_eq!(now.user(uid), None);
            prop_assert_eq!(others(&now), others(&before));
        }
    }
}
