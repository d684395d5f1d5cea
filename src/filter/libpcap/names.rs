// SPDX-License-Identifier: MIT OR Apache-2.0

//! Finds the names in an expression that libpcap would look up: hosts by DNS, networks, Ethernet addresses. libpcap does
//! that inside its compiler and can't be told not to, so the names have to be found before it sees them.
//!
//! This follows libpcap's scanner token by token, and its grammar as far as it says what an identifier stands for: what
//! the last qualifier before it says, with that before a `(` in force again behind its `)`.

/// What an identifier would be looked up as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// A host, a network or an Ethernet address
    Address,
    /// A port or a protocol, from files of this machine
    Number,
}

/// The first name that would be looked up as an address, for libpcap of this version.
pub(crate) fn looked_up(expression: &str, version: (u32, u32)) -> Option<&str> {
    let mut meaning = Meaning::Address;
    let mut outside = Vec::new();
    // The last two tokens.
    let mut before = ("", "");
    let mut rest = expression;
    while let Some(c) = rest.chars().next() {
        let length = match token_length(rest) {
            0 => c.len_utf8(),
            length => length,
        };
        let (token, behind) = rest.split_at(length);
        rest = behind;
        if c.is_whitespace() {
            continue;
        }
        match token {
            "(" => outside.push(meaning),
            ")" => meaning = outside.pop().unwrap_or(Meaning::Address),
            "port" | "portrange" | "proto" | "protochain" => meaning = Meaning::Number,
            "host" | "net" | "gateway" | "src" | "dst" | "ra" | "ta" | "addr1" | "addr2"
            | "addr3" | "addr4" | "address1" | "address2" | "address3" | "address4" => {
                meaning = Meaning::Address;
            }
            _ if !is_identifier(token) || is_keyword(token, version) => {}
            // These take words of their own.
            _ if TAKE_WORDS.contains(&before.1) || before.0 == "batadv" => {}
            _ if meaning == Meaning::Address => return Some(token.trim_start_matches('\\')),
            _ => {}
        }
        before = (before.1, token);
    }
    None
}

const TAKE_WORDS: &[&str] = &[
    "on",
    "ifname",
    "rset",
    "ruleset",
    "reason",
    "action",
    "type",
    "subtype",
    "dir",
    "direction",
    "llc",
];

/// How long the identifier, the address or the escaped word is that `text` begins with; 0 for anything else.
fn token_length(text: &str) -> usize {
    if let Some(escaped) = text.strip_prefix('\\') {
        let end = escaped.find([' ', '!', '(', ')', '\n', '\t']).unwrap_or(escaped.len());
        return if end == 0 { 0 } else { 1 + end };
    }
    let word = word_length(text);
    word.max(colon_address_length(text))
}

/// `[A-Za-z0-9]([-_.A-Za-z0-9]*[.A-Za-z0-9])?`
fn word_length(text: &str) -> usize {
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return 0;
    }
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let end = text.find(|c| !inside(c)).unwrap_or(text.len());
    text[..end].trim_end_matches(['-', '_']).len()
}

/// An IPv6 address or an Ethernet address with colons.
fn colon_address_length(text: &str) -> usize {
    let inside = |c: char| c.is_ascii_hexdigit() || matches!(c, ':' | '.');
    let end = text.find(|c| !inside(c)).unwrap_or(text.len());
    (2..=end.min(45))
        .rev()
        .find(|&end| {
            let part = &text[..end];
            part.parse::<std::net::Ipv6Addr>().is_ok() || is_hardware(part, ':')
        })
        .unwrap_or(0)
}

fn is_hardware(text: &str, separator: char) -> bool {
    let pair = |part: &str| (1..=2).contains(&part.len()) && is_hex(part);
    text.split(separator).count() == 6 && text.split(separator).all(pair)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a token is a name: no number, no address.
fn is_identifier(token: &str) -> bool {
    if token.starts_with('\\') {
        return true;
    }
    if !token.starts_with(|c: char| c.is_ascii_alphanumeric()) || token.contains(':') {
        return false;
    }
    let number = |part: &str| {
        let hex = part.strip_prefix("0x").or_else(|| part.strip_prefix("0X"));
        match hex {
            Some(digits) => !digits.is_empty() && is_hex(digits),
            None => !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()),
        }
    };
    let dotted = token.split('.').count() <= 4 && token.split('.').all(number);
    let quads = token.split('.').count() == 3
        && token.split('.').all(|part| part.len() == 4 && is_hex(part));
    let plain = token.len() == 12 && is_hex(token);
    !(dotted || quads || plain || is_hardware(token, '-') || is_hardware(token, '.'))
}

fn is_keyword(word: &str, version: (u32, u32)) -> bool {
    let since = |major, minor| version >= (major, minor);
    match word {
        "ifindex" => since(1, 10),
        "vxlan" | "batadv" => since(1, 11),
        _ => KEYWORDS.contains(&word) || is_number_word(word),
    }
}

/// Names of offsets, types and flags, such as tcpflags and icmp6-echo.
fn is_number_word(word: &str) -> bool {
    const ICMP: &[&str] = &[
        "echoreply",
        "unreach",
        "sourcequench",
        "redirect",
        "echo",
        "routeradvert",
        "routersolicit",
        "timxceed",
        "paramprob",
        "tstamp",
        "tstampreply",
        "ireq",
        "ireqreply",
        "maskreq",
        "maskreply",
    ];
    const ICMP6: &[&str] = &[
        "destinationunreach",
        "packettoobig",
        "timeexceeded",
        "parameterproblem",
        "echo",
        "echoreply",
        "multicastlistenerquery",
        "multicastlistenerreportv1",
        "multicastlistenerdone",
        "routersolicit",
        "routeradvert",
        "neighborsolicit",
        "neighboradvert",
        "redirect",
        "routerrenum",
        "nodeinformationquery",
        "nodeinformationresponse",
        "ineighbordiscoverysolicit",
        "ineighbordiscoveryadvert",
        "multicastlistenerreportv2",
        "homeagentdiscoveryrequest",
        "homeagentdiscoveryreply",
        "mobileprefixsolicit",
        "mobileprefixadvert",
        "certpathsolicit",
        "certpathadvert",
        "multicastrouteradvert",
        "multicastroutersolicit",
        "multicastrouterterm",
    ];
    const TCP: &[&str] = &["fin", "syn", "rst", "push", "ack", "urg", "ece", "cwr"];
    let of = |prefix: &str, names: &[&str]| {
        word.strip_prefix(prefix).is_some_and(|name| names.contains(&name))
    };
    matches!(word, "icmptype" | "icmpcode" | "icmp6type" | "icmp6code" | "tcpflags")
        || of("icmp-", ICMP)
        || of("icmp6-", ICMP6)
        || of("tcp-", TCP)
}

const KEYWORDS: &[&str] = &[
    "link",
    "ether",
    "ppp",
    "slip",
    "fddi",
    "tr",
    "wlan",
    "arp",
    "rarp",
    "ip",
    "sctp",
    "tcp",
    "udp",
    "icmp",
    "igmp",
    "igrp",
    "pim",
    "vrrp",
    "carp",
    "radio",
    "ip6",
    "icmp6",
    "ah",
    "esp",
    "atalk",
    "aarp",
    "decnet",
    "lat",
    "sca",
    "moprc",
    "mopdl",
    "iso",
    "esis",
    "es-is",
    "isis",
    "is-is",
    "l1",
    "l2",
    "iih",
    "lsp",
    "snp",
    "csnp",
    "psnp",
    "clnp",
    "stp",
    "ipx",
    "netbeui",
    "mask",
    "type",
    "subtype",
    "direction",
    "dir",
    "less",
    "greater",
    "byte",
    "broadcast",
    "multicast",
    "and",
    "or",
    "not",
    "len",
    "length",
    "inbound",
    "outbound",
    "vlan",
    "mpls",
    "pppoed",
    "pppoes",
    "geneve",
    "lane",
    "llc",
    "metac",
    "bcc",
    "oam",
    "oamf4",
    "oamf4ec",
    "oamf4sc",
    "sc",
    "ilmic",
    "vpi",
    "vci",
    "connectmsg",
    "metaconnect",
    "on",
    "ifname",
    "rset",
    "ruleset",
    "rnr",
    "rulenum",
    "srnr",
    "subrulenum",
    "reason",
    "action",
    "fisu",
    "lssu",
    "lsu",
    "msu",
    "hfisu",
    "hlssu",
    "hmsu",
    "sio",
    "opc",
    "dpc",
    "sls",
    "hsio",
    "hopc",
    "hdpc",
    "hsls",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn name(expression: &str) -> Option<&str> {
        looked_up(expression, (1, 10))
    }

    #[test]
    fn names_that_would_be_looked_up() {
        for (expression, found) in [
            ("host example.org", "example.org"),
            ("example.org", "example.org"),
            ("net foo", "foo"),
            ("ether host foo", "foo"),
            ("src foo", "foo"),
            ("gateway gw", "gw"),
            ("tcp port 80 and dst host web-1", "web-1"),
            ("host 192.0.2.1 or foo", "foo"),
            ("host (192.0.2.1 or foo)", "foo"),
            ("not host \\tcp", "tcp"),
            ("host 1.2.3.4.5", "1.2.3.4.5"),
            ("host dead:beef", "dead"),
            ("host 192.0.2.1 and (port http) and foo", "foo"),
            ("port http and host foo", "foo"),
            ("host 192.0.2.1 and vxlan", "vxlan"),
            ("host\tfoo", "foo"),
            ("(host(foo))", "foo"),
            ("host 0x", "0x"),
            ("host 192.0.2.1&&foo", "foo"),
            ("host a-b_", "a-b"),
        ] {
            assert_eq!(name(expression), Some(found), "{expression}");
        }
    }

    #[test]
    fn names_that_are_not_addresses() {
        for expression in [
            "",
            "arp",
            "port http",
            "tcp port http or https",
            "tcp port (http or https) and not udp",
            "portrange 80-http",
            "ip proto \\icmp",
            "ether proto \\ip or \\arp",
            "ip6 protochain tcp",
            "host 192.0.2.1 and port domain",
            "host 2001:db8::1 or ::1 or fe80::1:2",
            "net 10.0.0.0/8 or 192.168 mask 255.255.0.0",
            "ip6 net 2001:db8::/32",
            "ether host 00:11:22:aa:bb:cc or aa-bb-cc-dd-ee-ff or aabb.ccdd.eeff or aabbccddeeff",
            "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0 and not src and dst net 10",
            "icmp[icmptype] != icmp-echo and icmp6[icmp6type]=icmp6-neighborsolicit",
            "ip[2:2] - ((ip[0]&0xf)<<2) > 0x10",
            "ether[0:4] = 0xdeadbeef",
            "on eth0 and action pass",
            "wlan type mgt subtype beacon",
            "llc i",
            "less 64 or greater 0x40 or len <= 12",
            "vlan 5 and mpls 3 and pppoes and geneve 1",
            "ifindex 3",
        ] {
            assert_eq!(name(expression), None, "{expression}");
        }
        assert_eq!(looked_up("host 192.0.2.1 and vxlan", (1, 11)), None);
        assert_eq!(looked_up("host 192.0.2.1 and ifindex 3", (1, 9)), Some("ifindex"));
    }
}
