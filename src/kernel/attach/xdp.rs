// SPDX-License-Identifier: MIT OR Apache-2.0

//! XDP on an interface, by link. The kernel takes the native mode where a driver has one and then fails if the driver refuses;
//! which mode it is to be is decided here.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Result, anyhow, bail};
use clap::ValueEnum;
use libbpf_rs::libbpf_sys;

use super::holders;
use crate::error::unsupported;
use crate::kernel::netlink::{Interface, Netlink};
use crate::kernel::sys;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum XdpMode {
    /// In the driver, before the kernel makes anything of the packet
    Native,
    /// Behind the driver, on every interface
    Generic,
}

impl XdpMode {
    /// XDP_FLAGS_DRV_MODE and XDP_FLAGS_SKB_MODE.
    fn flag(self) -> u32 {
        match self {
            Self::Native => libbpf_sys::XDP_FLAGS_DRV_MODE,
            Self::Generic => libbpf_sys::XDP_FLAGS_SKB_MODE,
        }
    }

    fn name_of(flag: u32) -> &'static str {
        match flag {
            libbpf_sys::XDP_FLAGS_DRV_MODE => "native",
            libbpf_sys::XDP_FLAGS_SKB_MODE => "generic",
            _ => "offloaded",
        }
    }
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::name_of(self.flag()))
    }
}

/// A program on an interface, for as long as this lives.
#[derive(Debug)]
pub(crate) struct XdpLink {
    link: OwnedFd,
    pub(crate) mode: XdpMode,
    /// Why it isn't the native one.
    pub(crate) because: Option<String>,
}

impl XdpLink {
    /// Whether the program still is where it was put: nobody but us replaces it, but a link can be detached by force.
    pub(crate) fn is_attached(&self) -> io::Result<bool> {
        sys::net::link_is_attached(self.link.as_fd())
    }
}

/// Attaches in the mode that is asked for, or in the best that works. Nothing of others is replaced.
pub(crate) fn attach(
    program: BorrowedFd<'_>,
    interface: &Interface,
    asked: Option<XdpMode>,
) -> Result<XdpLink> {
    let name = &interface.name;
    if let Some(&(mode, id)) = interface.xdp.first() {
        return Err(occupied(name, XdpMode::name_of(mode), id));
    }
    let link = |mode: XdpMode| {
        sys::net::link_to_interface(program, interface.index, libbpf_sys::BPF_XDP, mode.flag())
    };
    let (mode, because) = match (asked, virtual_kind(interface)) {
        (Some(mode), _) => (mode, None),
        (None, Some(kind)) => {
            (XdpMode::Generic, Some(format!("{kind}, where native XDP costs segmentation offload")))
        }
        (None, None) => match link(XdpMode::Native) {
            Ok(link) => return Ok(XdpLink { link, mode: XdpMode::Native, because: None }),
            Err(error) if driver_refuses(&error) => (
                XdpMode::Generic,
                Some(format!("the driver refuses native XDP: {}", words(&error))),
            ),
            Err(error) => return Err(failed(interface, XdpMode::Native, &error)),
        },
    };
    match link(mode) {
        Ok(link) => Ok(XdpLink { link, mode, because }),
        Err(error) => Err(failed(interface, mode, &error)),
    }
}

/// veth takes native XDP, and then turns off what makes it fast. Others of software have none, or the same trouble.
fn virtual_kind(interface: &Interface) -> Option<String> {
    interface.kind.as_ref().map(|kind| format!("a {kind} device"))
}

/// What drivers answer for a mode, an MTU or a queue setup that they can't serve. 524 is ENOTSUPP.
fn driver_refuses(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | 524 | libc::ERANGE | libc::EINVAL | libc::ENOMEM)
    )
}

fn words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(524) => "not supported".into(),
        Some(libc::ERANGE) => "the MTU is too large for it".into(),
        // Drivers also return it if they lack queues: the words of ENOMEM would blame the machine's memory.
        Some(libc::ENOMEM) => "it has not enough queues for it, or not enough memory".into(),
        _ => error.to_string(),
    }
}

fn failed(interface: &Interface, mode: XdpMode, error: &io::Error) -> anyhow::Error {
    let name = &interface.name;
    if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) {
        // Somebody was faster.
        let there = Netlink::open()
            .and_then(|netlink| netlink.interfaces())
            .ok()
            .and_then(|all| all.into_iter().find(|other| other.index == interface.index))
            .and_then(|interface| interface.xdp.first().copied());
        if let Some((mode, id)) = there {
            return occupied(name, XdpMode::name_of(mode), id);
        }
    }
    let message = format!("cannot attach {mode} XDP to {name}: {}", words(error));
    if driver_refuses(error) { unsupported(message) } else { anyhow!(message) }
}

fn occupied(name: &str, mode: &str, id: u32) -> anyhow::Error {
    let whose = holders::describe(id);
    let hint = if whose.contains("`xdp_dispatcher`") {
        "; that is libxdp's dispatcher: detach it with xdp-loader, or use tc-drop"
    } else {
        "; it stays: detach it first, or use tc-drop"
    };
    anyhow!("{name} has an XDP program already ({mode}): {whose}{hint}")
}

/// Attaches to all of them or, when one fails, to none.
pub(crate) fn attach_all(
    program: BorrowedFd<'_>,
    interfaces: &[Interface],
    asked: Option<XdpMode>,
) -> Result<Vec<XdpLink>> {
    if interfaces.is_empty() {
        bail!("no interface to attach to");
    }
    interfaces.iter().map(|interface| attach(program, interface, asked)).collect()
}
