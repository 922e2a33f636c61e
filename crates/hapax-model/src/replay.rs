//! Replays paths of the model, and of the specification alone, on a real store.
//!
//! Invariant: after each operation the store's answer, and the record as it
//! reads, are those of the specification.

use hapax::store::StoreError;
use rand::Rng;
use rand::seq::IndexedRandom;
use stateright::Model;

use crate::driver::Driver;
use crate::protocol::{Protocol, Step};
use crate::spec::{Answer, Attempt, Ending, Op, Spec, Written};
use crate::world::State;

/// Where a store and the specification part.
#[derive(Debug)]
pub struct Parting {
    /// What was asked, the last last.
    pub asked: Vec<Op>,
    /// What the specification allows.
    pub expected: Vec<Answer>,
    /// What the store said.
    pub said: Answer,
}

/// What is followed on a store: operations, and now and then a new attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Move {
    /// This number is a new attempt from now on.
    Renew(Attempt),
    /// An operation.
    Do(Op),
}

/// Follows a path on a key that is absent, and leaves it absent.
///
/// # Errors
/// What the store's methods give.
pub async fn follow(driver: &Driver, path: &[Move]) -> Result<Option<Parting>, StoreError> {
    // What the store may hold, as far as its answers have told.
    let mut specs = vec![Spec::default()];
    let mut asked = Vec::new();
    for step in path {
        let op = match step {
            Move::Renew(attempt) => {
                driver.renew(*attempt);
                continue;
            }
            Move::Do(op) => *op,
        };
        for op in [op, Op::Get] {
            if specs.iter().any(Spec::may_vanish) {
                specs.push(Spec::default());
            }
            let said = driver.run(op).await?;
            asked.push(op);
            let mut expected = Vec::new();
            specs.retain_mut(|spec| {
                expected.push(spec.step(op, None));
                expected.last() == Some(&said)
            });
            specs.sort_unstable();
            specs.dedup();
            if specs.is_empty() {
                return Ok(Some(Parting { asked, expected, said }));
            }
        }
    }
    let live = |spec: &Spec| spec.view(None).is_some_and(|v| matches!(v.state, Written::InProgress | Written::InDoubt));
    if specs.iter().any(live) {
        driver.run(Op::Lapse).await?;
        driver.run(Op::Settle { of: None, happened: None }).await?;
    }
    driver.run(Op::Sweep).await?;
    driver.run(Op::Clear).await?;
    Ok(None)
}

/// What the wall clock does on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wall {
    /// It jumps forward only: for a store that removes what it finds expired, as it may, and
    /// so would part from the model when the clock is set back.
    Forward,
    /// It jumps both ways.
    BothWays,
    /// It does not jump: for a store that takes its time from a server.
    Still,
}

fn options(protocol: &Protocol, state: &State, wall: Wall) -> Vec<Step> {
    let mut options = Vec::new();
    protocol.actions(state, &mut options);
    options.retain(|step| match step {
        Step::Back => wall == Wall::BothWays,
        Step::Forward => wall != Wall::Still,
        _ => true,
    });
    options
}

/// The moves on the store that a step of the model makes.
fn moves(protocol: &Protocol, before: &State, step: Step, after: &State, path: &mut Vec<Move>) {
    path.extend(protocol.op_of(before, step).map(Move::Do));
    for message in &after.wire {
        if let Op::Begin { attempt, .. } = message.op
            && message.awaited
            && !before.wire.contains(message)
        {
            path.push(Move::Renew(attempt));
        }
    }
}

/// A path through the model, by chance.
pub fn walk(protocol: &Protocol, wall: Wall, steps: usize, rng: &mut impl Rng) -> Vec<Move> {
    let mut path = Vec::new();
    let Some(mut state) = protocol.init_states().into_iter().next() else { return path };
    for _ in 0..steps {
        let options = options(protocol, &state, wall);
        // What touches the store is worth more than another call or loss.
        let touching: Vec<Step> =
            options.iter().copied().filter(|step| protocol.op_of(&state, *step).is_some()).collect();
        let from = if rng.random_bool(0.5) && !touching.is_empty() { &touching } else { &options };
        let Some(step) = from.choose(rng) else { break };
        if let Some(next) = protocol.next_state(&state, *step) {
            moves(protocol, &state, *step, &next, &mut path);
            state = next;
        }
    }
    path
}

/// All paths of at most so many steps through the model, once each as seen by the store.
#[must_use]
pub fn all_paths(protocol: &Protocol, wall: Wall, steps: usize) -> Vec<Vec<Move>> {
    let mut found = std::collections::HashSet::new();
    let mut path = Vec::new();
    for state in protocol.init_states() {
        descend(protocol, wall, &state, steps, &mut path, &mut found);
    }
    let mut paths: Vec<_> = found.into_iter().collect();
    // What is the beginning of another path is followed with it.
    paths.sort_by(|a: &Vec<Move>, b| format!("{a:?}").cmp(&format!("{b:?}")));
    paths
}

fn descend(
    protocol: &Protocol,
    wall: Wall,
    state: &State,
    steps: usize,
    path: &mut Vec<Move>,
    found: &mut std::collections::HashSet<Vec<Move>>,
) {
    if steps == 0 {
        found.insert(path.clone());
        return;
    }
    for step in options(protocol, state, wall) {
        if let Some(next) = protocol.next_state(state, step) {
            let length = path.len();
            moves(protocol, state, step, &next, path);
            descend(protocol, wall, &next, steps - 1, path, found);
            path.truncate(length);
        }
    }
}

/// Everything that can be asked about two attempts.
#[must_use]
pub fn questions() -> Vec<Op> {
    let mut ops = vec![Op::Mark(9), Op::Remove, Op::Clear, Op::Sweep, Op::Lapse, Op::Forward, Op::Back];
    for (attempt, other) in [(1, 2), (2, 1)] {
        ops.extend([
            Op::Begin { attempt, take_over: None },
            Op::Begin { attempt, take_over: Some(other) },
            Op::Beat(attempt),
            Op::Settle { of: Some(attempt), happened: None },
        ]);
        let endings = [Ending::Complete(attempt), Ending::Fail, Ending::Release, Ending::Doubt];
        ops.extend(endings.map(|ending| Op::End { attempt, ending }));
    }
    ops.extend([Op::Settle { of: None, happened: None }, Op::Settle { of: None, happened: Some(8) }]);
    ops
}

/// Follows every sequence of so many questions; returns how many there were.
///
/// # Errors
/// What the store's methods give.
pub async fn exhaust(driver: &Driver, length: u32) -> Result<Result<usize, Parting>, StoreError> {
    let ops = questions();
    let total = ops.len().pow(length);
    let mut followed = 0;
    for number in 0..total {
        let (mut rest, mut path) = (number, Vec::new());
        let (mut spec, mut sensible) = (Spec::default(), true);
        for _ in 0..length {
            let op = ops.get(rest % ops.len()).copied().unwrap_or(Op::Get);
            rest /= ops.len();
            // The wall clock crosses the end of a time to live to and fro, no further.
            let expired = spec.row.is_some_and(|row| row.expired);
            sensible &= (op != Op::Forward || !expired) && (op != Op::Back || expired);
            spec.step(op, None);
            path.push(Move::Do(op));
        }
        if !sensible {
            continue;
        }
        if let Some(parting) = follow(driver, &path).await? {
            return Ok(Err(parting));
        }
        followed += 1;
    }
    Ok(Ok(followed))
}
