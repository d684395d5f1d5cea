// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;

#[test]
fn attributes_are_walked_and_a_short_one_ends_them() {
    let mut bytes = Vec::new();
    for (size, kind, value) in [(5_u16, 3_u16, *b"a\0\0\0"), (8, 0x8000 | 7, *b"bcde")] {
        bytes.extend_from_slice(&size.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&value);
    }
    let all: Vec<_> = Attributes(&bytes).collect();
    assert_eq!(all, [(3, &b"a"[..]), (7, &b"bcde"[..])]);
    bytes.truncate(bytes.len() - 1);
    assert_eq!(Attributes(&bytes).count(), 1);
    assert_eq!(Attributes(&[0; 8]).count(), 0);
}

#[test]
fn the_loopback_is_found() {
    let interfaces = Netlink::open().unwrap().interfaces().unwrap();
    assert!(interfaces.iter().any(|i| i.name == "lo" && i.index == 1));
}

#[test]
fn the_loopback_has_its_address() {
    let addresses = Netlink::open().unwrap().addresses().unwrap();
    assert!(addresses.contains(&IpAddr::from([127, 0, 0, 1])), "{addresses:?}");
}

#[test]
fn routes_are_understood() {
    let attribute = |kind: u16, value: &[u8]| {
        let mut bytes = Vec::new();
        put(&mut bytes, kind, value);
        bytes
    };
    let message = |family: u8, length: u8, kind: u8, rest: &[Vec<u8>]| {
        let mut bytes = vec![family, length, 0, 0, 254, 0, 0, kind, 0, 0, 0, 0];
        bytes.extend(rest.concat());
        bytes
    };
    let unicast = message(
        2,
        8,
        1,
        &[
            attribute(1, &[10, 0, 0, 0]),
            attribute(4, &7_u32.to_ne_bytes()),
            attribute(6, &100_u32.to_ne_bytes()),
            attribute(15, &1000_u32.to_ne_bytes()),
        ],
    );
    let found = route(&unicast).unwrap();
    assert_eq!((found.table, found.metric, found.devices), (1000, 100, vec![7]));
    assert_eq!(found.net.to_string(), "10.0.0.0/8");
    let hop = |device: u32| {
        let mut bytes = vec![16, 0, 0, 0];
        bytes.extend(device.to_ne_bytes());
        bytes.extend([8, 0, 5, 0, 192, 0, 2, 1]);
        bytes
    };
    let several = message(2, 0, 1, &[attribute(9, &[hop(3), hop(4)].concat())]);
    let found = route(&several).unwrap();
    assert_eq!((found.table, found.net.to_string()), (254, "0.0.0.0/0".into()));
    assert_eq!(found.devices, [3, 4]);
    // This machine's own, and what is refused.
    let own = message(2, 32, 2, &[unicast[12..].to_vec()]);
    assert!(route(&own).unwrap().devices.is_empty());
    assert!(route(&message(2, 0, 7, &[])).is_none());
    for cut in 0..12 {
        assert!(route(&unicast[..cut]).is_none(), "{cut}");
    }
    let lo = Netlink::open().unwrap().routes().unwrap();
    let own: IpAddr = [127, 0, 0, 1].into();
    assert!(lo.iter().any(|route| route.net.contains(&own) && route.devices.is_empty()));
}

#[test]
fn filters_are_listed_and_what_is_not_there_is_not_removed() {
    let netlink = Netlink::open().unwrap();
    assert!(netlink.filters(1, EGRESS).is_ok());
    // What isn't there is an error, and not success.
    let error =
        netlink.remove_filter(FilterKey { ifindex: i32::MAX, ..FilterKey::default() }).unwrap_err();
    assert!(error.raw_os_error().is_some(), "{error}");
}
