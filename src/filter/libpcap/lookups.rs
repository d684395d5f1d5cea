// SPDX-License-Identifier: MIT OR Apache-2.0

//! What libpcap asks the C library for, in a static bpftk: glibc answers such questions by loading modules, which a static
//! program must not have it do. build.rs renames the calls in libpcap to these functions. They know numbers, and the
//! names in /etc/services and /etc/protocols; hosts, networks and Ethernet addresses have no names here.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// What an addrinfo is allocated as: itself, and the address that it points to.
#[repr(C)]
struct Answer {
    info: libc::addrinfo,
    address: Address,
}

#[repr(C)]
union Address {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

/// # Safety
/// As getaddrinfo(3): C strings or null, `hints` valid or null, room for a pointer in `result`.
#[unsafe(no_mangle)]
unsafe extern "C" fn bpftk_getaddrinfo(
    node: *const c_char,
    service: *const c_char,
    hints: *const libc::addrinfo,
    result: *mut *mut libc::addrinfo,
) -> c_int {
    // SAFETY: the caller's promise: a C string or null.
    let (node, service) = unsafe { (text(node), text(service)) };
    // SAFETY: the caller's promise.
    let (family, protocol) =
        unsafe { hints.as_ref() }.map_or((0, 0), |hints| (hints.ai_family, hints.ai_protocol));
    let address = match node.as_deref().map(str::parse::<IpAddr>) {
        None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Some(Ok(address)) => address,
        Some(Err(_)) => return libc::EAI_NONAME,
    };
    if !matches!(
        (family, address),
        (libc::AF_UNSPEC, _) | (libc::AF_INET, IpAddr::V4(_)) | (libc::AF_INET6, IpAddr::V6(_))
    ) {
        return libc::EAI_NONAME;
    }
    let port = match service.as_deref().map(|name| port(name, protocol)) {
        None => 0,
        Some(Some(port)) => port,
        Some(None) => return libc::EAI_SERVICE,
    };
    let answer = Box::into_raw(Box::new(answer(SocketAddr::new(address, port))));
    // SAFETY: the allocation is alive and nobody else's; `result` has room for a pointer by the caller's promise.
    unsafe {
        (*answer).info.ai_protocol = protocol;
        (*answer).info.ai_addr = (&raw mut (*answer).address).cast();
        *result = answer.cast();
    }
    0
}

fn answer(address: SocketAddr) -> Answer {
    let (family, length, address) = match address {
        SocketAddr::V4(v4) => {
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                sin_zero: [0; 8],
            };
            (libc::AF_INET, size_of::<libc::sockaddr_in>(), Address { v4: address })
        }
        SocketAddr::V6(v6) => {
            let address = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: 0,
            };
            (libc::AF_INET6, size_of::<libc::sockaddr_in6>(), Address { v6: address })
        }
    };
    Answer {
        info: libc::addrinfo {
            ai_flags: 0,
            ai_family: family,
            ai_socktype: libc::SOCK_STREAM,
            ai_protocol: 0,
            ai_addrlen: length as libc::socklen_t,
            ai_addr: std::ptr::null_mut(),
            ai_canonname: std::ptr::null_mut(),
            ai_next: std::ptr::null_mut(),
        },
        address,
    }
}

/// # Safety
/// `info` is what [`bpftk_getaddrinfo`] gave, once.
#[unsafe(no_mangle)]
unsafe extern "C" fn bpftk_freeaddrinfo(info: *mut libc::addrinfo) {
    if !info.is_null() {
        // SAFETY: allocated as an Answer, of which the addrinfo is the first field.
        drop(unsafe { Box::from_raw(info.cast::<Answer>()) });
    }
}

/// # Safety
/// As getprotobyname_r(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn bpftk_getprotobyname_r(
    name: *const c_char,
    entry: *mut libc::protoent,
    buffer: *mut c_char,
    length: usize,
    result: *mut *mut libc::protoent,
) -> c_int {
    // SAFETY: room for a pointer, by the caller's promise.
    unsafe { *result = std::ptr::null_mut() };
    // SAFETY: a C string, by the caller's promise.
    let Some(number) = (unsafe { text(name) }).and_then(|name| protocol(&name)) else {
        return 0;
    };
    // An empty list of other names, at the buffer's first place for a pointer.
    let room = size_of::<*mut c_char>();
    let aligned = buffer.align_offset(room);
    if length < aligned.saturating_add(room) {
        return libc::ERANGE;
    }
    // SAFETY: `entry` and `result` are valid, and the buffer has `length` bytes, by the caller's promise.
    unsafe {
        let none = buffer.add(aligned).cast::<*mut c_char>();
        none.write(std::ptr::null_mut());
        entry.write(libc::protoent { p_name: name.cast_mut(), p_aliases: none, p_proto: number });
        *result = entry;
    }
    0
}

/// Networks have no names here.
///
/// # Safety
/// As getnetbyname_r(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn bpftk_getnetbyname_r(
    _name: *const c_char,
    _entry: *mut c_void,
    _buffer: *mut c_char,
    _length: usize,
    result: *mut *mut c_void,
    error: *mut c_int,
) -> c_int {
    const HOST_NOT_FOUND: c_int = 1;
    // SAFETY: room for a pointer and a number, by the caller's promise.
    unsafe {
        *result = std::ptr::null_mut();
        *error = HOST_NOT_FOUND;
    }
    0
}

/// Ethernet addresses have no names here.
#[unsafe(no_mangle)]
extern "C" fn bpftk_ether_hostton(_name: *const c_char, _address: *mut c_void) -> c_int {
    -1
}

/// Hosts have no names here.
#[unsafe(no_mangle)]
extern "C" fn bpftk_gethostbyname(_name: *const c_char) -> *mut c_void {
    std::ptr::null_mut()
}

/// # Safety
/// A C string or null.
unsafe fn text(pointer: *const c_char) -> Option<String> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    Some(unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
}

/// services(5): `name port/protocol alias…`
fn port(name: &str, protocol: c_int) -> Option<u16> {
    if let Ok(number) = name.parse() {
        return Some(number);
    }
    let wanted = match protocol {
        libc::IPPROTO_TCP => "tcp",
        libc::IPPROTO_UDP => "udp",
        libc::IPPROTO_SCTP => "sctp",
        _ => "",
    };
    in_file("/etc/services", name, |value| {
        let (port, protocol) = value.split_once('/')?;
        if wanted.is_empty() || protocol == wanted { port.parse().ok() } else { None }
    })
}

/// protocols(5): `name number alias…`
fn protocol(name: &str) -> Option<c_int> {
    in_file("/etc/protocols", name, |value| value.parse().ok())
}

fn in_file<T>(path: &str, name: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
    let file = std::fs::read_to_string(path).ok()?;
    file.lines().find_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let (first, value) = (words.next()?, words.next()?);
        if first == name || words.any(|alias| alias == name) { read(value) } else { None }
    })
}
