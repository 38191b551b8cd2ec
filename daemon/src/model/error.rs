//! The one error of the API: a refusal with a reason of the closed list.

use berth_ownership::{Reason, Refusal};

/// Why a call was not answered as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// Every error is a refusal: reason, errno, object, owner, blockers, ways out.
    #[error("{}: {}", .0.reason.name(), .0.message)]
    Refused(Box<Refusal>),
}

impl ApiError {
    /// A refusal with the reason's own errno and way out.
    pub fn new(reason: Reason, object: impl ToString, message: impl Into<String>) -> Self {
        Self::Refused(Refusal::new(reason, object, message))
    }

    /// The input is wrong, whatever the state.
    pub fn invalid_argument(
        object: impl ToString,
        message: impl Into<String>,
        way_out: impl Into<String>,
    ) -> Self {
        Self::Refused(
            Refusal::new(Reason::InvalidArgument, object, message)
                .with_resolve(vec![way_out.into()]),
        )
    }

    /// There is no such object.
    pub fn not_found(object: impl ToString, message: impl Into<String>) -> Self {
        Self::new(Reason::NotFound, object, message)
    }

    /// The caller's role does not allow it.
    pub fn permission(object: impl ToString, message: impl Into<String>) -> Self {
        Self::new(Reason::PermissionDenied, object, message)
    }

    /// Not now.
    pub fn unavailable(object: impl ToString, message: impl Into<String>) -> Self {
        Self::new(Reason::Unavailable, object, message)
    }

    /// Our fault.
    pub fn internal(object: impl ToString, message: impl Into<String>) -> Self {
        Self::new(Reason::Internal, object, message)
    }

    /// The reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.refusal().reason
    }

    /// Whether the same call may succeed later without anybody's doing otherwise: nothing is wrong
    /// with it.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self.reason(), Reason::Unavailable | Reason::StateUnwritable)
    }

    /// The refusal.
    #[must_use]
    pub fn refusal(&self) -> &Refusal {
        let Self::Refused(refusal) = self;
        refusal
    }

    /// The refusal, taken out.
    #[must_use]
    pub fn into_refusal(self) -> Box<Refusal> {
        let Self::Refused(refusal) = self;
        refusal
    }
}

impl From<Box<Refusal>> for ApiError {
    fn from(refusal: Box<Refusal>) -> Self {
        Self::Refused(refusal)
    }
}
