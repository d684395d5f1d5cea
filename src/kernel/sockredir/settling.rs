// SPDX-License-Identifier: MIT OR Apache-2.0

//! Queues that were read and to which nobody has sent since: the kernel tells of what is sent, and not of what is read,
//! so now and then somebody has to look.

use std::collections::HashMap;

use anyhow::Result;

use super::model::Queue;
use super::{End, Key, Redirector};

/// At a time: a look is a system call.
const MOST: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Settling {
    /// What waited at the last turn.
    before: HashMap<Key, Queue>,
    turns: usize,
}

impl Settling {
    /// Has those looked at to which nobody has sent since the last turn. Else there may be a message that is counted
    /// and not there yet. Who sends from now on is noticed by the kernel's side.
    pub(crate) fn turn(&mut self, kernel: &Redirector, ends: &[End]) -> Result<()> {
        let waiting = || ends.iter().filter(|end| end.queue.messages > 0);
        let still: Vec<&End> =
            waiting().filter(|end| self.before.get(&end.key) == Some(&end.queue)).collect();
        for end in a_share(&still, self.turns) {
            kernel.look(end, true)?;
        }
        self.before = waiting().map(|end| (end.key, end.queue)).collect();
        self.turns = self.turns.wrapping_add(1);
        Ok(())
    }
}

/// Others each time, if there are too many.
fn a_share<T>(all: &[T], turn: usize) -> impl Iterator<Item = &T> {
    let first = turn.wrapping_mul(MOST) % all.len().max(1);
    all.iter().cycle().skip(first).take(all.len().min(MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_turn() {
        let few = [1, 2, 3];
        for turn in 0..5 {
            assert_eq!(a_share(&few, turn).sum::<i32>(), 6);
        }
        assert_eq!(a_share::<i32>(&[], 7).count(), 0);
        let many: Vec<usize> = (0..3 * MOST + 1).collect();
        let mut seen: Vec<usize> = (0..4).flat_map(|turn| a_share(&many, turn).copied()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, many);
    }
}
