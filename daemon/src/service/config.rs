//! What is in force of the configuration.

use berth_proto::v1;

use super::{Service, authorize::require};
use crate::{
    model::{ApiError, Call, Caller},
    view,
};

impl Service {
    /// Which configuration is in force, why a later one isn't, and what takes a restart.
    ///
    /// # Errors
    /// The caller may not.
    pub async fn get_config(
        &self,
        caller: &Caller,
        _request: v1::GetConfigRequest,
    ) -> Result<v1::ConfigState, ApiError> {
        require(caller, Call::GetConfig)?;
        let state = self.in_force.get();
        let refused = state.refused.as_ref();
        Ok(v1::ConfigState {
            file: state.file.as_ref().map(|it| it.display().to_string()).unwrap_or_default(),
            in_force_since: Some(view::timestamp(state.since_unix_ms)),
            refused: refused.map(|(_, why)| why.clone()).unwrap_or_default(),
            refused_at: refused.map(|(at, _)| view::timestamp(*at)),
            needs_restart: state.needs_restart.clone(),
        })
    }
}
