use super::*;
use crate::{Undo, sim::SimHost};

fn undo_all(sim: &SimHost, writes: &[SysfsWrite]) {
    for write in writes.iter().rev() {
        if let Undo::Write { path, value } = &write.undo {
            sim.write(path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
        }
    }
}

fn on_a_host_driver(sim: &SimHost) -> DeviceFacts {
    let found = sim.scan().unwrap().devices.into_iter().find(|facts| {
        !facts.bridge && facts.driver.is_some() && facts.dma == crate::DmaKind::Kernel
    });
    found.unwrap_or_else(|| panic!("none is on a host driver"))
}

#[test]
fn a_rehearsal_notes_what_the_act_writes_and_changes_nothing() {
    let sim = SimHost::builtin("small").unwrap();
    sim.note_writes();
    let facts = on_a_host_driver(&sim);
    let (device, had) = (facts.address, facts.driver.clone());
    let acts = [
        Act::Unbind { device },
        Act::Bind { device, driver: facts.vfio_driver.clone() },
        Act::Reset { device },
        Act::Restore { device, driver: had, driver_override: None },
    ];
    let before = sim.scan().unwrap();
    let rehearsal = Rehearsal::on(Arc::new(sim.clone()));
    for act in &acts {
        rehearsal.perform(act).unwrap();
    }
    assert_eq!(sim.scan().unwrap(), before);
    assert_eq!(sim.written(), []);
    for act in &acts {
        sim.perform(act).unwrap();
    }
    let noted = rehearsal.writes().into_iter().map(|write| (write.path, write.value));
    assert_eq!(noted.collect::<Vec<_>>(), sim.written());
    assert_eq!(rehearsal.device(device).unwrap(), sim.device(device).unwrap());
    undo_all(&sim, &rehearsal.writes());
    assert_eq!(sim.scan().unwrap(), before);
}

#[test]
fn a_reset_has_no_undo_and_says_which_it_is() {
    let sim = SimHost::builtin("small").unwrap();
    let facts = sim.scan().unwrap().devices.into_iter().find(|it| !it.reset_methods.is_empty());
    let facts = facts.unwrap();
    let rehearsal = Rehearsal::on(Arc::new(sim));
    rehearsal.perform(&Act::Reset { device: facts.address }).unwrap();
    let writes = rehearsal.writes();
    let Undo::None { why } = &writes[0].undo else { panic!("{writes:?}") };
    assert!(why.contains(&facts.address.to_string()) && why.contains(&facts.reset_methods[0]));
}

#[test]
fn a_driver_that_the_override_keeps_out_has_no_undo_by_its_name() {
    let sim = SimHost::builtin("small").unwrap();
    let device = on_a_host_driver(&sim).address;
    let over = Act::Override { device, driver: Some("vfio-pci".to_owned()) };
    sim.perform(&over).unwrap();
    let rehearsal = Rehearsal::on(Arc::new(sim));
    rehearsal.perform(&Act::Unbind { device }).unwrap();
    assert!(matches!(&rehearsal.writes()[0].undo, Undo::None { why } if why.contains("vfio-pci")));
}
