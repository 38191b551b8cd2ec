//! Sessions of browsers on the page.

use berth_proto::v1;

use super::{Service, authorize::require};
use crate::{
    model::{ApiError, Call, Caller},
    view,
};

impl Service {
    /// A link that opens a session for a browser, once.
    ///
    /// # Errors
    /// The caller may not, the page isn't served on loopback, or there are too many sessions.
    pub async fn create_web_session(
        &self,
        caller: &Caller,
        _request: v1::CreateWebSessionRequest,
    ) -> Result<v1::WebSessionLink, ApiError> {
        require(caller, Call::CreateWebSession)?;
        let link = self.web.link(caller)?;
        Ok(v1::WebSessionLink {
            url: link.url,
            expires_at: Some(view::timestamp(link.until_unix_ms)),
            identity: caller.identity.clone(),
            role: caller.role.name().to_owned(),
            label: caller.tenant.as_deref().unwrap_or_default().to_owned(),
        })
    }
}
