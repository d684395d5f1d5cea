// SPDX-License-Identifier: MIT OR Apache-2.0

//! Attaching in a network namespace of its own: what is there before, is there after, and nothing else.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;

use libbpf_rs::libbpf_sys;

use super::tc::{self, Direction, Hook, Order, TcBackend};
use super::xdp::{self, XdpMode};
use crate::kernel::netlink::{EGRESS, Filter, FilterKey, INGRESS, Interface, Netlink};
use crate::kernel::{netns, sys};

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP needs root, to load BPF programs");
    }
    root
}

fn run(line: &str) {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn in_namespace(work: impl FnOnce() + Send) {
    if root() {
        netns::within_new(|| {
            run("ip link add left type veth peer name right");
            run("ip link set left up");
            run("ip link set right up");
            work();
        })
        .unwrap();
    }
}

/// A child of another test may have our descriptors until it is another program.
fn soon(holds: impl Fn() -> bool) -> bool {
    (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        holds()
    })
}

fn interface(name: &str) -> Interface {
    let all = Netlink::open().unwrap().interfaces().unwrap();
    all.into_iter().find(|interface| interface.name == name).unwrap()
}

fn xdp_program() -> OwnedFd {
    sys::load_trivial(libbpf_sys::BPF_PROG_TYPE_XDP, 0, 0).unwrap()
}

fn tc_program() -> OwnedFd {
    sys::load_trivial(libbpf_sys::BPF_PROG_TYPE_SCHED_CLS, 0, 0).unwrap()
}

#[test]
fn xdp_modes() {
    in_namespace(|| {
        let program = xdp_program();
        let attach = |name: &str, mode| xdp::attach(program.as_fd(), &interface(name), mode);

        let link = attach("left", None).unwrap();
        assert_eq!(link.mode, XdpMode::Generic);
        assert!(link.because.as_ref().unwrap().contains("veth"), "{link:?}");
        assert_eq!(interface("left").xdp.len(), 1);
        drop(link);
        assert!(soon(|| interface("left").xdp.is_empty()));

        let link = attach("left", Some(XdpMode::Native)).unwrap();
        assert_eq!((link.mode, interface("left").xdp[0].0), (XdpMode::Native, 4));
        drop(link);
        assert!(soon(|| interface("left").xdp.is_empty()));

        // The loopback is of no kind, and its driver has no XDP.
        let link = attach("lo", None).unwrap();
        assert_eq!(link.mode, XdpMode::Generic);
        assert!(link.because.as_ref().unwrap().contains("driver refuses"), "{link:?}");
        drop(link);
        let error = attach("lo", Some(XdpMode::Native)).unwrap_err();
        assert!(format!("{error:#}").contains("cannot attach native XDP to lo"), "{error:#}");
        assert_eq!(crate::error::status_of(&error), crate::error::Status::Unsupported);
    });
}

#[test]
fn xdp_of_somebody_else_stays_and_then_nothing_is_attached() {
    in_namespace(|| {
        let (theirs, ours) = (xdp_program(), xdp_program());
        let id = sys::program_info(theirs.as_fd()).unwrap().id;
        for mode in [XdpMode::Native, XdpMode::Generic] {
            let there = xdp::attach(theirs.as_fd(), &interface("right"), Some(mode)).unwrap();
            for asked in [None, Some(XdpMode::Native), Some(XdpMode::Generic)] {
                let both = [interface("left"), interface("right")];
                let error = xdp::attach_all(ours.as_fd(), &both, asked).unwrap_err().to_string();
                let named = format!(
                    "right has an XDP program already ({mode}): program {id} `bpftk_probe`"
                );
                assert!(error.starts_with(&named), "{error}");
                assert!(soon(|| interface("left").xdp.is_empty()));
                assert_eq!(interface("right").xdp[0].1, id);
            }
            // It comes between our look and our attaching.
            let mut unaware = interface("right");
            unaware.xdp.clear();
            let error = xdp::attach(ours.as_fd(), &unaware, None).unwrap_err().to_string();
            assert!(error.contains(&format!("program {id}")), "{error}");
            drop(there);
            assert!(soon(|| interface("right").xdp.is_empty()));
        }
    });
}

fn hooks<'a>(program: &'a OwnedFd, interface: &'a Interface) -> [Hook<'a>; 2] {
    [Direction::Ingress, Direction::Egress].map(|direction| Hook {
        program: program.as_fd(),
        interface,
        direction,
    })
}

#[test]
fn tcx_links_stand_in_the_order_asked_for() {
    in_namespace(|| {
        let Ok(_) = sys::attached(1, libbpf_sys::BPF_TCX_INGRESS) else {
            println!("SKIP this kernel has no tcx");
            return;
        };
        let left = interface("left");
        let programs = [tc_program(), tc_program(), tc_program()];
        let ids = programs.each_ref().map(|program| sys::program_info(program.as_fd()).unwrap().id);
        let attach = |n: usize, order| {
            tc::attach_all(TcBackend::Tcx, &hooks(&programs[n], &left), order, false).unwrap()
        };
        let there = || {
            [libbpf_sys::BPF_TCX_INGRESS, libbpf_sys::BPF_TCX_EGRESS]
                .map(|kind| sys::attached(left.index, kind).unwrap())
        };
        let middle = attach(0, Order::Last);
        let first = attach(1, Order::First);
        let last = attach(2, Order::Last);
        let expected = vec![ids[1], ids[0], ids[2]];
        assert_eq!(there(), [expected.clone(), expected]);
        drop(first);
        assert!(soon(|| there()[0] == [ids[0], ids[2]]));
        drop((middle, last));
        assert!(soon(|| there().iter().all(Vec::is_empty)));
        assert_eq!(Netlink::open().unwrap().ingress_qdisc(left.index).unwrap(), None);
    });
}

#[test]
fn clsact_goes_if_it_is_ours_and_empty() {
    in_namespace(|| {
        let netlink = Netlink::open().unwrap();
        let left = interface("left");
        let program = tc_program();
        let id = sys::program_info(program.as_fd()).unwrap().id;
        let attach =
            |order| tc::attach_all(TcBackend::Clsact, &hooks(&program, &left), order, false);
        let qdisc = || netlink.ingress_qdisc(left.index).unwrap();
        let filters = |parent| netlink.filters(left.index, parent).unwrap();

        // Made, and removed.
        let attached = match attach(Order::First) {
            Ok(attached) => attached,
            Err(error) => {
                assert_eq!(crate::error::status_of(&error), crate::error::Status::Unsupported);
                println!("SKIP {error:#}");
                return;
            }
        };
        assert_eq!(qdisc().as_deref(), Some("clsact"));
        for parent in [INGRESS, EGRESS] {
            let there = filters(parent);
            assert_eq!((there.len(), there[0].program, there[0].key.priority()), (1, id, 1));
        }
        // A second one beside it, of the same process.
        let second = attach(Order::Last).unwrap();
        assert_eq!(filters(EGRESS).len(), 2);
        drop(attached);
        assert_eq!((filters(INGRESS).len(), filters(INGRESS)[0].key.priority()), (1, 0xffff));
        assert_eq!(qdisc().as_deref(), Some("clsact"));
        // The second had not made it, but is the last.
        drop(second);
        assert_eq!(qdisc(), None);

        let attached = attach(Order::First).unwrap();
        drop(attached);
        assert_eq!(qdisc(), None);

        // Somebody else's filter keeps it, and stays.
        let attached = attach(Order::First).unwrap();
        let theirs = tc_program();
        let key = FilterKey::new(left.index, EGRESS, 7, 1);
        netlink.add_filter(key, theirs.as_raw_fd(), "theirs").unwrap();
        drop(attached);
        assert_eq!(qdisc().as_deref(), Some("clsact"));
        assert!(!netlink.has_filters(left.index, INGRESS).unwrap());
        assert!(filters(EGRESS).len() == 1 && filters(EGRESS)[0].key == key);

        // Somebody else's qdisc stays.
        run("tc filter del dev left egress");
        drop(attach(Order::First).unwrap());
        assert_eq!(qdisc().as_deref(), Some("clsact"));
        assert!(!netlink.has_filters(left.index, EGRESS).unwrap());
        run("tc qdisc del dev left clsact");

        // An ingress qdisc has half of what clsact has.
        run("tc qdisc add dev left ingress");
        let error = attach(Order::First).unwrap_err().to_string();
        assert!(
            error.contains("left has the qdisc `ingress`") || error.contains("egress"),
            "{error}"
        );
        assert!(filters(INGRESS).is_empty());
        let ingress = &hooks(&program, &left)[..1];
        let attached = tc::attach_all(TcBackend::Clsact, ingress, Order::First, false).unwrap();
        assert_eq!(filters(INGRESS).len(), 1);
        drop(attached);
        assert_eq!((filters(INGRESS).len(), qdisc().as_deref()), (0, Some("ingress")));
    });
}

/// A priority with filters of another kind or protocol takes none of ours: the next one does, and it is told.
#[test]
fn clsact_priorities_of_others_are_stepped_over() {
    in_namespace(|| {
        let netlink = Netlink::open().unwrap();
        let left = interface("left");
        let program = tc_program();
        run("tc qdisc add dev left clsact");
        // Classic BPF, which accepts all packets, of one protocol: cls_bpf is all that it takes.
        for priority in [1, 2, 0xffff] {
            let line =
                format!("filter add dev left egress prio {priority} protocol ip bpf flowid 1:1");
            let mut tc = Command::new("tc");
            tc.args(line.split(' ')).args(["bytecode", "1,6 0 0 1"]);
            assert!(tc.status().unwrap().success(), "{line}");
        }
        let theirs = || {
            let out = Command::new("tc").args(["filter", "show", "dev", "left", "egress"]).output();
            String::from_utf8(out.unwrap().stdout).unwrap()
        };
        let before = theirs();
        for (order, [ingress, egress], words) in [
            (
                Order::First,
                [1, 3],
                "left egress: filters of another kind have the first priorities, ours has 3",
            ),
            (
                Order::Last,
                [0xffff, 0xfffe],
                "left egress: filters of another kind have the last priorities, ours has 65534",
            ),
        ] {
            let mut attached =
                match tc::attach_all(TcBackend::Clsact, &hooks(&program, &left), order, false) {
                    Ok(attached) => attached,
                    Err(error) => {
                        println!("SKIP {error:#}");
                        return;
                    }
                };
            for (parent, priority) in [(INGRESS, ingress), (EGRESS, egress)] {
                let ours = |filter: &Filter| filter.name.starts_with("bpftk_");
                let there = netlink.filters(left.index, parent).unwrap();
                let there: Vec<_> = there.into_iter().filter(ours).collect();
                assert_eq!(there.len(), 1);
                assert_eq!(there[0].key.priority(), priority);
            }
            let remarks = attached.take_remarks();
            assert!(remarks.len() == 1 && remarks[0].starts_with(words), "{remarks:?}");
            assert!(attached.take_remarks().is_empty(), "once");
            drop(attached);
            assert_eq!(theirs(), before);
        }
    });
}

/// Several at once, which come and go: the qdisc never goes from under one, and is gone with the last.
#[test]
fn the_last_of_many_removes_the_qdisc() {
    in_namespace(|| {
        let left = interface("left");
        let netlink = Netlink::open().unwrap();
        let namespace = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let program = tc_program();
        let attach = || {
            tc::attach_all(TcBackend::Clsact, &hooks(&program, &left), Order::First, false)
                .map(drop)
        };
        if let Err(error) = attach() {
            assert_eq!(crate::error::status_of(&error), crate::error::Status::Unsupported);
            println!("SKIP {error:#}");
            return;
        }
        let round = |stay: bool| {
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)
                            .unwrap();
                        let netlink = Netlink::open().unwrap();
                        for _ in 0..25 {
                            let program = tc_program();
                            let id = sys::program_info(program.as_fd()).unwrap().id;
                            let hooks = hooks(&program, &left);
                            let attached =
                                tc::attach_all(TcBackend::Clsact, &hooks, Order::Last, false)
                                    .unwrap();
                            for parent in [INGRESS, EGRESS] {
                                let there = netlink.filters(left.index, parent).unwrap();
                                assert!(there.iter().any(|filter| filter.program == id));
                            }
                            drop(attached);
                        }
                    });
                }
            });
            let qdisc = netlink.ingress_qdisc(left.index).unwrap();
            assert_eq!(qdisc.as_deref(), stay.then_some("clsact"));
        };
        round(false);
        // Not if it isn't ours, however many we are.
        netlink.add_clsact(left.index).unwrap();
        round(true);
        // And not what somebody else made in the place of ours, which took our filters along.
        run("tc qdisc del dev left clsact");
        let attached =
            tc::attach_all(TcBackend::Clsact, &hooks(&program, &left), Order::First, false)
                .unwrap();
        run("tc qdisc del dev left clsact");
        run("tc qdisc add dev left clsact");
        drop(attached);
        let qdisc = netlink.ingress_qdisc(left.index).unwrap();
        assert_eq!(qdisc.as_deref(), Some("clsact"));
    });
}
