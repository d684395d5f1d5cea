// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which process a packet's socket belongs to.
//!
//! Packets and processes are joined here, in user space, by socket cookie: the kernel's number of a socket, which it gives
//! out once and never again. So what is learned late still tells of packets that were counted early, and asking again may
//! give a better answer. What it is learned from, the best first:
//!
//! * who sent through the socket last (a tracepoint; before Linux 6.3 fentry or kprobes): right for accepted sockets, and for
//!   those that were passed on;
//! * who made it (a program at the root of cgroup v2), before its first packet, however short the process lives;
//! * who has it open (an iterator over all files of all processes): at the start, for what is older than bpftk, and at most
//!   once a second when a socket is asked for that nothing else told of, or when records were lost;
//! * who closed it (the root of cgroup v2 again): for accepted sockets where senders can't be seen.
//!
//! A process is its id and its start time, so an id that is used again never stands for two.

mod files;
mod process;
mod programs;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use plain::Plain;

use self::files::Files;
use self::process::Processes;
pub(crate) use self::process::{Identity, Process};
use self::programs::Programs;
pub(crate) use self::programs::Senders;
use self::table::{Holders, Table};
use super::backend;
use super::btf::BtfSource;
use super::caps::{Cap, Held};
use super::cgroup::{Paths, Root};
use super::limits;
use super::ring::copy_from;
use super::skel::owners::types;
use crate::error::{limited, unsupported};

/// Who sends what leaves through a socket.
#[derive(Clone, Debug)]
pub(crate) enum Owner {
    Process(Rc<Process>, Source),
    /// The kernel itself: nothing that a process sent.
    Kernel,
    /// No socket of this machine: a packet that it passes on.
    Forwarded,
    /// Nothing has told so far.
    Unknown,
}

/// How a process came to be known as the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// It sent through the socket last.
    Sender,
    /// It made the socket.
    Creator,
    /// It received from the socket; nobody was seen to send.
    Receiver,
    /// It has, or had last, the socket open; it need not be the only one.
    Descriptor,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sender => "sender",
            Self::Creator => "creator",
            Self::Receiver => "receiver",
            Self::Descriptor => "descriptor",
        })
    }
}

/// How to see who sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SendersBy {
    /// The first way that works here.
    #[default]
    Best,
    Only(Senders),
    /// Not at all.
    Nothing,
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) btf: BtfSource,
    pub(crate) senders: SendersBy,
    /// Of the ring buffer: a power of two, and a multiple of any page size.
    pub(crate) ring_bytes: u32,
}

impl Default for Options {
    fn default() -> Self {
        // Some 60 000 records.
        Self { btf: BtfSource::default(), senders: SendersBy::Best, ring_bytes: 4 << 20 }
    }
}

/// What can't be had on this machine, and what is lost by that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) what: String,
    pub(crate) cost: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.cost, self.what)
    }
}

const WITHOUT_ROOT: &str = "sockets are only found by looking through all open files once a second: those that live shorter \
     have no owner";
const WITHOUT_SENDERS: &str =
    "a socket's owner is who made it, or has it open, not who sends through it";
const WITHOUT_FILES: &str = "sockets that are older than bpftk have no owner until they send";
const WITHOUT_OLD: &str = "sockets that are older than bpftk have no owner";
const WITHOUT_EXE: &str = "the programs of other users' processes are not known by path";

/// What happened to a socket: struct owner_record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    Created,
    Released,
    Sent,
    Received,
    Holds,
}

#[derive(Clone, Debug)]
struct Record {
    cookie: u64,
    process: Identity,
    cgroup_id: u64,
    uid: u32,
    comm: [u8; 16],
    claim: Claim,
    is_kernel: bool,
}

// SAFETY: integers and arrays of integers without hidden padding, as bpf/owners.h asserts.
unsafe impl Plain for types::owner_record {}

const RECORD_LEN: usize = size_of::<types::owner_record>();
const _: () = assert!(RECORD_LEN == 56);

impl Record {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let record: types::owner_record = copy_from(bytes)?;
        let claim = match types::owner_claim(record.claim.into()) {
            types::owner_claim::OWNER_CREATED => Claim::Created,
            types::owner_claim::OWNER_RELEASED => Claim::Released,
            types::owner_claim::OWNER_SENT => Claim::Sent,
            types::owner_claim::OWNER_RECEIVED => Claim::Received,
            types::owner_claim::OWNER_HOLDS => Claim::Holds,
            _ => return None,
        };
        Some(Self {
            cookie: record.cookie,
            process: Identity { tgid: record.tgid, start_ns: record.start_ns },
            cgroup_id: record.cgroup_id,
            uid: record.uid,
            comm: record.comm,
            claim,
            is_kernel: record.is_kernel != 0,
        })
    }
}

/// No more rounds over all files than one in this time.
const BETWEEN_ROUNDS: Duration = Duration::from_secs(1);
/// A round that does not find a socket may have come too early: the process that accepts it had not got there.
const ROUNDS_FOR_ONE: u8 = 3;
/// Where senders can't be seen, who has a passed-on socket is only found so.
const ROUND_WITHOUT_SENDERS: Duration = Duration::from_secs(10);
/// Sockets that rounds are still made for; more than that, and the count of rounds starts anew.
const MOST_WANTED: usize = 1 << 16;
/// So many are kept without a look at whether they are of use.
const FEW_PROCESSES: usize = 1024;
/// Records taken in at a time, so that a flood does not keep the caller from its other duties.
const BATCHES: usize = 64;

/// Owners of sockets, from its start on. Dropping it ends everything that it has in the kernel.
#[derive(Debug)]
pub(crate) struct Owners {
    programs: Option<Programs>,
    files: Option<Files>,
    senders: Option<Senders>,
    table: Table,
    processes: Processes,
    /// Sockets that were asked for in vain, and how many rounds did not find them.
    wanted: HashMap<u64, u8>,
    /// Whether a round is due.
    due: bool,
    last_round: Option<Instant>,
    lost: u64,
    rounds: u64,
    /// How many were left when processes were last forgotten.
    processes_kept: usize,
}

impl Owners {
    /// Begins to watch, and looks at all sockets that there are. What is missing here is no error, unless all is.
    pub(crate) fn start(options: &Options) -> Result<(Self, Vec<Missing>)> {
        let btf = &options.btf;
        let mut missing = Vec::new();
        let mut lacks = |what: &anyhow::Error, cost| {
            missing.push(Missing { what: format!("{what:#}"), cost });
        };
        let root = Root::open().map_err(|error| lacks(&error, WITHOUT_ROOT)).ok();
        let (programs, senders) = match arm(options, root.as_ref()) {
            Ok(Armed { programs, senders, without }) => {
                for (error, cost) in &without {
                    lacks(error, cost);
                }
                (Some(programs), senders)
            }
            Err(error) => {
                if let SendersBy::Only(_) = options.senders {
                    return Err(error);
                }
                lacks(&error, WITHOUT_ROOT);
                (None, None)
            }
        };
        let cost = if senders.is_some() { WITHOUT_FILES } else { WITHOUT_OLD };
        let files = Files::load(btf).map_err(|error| lacks(&error, cost)).ok();
        if let Some(limit) = missing.iter().find_map(|missing| limits::named_in(&missing.what)) {
            return Err(limited(limit));
        }
        if programs.is_none() && files.is_none() {
            let reasons: Vec<String> = missing.into_iter().map(|missing| missing.what).collect();
            return Err(unsupported(format!(
                "owners of sockets can't be found here: {}",
                reasons.join("; ")
            )));
        }
        if !Held::read()?.has(Cap::SysPtrace) {
            missing.push(Missing { what: "needs CAP_SYS_PTRACE".into(), cost: WITHOUT_EXE });
        }
        let mut owners = Self {
            programs,
            files,
            senders,
            table: Table::default(),
            processes: Processes::new(root.map_or_else(Paths::new, Paths::below)),
            wanted: HashMap::new(),
            due: false,
            last_round: None,
            lost: 0,
            rounds: 0,
            processes_kept: 0,
        };
        owners.round()?;
        owners.take()?;
        Ok((owners, missing))
    }

    /// Who owns the socket of this cookie, by all that is known now. 0 is no socket.
    ///
    /// For a socket that nothing told of, all open files are gone through by one of the next `take`s.
    pub(crate) fn of(&mut self, cookie: u64) -> Owner {
        if cookie == 0 {
            return Owner::Forwarded;
        }
        match self.table.owner(cookie, Instant::now()) {
            Owner::Process(process, source) => {
                Owner::Process(self.processes.latest(&process), source)
            }
            owner @ Owner::Unknown => {
                if self.wanted.len() >= MOST_WANTED {
                    self.wanted.clear();
                }
                let rounds = self.wanted.entry(cookie).or_default();
                self.due |= *rounds < ROUNDS_FOR_ONE;
                owner
            }
            owner => owner,
        }
    }

    /// Takes in what has happened since, without waiting. To be called when `fd` is readable, and every second or so:
    /// processes that are gone by then are still known, but not by the path of their program.
    pub(crate) fn take(&mut self) -> Result<()> {
        if let Some(programs) = &self.programs {
            for _ in 0..BATCHES {
                let more = programs.ring.fill()?;
                while let Some(record) = programs.ring.next() {
                    let process = self.processes.see(&record);
                    let Record { cookie, claim, is_kernel, .. } = record;
                    self.table.learn(cookie, claim, &process, is_kernel, Instant::now());
                }
                if !more {
                    break;
                }
            }
            let lost = programs.lost()?;
            self.due |= lost > self.lost;
            self.lost = lost;
        }
        let rest = if self.due {
            BETWEEN_ROUNDS
        } else if self.senders.is_none() {
            ROUND_WITHOUT_SENDERS
        } else {
            Duration::MAX
        };
        if self.last_round.is_none_or(|last| last.elapsed() >= rest) {
            self.round()?;
        }
        self.tidy();
        Ok(())
    }

    /// Forgets what no packet can be of any more.
    fn tidy(&mut self) {
        self.table.forget(Instant::now());
        if self.processes.len() > 2 * self.processes_kept.max(FEW_PROCESSES) {
            self.processes.keep(&self.table.processes());
            self.processes_kept = self.processes.len();
        }
    }

    /// Goes through all open files.
    fn round(&mut self) -> Result<()> {
        let Some(files) = &self.files else {
            self.due = false;
            return Ok(());
        };
        let begun = Instant::now();
        let mut holders = Holders::default();
        let processes = &mut self.processes;
        files.ask(|record| holders.add(record.cookie, processes.see(&record)))?;
        let now = Instant::now();
        self.table.round(holders, begun, now);
        let table = &mut self.table;
        self.wanted.retain(|&cookie, rounds| {
            *rounds = rounds.saturating_add(1);
            !table.knows(cookie)
        });
        self.due = self.wanted.values().any(|&rounds| rounds < ROUNDS_FOR_ONE);
        self.last_round = Some(now);
        self.rounds += 1;
        Ok(())
    }

    /// Readable when there is something to take. Nothing where there is nothing to wait for.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.programs.as_ref().map(|programs| programs.ring.fd())
    }

    /// How it is seen who sends.
    pub(crate) fn senders(&self) -> Option<Senders> {
        self.senders
    }

    /// Records that did not fit in the ring buffer. Each costs no more than a look through all open files.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Sockets that are remembered, and how often all open files were gone through.
    pub(crate) fn figures(&self) -> (usize, u64) {
        (self.table.len(), self.rounds)
    }
}

struct Armed {
    programs: Programs,
    senders: Option<Senders>,
    /// What had to be left out.
    without: Vec<(anyhow::Error, &'static str)>,
}

/// All that works: both halves, else one of them.
fn arm(options: &Options, root: Option<&Root>) -> Result<Armed> {
    let senders_error = match options.senders {
        SendersBy::Only(senders) => return choose(options, root, Some(senders)),
        SendersBy::Best => match choose(options, root, None) {
            Ok(armed) => return Ok(armed),
            Err(error) => Some(error),
        },
        SendersBy::Nothing => None,
    };
    // Why there is no root has been told.
    let Some(root) = root else {
        return Err(senders_error.unwrap_or_else(|| unsupported("no cgroup v2")));
    };
    match (Programs::load(options, Some(root), None), senders_error) {
        (Ok(programs), error) => {
            let without = error.map(|error| (error, WITHOUT_SENDERS)).into_iter().collect();
            Ok(Armed { programs, senders: None, without })
        }
        (Err(error), None) => Err(error),
        (Err(error), Some(_)) => {
            let armed = choose(options, None, None)?;
            Ok(Armed { without: vec![(error, WITHOUT_ROOT)], ..armed })
        }
    }
}

fn choose(options: &Options, root: Option<&Root>, forced: Option<Senders>) -> Result<Armed> {
    let chosen = backend::choose(&Senders::ORDER, forced, |senders| {
        Programs::load(options, root, Some(senders))
    })?;
    Ok(Armed { programs: chosen.armed, senders: Some(chosen.backend), without: Vec::new() })
}
