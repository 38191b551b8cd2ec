//! Why a container waits, in a word that can be counted.

use berth_handover::ClientError;

use super::{BerthdError, NotNow};

impl NotNow {
    /// One of a few words; of a refusal, `berthd`'s reason in lower case.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Busy { .. } => "busy".to_owned(),
            Self::Unknown(_) => "not_allocated".to_owned(),
            Self::Preparing(..) => "preparing".to_owned(),
            Self::Berthd(BerthdError::Refused(refusal)) => refusal.reason.to_lowercase(),
            Self::Berthd(BerthdError::HandOver(ClientError::Refused(refusal))) => {
                refusal.reason.to_lowercase()
            }
            Self::Berthd(_) => "berthd_away".to_owned(),
            Self::Memlock(_) => "memlock".to_owned(),
            Self::Kubelet(_) => "kubelet_away".to_owned(),
            Self::Io(_) => "io".to_owned(),
        }
    }
}
