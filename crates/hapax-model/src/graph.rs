//! The reachable states as a graph, for what must stay reachable.
//!
//! That nothing wedges is no property of one state. It is that from every
//! reachable state some good state can still be reached. A counterexample is a
//! state from which there is no way, whatever happens: a wedge. (That a good
//! state *will* be reached needs callers that try again and a network that is
//! not down for ever, which no store can see to.)

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};

use stateright::Model;

use crate::protocol::Protocol;
use crate::world::State;

/// What a walk over the graph found.
#[derive(Clone, Debug)]
pub struct Reached {
    /// Distinct states.
    pub states: usize,
    /// How many of them are good.
    pub good: usize,
    /// A state from which no good one can be reached, if there is any.
    pub wedged: Option<Box<State>>,
}

/// Looks whether a good state can be reached from every reachable one.
#[must_use]
pub fn always_reachable(protocol: &Protocol, is_good: impl Fn(&State) -> bool) -> Reached {
    // States are kept by a hash of 64 bits, like Stateright's own: of ten million, two
    // share one with a chance of one in 400 000.
    let hasher = RandomState::new();
    let mut numbers: HashMap<u64, u32> = HashMap::new();
    // For each state the states that lead to it.
    let mut before: Vec<Vec<u32>> = Vec::new();
    let mut good: Vec<u32> = Vec::new();
    let mut todo: Vec<(u32, State)> = Vec::new();
    let mut next = Vec::new();
    let mut steps = Vec::new();
    let mut number = |state: &State, before: &mut Vec<Vec<u32>>| match numbers.entry(hasher.hash_one(state)) {
        Entry::Occupied(there) => (*there.get(), false),
        Entry::Vacant(place) => {
            let new = u32::try_from(before.len()).unwrap_or(u32::MAX);
            place.insert(new);
            before.push(Vec::new());
            (new, true)
        }
    };
    for state in protocol.init_states() {
        let (n, _) = number(&state, &mut before);
        todo.push((n, state));
    }
    while let Some((from, state)) = todo.pop() {
        if is_good(&state) {
            good.push(from);
        }
        steps.clear();
        protocol.actions(&state, &mut steps);
        next.extend(steps.iter().filter_map(|step| protocol.next_state(&state, *step)));
        for state in next.drain(..) {
            let (to, new) = number(&state, &mut before);
            if let Some(list) = before.get_mut(to as usize) {
                list.push(from);
            }
            if new {
                todo.push((to, state));
            }
        }
    }
    let mut reaches = vec![false; before.len()];
    let mut back = good.clone();
    while let Some(state) = back.pop() {
        let Some(reached @ false) = reaches.get_mut(state as usize) else { continue };
        *reached = true;
        back.extend(before.get(state as usize).into_iter().flatten());
    }
    let wedged = reaches.iter().position(|reached| !reached);
    Reached {
        states: before.len(),
        good: good.len(),
        wedged: wedged.and_then(|n| find(protocol, n, &hasher, &numbers)).map(Box::new),
    }
}

/// The state of a number, looked for anew.
fn find(protocol: &Protocol, n: usize, hasher: &RandomState, numbers: &HashMap<u64, u32>) -> Option<State> {
    let wanted = numbers.iter().find(|(_, number)| **number as usize == n).map(|(hash, _)| *hash)?;
    let mut seen: HashMap<u64, ()> = HashMap::new();
    let mut todo = protocol.init_states();
    let mut steps = Vec::new();
    while let Some(state) = todo.pop() {
        let hash = hasher.hash_one(&state);
        if hash == wanted {
            return Some(state);
        }
        if seen.insert(hash, ()).is_some() {
            continue;
        }
        steps.clear();
        protocol.actions(&state, &mut steps);
        todo.extend(steps.iter().filter_map(|step| protocol.next_state(&state, *step)));
    }
    None
}
