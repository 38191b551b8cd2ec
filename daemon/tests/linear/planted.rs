//! The checker against histories that are known to be right or wrong.

use super::checker::{Call, Op, Reply, linearizable};

fn op(called: u64, answered: u64, call: Call, reply: Reply) -> Op {
    Op { call, reply, called, answered }
}

fn reserve(called: u64, answered: u64, id: &str) -> Op {
    op(called, answered, Call::Reserve, Reply::Reserved(id.to_owned()))
}

fn refused(called: u64, answered: u64) -> Op {
    op(called, answered, Call::Reserve, Reply::Refused)
}

fn release(called: u64, answered: u64, id: &str) -> Op {
    op(called, answered, Call::Release(id.to_owned()), Reply::Released)
}

fn read(called: u64, answered: u64, owner: Option<&str>) -> Op {
    op(called, answered, Call::Read, Reply::Owner(owner.map(str::to_owned)))
}

#[test]
fn right_histories_pass() {
    let one_after_the_other = [
        reserve(1, 2, "a"),
        refused(3, 4),
        read(5, 6, Some("a")),
        release(7, 8, "a"),
        op(9, 10, Call::Release("a".to_owned()), Reply::NotThere),
        read(11, 12, None),
        reserve(13, 14, "b"),
    ];
    assert!(linearizable(&one_after_the_other));
    // What overlaps may have happened in any order.
    let overlapping = [
        reserve(1, 10, "a"),
        read(2, 3, None),
        read(4, 5, Some("a")),
        refused(6, 20),
        release(11, 19, "a"),
        reserve(12, 30, "b"),
        read(18, 40, Some("b")),
    ];
    assert!(linearizable(&overlapping));
    assert!(linearizable(&[]));
}

#[test]
fn every_planted_bug_is_caught() {
    let planted: [(&str, Vec<Op>); 10] = [
        ("two owners", vec![reserve(1, 2, "a"), reserve(3, 4, "b")]),
        (
            "two owners at once",
            vec![reserve(1, 10, "a"), reserve(2, 9, "b"), read(11, 12, Some("a"))],
        ),
        ("a lost release", vec![reserve(1, 2, "a"), release(3, 4, "a"), refused(5, 6)]),
        ("a lost reservation", vec![reserve(1, 2, "a"), read(3, 4, None)]),
        ("a stale read", vec![reserve(1, 2, "a"), release(3, 4, "a"), read(5, 6, Some("a"))]),
        ("refused while free", vec![refused(1, 2), reserve(3, 4, "a")]),
        ("somebody else's release", vec![reserve(1, 2, "a"), release(3, 4, "b")]),
        ("released twice", vec![reserve(1, 2, "a"), release(3, 4, "a"), release(5, 6, "a")]),
        (
            "a read that goes back in time",
            vec![reserve(1, 20, "a"), read(2, 3, Some("a")), read(4, 5, None)],
        ),
        (
            "a retry that was done twice",
            vec![
                reserve(1, 2, "a"),
                release(3, 4, "a"),
                read(5, 6, Some("a2")),
                op(7, 8, Call::Release("a".to_owned()), Reply::NotThere),
            ],
        ),
    ];
    for (what, history) in planted {
        assert!(!linearizable(&history), "not caught: {what}");
    }
}

/// A right history of many operations with one answer falsified is caught wherever it is.
#[test]
fn one_false_answer_among_many_is_caught() {
    let mut history = Vec::new();
    for round in 0..200_u64 {
        let (at, id) = (round * 100, format!("r{round}"));
        history.push(reserve(at + 1, at + 20, &id));
        for other in 0..10 {
            history.push(refused(at + 21 + other, at + 60 + other));
        }
        history.push(release(at + 75, at + 90, &id));
    }
    assert!(linearizable(&history));
    for falsified in [5, 1000, 2390] {
        let mut wrong = history.clone();
        wrong[falsified].reply = match wrong[falsified].reply {
            Reply::Refused => Reply::Reserved("rogue".to_owned()),
            _ => Reply::Refused,
        };
        wrong[falsified].call = Call::Reserve;
        assert!(!linearizable(&wrong), "operation {falsified}");
    }
}
