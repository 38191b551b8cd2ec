//! `region`: a client that has no descriptor of VFIO registers memory with a domain that the daemon
//! drives (delivery `held`).
//!
//! The peer maps a file of the same kind for a device that it has opened and attached itself. With a
//! target is the one that does the same work: on iommufd by file; on type1, which knows addresses
//! alone, the file is mapped into the process first, as the daemon has to. What is unregistered or
//! unmapped in between is in neither time.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_handover::Client;
use berth_measure::{Question, Row, Target, compare, median};
use berth_proto::v1;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::{
    Places,
    front::rpc,
    ledger::runtime,
    orders,
    peer::Program,
    site::{Backend, Site},
};

/// A slice is as many as fit in, and one at least.
const SLICE: Duration = Duration::from_millis(500);
/// What is registered.
const MIB: u64 = 256;
/// Where, on both sides.
const IOVA: u64 = 0x1_0000_0000;

/// The peers: how it maps, what that is called, and the target.
const IOMMUFD: [(&str, &str, Target); 2] = [
    ("file", "IOMMU_IOAS_MAP_FILE", Target::AtMost(1.1)),
    ("address", "mmap and IOMMU_IOAS_MAP", Target::Beside),
];
const TYPE1: [(&str, &str, Target); 2] = [
    ("address", "mmap and VFIO_IOMMU_MAP_DMA", Target::AtMost(1.1)),
    ("mapped", "VFIO_IOMMU_MAP_DMA of what is mapped", Target::Beside),
];

fn slice(mut one: impl FnMut() -> Result<f64>) -> Result<f64> {
    let began = Instant::now();
    let mut times = Vec::new();
    while times.is_empty() || began.elapsed() < SLICE {
        times.push(one()?);
    }
    Ok(median(&times))
}

/// Runs it.
///
/// # Errors
/// Of either side; the machine is simulated.
pub(crate) fn bench(places: &Places) -> Result<Vec<Row>> {
    let length = MIB << 20;
    let site = Site::start(places)?;
    let kernel = site.kernel()?;
    let id = runtime()?.block_on(async {
        let channel = rpc::connect(&site.grpc()).await?;
        let held = v1::ReserveRequest {
            delivery: v1::Delivery::Held.into(),
            backend: site.backend().into(),
            memory_bytes: length,
            ..v1::ReserveRequest::default()
        };
        let id = orders::reserve(&channel, site.device(), held).await?;
        orders::attach(&channel, &id).await?;
        anyhow::Ok(id)
    })?;
    let client = Client::connect(site.handover())?;
    let fetched = client.fetch(&id, 0)?;
    ensure!(fetched.fds.is_empty(), "descriptors of a held device came");
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = memfd_create("region", flags).context("make a memfd")?;
    ftruncate(&memory, length).context("give it a size")?;
    fcntl_add_seals(&memory, SealFlags::SHRINK).context("seal it")?;
    let mut ours = || {
        slice(|| {
            let began = Instant::now();
            client.register(&id, &memory, 0, length, Some(IOVA))?;
            let elapsed = began.elapsed().as_secs_f64() * 1e3;
            client.unregister(&id, IOVA, length)?;
            Ok(elapsed)
        })
    };
    let peers = match kernel.backend {
        Backend::Iommufd => IOMMUFD,
        Backend::Type1 => TYPE1,
    };
    let mut rows = Vec::new();
    for (how, called, target) in peers {
        let mib = MIB.to_string();
        let words = [kernel.backend.word(), &kernel.beside, &mib, how];
        let mut map = Program::start(&places.peers.join("map"), &words)?;
        let mut peer = || slice(|| map.ask(Duration::ZERO).map(|[elapsed]| elapsed));
        let question = Question {
            name: "region",
            case: site.case(&format!("register {MIB} MiB / {called}")),
            unit: "ms",
            target,
        };
        rows.push(compare(&question, &mut ours, &mut peer)?);
    }
    drop(client);
    site.daemon.stop()?;
    Ok(rows)
}
