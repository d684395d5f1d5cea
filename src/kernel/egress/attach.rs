// SPDX-License-Identifier: MIT OR Apache-2.0

//! The programs onto interfaces, and off them; and whether they still are there.

use anyhow::{Context, Result, anyhow};
use libbpf_rs::MapHandle;

use super::Counter;
use crate::kernel::attach::tc::{self, Hook, Order, TcAttached, TcBackend};
use crate::kernel::leftovers;
use crate::kernel::lifetime::{Lapsed, Lifetime};
use crate::kernel::netlink::Interface;

/// bpf/egress.bpf.c, the programs at tc.
const BLOCKING: [&str; 4] = ["bpftk_out", "bpftk_out_l3", "bpftk_own", "bpftk_own_l3"];

impl Counter {
    /// Attaches to all interfaces, or to none. Then what killed runs have left there goes.
    pub(crate) fn attach(&mut self, order: Order) -> Result<()> {
        let hooks: Vec<Hook<'_>> =
            self.interfaces.iter().map(|interface| self.hook(interface)).collect();
        let attached = tc::attach_all(self.backend, &hooks, order, self.fail_closed)?;
        drop(hooks);
        self.attached = Some(attached);
        if self.backend == TcBackend::Clsact {
            let map =
                MapHandle::try_from(&self.skel.maps.data_lifetime).context("cannot open a map")?;
            self.lifetime = Some(Lifetime::begin(map, None, !self.fail_closed)?);
        }
        self.sweep()
    }

    fn sweep(&mut self) -> Result<()> {
        // What fails closed is replaced, whichever of these counted there: that is a matter of how it was printed.
        let closed = if self.fail_closed { &BLOCKING[..] } else { &[] };
        let closed: Vec<String> = closed.iter().map(ToString::to_string).collect();
        self.remarks.extend(leftovers::sweep(self.interfaces.iter(), &closed));
        Ok(())
    }

    /// Attaches again where something was attached before: to the same interface, or to what has come in its place.
    /// Counts go on.
    pub(crate) fn attach_again(&mut self, at: usize, interface: Interface) -> Result<()> {
        if interface.is_ethernet() != self.interfaces[at].is_ethernet() {
            return Err(anyhow!(
                "{}: is of another kind now, whose packets begin differently; start bpftk again",
                interface.name
            ));
        }
        let mut attached = self.attached.take().context("nothing is attached any more")?;
        let outcome = attached.attach_again(at, self.hook(&interface));
        self.attached = Some(attached);
        outcome?;
        self.interfaces[at] = interface;
        if self.routes.is_some() {
            self.look_at_routes()?;
        }
        self.sweep()
    }

    /// An interface is called otherwise now.
    pub(crate) fn rename(&mut self, index: i32, name: &str) {
        for interface in self.interfaces.iter_mut().filter(|interface| interface.index == index) {
            interface.name = name.into();
        }
    }

    /// Takes away what is at an interface, wherever that is by now.
    pub(crate) fn detach_from(&mut self, at: usize) {
        if let Some(attached) = &mut self.attached {
            attached.detach(at);
        }
    }

    /// Interfaces from which somebody else has taken what we had put there.
    pub(crate) fn lost(&self) -> Result<Vec<usize>> {
        self.attached.as_ref().map_or(Ok(Vec::new()), TcAttached::lost)
    }

    /// What users have to be told of where the programs are, once.
    pub(crate) fn take_remarks(&mut self) -> Vec<String> {
        let mut remarks = std::mem::take(&mut self.remarks);
        remarks.extend(self.attached.iter_mut().flat_map(TcAttached::take_remarks));
        remarks
    }

    /// For how long nothing was blocked, since the heartbeat had lapsed; nothing where there is none.
    pub(crate) fn lapsed(&self) -> Option<Lapsed> {
        let so_far = self.lifetime.as_ref().map_or(self.lapsed, Lifetime::lapsed);
        (self.backend == TcBackend::Clsact && !self.fail_closed).then_some(so_far)
    }

    /// Detaches everything, and waits for the packets that are on their way. What was counted can still be taken.
    pub(crate) fn detach(&mut self) -> Result<()> {
        self.lapsed = self.lapsed().unwrap_or_default();
        self.calls = None;
        self.attached = None;
        self.grace.wait()?;
        self.lifetime = None;
        Ok(())
    }
}
