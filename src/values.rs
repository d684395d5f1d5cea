// SPDX-License-Identifier: MIT OR Apache-2.0

//! Strict parsers for option values: what is not fully understood is an error that says what would be.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::unistd::User;

/// A duration with its unit: `500us`, `500ms`, `2s`, `5m`, `1h`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    const VALID: &str = "a number with a unit, such as 500ms, 2s, 5m or 1h";
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let nanos_per_unit: f64 = match unit {
        "us" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" => 60e9,
        "h" => 3600e9,
        _ => return Err(format!("expected {VALID}")),
    };
    let plain = number.split('.').all(|part| !part.is_empty()) && number.split('.').count() <= 2;
    let value: f64 = match number.parse() {
        Ok(value) if plain => value,
        _ => return Err(format!("expected {VALID}")),
    };
    let nanos = value * nanos_per_unit;
    // A hundred years: beyond it, arithmetic on clocks overflows.
    if nanos > 100.0 * 365.0 * 24.0 * 3600e9 {
        return Err("longer than a hundred years".into());
    }
    if nanos < 1.0 {
        return Err("must be more than zero".into());
    }
    Ok(Duration::from_nanos(nanos as u64))
}

/// Splits a comma-separated list. Neither the list nor an item may be empty.
fn items(text: &str) -> Result<impl Iterator<Item = &str>, String> {
    if text.split(',').any(|item| item.trim().is_empty()) {
        return Err("an empty item in the list; expected values separated by single commas".into());
    }
    Ok(text.split(',').map(str::trim))
}

/// Process ids: `1,2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PidList(pub(crate) BTreeSet<u32>);

impl std::str::FromStr for PidList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pids = BTreeSet::new();
        for item in items(text)? {
            // include/linux/threads.h: PID_MAX_LIMIT is 4 million.
            match item.parse::<u32>() {
                Ok(pid) if (1..=4 * 1024 * 1024).contains(&pid) && digits(item) => pids.insert(pid),
                _ => return Err(format!("`{item}` is no process id; expected 1 to 4194304")),
            };
        }
        Ok(Self(pids))
    }
}

/// A parser of whole numbers from `low` to `high`.
pub(crate) fn number<T>(low: T, high: T) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: Copy + PartialOrd + std::fmt::Display + std::str::FromStr,
{
    move |text| match text.parse::<T>() {
        Ok(value) if digits(text) && low <= value && value <= high => Ok(value),
        _ => Err(format!("expected a number from {low} to {high}")),
    }
}

/// Every port that services(5) has by this name, whatever the protocol.
fn service_ports(text: &str, name: &str) -> BTreeSet<u16> {
    let ports = text.lines().filter_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let (first, value) = (words.next()?, words.next()?);
        let is_it = first == name || words.any(|alias| alias == name);
        value.split('/').next()?.parse().ok().filter(|_| is_it)
    });
    ports.collect()
}

/// `str::parse` takes a leading `+`.
fn digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Ports, ranges of ports and names of services: `80,443,8000-8100,http`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortSet(pub(crate) Vec<(u16, u16)>);

impl PortSet {
    pub(crate) fn has(&self, port: u16) -> bool {
        self.0.iter().any(|&(low, high)| (low..=high).contains(&port))
    }

    /// One bit a port, in words as the BPF programs read them.
    pub(crate) fn words(&self) -> Vec<u64> {
        let mut words = vec![0_u64; 65536 / 64];
        for &(low, high) in &self.0 {
            for port in low..=high {
                words[usize::from(port) / 64] |= 1 << (port % 64);
            }
        }
        words
    }
}

impl std::fmt::Display for PortSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let range = |&(low, high): &(u16, u16)| {
            if low == high { low.to_string() } else { format!("{low}-{high}") }
        };
        f.write_str(&self.0.iter().map(range).collect::<Vec<_>>().join(","))
    }
}

impl std::str::FromStr for PortSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |item: &str| match item.parse::<u16>() {
            Ok(port) if port > 0 && digits(item) => Ok(port),
            _ => Err(format!(
                "`{item}` is no port; expected 1 to 65535, a range such as 8000-8100, or a name of /etc/services"
            )),
        };
        let mut ranges = Vec::new();
        let mut services = None;
        for item in items(text)? {
            // Names may have dashes, as http-alt has.
            if item.bytes().any(|byte| byte.is_ascii_alphabetic()) {
                let services = services.get_or_insert_with(|| {
                    std::fs::read_to_string("/etc/services").unwrap_or_default()
                });
                let found = service_ports(services, item);
                if !found.is_empty() {
                    ranges.extend(found.iter().map(|&port| (port, port)));
                    continue;
                }
            }
            let (low, high) = match item.split_once('-') {
                Some((low, high)) if !low.is_empty() => (port(low)?, port(high)?),
                _ => (port(item)?, port(item)?),
            };
            if low > high {
                return Err(format!("the range `{item}` is reversed; expected {high}-{low}"));
            }
            ranges.push((low, high));
        }
        Ok(Self(ranges))
    }
}

/// Users by name or number: `root,1000`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UserList(pub(crate) BTreeSet<u32>);

impl std::str::FromStr for UserList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut uids = BTreeSet::new();
        for item in items(text)? {
            let uid = if digits(item) {
                // (uid_t)-1 is "no user" to the kernel.
                item.parse::<u32>().ok().filter(|&uid| uid != u32::MAX)
            } else {
                uid_of(item)
                    .map_err(|error| format!("cannot look up the user `{item}`: {error}"))?
            };
            match uid {
                Some(uid) => uids.insert(uid),
                None => {
                    return Err(format!(
                        "no user `{item}`; expected names or numbers of users, such as root or 1000"
                    ));
                }
            };
        }
        Ok(Self(uids))
    }
}

/// The name of a user, or its number where it has none.
pub(crate) fn user_name(uid: u32) -> String {
    let known = in_passwd(|name, id| (id == uid).then(|| name.to_string()));
    let found = known.or_else(|| {
        (!STATIC).then(|| User::from_uid(uid.into()).ok().flatten()).flatten().map(|user| user.name)
    });
    found.unwrap_or_else(|| uid.to_string())
}

/// The C library finds users of other sources (LDAP, systemd) by loading modules, which a static program must not
/// ask for: glibc crashes.
const STATIC: bool = cfg!(target_feature = "crt-static");

fn uid_of(name: &str) -> nix::Result<Option<u32>> {
    let known = in_passwd(|entry, id| (entry == name).then_some(id));
    if known.is_some() || STATIC {
        return Ok(known);
    }
    Ok(User::from_name(name)?.map(|user| user.uid.as_raw()))
}

/// passwd(5): `name:password:uid:…`
fn in_passwd<T>(mut pick: impl FnMut(&str, u32) -> Option<T>) -> Option<T> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, uid) = (fields.next()?, fields.nth(1)?.parse().ok()?);
        pick(name, uid)
    })
}

/// A task's name as the kernel keeps it: at most 15 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Comm(pub(crate) [u8; 16]);

impl std::str::FromStr for Comm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty name; expected a task's name, as in /proc/PID/comm".into());
        }
        if text.len() > 15 {
            return Err(format!(
                "`{text}` has {} bytes; the kernel keeps the first 15 of a task's name: `{}`",
                text.len(),
                String::from_utf8_lossy(&text.as_bytes()[..15])
            ));
        }
        let mut comm = [0; 16];
        comm[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self(comm))
    }
}

/// Names of tasks: `redis-server,redis-cli`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommList(pub(crate) Vec<[u8; 16]>);

impl std::str::FromStr for CommList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(
            items(text)?
                .map(|item| item.parse::<Comm>().map(|comm| comm.0))
                .collect::<Result<_, _>>()?,
        ))
    }
}

/// A number of bytes, such as 65536, 64K or 4M.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    match number.parse::<u64>() {
        // At most 16 TiB: sums of such numbers don't overflow.
        Ok(bytes) if digits(number) && bytes > 0 && bytes <= (1 << 44) >> shift => {
            Ok(bytes << shift)
        }
        _ => Err("expected a number of bytes, such as 65536, 64K or 4M".into()),
    }
}

/// A CIDR, or an address for just itself. Bits behind the prefix must be zero: `10.0.0.1/8` is a slip of the hand.
pub(crate) fn parse_cidr(text: &str) -> Result<ipnet::IpNet, String> {
    let net = text
        .parse::<ipnet::IpNet>()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(Into::into))
        .map_err(|_| {
            "expected an address or a CIDR, such as 192.0.2.1, 10.0.0.0/8 or 2001:db8::/32"
                .to_string()
        })?;
    if net.trunc() != net {
        return Err(format!("has bits behind its prefix; did you mean {}?", net.trunc()));
    }
    Ok(unmapped(net))
}

/// IPv4 as IPv6 is never seen in a packet, and is shown as the IPv4 that it is.
fn unmapped(net: ipnet::IpNet) -> ipnet::IpNet {
    if let ipnet::IpNet::V6(v6) = net
        && let Some(v4) = v6.network().to_ipv4_mapped()
        && let Some(length) = v6.prefix_len().checked_sub(96)
        && let Ok(v4) = ipnet::Ipv4Net::new(v4, length)
    {
        return ipnet::IpNet::V4(v4);
    }
    net
}

/// Addresses and CIDRs: `192.0.2.1,10.0.0.0/8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CidrList(pub(crate) Vec<ipnet::IpNet>);

impl std::fmt::Display for CidrList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join(","))
    }
}

impl std::str::FromStr for CidrList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |item| parse_cidr(item).map_err(|cause| format!("`{item}`: {cause}"));
        Ok(Self(items(text)?.map(parse).collect::<Result<_, _>>()?))
    }
}

/// Packets a second: `1000/s`.
pub(crate) fn parse_rate(text: &str) -> Result<u64, String> {
    match text.strip_suffix("/s").and_then(|number| number.parse::<u64>().ok()) {
        Some(rate) if (1..=1_000_000_000).contains(&rate) && !text.starts_with('+') => Ok(rate),
        _ => Err("expected packets a second, from 1/s to 1000000000/s, such as 100/s".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_whole_and_in_range() {
        let parse = number(1_u32, 20);
        assert_eq!((parse("1"), parse("20")), (Ok(1), Ok(20)));
        for bad in ["0", "21", "-1", "+1", "", "x", "1.5", "0x1", "18446744073709551616"] {
            assert_eq!(parse(bad).unwrap_err(), "expected a number from 1 to 20", "{bad}");
        }
    }

    #[test]
    fn services_are_found_by_name_and_alias() {
        let text = "# none 1/tcp\ntcpmux 1/tcp # TCP\nhttp\t80/tcp www # Web\ndomain 53/tcp\ndomain 53/udp\n\
            shell 514/tcp cmd\nsyslog 514/udp\nodd 7\nsplit 10/tcp\nsplit 11/udp\n";
        let ports = |name| service_ports(text, name).into_iter().collect::<Vec<_>>();
        assert_eq!(ports("http"), [80]);
        assert_eq!(ports("www"), [80]);
        assert_eq!(ports("domain"), [53]);
        assert_eq!(ports("split"), [10, 11]);
        assert!(ports("Web").is_empty() && ports("none").is_empty() && ports("1/tcp").is_empty());
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse_duration("2s").unwrap(), Duration::from_secs(2));
        assert_eq!(parse_duration("1.5m").unwrap(), Duration::from_secs(90));
        for bad in [
            "",
            "5",
            "s",
            "-1s",
            "1 s",
            "1d",
            "1.2.3s",
            "1.s",
            ".5s",
            "0s",
            "1e9s",
            "nan",
            "9999999999h",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pids() {
        assert_eq!("1,22".parse::<PidList>().unwrap().0, BTreeSet::from([1, 22]));
        for bad in ["", ",", "1,", "0", "-1", "+1", "foo", "1 2", "4194305"] {
            assert!(bad.parse::<PidList>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports() {
        let set: PortSet = "80,443,8000-8002".parse().unwrap();
        let words = set.words();
        let has = |port: usize| words[port / 64] & (1 << (port % 64)) != 0;
        assert!(has(80) && has(443) && has(8000) && has(8001) && has(8002));
        assert!(!has(8003) && !has(81) && !has(0));
        assert_eq!("1-65535".parse::<PortSet>().unwrap().words()[1023], u64::MAX);
        for bad in [
            "",
            "80,,443",
            "0",
            "65536",
            "80-",
            "-80",
            "90-80",
            "80-443-8000",
            "no-such-service",
            "80:90",
        ] {
            assert!(bad.parse::<PortSet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn users() {
        assert_eq!("root,7".parse::<UserList>().unwrap().0, BTreeSet::from([0, 7]));
        assert_eq!((user_name(0), user_name(4_000_000_000)), ("root".into(), "4000000000".into()));
        for bad in ["", "no-such-user-here", "-1", "4294967295", "99999999999"] {
            assert!(bad.parse::<UserList>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_tasks() {
        assert_eq!(&"curl".parse::<Comm>().unwrap().0[..5], b"curl\0");
        assert!("".parse::<Comm>().is_err());
        assert!("a-name-of-16-byt".parse::<Comm>().unwrap_err().contains("a-name-of-16-by"));
    }

    #[test]
    fn names_in_lists_and_bytes() {
        assert_eq!("a,b".parse::<CommList>().unwrap().0.len(), 2);
        assert!("a,,b".parse::<CommList>().is_err());
        for (text, bytes) in [("1", 1), ("64K", 65536), ("4M", 4 << 20), ("2G", 2 << 30)] {
            assert_eq!(parse_bytes(text).unwrap(), bytes);
        }
        for bad in ["", "K", "0", "-1", "+1", "1k", "1.5M", "4MB", "99999999999999G"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_of_cidrs_and_rates() {
        let list: CidrList = "10.0.0.0/8, ::1".parse().unwrap();
        assert_eq!(list.to_string(), "10.0.0.0/8,::1/128");
        assert!("10.0.0.1/8".parse::<CidrList>().unwrap_err().contains("`10.0.0.1/8`"));
        assert!("10.0.0.0/8,".parse::<CidrList>().is_err());
        assert_eq!("80,8000-8100".parse::<PortSet>().unwrap().to_string(), "80,8000-8100");
        assert_eq!(parse_rate("100/s").unwrap(), 100);
        for bad in ["100", "0/s", "/s", "-1/s", "+1/s", "1/m", "1.5/s", "1000000001/s"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cidrs() {
        assert_eq!(parse_cidr("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(parse_cidr("::1").unwrap().to_string(), "::1/128");
        assert_eq!(parse_cidr("::ffff:10.0.0.0/104").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(parse_cidr("::ffff:0:0/96").unwrap().to_string(), "0.0.0.0/0");
        assert_eq!(parse_cidr("::/0").unwrap().to_string(), "::/0");
        assert!(parse_cidr("10.0.0.1/8").unwrap_err().contains("10.0.0.0/8"));
        for bad in
            ["", "10.0.0", "10.0.0.0/33", "::/129", "example.org", "10.0.0.0/-1", "10.0.0.0/"]
        {
            assert!(parse_cidr(bad).is_err(), "{bad}");
        }
    }
}
