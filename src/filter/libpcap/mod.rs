// SPDX-License-Identifier: MIT OR Apache-2.0

//! tcpdump's expressions, compiled by libpcap to classic BPF.

mod library;
#[cfg(feature = "static")]
mod lookups;
mod names;

use anyhow::{Result, anyhow};

use self::library::{Library, Refused};
use super::classic::check::{check_with_loops, has_loop};
use super::classic::insn::Insn;
use super::classic::interp::{self, Rules};
use crate::error::{unsupported, usage};
use crate::net::linktype::{Header, LinkType};

/// What a packet begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// An Ethernet header
    Ethernet,
    /// An IPv4 or IPv6 header: tun, wireguard, ppp
    Raw,
}

impl Link {
    /// What the translation to eBPF takes it for. That loads from the packet's start, whatever is there; only beside an
    /// Ethernet header can the kernel keep a VLAN tag.
    pub(crate) fn of(file: LinkType) -> Self {
        match file.header() {
            Header::Ethernet => Self::Ethernet,
            _ => Self::Raw,
        }
    }
}

impl From<Link> for LinkType {
    fn from(link: Link) -> Self {
        match link {
            Link::Ethernet => Self::ETHERNET,
            Link::Raw => Self::RAW,
        }
    }
}

/// What packets an expression is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packets {
    /// Of an interface
    Live(Link),
    /// Of a capture file, that was written in this byte order
    File { link: LinkType, big_endian: bool },
}

impl From<Link> for Packets {
    fn from(link: Link) -> Self {
        Self::Live(link)
    }
}

/// How many bytes of a packet that matches are wanted, as tcpdump has it: all.
pub(crate) const SNAPLEN: u32 = 262_144;

/// An expression, and how to compile it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    pub(crate) expression: &'a str,
    pub(crate) packets: Packets,
    pub(crate) optimize: bool,
    pub(crate) names: Names,
}

/// What is done about names of hosts and networks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Names {
    /// libpcap looks them up.
    LookedUp,
    /// They are wrong usage; what is said to be right.
    Refused(&'static str),
}

impl Names {
    pub(crate) const REFUSED: Self = Self::Refused("an address");
}

/// Compiles an expression. What libpcap says of a wrong one is passed on.
pub(crate) fn compile(source: &Source<'_>) -> Result<Vec<Insn>> {
    let library = library()?;
    let name = names::looked_up(source.expression, library.version());
    match name {
        Some(name) if let Names::Refused(expected) = source.names => {
            return Err(usage(format!(
                "`{}`: `{}` is a name, and names are not looked up; expected {expected}",
                one_line(source.expression),
                one_line(name)
            )));
        }
        Some(name) if cfg!(feature = "static") => {
            return Err(unsupported(format!(
                "cannot look up `{}`: this bpftk is linked statically, and the C library looks names up by \
                 loading modules; use an address, or a bpftk that is linked dynamically",
                one_line(name)
            )));
        }
        _ => {}
    }
    library.compile(source).map_err(|refused| match refused {
        Refused::Message(message) => {
            usage(format!("`{}`: {}", one_line(source.expression), one_line(&message)))
        }
        Refused::Memory => anyhow!("libpcap: out of memory"),
    })
}

/// What libpcap's own interpreter returns for the packet: the reference for ours. The program is one that Linux takes,
/// or one with loops.
pub(crate) fn run(program: &[Insn], data: &[u8], length: u32) -> Result<u32> {
    // libpcap's follows jumps wherever they lead, and as often.
    check_with_loops(program)?;
    if has_loop(program) {
        let packet = interp::Packet { length, ..interp::Packet::new(data) };
        interp::run(program, &packet, Rules::Libpcap).map_err(|stuck| usage(stuck.to_string()))?;
    }
    Ok(library()?.run(program, data, length))
}

/// Whether libpcap is there, and else why not.
pub(crate) fn available() -> Result<()> {
    library().map(|_| ())
}

/// What libpcap calls itself, such as `libpcap version 1.10.3 (with TPACKET_V3)`.
pub(crate) fn version() -> Result<String> {
    Ok(library()?.version_text())
}

fn library() -> Result<&'static Library> {
    Library::get().map_err(|why| {
        unsupported(format!(
            "expressions need libpcap: {why}; install it (Debian, Ubuntu: libpcap0.8 or libpcap0.8t64; \
             Fedora, Arch, Alpine: libpcap), or give the filter as assembly"
        ))
    })
}

/// The user's text in a message of one line.
fn one_line(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::classic::asm::assemble;
    use super::*;
    use crate::error::{Status, status_of};

    fn here() -> bool {
        let here = available();
        if let Err(error) = &here {
            println!("SKIP {error}");
        }
        here.is_ok()
    }

    fn compile_it(expression: &str) -> Result<Vec<Insn>> {
        let packets = Link::Ethernet.into();
        compile(&Source { expression, packets, optimize: true, names: Names::REFUSED })
    }

    #[test]
    fn the_classic_arp_filter() {
        if !here() {
            return;
        }
        let program = assemble("ldh [12]\njne #0x806, drop\nret #262144\ndrop: ret #0").unwrap();
        assert_eq!(compile_it("arp").unwrap(), program);
        let raw = Source {
            expression: "ip",
            packets: Link::Raw.into(),
            optimize: true,
            names: Names::REFUSED,
        };
        assert_eq!(compile(&raw).unwrap()[0].code, 0x30);
        let plain = Source { optimize: false, ..raw };
        assert!(compile(&plain).unwrap().len() >= compile(&raw).unwrap().len());
    }

    #[test]
    fn packets_of_files() {
        if !here() {
            return;
        }
        let of = |expression, link, big_endian| {
            let packets = Packets::File { link: LinkType(link), big_endian };
            compile(&Source { expression, packets, optimize: true, names: Names::REFUSED })
        };
        assert_eq!(of("arp", 1, false).unwrap(), compile_it("arp").unwrap());
        // The same to libpcap on Linux.
        assert_eq!(of("ip", 12, false).unwrap(), of("ip", 101, false).unwrap());
        assert_eq!(of("ip", 14, true).unwrap(), of("ip", 101, false).unwrap());
        // The protocol's place, and what can be neither.
        assert_eq!(
            (of("ip", 113, false).unwrap()[0].k, of("ip", 276, false).unwrap()[0].k),
            (14, 0)
        );
        assert!(of("ip", 228, false).unwrap().len() == 1 && of("ip6", 228, false).is_err());
        assert!(of("ip6", 229, false).unwrap().len() == 1 && of("ip", 229, false).is_err());
        // Which of the two orders the family is in.
        let big = of("ip", 0, true).unwrap();
        assert!(big != of("ip", 0, false).unwrap());
        let error = of("ip", 147, false).unwrap_err();
        assert_eq!(status_of(&error), Status::Usage, "{error}");
    }

    #[test]
    fn what_libpcap_says_is_passed_on() {
        if !here() {
            return;
        }
        for (expression, part) in [
            ("tcp port", "syntax error"),
            ("ip broadcast", "netmask not known"),
            ("host 1.2.3.4 and", "syntax error"),
            ("port 99999", "99999"),
            ("port no-such-port", "no-such-port"),
            ("host example.org", "`example.org` is a name"),
            ("net foo", "`foo` is a name"),
            ("ether host foo", "`foo` is a name"),
            ("tcp\n\u{1b}[31m", "tcp  [31m"),
        ] {
            let error = compile_it(expression).unwrap_err();
            let text = format!("{error:#}");
            assert!(text.contains(part) && !text.contains('\n'), "{expression}: {text}");
            assert_eq!(status_of(&error), Status::Usage, "{text}");
        }
        assert!(compile_it("a\0b").is_err());
    }

    #[test]
    fn names_of_ports_and_protocols_are_known() {
        if !here() {
            return;
        }
        // Without these files there are no names, in the statically linked bpftk as in the other.
        let has = |file: &str, word: &str| {
            std::fs::read_to_string(file)
                .is_ok_and(|text| text.split_whitespace().any(|found| found == word))
        };
        if has("/etc/services", "http") {
            assert_eq!(compile_it("tcp port http").unwrap(), compile_it("tcp port 80").unwrap());
            let names = compile_it("portrange http-https").unwrap();
            assert_eq!(names, compile_it("portrange 80-443").unwrap());
        }
        if has("/etc/protocols", "udp") {
            assert_eq!(compile_it("ip proto \\udp").unwrap(), compile_it("ip proto 17").unwrap());
        }
        assert_eq!(compile_it("ether proto \\arp").unwrap(), compile_it("arp").unwrap());
    }

    #[test]
    fn many_threads_may_compile() {
        if !here() {
            return;
        }
        let alone = compile_it("tcp port 80 and not host 192.0.2.1").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let again = compile_it("tcp port 80 and not host 192.0.2.1").unwrap();
                        assert_eq!(again, alone);
                    }
                });
            }
        });
    }
}
