// SPDX-License-Identifier: MIT OR Apache-2.0

//! The library itself: loaded when it is first needed, or linked in where nothing can be loaded (feature `static`).
//! Every unsafe call of it is in this file.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::{Link, Packets, SNAPLEN, Source};
use crate::filter::classic::insn::Insn;
use crate::net::linktype::LinkType;

/// struct bpf_program, with instructions of the layout that [`Insn`] has
#[repr(C)]
struct Program {
    length: c_uint,
    insns: *mut Insn,
}

/// struct pcap_pkthdr
#[repr(C)]
struct Header {
    time: libc::timeval,
    captured: u32,
    length: u32,
}

/// pcap_t
type Handle = c_void;

macro_rules! library_functions {
    ($($name:ident: fn($($argument:ident: $kind:ty),*) $(-> $result:ty)?;)+) => {
        /// The functions that bpftk calls.
        #[derive(Clone, Copy, Debug)]
        struct Functions {
            $($name: unsafe extern "C" fn($($kind),*) $(-> $result)?,)+
        }

        #[cfg(feature = "static")]
        impl Functions {
            fn find() -> Result<Self, String> {
                unsafe extern "C" {
                    $(fn $name($($argument: $kind),*) $(-> $result)?;)+
                }
                Ok(Self { $($name,)+ })
            }
        }

        #[cfg(not(feature = "static"))]
        impl Functions {
            fn find() -> Result<Self, String> {
                let library = load()?;
                $(
                    // SAFETY: the function has this signature in every libpcap since 1.0.
                    let $name = unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }
                        .map(|symbol| *symbol)
                        .map_err(|error| format!("{error}"))?;
                )+
                // What was found is used until the process ends.
                std::mem::forget(library);
                Ok(Self { $($name,)+ })
            }
        }
    };
}

library_functions! {
    pcap_open_dead: fn(link: c_int, snaplen: c_int) -> *mut Handle;
    pcap_fopen_offline: fn(file: *mut libc::FILE, message: *mut c_char) -> *mut Handle;
    pcap_close: fn(handle: *mut Handle);
    pcap_compile: fn(handle: *mut Handle, program: *mut Program, text: *const c_char, optimize: c_int, netmask: u32) -> c_int;
    pcap_freecode: fn(program: *mut Program);
    pcap_geterr: fn(handle: *mut Handle) -> *const c_char;
    pcap_offline_filter: fn(program: *const Program, header: *const Header, data: *const u8) -> c_int;
    pcap_lib_version: fn() -> *const c_char;
}

#[cfg(not(feature = "static"))]
fn load() -> Result<libloading::Library, String> {
    let mut first = None;
    // Debian kept the name of 0.8; everybody else goes by libpcap's own.
    for name in ["libpcap.so.0.8", "libpcap.so.1", "libpcap.so"] {
        // SAFETY: libpcap's initialisers do nothing that a thread could see.
        match unsafe { libloading::Library::new(name) } {
            Ok(library) => return Ok(library),
            Err(error) => {
                // What the loader said is in the cause.
                let why = std::error::Error::source(&error).map(ToString::to_string);
                first.get_or_insert(why.unwrap_or_else(|| error.to_string()));
            }
        }
    }
    Err(first.unwrap_or_default())
}

/// Why there is no program.
#[derive(Debug)]
pub(super) enum Refused {
    Message(String),
    Memory,
}

#[derive(Debug)]
pub(super) struct Library {
    functions: Functions,
    version: (u32, u32),
    /// libpcap's compiler keeps state of its own before 1.8, and looks names up in ways of its own after.
    compiling: Mutex<()>,
}

impl Library {
    pub(super) fn get() -> Result<&'static Self, &'static str> {
        static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
        LIBRARY.get_or_init(Self::find).as_ref().map_err(String::as_str)
    }

    fn find() -> Result<Self, String> {
        let mut library =
            Self { functions: Functions::find()?, version: (0, 0), compiling: Mutex::new(()) };
        let text = library.version_text();
        library.version = parse_version(&text)
            .filter(|&version| version >= (1, 9))
            .ok_or_else(|| format!("it is `{text}`, and 1.9 or newer is needed"))?;
        Ok(library)
    }

    pub(super) fn version(&self) -> (u32, u32) {
        self.version
    }

    pub(super) fn version_text(&self) -> String {
        // SAFETY: returns a C string that lives as long as the library.
        let text = unsafe { CStr::from_ptr((self.functions.pcap_lib_version)()) };
        text.to_string_lossy().into_owned()
    }

    pub(super) fn compile(&self, source: &Source<'_>) -> Result<Vec<Insn>, Refused> {
        // Not known: `ip broadcast` is an error then, and not a comparison with 0.0.0.0.
        const NETMASK_UNKNOWN: u32 = u32::MAX;
        let text = CString::new(source.expression)
            .map_err(|_| Refused::Message("a NUL in the expression".into()))?;
        let Functions { pcap_close, pcap_compile, pcap_freecode, pcap_geterr, .. } = self.functions;
        let _alone = self.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = self.open(source.packets)?;
        let mut program = Program { length: 0, insns: std::ptr::null_mut() };
        // SAFETY: an open handle, room for a program, and a C string.
        let result = unsafe {
            pcap_compile(
                handle,
                &mut program,
                text.as_ptr(),
                source.optimize.into(),
                NETMASK_UNKNOWN,
            )
        };
        let compiled = if result == 0 && !program.insns.is_null() {
            // SAFETY: libpcap filled in that many instructions.
            let insns =
                unsafe { std::slice::from_raw_parts(program.insns, program.length as usize) };
            Ok(insns.to_vec())
        } else {
            // SAFETY: an open handle; the message lives as long as it does, and is copied.
            let message = unsafe { CStr::from_ptr(pcap_geterr(handle)) };
            Err(Refused::Message(message.to_string_lossy().into_owned()))
        };
        if result == 0 {
            // SAFETY: what pcap_compile filled in, once, and not used any more.
            unsafe { pcap_freecode(&mut program) };
        }
        // SAFETY: opened above, and not used any more.
        unsafe { pcap_close(handle) };
        compiled
    }

    /// A handle for such packets, to compile for; it is to be closed.
    fn open(&self, packets: Packets) -> Result<*mut Handle, Refused> {
        let Functions { pcap_open_dead, pcap_fopen_offline, .. } = self.functions;
        let (link, big_endian) = match packets {
            // pcap/dlt.h: DLT_EN10MB, and DLT_RAW as Linux has it
            Packets::Live(link) => {
                let link = match link {
                    Link::Ethernet => 1,
                    Link::Raw => 12,
                };
                // SAFETY: a link type and a length.
                let handle = unsafe { pcap_open_dead(link, SNAPLEN as c_int) };
                return if handle.is_null() { Err(Refused::Memory) } else { Ok(handle) };
            }
            Packets::File { link, big_endian } => (link, big_endian),
        };
        // A file without packets. libpcap compiles for a file what it doesn't for an interface: the family in a
        // loopback's header is of the system and in the byte order that the file is from.
        let header = header(link, big_endian);
        // SAFETY: bytes and their number, which are only read, and live until the file is closed.
        let file = unsafe {
            libc::fmemopen(header.as_ptr().cast_mut().cast(), header.len(), c"r".as_ptr())
        };
        if file.is_null() {
            return Err(Refused::Memory);
        }
        let mut message = [0; PCAP_ERRBUF_SIZE];
        // SAFETY: an open file, and room for a message.
        let handle = unsafe { pcap_fopen_offline(file, message.as_mut_ptr()) };
        if handle.is_null() {
            // SAFETY: libpcap closes the file only with a handle.
            unsafe { libc::fclose(file) };
            // SAFETY: a C string, that libpcap wrote.
            let message = unsafe { CStr::from_ptr(message.as_ptr()) };
            return Err(Refused::Message(message.to_string_lossy().into_owned()));
        }
        Ok(handle)
    }

    pub(super) fn run(&self, program: &[Insn], data: &[u8], length: u32) -> u32 {
        let header = Header {
            time: libc::timeval { tv_sec: 0, tv_usec: 0 },
            captured: data.len() as u32,
            length,
        };
        let program =
            Program { length: program.len() as c_uint, insns: program.as_ptr().cast_mut() };
        // SAFETY: a program of as many instructions as it says, which is only read; a header with the length of `data`.
        // The interpreter checks each load against it. That jumps stay inside the program is for the caller's check.
        unsafe { (self.functions.pcap_offline_filter)(&program, &header, data.as_ptr()) as u32 }
    }
}

/// pcap/pcap.h
const PCAP_ERRBUF_SIZE: usize = 256;

/// The header of a pcap file.
fn header(link: LinkType, big_endian: bool) -> [u8; 24] {
    let link = match link.0 {
        // What OpenBSD calls RAW.
        14 => LinkType::RAW.0,
        same => same,
    };
    let mut header = [0; 24];
    for (at, word) in [(0, 0xa1b2_c3d4), (16, SNAPLEN), (20, link.into())] {
        let bytes = if big_endian { u32::to_be_bytes(word) } else { u32::to_le_bytes(word) };
        header[at..at + 4].copy_from_slice(&bytes);
    }
    for (at, half) in [(4, 2), (6, 4)] {
        let bytes = if big_endian { u16::to_be_bytes(half) } else { u16::to_le_bytes(half) };
        header[at..at + 2].copy_from_slice(&bytes);
    }
    header
}

/// `libpcap version 1.10.3 (with TPACKET_V3)`
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let number = text.strip_prefix("libpcap version ")?;
    let mut parts = number.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(parse_version("libpcap version 1.10.3 (with TPACKET_V3)"), Some((1, 10)));
        assert_eq!(parse_version("libpcap version 1.11.0-PRE-GIT"), Some((1, 11)));
        assert_eq!(parse_version("something else"), None);
    }
}
