//! What mapping a guest's memory takes, asked of a group and of a reservation.

mod core_support;

use berth_proto::v1;
use core_support::{FREE, World, operator, reserve, small};

const ASKED: u64 = 512 << 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_explained_with_its_numbers() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    let (service, me) = (&world.service, operator());
    let ask = async |object: &str, memory_bytes| {
        let object = object.to_owned();
        let request = v1::ExplainRequest { object, memory_bytes, ..Default::default() };
        service.explain(&me, request).await.map(|shown| shown.memory_notes)
    };
    assert_eq!(ask(FREE, 0).await.expect("explained"), Vec::<String>::new(), "it wasn't asked");
    let notes = ask(FREE, ASKED).await.expect("explained").join("\n");
    for part in ["536870912 KiB", "reserve with --memory 549755813888", "262144", "0xfee00000"] {
        assert!(notes.contains(part), "no {part} in {notes}");
    }
    let wanted = v1::ReserveRequest { memory_bytes: 64 << 20, ..reserve("vm-a", FREE) };
    let held = service.reserve(&me, wanted).await.expect("reserved");
    let notes = ask(&held.id, ASKED).await.expect("explained").join("\n");
    assert!(notes.contains(&format!("{} states 65536 KiB", held.id)), "{notes}");
    let notes = ask(&held.id, 32 << 20).await.expect("explained").join("\n");
    assert!(notes.contains("RLIMIT_MEMLOCK is raised"), "{notes}");
    assert!(ask(&held.id, 0).await.is_err(), "a reservation is explained for its memory alone");
    assert!(ask("r-nobody", ASKED).await.is_err());
}
