//! The calls about the host as a whole.

use berth_host::{
    Answer, BackendKind, Feature,
    sim::{Serials, Topology},
};
use berth_proto::v1;

use super::{Service, authorize::require};
use crate::{
    model::{ApiError, Call, Caller},
    view,
};

impl Service {
    /// What this host and this version can do.
    ///
    /// # Errors
    /// The caller may not.
    pub async fn get_capabilities(
        &self,
        caller: &Caller,
        _request: v1::GetCapabilitiesRequest,
    ) -> Result<v1::Capabilities, ApiError> {
        require(caller, Call::GetCapabilities)?;
        let features = self.on_host("capabilities", |host| host.features()).await?;
        let offers = self.offers();
        let hold = if offers.kernel_hold {
            v1::reservation::Hold::Kernel
        } else {
            v1::reservation::Hold::Ledger
        };
        Ok(v1::Capabilities {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api: "berth.v1".to_owned(),
            simulated: self.host.simulated(),
            topology: self.host.topology().unwrap_or_default(),
            kernel_release: self.host.kernel_release(),
            hold: hold.into(),
            features: features.iter().map(feature).collect(),
            backends: [BackendKind::Iommufd, BackendKind::Type1]
                .into_iter()
                .map(|kind| backend(kind, offers.backends.contains(&kind), &features))
                .collect(),
            boot_id: self.snapshot().boot.id.to_string(),
            state_dir: self.config.get().state_dir.clone(),
            degraded: self.ledger().degraded().map(|degraded| view::degraded(&degraded)),
        })
    }

    /// What keeps devices from being given away, and what to do about it.
    ///
    /// # Errors
    /// The caller may not.
    pub async fn diagnose(
        &self,
        caller: &Caller,
        _request: v1::DiagnoseRequest,
    ) -> Result<v1::Diagnosis, ApiError> {
        require(caller, Call::Diagnose)?;
        let asked = self.on_host("doctor", |host| (host.features(), host.settings())).await?;
        let (features, settings) = asked;
        let config = self.in_force.get();
        let machine = view::Machine { features: &features, settings: &settings, config: &config };
        Ok(v1::Diagnosis { findings: view::diagnose(&self.snapshot(), &machine) })
    }

    /// A topology file of this host.
    ///
    /// # Errors
    /// The host can't be read; serial numbers are for operators.
    pub async fn get_snapshot(
        &self,
        caller: &Caller,
        request: v1::GetSnapshotRequest,
    ) -> Result<v1::Snapshot, ApiError> {
        require(caller, Call::GetSnapshot)?;
        if request.with_serials {
            require(caller, Call::SnapshotWithSerials)?;
        }
        let snapshot = self.snapshot();
        let serials = if request.with_serials { Serials::Plain } else { Serials::Hashed };
        let recorded = self
            .on_host("snapshot", move |host| {
                let mut inventory = (*snapshot.inventory).clone();
                for device in &mut inventory.devices {
                    if let Some(facts) = snapshot.device(device.address) {
                        *device = facts.clone();
                    }
                }
                let name = host.topology().unwrap_or_else(|| "recorded".to_owned());
                let uses = |address| snapshot.uses_of(address).to_vec();
                let kernel = host.kernel_release();
                Topology::from_inventory(
                    &name,
                    &kernel,
                    &inventory,
                    &host.features(),
                    &uses,
                    serials,
                )
                .and_then(|topology| topology.to_toml())
            })
            .await?;
        let toml = recorded.map_err(|error| ApiError::internal("snapshot", error.to_string()))?;
        Ok(v1::Snapshot { toml })
    }
}

fn backend(kind: BackendKind, available: bool, features: &[Feature]) -> v1::BackendCapabilities {
    let name = match kind {
        BackendKind::Iommufd => "iommufd",
        BackendKind::Type1 => "type1",
    };
    let note = features.iter().find(|feature| feature.name == name).map(|found| found.note.clone());
    v1::BackendCapabilities {
        backend: view::backend_word(view::backend(kind)).into(),
        available,
        note: note.unwrap_or_default(),
        policies: vec![
            v1::Policy::Exclusive.into(),
            v1::Policy::Shared.into(),
            v1::Policy::Group.into(),
        ],
        deliveries: deliveries(kind),
        replace: kind == BackendKind::Iommufd,
    }
}

/// What a holder of a reservation on a back end may get: a container's devices can't be opened
/// without being attached.
fn deliveries(kind: BackendKind) -> Vec<i32> {
    let all = [v1::Delivery::Held, v1::Delivery::Bound, v1::Delivery::Unbound, v1::Delivery::Node];
    let has = |delivery: &v1::Delivery| {
        kind == BackendKind::Iommufd || *delivery != v1::Delivery::Unbound
    };
    all.into_iter().filter(has).map(Into::into).collect()
}

fn feature(feature: &Feature) -> v1::Feature {
    let answer = match feature.answer {
        Answer::Yes => v1::feature::Answer::Yes,
        Answer::No => v1::feature::Answer::No,
        Answer::CouldNotTell => v1::feature::Answer::CouldNotTell,
    };
    v1::Feature { name: feature.name.clone(), answer: answer.into(), note: feature.note.clone() }
}
