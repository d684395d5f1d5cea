// SPDX-License-Identifier: MIT OR Apache-2.0

//! The programs onto interfaces, and off them; and whether they still are there.

use anyhow::{Context, Result, anyhow};
use libbpf_rs::MapHandle;
use std::os::fd::AsFd;

use super::{DropSkel, Dropper, How, Place, beats, slot_of};
use crate::kernel::attach::tc::{self, Direction, Hook, Order};
use crate::kernel::attach::xdp::{self, XdpMode};
use crate::kernel::leftovers;
use crate::kernel::lifetime::{Lapsed, Lifetime};
use crate::kernel::netlink::Interface;
use crate::kernel::sys;

fn hook<'a>(skel: &'a DropSkel<'static>, place: &'a Place) -> Hook<'a> {
    let program = match place.direction {
        Direction::Ingress => skel.progs.bpftk_tc_in.as_fd(),
        Direction::Egress => skel.progs.bpftk_tc_out.as_fd(),
    };
    Hook { program, interface: &place.interface, direction: place.direction }
}

impl Dropper {
    /// Attaches to all places, or to none. Only then, the dropping begins, at all of them at once. Then what killed
    /// runs have left there goes.
    pub(crate) fn attach(&mut self, mode: Option<XdpMode>, order: Order) -> Result<()> {
        let bss = self.skel.maps.bss_data.as_deref_mut().context("the object has no variables")?;
        bss.probing = false;
        match self.how {
            How::Xdp => {
                let program = self.skel.progs.bpftk_xdp_drop.as_fd();
                let interfaces: Vec<Interface> =
                    self.places.iter().map(|place| place.interface.clone()).collect();
                let links = xdp::attach_all(program, &interfaces, mode)?;
                self.xdp = links.into_iter().map(Some).collect();
            }
            How::Tc(backend) => {
                let hooks: Vec<Hook<'_>> =
                    self.places.iter().map(|place| hook(&self.skel, place)).collect();
                self.tc = Some(tc::attach_all(backend, &hooks, order, self.fail_closed)?);
            }
        }
        let map =
            MapHandle::try_from(&self.skel.maps.data_lifetime).context("cannot open a map")?;
        self.lifetime = Some(Lifetime::begin(map, self.duration, self.beats())?);
        self.sweep()
    }

    fn beats(&self) -> bool {
        beats(self.how, self.fail_closed)
    }

    fn sweep(&mut self) -> Result<()> {
        if self.how == How::Xdp {
            return Ok(());
        }
        let mut closed = Vec::new();
        if self.fail_closed {
            for place in &self.places {
                let program = hook(&self.skel, place).program;
                closed.push(sys::program_info(program).context("cannot ask for a name")?.name);
            }
        }
        let interfaces = self.places.iter().map(|place| &place.interface);
        self.remarks.extend(leftovers::sweep(interfaces, &closed));
        Ok(())
    }

    /// Attaches again where something was attached before: to the same interface, or to what has come in its place.
    /// The counts go on.
    pub(crate) fn attach_again(
        &mut self,
        at: usize,
        interface: Interface,
        mode: Option<XdpMode>,
    ) -> Result<()> {
        let before = &self.places[at];
        if interface.is_ethernet() != before.interface.is_ethernet() {
            return Err(anyhow!(
                "{}: is of another kind now, whose packets begin differently; start bpftk again",
                interface.name
            ));
        }
        let place = Place { interface, direction: before.direction };
        let bss = self.skel.maps.bss_data.as_deref_mut().context("the object has no variables")?;
        bss.places[at] = slot_of(&place);
        match &mut self.tc {
            None => {
                let program = self.skel.progs.bpftk_xdp_drop.as_fd();
                self.xdp[at] = None;
                self.xdp[at] = Some(xdp::attach(program, &place.interface, mode)?);
            }
            Some(tc) => tc.attach_again(at, hook(&self.skel, &place))?,
        }
        self.places[at] = place;
        self.sweep()
    }

    /// An interface is called otherwise now.
    pub(crate) fn rename(&mut self, index: i32, name: &str) {
        for place in self.places.iter_mut().filter(|place| place.interface.index == index) {
            place.interface.name = name.into();
        }
    }

    /// Takes away what is at a place, wherever its interface is by now.
    pub(crate) fn detach_from(&mut self, at: usize) {
        match &mut self.tc {
            None => self.xdp[at] = None,
            Some(tc) => tc.detach(at),
        }
    }

    /// Places from which somebody else has taken what we had put there.
    pub(crate) fn lost(&self) -> Result<Vec<usize>> {
        let Some(tc) = &self.tc else {
            let mut lost = Vec::new();
            for (at, link) in self.xdp.iter().enumerate() {
                if let Some(link) = link
                    && !link.is_attached().context("cannot ask for what is attached")?
                {
                    lost.push(at);
                }
            }
            return Ok(lost);
        };
        tc.lost()
    }

    /// What users have to be told of where the programs are, once.
    pub(crate) fn take_remarks(&mut self) -> Vec<String> {
        let mut remarks = std::mem::take(&mut self.remarks);
        remarks.extend(self.tc.iter_mut().flat_map(tc::TcAttached::take_remarks));
        remarks
    }

    /// For how long nothing was dropped, since the heartbeat had lapsed; nothing where there is none.
    pub(crate) fn lapsed(&self) -> Option<Lapsed> {
        let so_far = self.lifetime.as_ref().map_or(self.lapsed, Lifetime::lapsed);
        self.beats().then_some(so_far)
    }

    /// Detaches everything. What was counted can still be read.
    pub(crate) fn detach(&mut self) {
        self.lapsed = self.lapsed().unwrap_or_default();
        self.lifetime = None;
        self.xdp.clear();
        self.tc = None;
    }
}
