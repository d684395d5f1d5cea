// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is known of each socket, and for how long.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::process::{Identity, Process};
use super::{Claim, Owner, Source};

/// A closed socket still sends: what was in its queue, what is not acknowledged, and for a minute (TIME_WAIT) replies to
/// what comes late.
const KEEP: Duration = Duration::from_secs(180);

/// Sockets that are remembered. Beyond that the oldest go first, of those that are closed.
const MOST: usize = 1 << 18;

#[derive(Debug)]
struct Entry {
    creator: Option<Rc<Process>>,
    sender: Option<Rc<Process>>,
    receiver: Option<Rc<Process>>,
    /// Has it open, at the last round.
    holder: Option<Rc<Process>>,
    /// Had it open last.
    closer: Option<Rc<Process>>,
    /// A thread of the kernel used it.
    by_kernel: bool,
    /// The last that was heard of it.
    heard: Instant,
    asked: Option<Instant>,
    released: Option<Instant>,
}

impl Entry {
    fn new(now: Instant) -> Self {
        Self {
            creator: None,
            sender: None,
            receiver: None,
            holder: None,
            closer: None,
            by_kernel: false,
            heard: now,
            asked: None,
            released: None,
        }
    }

    /// Who is most likely to have sent what was sent.
    fn owner(&self) -> Owner {
        let told = |process: &Option<Rc<Process>>, source| {
            process.as_ref().map(|process| Owner::Process(Rc::clone(process), source))
        };
        // Who made it may have passed it on, and not have it any more.
        let passed_on = match (&self.creator, &self.holder) {
            (Some(creator), Some(holder)) => creator.id != holder.id,
            _ => false,
        };
        told(&self.sender, Source::Sender)
            .or_else(|| told(&self.creator, Source::Creator).filter(|_| !passed_on))
            .or_else(|| told(&self.receiver, Source::Receiver))
            .or_else(|| told(&self.holder, Source::Descriptor))
            .or_else(|| told(&self.closer, Source::Descriptor))
            .unwrap_or(if self.by_kernel { Owner::Kernel } else { Owner::Unknown })
    }
}

/// Sockets by cookie. Cookies are given out in about the order in which sockets are made.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: BTreeMap<u64, Entry>,
    /// Those that are closed, in the order in which they are to be looked at.
    released: VecDeque<(Instant, u64)>,
}

/// Who has which socket open: what one round over all files tells.
#[derive(Debug, Default)]
pub(super) struct Holders(HashMap<u64, Vec<Rc<Process>>>);

impl Holders {
    pub(super) fn add(&mut self, cookie: u64, process: Rc<Process>) {
        let holders = self.0.entry(cookie).or_default();
        if !holders.iter().any(|holder| holder.id == process.id) {
            holders.push(process);
        }
    }
}

impl Table {
    pub(super) fn learn(
        &mut self,
        cookie: u64,
        claim: Claim,
        process: &Rc<Process>,
        kernel: bool,
        now: Instant,
    ) {
        let entry = self.entries.entry(cookie).or_insert_with(|| Entry::new(now));
        entry.heard = now;
        let claimant = (!kernel).then(|| Rc::clone(process));
        match claim {
            Claim::Released => {
                // The last reference may be dropped by a thread of the kernel that has nothing to do with it.
                entry.closer = claimant.or(entry.closer.take());
                if entry.released.is_none() {
                    entry.released = Some(now);
                    self.released.push_back((now, cookie));
                }
                return;
            }
            Claim::Created => entry.creator = claimant,
            // A process's socket is the process's, even if the kernel does the sending (io_uring, network block devices).
            Claim::Sent => entry.sender = claimant.or(entry.sender.take()),
            Claim::Received => entry.receiver = claimant.or(entry.receiver.take()),
            Claim::Holds => entry.holder = claimant,
        }
        entry.by_kernel |= kernel;
        entry.released = None;
    }

    /// Takes in a round that began at `begun`.
    pub(super) fn round(&mut self, holders: Holders, begun: Instant, now: Instant) {
        for (&cookie, entry) in &mut self.entries {
            // Neither open nor heard of since: its end was lost, or has none to be told of.
            if entry.released.is_none() && entry.heard < begun && !holders.0.contains_key(&cookie) {
                entry.released = Some(now);
                self.released.push_back((now, cookie));
            }
        }
        for (cookie, mut processes) in holders.0 {
            let creator = self.entries.get(&cookie).and_then(|entry| entry.creator.as_ref());
            let has = creator.and_then(|c| processes.iter().find(|process| process.id == c.id));
            // Who made it, if it still has it; else of many the oldest, from which the others most likely have it.
            let holder = match has {
                Some(creator) => Rc::clone(creator),
                None => {
                    processes.sort_by_key(|process| (process.id.start_ns, process.id.tgid));
                    processes.swap_remove(0)
                }
            };
            self.learn(cookie, Claim::Holds, &holder, false, now);
        }
    }

    pub(super) fn owner(&mut self, cookie: u64, now: Instant) -> Owner {
        let Some(entry) = self.entries.get_mut(&cookie) else { return Owner::Unknown };
        entry.asked = Some(now);
        entry.owner()
    }

    pub(super) fn knows(&self, cookie: u64) -> bool {
        self.entries.get(&cookie).is_some_and(|entry| !matches!(entry.owner(), Owner::Unknown))
    }

    /// Forgets what is closed and was not asked for since.
    pub(super) fn forget(&mut self, now: Instant) {
        while let Some(&(since, cookie)) = self.released.front() {
            let full = self.entries.len() > MOST;
            if !full && now.saturating_duration_since(since) < KEEP {
                break;
            }
            self.released.pop_front();
            let Some(entry) = self.entries.get(&cookie) else { continue };
            // Known to be open again, or queued anew since.
            let Some(released) = entry.released else { continue };
            let last = entry.asked.map_or(released, |asked| asked.max(released));
            if full || now.saturating_duration_since(last) >= KEEP {
                self.entries.remove(&cookie);
            } else {
                self.released.push_back((last, cookie));
            }
        }
        while self.entries.len() > MOST {
            self.entries.pop_first();
        }
    }

    /// The processes that it tells of.
    pub(super) fn processes(&self) -> HashSet<Identity> {
        let of = |entry: &Entry| {
            let Entry { creator, sender, receiver, holder, closer, .. } = entry;
            [creator, sender, receiver, holder, closer]
                .map(|process| process.as_ref().map(|p| p.id))
        };
        self.entries.values().flat_map(of).flatten().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(tgid: u32, start_ns: u64) -> Rc<Process> {
        Rc::new(Process {
            id: Identity { tgid, start_ns },
            comm: format!("p{tgid}"),
            exe: None,
            uid: 0,
            cgroup_id: 1,
            cgroup: None,
        })
    }

    fn told(table: &mut Table, cookie: u64, now: Instant) -> Option<(u32, Source)> {
        match table.owner(cookie, now) {
            Owner::Process(process, source) => Some((process.id.tgid, source)),
            _ => None,
        }
    }

    fn holders(list: &[(u64, &Rc<Process>)]) -> Holders {
        let mut holders = Holders::default();
        for (cookie, process) in list {
            holders.add(*cookie, Rc::clone(process));
        }
        holders
    }

    #[test]
    fn who_sends_counts_most() {
        let (maker, worker, now) = (process(1, 1), process(2, 2), Instant::now());
        let mut table = Table::default();
        assert_eq!(told(&mut table, 7, now), None);
        table.learn(7, Claim::Received, &worker, false, now);
        assert_eq!(told(&mut table, 7, now), Some((2, Source::Receiver)));
        table.learn(7, Claim::Created, &maker, false, now);
        assert_eq!(told(&mut table, 7, now), Some((1, Source::Creator)));
        table.learn(7, Claim::Sent, &worker, false, now);
        assert_eq!(told(&mut table, 7, now), Some((2, Source::Sender)));
        // That the maker closes it says nothing of who sent.
        table.learn(7, Claim::Released, &maker, false, now);
        assert_eq!(told(&mut table, 7, now), Some((2, Source::Sender)));
    }

    #[test]
    fn a_socket_that_was_passed_on_is_not_its_makers() {
        let (maker, heir, late, now) =
            (process(1, 1), process(2, 2), process(3, 3), Instant::now());
        let mut table = Table::default();
        table.learn(7, Claim::Created, &maker, false, now);
        table.round(holders(&[(7, &late), (7, &maker), (7, &heir)]), now, now);
        assert_eq!(told(&mut table, 7, now), Some((1, Source::Creator)));
        table.round(holders(&[(7, &late), (7, &heir), (7, &late)]), now, now);
        assert_eq!(told(&mut table, 7, now), Some((2, Source::Descriptor)));
    }

    #[test]
    fn the_kernel_owns_what_no_process_has_to_do_with() {
        let (kworker, shell, now) = (process(9, 0), process(1, 1), Instant::now());
        let mut table = Table::default();
        table.learn(7, Claim::Sent, &kworker, true, now);
        assert!(matches!(table.owner(7, now), Owner::Kernel));
        table.learn(7, Claim::Created, &shell, false, now);
        assert_eq!(told(&mut table, 7, now), Some((1, Source::Creator)));
        // A worker that drops the last reference is nobody's owner.
        table.learn(8, Claim::Released, &kworker, true, now);
        assert!(matches!(table.owner(8, now), Owner::Unknown));
        table.learn(9, Claim::Released, &shell, false, now);
        assert_eq!(told(&mut table, 9, now), Some((1, Source::Descriptor)));
    }

    #[test]
    fn closed_sockets_are_forgotten_after_a_while_unless_asked_for() {
        let (shell, begin) = (process(1, 1), Instant::now());
        let mut table = Table::default();
        for cookie in 1..=3 {
            table.learn(cookie, Claim::Created, &shell, false, begin);
        }
        table.learn(1, Claim::Released, &shell, false, begin);
        table.learn(2, Claim::Released, &shell, false, begin);
        let later = begin + KEEP / 2;
        assert!(told(&mut table, 2, later).is_some());
        table.forget(later);
        assert_eq!(table.len(), 3);
        table.forget(begin + KEEP);
        assert_eq!(table.entries.keys().copied().collect::<Vec<_>>(), [2, 3]);
        table.forget(later + KEEP);
        assert_eq!(table.entries.keys().copied().collect::<Vec<_>>(), [3]);
        // The end of the third was lost. A round that began after all that was heard of it does not find it.
        let round = begin + Duration::from_secs(1);
        table.round(Holders::default(), round, round);
        assert!(told(&mut table, 3, round).is_some());
        table.forget(round + KEEP);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn a_round_says_nothing_of_what_was_heard_during_it() {
        let (shell, begin) = (process(1, 1), Instant::now());
        let mut table = Table::default();
        table.learn(1, Claim::Created, &shell, false, begin + Duration::from_millis(1));
        table.round(Holders::default(), begin, begin + Duration::from_millis(2));
        table.forget(begin + 3 * KEEP);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn memory_is_bounded() {
        let (shell, now) = (process(1, 1), Instant::now());
        let mut table = Table::default();
        let most = MOST as u64;
        for cookie in 0..most {
            table.learn(cookie, Claim::Created, &shell, false, now);
        }
        table.learn(100, Claim::Released, &shell, false, now);
        table.learn(most, Claim::Created, &shell, false, now);
        table.forget(now);
        assert_eq!(table.len(), MOST);
        assert!(told(&mut table, 100, now).is_none() && told(&mut table, 0, now).is_some());
        table.learn(most + 1, Claim::Created, &shell, false, now);
        table.forget(now);
        assert_eq!(table.len(), MOST);
        assert!(told(&mut table, 0, now).is_none());
    }
}
