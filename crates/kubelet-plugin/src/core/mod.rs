//! What may be given away and what was: nothing here knows which of the kubelet's APIs asked.

mod berthd;
mod claims;
mod deliver;
mod follow;
mod holding;
mod inventory;
mod memlock;
mod reason;
mod records;
mod release;

pub(crate) use berthd::channel;
pub use berthd::{Berthd, BerthdError, HOLDER_PREFIX};
pub use claims::{Claims, NotNow};
pub use follow::Follower;
pub use holding::Held;
pub use inventory::{Inventory, Member, Offer};
pub use memlock::{Memlock, Whose};
pub use records::{Allocation, Node, Records};
