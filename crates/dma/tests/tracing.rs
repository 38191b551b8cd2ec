//! The feature `tracing`: what is told of each call.
#![cfg(feature = "tracing")]

use std::{
    fmt::Debug,
    sync::{Arc, Mutex},
};

use berth_dma::{AddressSpace, DmaBuffer, DmaPerms, IovaChoice, SimFlavour, SimIoas, SimLimits};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// Keeps what is told.
#[derive(Default, Clone)]
struct Kept(Arc<Mutex<Vec<String>>>);

struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = match field.name() {
            "message" => format!("{value:?}"),
            name => format!("{name}={value:?}"),
        };
        self.0 = format!("{} {text}", self.0);
    }
}

impl Subscriber for Kept {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("berth_dma") && *metadata.level() <= Level::TRACE
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut words = Words(event.metadata().level().to_string());
        event.record(&mut words);
        self.0.lock().expect("no panic").push(words.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[test]
fn each_call_is_told_and_each_refusal() {
    let kept = Kept::default();
    tracing::subscriber::with_default(kept.clone(), || {
        let limits = SimLimits { entries: 1, ..SimLimits::default() };
        let space = AddressSpace::simulated(SimIoas::new(SimFlavour::Type1, limits));
        let buffer = DmaBuffer::new(4096).expect("memory");
        let at = |page: u64| IovaChoice::Fixed(page * 4096);
        space.map_buffer(at(16), &buffer, DmaPerms::READ).expect("room");
        space.map_buffer(at(32), &buffer, DmaPerms::READ).expect_err("one entry");
        space.unmap(16 * 4096, 4096).expect("mapped");
    });
    let told = kept.0.lock().expect("no panic").clone();
    let expected = [
        "TRACE map iova=65536 length=4096 read=true write=false",
        "DEBUG map refused iova=131072 length=4096 errno=28",
        "TRACE unmap iova=65536 length=4096 mappings=1",
    ];
    assert_eq!(told, expected);
}
