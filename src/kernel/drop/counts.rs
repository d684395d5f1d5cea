// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the programs counted, from the beginning on: user space takes differences.

use std::net::IpAddr;

use anyhow::{Context, Result};
use clap::ValueEnum;
use libbpf_rs::{MapCore, MapFlags};

use super::{Dropper, ROWS, Row};
use crate::kernel::addr::canonical;
use crate::kernel::count::Count;

/// bpf/drop.h: 256 protocols, and what has none.
const PROTOS: u32 = 257;

/// By what the rows of a table differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    /// A row for each rule and what passed, at each interface
    #[default]
    Rule,
    /// A row for each protocol of what is dropped
    Proto,
    /// A row for each source address of what is dropped
    Src,
    /// A row for each processor, of what is dropped there
    Cpu,
}

/// Whose count it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// At which place, and which row.
    Row(usize, Row),
    /// `None` is what isn't IP, or can't be told.
    Proto(Option<u8>),
    /// `None` is all that there was no room for one by one.
    Src(Option<IpAddr>),
    Cpu(usize),
}

impl Dropper {
    /// The counts of these rows, at each place.
    pub(crate) fn rows(&self, rows: &[Row]) -> Result<Vec<(Key, Count)>> {
        let mut counts = Vec::new();
        for place in 0..self.places.len() {
            for &row in rows {
                let sum = self.per_cpu(place, row)?.into_iter().sum();
                counts.push((Key::Row(place, row), sum));
            }
        }
        Ok(counts)
    }

    /// What was dropped on each processor, by rules of these rows.
    pub(crate) fn cpus(&self, rows: &[Row]) -> Result<Vec<(Key, Count)>> {
        let mut sums: Vec<Count> = Vec::new();
        for place in 0..self.places.len() {
            for row in rows.iter().filter(|row| row.drops()) {
                let counts = self.per_cpu(place, *row)?;
                sums.resize(counts.len(), Count::default());
                for (sum, count) in sums.iter_mut().zip(counts) {
                    *sum += count;
                }
            }
        }
        Ok(sums.into_iter().enumerate().map(|(cpu, count)| (Key::Cpu(cpu), count)).collect())
    }

    fn per_cpu(&self, place: usize, row: Row) -> Result<Vec<Count>> {
        let key = (place * ROWS) as u32 + row.0;
        Ok(look_up(&self.skel.maps.counts, &key.to_ne_bytes())?.unwrap_or_default())
    }

    /// Protocols of which packets were dropped.
    pub(crate) fn protos(&self) -> Result<Vec<(Key, Count)>> {
        let mut counts = Vec::new();
        for proto in 0..PROTOS {
            let sum = look_up(&self.skel.maps.proto_counts, &proto.to_ne_bytes())?
                .unwrap_or_default()
                .into_iter()
                .sum::<Count>();
            if sum.packets > 0 {
                counts.push((Key::Proto(u8::try_from(proto).ok()), sum));
            }
        }
        Ok(counts)
    }

    /// Source addresses whose packets were dropped.
    pub(crate) fn sources(&self) -> Result<Vec<(Key, Count)>> {
        let map = &self.skel.maps.src_counts;
        let mut counts = Vec::new();
        for key in map.keys() {
            let Some(values) = look_up(map, &key)? else { continue };
            let address = <[u8; 16]>::try_from(key.as_slice()).map(canonical);
            counts.push((Key::Src(address.ok()), values.into_iter().sum()));
        }
        let other: Count = look_up(&self.skel.maps.other_sources, &0_u32.to_ne_bytes())?
            .unwrap_or_default()
            .into_iter()
            .sum();
        if other.packets > 0 {
            counts.push((Key::Src(None), other));
        }
        Ok(counts)
    }
}

/// The counts of each processor.
fn look_up(map: &impl MapCore, key: &[u8]) -> Result<Option<Vec<Count>>> {
    let values = map.lookup_percpu(key, MapFlags::ANY).context("cannot read the counts")?;
    Ok(values.map(|values| values.iter().filter_map(|value| Count::from_bytes(value)).collect()))
}
