//! Chooses the next operation: mostly one that can work, sometimes one that can't.

use std::collections::VecDeque;

use super::{
    Options, Seats,
    op::{Bank, Op, Seat},
    rng::Rng,
    stage::{CDEVS, CONTEXTS, DOMAINS, HANDLES, HOLDS, Stage},
};
use crate::BackendKind;

/// IOVAs worth a try: neighbours, the MSI window, beyond a 48-bit aperture.
const IOVAS: [u64; 6] = [0x1_0000, 0x1_1000, 0x1_2000, 0xfee0_0000, 0xfedf_f000, 1 << 50];

/// The source of operations of one sequence.
#[derive(Debug)]
pub(super) struct Generator {
    rng: Rng,
    backends: Vec<BackendKind>,
    seats: Vec<Seat>,
    banks: Vec<Bank>,
    mixed: bool,
    /// With few contexts a sequence gets deep, with many it gets wide.
    contexts: usize,
    /// What is left of a story.
    next: VecDeque<Op>,
}

impl Generator {
    pub(super) fn new(options: &Options, seats: &Seats, seed: u64) -> Self {
        let mut list = vec![Seat::Single, Seat::PairA, Seat::PairB];
        let mut banks = vec![Bank::Single, Bank::Pair];
        if seats.mixed.is_some() {
            list.push(Seat::Mixed);
            banks.push(Bank::Mixed);
        }
        let mut rng = Rng::new(seed);
        let contexts = 1 + rng.below(CONTEXTS);
        Self {
            contexts,
            next: VecDeque::new(),
            rng,
            backends: options.backends.clone(),
            seats: list,
            banks,
            mixed: seats.mixed.is_some(),
        }
    }

    /// The next operation.
    pub(super) fn next(&mut self, stage: &Stage<'_>) -> Op {
        // A choice that has nothing to work on gives none: another is made.
        if let Some(op) = self.next.pop_front() {
            return op;
        }
        for _ in 0..64 {
            if let Some(op) = self.choose(stage) {
                return op;
            }
        }
        Op::Finish
    }

    fn choose(&mut self, stage: &Stage<'_>) -> Option<Op> {
        match self.rng.below(100) {
            0..12 => self.open_context(stage),
            12..14 => Some(Op::CloseContext { context: self.context(stage)? }),
            14..24 => self.hold(stage),
            24..30 => Some(Op::Unhold { hold: self.rng.pick(&stage.held())? }),
            30..50 => self.open_device(stage),
            50..55 => Some(Op::CloseDevice { handle: self.handle(stage)? }),
            55..64 => {
                let context = self.context(stage)?;
                Some(Op::NewDomain { context, domain: self.rng.below(DOMAINS) })
            }
            64..67 => {
                let (context, domain) = self.domain(stage)?;
                Some(Op::DeleteDomain { context, domain })
            }
            67..79 => {
                let handle = self.handle(stage)?;
                let domains = stage.domains(stage.context_of(handle)?);
                Some(Op::Attach { handle, domain: self.rng.pick(&domains)? })
            }
            79..81 => Some(Op::Detach { handle: self.handle(stage)? }),
            81..82 => Some(Op::Bound { handle: self.handle(stage)? }),
            82..83 => Some(Op::BoundDevices { context: self.context(stage)? }),
            83..88 => self.memory(stage),
            88..90 => self.story(stage),
            90..92 => {
                let seat = self.rng.pick(&self.seats)?;
                Some(Op::OpenCdev { cdev: self.rng.below(CDEVS), seat })
            }
            92..93 => Some(Op::CloseCdev { cdev: self.rng.pick(&stage.open_cdevs())? }),
            _ => self.driver(stage),
        }
    }

    /// Seldom in a slot that is in use: that closes the context that was there.
    fn open_context(&mut self, stage: &Stage<'_>) -> Option<Op> {
        let context = self.rng.below(self.contexts);
        let used = stage.open_contexts().iter().any(|(slot, _)| *slot == context);
        if used && self.rng.below(5) > 0 {
            return None;
        }
        Some(Op::OpenContext { context, backend: self.rng.pick(&self.backends)? })
    }

    fn hold(&mut self, stage: &Stage<'_>) -> Option<Op> {
        let bank = self.rng.pick(&self.banks)?;
        let containers: Vec<usize> = stage
            .open_contexts()
            .into_iter()
            .filter(|(_, backend)| *backend == BackendKind::Type1)
            .map(|(slot, _)| slot)
            .collect();
        let inside = self.rng.below(2) == 0;
        let context = if inside { self.rng.pick(&containers) } else { None };
        Some(Op::Hold { hold: self.rng.below(HOLDS), bank, context })
    }

    fn open_device(&mut self, stage: &Stage<'_>) -> Option<Op> {
        if self.rng.below(2) == 0
            && let Some(handle) = self.handle(stage)
            && let Some(seat) = stage.sibling_of(handle)
        {
            let context = stage.context_of(handle)?;
            return Some(Op::OpenDevice { handle: self.rng.below(HANDLES), context, seat });
        }
        let context = self.context(stage)?;
        let seat = self.rng.pick(&self.seats)?;
        Some(Op::OpenDevice { handle: self.rng.below(HANDLES), context, seat })
    }

    fn memory(&mut self, stage: &Stage<'_>) -> Option<Op> {
        let (context, domain) = self.domain(stage)?;
        let iova = self.rng.pick(&IOVAS)?;
        let pages = 1 + self.rng.below(2);
        match self.rng.below(8) {
            0..5 => Some(Op::Map { context, domain, iova, pages }),
            5..7 => Some(Op::Unmap { context, domain, iova, pages }),
            _ => Some(Op::UnmapAll { context, domain }),
        }
    }

    /// Taking a device's driver away while it is open would wait for ever.
    fn driver(&mut self, stage: &Stage<'_>) -> Option<Op> {
        let seat = match self.rng.below(3) {
            0 => self.rng.pick(&self.seats)?,
            _ if self.mixed => Seat::Sibling,
            _ => self.rng.pick(&self.seats)?,
        };
        if stage.is_open(seat) {
            return None;
        }
        match self.rng.below(2) {
            0 => Some(Op::Unbind { seat }),
            _ if seat == Seat::Sibling => Some(Op::BindHost),
            _ => Some(Op::BindVfio { seat }),
        }
    }

    /// Two siblings and two domains of one context, which chance alone seldom brings together.
    /// Steps are left out at random.
    fn story(&mut self, stage: &Stage<'_>) -> Option<Op> {
        let context = self.context(stage)?;
        let (first, second) = if self.rng.below(2) == 0 {
            (Seat::PairA, Seat::PairB)
        } else {
            (Seat::PairB, Seat::PairA)
        };
        let (a, b) = (self.rng.below(DOMAINS), self.rng.below(DOMAINS));
        let steps = [
            Op::NewDomain { context, domain: 0 },
            Op::NewDomain { context, domain: 1 },
            Op::OpenDevice { handle: 0, context, seat: first },
            Op::OpenDevice { handle: 1, context, seat: second },
            Op::Map { context, domain: b, iova: 0xfee0_0000, pages: 1 },
            Op::Attach { handle: 0, domain: a },
            Op::Attach { handle: 1, domain: b },
            Op::Attach { handle: 1, domain: a },
            Op::DeleteDomain { context, domain: a },
            Op::Attach { handle: 0, domain: 1 - a },
            Op::DeleteDomain { context, domain: a },
            Op::Detach { handle: 1 },
            Op::CloseDevice { handle: 0 },
        ];
        let kept = steps.into_iter().filter(|_| self.rng.below(8) > 0);
        self.next = kept.collect();
        self.next.pop_front()
    }

    fn context(&mut self, stage: &Stage<'_>) -> Option<usize> {
        self.rng.pick(&stage.open_contexts()).map(|(slot, _)| slot)
    }

    fn handle(&mut self, stage: &Stage<'_>) -> Option<usize> {
        self.rng.pick(&stage.open_handles())
    }

    fn domain(&mut self, stage: &Stage<'_>) -> Option<(usize, usize)> {
        let context = self.context(stage)?;
        Some((context, self.rng.pick(&stage.domains(context))?))
    }
}
