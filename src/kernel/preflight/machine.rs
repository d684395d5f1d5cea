// SPDX-License-Identifier: MIT OR Apache-2.0

//! What belongs to this machine: the addresses of its network namespaces, and the ports that somebody listens at.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::kernel::addr::mapped;
use crate::kernel::mounts::Mount;
use crate::kernel::netlink::Netlink;
use crate::kernel::netns;

/// How often it is asked whether to stop, while a thread looks.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// What the last look into each namespace has found.
#[derive(Debug, Default)]
pub(super) struct Machine {
    /// By inode number. What is gone is forgotten.
    seen: HashMap<u64, Seen>,
    /// Namespaces that exist, and that no look was into.
    pub(super) unseen: u64,
    /// The last look was into all that there are.
    complete: bool,
    looks: u64,
}

#[derive(Debug)]
struct Seen {
    /// Which look was the last into it.
    look: u64,
    inside: Inside,
}

/// Of a namespace.
#[derive(Debug, Default)]
struct Inside {
    /// IPv4 as v4-mapped. Of the loopback network only what is set on an interface: all of it is known to be local.
    addresses: Vec<[u8; 16]>,
    listening: Vec<u16>,
}

impl Machine {
    pub(super) fn addresses(&self) -> BTreeSet<[u8; 16]> {
        self.seen.values().flat_map(|seen| &seen.inside.addresses).copied().collect()
    }

    pub(super) fn listening(&self) -> BTreeSet<u16> {
        self.seen.values().flat_map(|seen| &seen.inside.listening).copied().collect()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Looks into every namespace that a process is in or that is mounted somewhere, first into those that it was not
    /// into for longest. What it has no time for waits for the next look: it ends soon after `stop` says so, or when
    /// `time` is over.
    pub(super) fn look(&mut self, stop: impl Fn() -> bool, time: Duration) {
        self.looks += 1;
        let (found, unreadable, all) = namespaces(&stop);
        if all {
            self.seen.retain(|inode, _| found.contains_key(inode));
        }
        let own = fs::metadata("/proc/thread-self/ns/net").map_or(0, |meta| meta.ino());
        // One's own takes no privilege.
        self.add(own, here());
        let inodes: Vec<u64> = found.keys().copied().collect();
        let mut others: Vec<(u64, PathBuf)> =
            found.into_iter().filter(|(inode, _)| *inode != own).collect();
        others.sort_by_key(|(inode, _)| self.seen.get(inode).map_or(0, |seen| seen.look));
        let begin = Instant::now();
        let mut gone = HashSet::new();
        // Where no thread can be made, nobody has looked.
        if let Ok(answers) = look_into(others) {
            loop {
                match answers.recv_timeout(ASK_EVERY) {
                    Ok((inode, Answer::Inside(inside))) => self.add(inode, inside),
                    // It has no connections any more.
                    Ok((inode, Answer::Gone)) => _ = gone.insert(inode),
                    Ok((_, Answer::Refused)) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                if stop() || begin.elapsed() >= time {
                    break;
                }
            }
        }
        let unseen = |inode: &&u64| !self.seen.contains_key(inode) && !gone.contains(*inode);
        self.unseen = inodes.iter().filter(unseen).count() as u64 + unreadable;
        let now = |inode: &u64| self.seen.get(inode).is_some_and(|seen| seen.look == self.looks);
        self.complete =
            all && unreadable == 0 && inodes.iter().all(|inode| now(inode) || gone.contains(inode));
    }

    fn add(&mut self, inode: u64, inside: Inside) {
        self.seen.insert(inode, Seen { look: self.looks, inside });
    }
}

/// What came of a look into a namespace.
#[derive(Debug)]
enum Answer {
    Inside(Inside),
    Gone,
    Refused,
}

/// A thread looks into one after the other, and ends when nobody waits for its answers any more.
fn look_into(namespaces: Vec<(u64, PathBuf)>) -> io::Result<Receiver<(u64, Answer)>> {
    let (sender, receiver) = mpsc::channel();
    if namespaces.is_empty() {
        return Ok(receiver);
    }
    thread::Builder::new().name("namespaces".into()).spawn(move || {
        for (inode, path) in namespaces {
            if sender.send((inode, answer(inode, &path))).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// Takes the calling thread into the namespace.
fn answer(inode: u64, path: &Path) -> Answer {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Answer::Refused,
        Err(_) => return Answer::Gone,
    };
    // The process may have moved, or another one may have its id.
    if !file.metadata().is_ok_and(|meta| meta.ino() == inode) {
        return Answer::Gone;
    }
    match netns::enter(&file) {
        Ok(()) => Answer::Inside(here()),
        Err(_) => Answer::Refused,
    }
}

/// By inode number, each with a path to it; how many others there are, which none of their processes lets us read; and
/// whether these are all, since `stop` did not say so before.
fn namespaces(stop: impl Fn() -> bool) -> (HashMap<u64, PathBuf>, u64, bool) {
    let mut found = HashMap::new();
    let mut all = true;
    let mut unreadable = Vec::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in processes {
        if stop() {
            all = false;
            break;
        }
        let name = entry.file_name();
        if !name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
            continue;
        }
        let path = entry.path().join("ns/net");
        match fs::metadata(&path) {
            Ok(meta) => {
                found.entry(meta.ino()).or_insert(path);
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                unreadable.push(entry.path());
            }
            // It is gone.
            Err(_) => {}
        }
    }
    let unreadable = unknown_among(&unreadable, found.values());
    // Such as those that `ip netns` keeps without a process in them.
    for mount in Mount::of_this_process().into_iter().filter(|mount| mount.fstype == "nsfs") {
        if let Ok(meta) = fs::metadata(&mount.point)
            && mount.root.to_string_lossy().starts_with("net:")
        {
            found.entry(meta.ino()).or_insert(mount.point);
        }
    }
    (found, unreadable, all)
}

/// In how many namespaces these processes are that none of the paths (`/proc/PID/ns/net`) is of. A process that may not
/// be looked at (the first one of a container, say) still shows the files of its namespace, which have numbers of their
/// own in each.
fn unknown_among<'a>(processes: &[PathBuf], known: impl Iterator<Item = &'a PathBuf>) -> u64 {
    if processes.is_empty() {
        return 0;
    }
    let number = |process: &Path| fs::metadata(process.join("net/dev")).map(|meta| meta.ino());
    let known: HashSet<u64> = known
        .filter_map(|path| path.parent()?.parent())
        .chain([Path::new("/proc/thread-self")])
        .filter_map(|process| number(process).ok())
        .collect();
    // Those that end meanwhile have none.
    let all: HashSet<u64> = processes.iter().filter_map(|process| number(process).ok()).collect();
    all.difference(&known).count() as u64
}

/// Of the calling thread's namespace.
fn here() -> Inside {
    let addresses = Netlink::open().and_then(|netlink| netlink.addresses()).unwrap_or_default();
    let listening = ["tcp", "tcp6"].into_iter().flat_map(listeners).collect();
    Inside { addresses: addresses.into_iter().map(mapped).collect(), listening }
}

fn listeners(table: &str) -> Vec<u16> {
    let Ok(file) = File::open(format!("/proc/thread-self/net/{table}")) else {
        return Vec::new();
    };
    // The kernel tells the listening sockets first (net/ipv4/tcp_ipv4.c, tcp_get_idx), and the others may be many.
    BufReader::new(file).lines().map_while(Result::ok).skip(1).map_while(|l| listener(&l)).collect()
}

/// `  0: 0100007F:1F90 00000000:0000 0A …`
fn listener(line: &str) -> Option<u16> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, _, state) = (words.next()?, words.next()?, words.next()?);
    if state != "0A" {
        return None;
    }
    u16::from_str_radix(local.rsplit(':').next()?, 16).ok()
}

/// Ports that the kernel gives to clients, in our own namespace.
pub(super) fn ephemeral() -> (u16, u16) {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_ascii_whitespace().filter_map(|word| word.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(low), Some(high)) => (low, high),
        // net/ipv4/af_inet.c
        _ => (32768, 60999),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, TcpListener};

    fn look(machine: &mut Machine) {
        machine.look(|| false, Duration::MAX);
    }

    #[test]
    fn a_listener_is_seen_while_it_listens_and_a_connection_is_none() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut machine = Machine::default();
        look(&mut machine);
        assert!(machine.listening().contains(&port));
        assert!(!machine.listening().contains(&client.local_addr().unwrap().port()));
        assert!(machine.addresses().contains(&mapped(IpAddr::from([127, 0, 0, 1]))));
        drop(socket);
        look(&mut machine);
        assert!(!machine.listening().contains(&port));
    }

    #[test]
    fn addresses_and_namespaces_that_are_gone_are_forgotten() {
        const HERE: [u8; 4] = [198, 51, 100, 77];
        let ip = |change: &str| {
            let args = ["address", change, "198.51.100.77/32", "dev", "lo"];
            std::process::Command::new("ip").args(args).status().is_ok_and(|it| it.success())
        };
        let address = mapped(IpAddr::from(HERE));
        let mut machine = Machine::default();
        let made = netns::within_new(|| {
            if !ip("add") {
                return println!("SKIP no address can be set here");
            }
            look(&mut machine);
            assert!(machine.addresses().contains(&address));
            assert!(ip("del"));
            look(&mut machine);
            assert!(!machine.addresses().contains(&address));
            assert!(ip("add"));
            look(&mut machine);
            assert!(machine.addresses().contains(&address));
        });
        // It takes privileges to make a namespace; now that one is gone, with its thread.
        if made.is_ok() {
            look(&mut machine);
            assert!(!machine.addresses().contains(&address));
        }
    }

    #[test]
    fn one_s_own_namespace_is_seen_without_any_time_and_none_is_forgotten_then() {
        let mut machine = Machine::default();
        machine.look(|| true, Duration::ZERO);
        assert!(!machine.addresses().is_empty() && !machine.is_complete());
        let inside = Inside { addresses: vec![[7; 16]], listening: vec![7] };
        machine.seen.insert(u64::MAX, Seen { look: 0, inside });
        machine.look(|| true, Duration::ZERO);
        assert!(machine.addresses().contains(&[7; 16]) && machine.listening().contains(&7));
        look(&mut machine);
        assert!(!machine.addresses().contains(&[7; 16]));
    }

    #[test]
    fn a_process_that_may_not_be_looked_at_is_in_a_known_namespace_or_not() {
        let own = PathBuf::from("/proc/self");
        assert_eq!(unknown_among(&[own.clone(), own.clone()], [].iter()), 0);
        assert_eq!(unknown_among(&[PathBuf::from("/proc/0")], [].iter()), 0);
        // In a namespace that nobody else is in, what was outside is unknown. It takes privileges to make one.
        let outside = format!("/proc/{}", std::process::id());
        let unknown = netns::within_new(|| unknown_among(&[PathBuf::from(&outside)], [].iter()));
        if let Ok(unknown) = unknown {
            assert_eq!(unknown, 1);
            let path = own.join("ns/net");
            let unknown = netns::within_new(|| unknown_among(&[own], [path].iter()));
            assert_eq!(unknown.unwrap(), 0);
        }
    }

    #[test]
    fn a_line_of_the_table() {
        let line =
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 1 1";
        assert_eq!(listener(line), Some(8080));
        assert_eq!(listener(&line.replace(" 0A ", " 01 ")), None);
        let v6 = "   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0";
        assert_eq!(listener(v6), Some(80));
        assert_eq!(listener("odd"), None);
    }

    #[test]
    fn clients_get_ports_from_a_range() {
        let (low, high) = ephemeral();
        assert!(low <= high && low > 0);
    }
}
