// SPDX-License-Identifier: MIT OR Apache-2.0

//! How a set of addresses lies in memory: bpf/addrset.h, written.

use crate::net::ranges::Ranges;

/// One value of the map.
pub(super) type Line = [u8; 256];

/// Networks of 24 bits in a block, and blocks in a line.
const NETWORKS: u32 = 32;
const BLOCKS: u32 = 16;
const BLOCK: usize = size_of::<Line>() / BLOCKS as usize;
const V4_LINES: usize = 1 << 15;
const BITMAPS: usize = 8;
const BITMAP: usize = size_of::<Line>() / BITMAPS;
const KEYS: usize = 16;
const CHILDREN: usize = KEYS + 1;
const NO_KEY: u64 = 1 << 63;
const MOST_LEVELS: usize = 7;
/// Ranges of IPv4 that a tree holds: a handful of prefixes is not worth the megabytes of all blocks.
pub(super) const FEW: usize = 2048;
/// What a tree of one node holds, which takes no longer than the blocks.
pub(super) const VERY_FEW: usize = KEYS / 2;

/// The parts of a set and where they go.
#[derive(Debug)]
pub(super) struct Image<'a> {
    ranges: &'a Ranges,
    has_blocks: bool,
    /// Networks of 24 bits of which only a part is in the set.
    partial: usize,
    /// IPv6 in its two halves, then IPv4.
    trees: [Tree; 3],
}

impl<'a> Image<'a> {
    /// IPv4 is a tree if it has no more than `few` ranges.
    pub(super) fn new(ranges: &'a Ranges, few: usize) -> Self {
        let has_blocks = ranges.v4().len() > few;
        let mut last = None;
        let mut partial = 0;
        for piece in pieces(ranges.v4()) {
            if let Piece::Part(network, ..) = piece
                && last != Some(network)
            {
                last = Some(network);
                partial += 1;
            }
        }
        let [lower, upper] = trees(ranges.v6());
        let in_tree = if has_blocks { &[] } else { ranges.v4() };
        Self { ranges, has_blocks, partial, trees: [lower, upper, v4_tree(in_tree)] }
    }

    fn v4_lines(&self) -> usize {
        if !self.has_blocks {
            return 0;
        }
        // One at least: its number also says that there are blocks.
        V4_LINES + self.partial.div_ceil(BITMAPS).max(1)
    }

    pub(super) fn lines(&self) -> usize {
        1 + self.v4_lines() + self.trees.iter().map(Tree::lines).sum::<usize>()
    }

    /// Fills lines that are all zero, as many as `lines` says.
    pub(super) fn write(&self, lines: &mut [Line]) {
        let (head, rest) = lines.split_first_mut().expect("a set has a head");
        let (v4, mut rest) = rest.split_at_mut(self.v4_lines());
        if !v4.is_empty() {
            put_u32(head, 0, 1 + V4_LINES as u32);
            let (blocks, bitmaps) = v4.split_at_mut(V4_LINES);
            write_v4(self.ranges.v4(), blocks, bitmaps);
        }
        let mut first = 1 + self.v4_lines();
        for (n, tree) in self.trees.iter().enumerate() {
            let at = 8 + n * 4 * (1 + MOST_LEVELS);
            put_u32(head, at, tree.levels.len() as u32);
            for (i, &length) in tree.levels.iter().enumerate() {
                put_u32(head, at + 4 * (1 + i), first as u32);
                let (level, others) = rest.split_at_mut(length);
                tree.write_level(i, level);
                rest = others;
                first += length;
            }
        }
    }
}

/// A stretch of IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    /// Whole networks of 24 bits, from the first to the last.
    Whole(u32, u32),
    /// Some addresses of one network.
    Part(u32, u32, u32),
}

fn pieces(ranges: &[(u32, u32)]) -> impl Iterator<Item = Piece> {
    ranges
        .iter()
        .flat_map(|&(start, end)| {
            let (first, last) = (start >> 8, end >> 8);
            let starts_whole = start & 0xff == 0;
            let ends_whole = end & 0xff == 0xff;
            if first == last && !(starts_whole && ends_whole) {
                return [Some(Piece::Part(first, start & 0xff, end & 0xff)), None, None];
            }
            let from = first + u32::from(!starts_whole);
            // Exclusive, so that none is 0 and not less than that.
            let to = last + u32::from(ends_whole);
            [
                (!starts_whole).then_some(Piece::Part(first, start & 0xff, 0xff)),
                (from < to).then(|| Piece::Whole(from, to - 1)),
                (!ends_whole).then_some(Piece::Part(last, 0, end & 0xff)),
            ]
        })
        .flatten()
}

fn write_v4(ranges: &[(u32, u32)], blocks: &mut [Line], bitmaps: &mut [Line]) {
    let mut bitmap = 0_usize;
    let mut last = None;
    for piece in pieces(ranges) {
        match piece {
            Piece::Whole(first, last) => {
                for block in first / NETWORKS..=last / NETWORKS {
                    let low = first.max(block * NETWORKS) % NETWORKS;
                    let high = last.min(block * NETWORKS + NETWORKS - 1) % NETWORKS;
                    let (line, at) = block_place(blocks, block);
                    let full = get_u32(line, at) | bits(low, high);
                    put_u32(line, at, full);
                }
            }
            Piece::Part(network, low, high) => {
                if last != Some(network) {
                    bitmap += usize::from(last.is_some());
                    last = Some(network);
                    let (line, at) = block_place(blocks, network / NETWORKS);
                    let partial = get_u32(line, at + 4);
                    if partial == 0 {
                        put_u32(line, at + 8, bitmap as u32);
                    }
                    put_u32(line, at + 4, partial | 1 << (network % NETWORKS));
                }
                let line = &mut bitmaps[bitmap / BITMAPS];
                for word in low / 32..=high / 32 {
                    let at = bitmap % BITMAPS * BITMAP + 4 * word as usize;
                    let (low, high) = (low.max(word * 32) % 32, high.min(word * 32 + 31) % 32);
                    let addresses = get_u32(line, at) | bits(low, high);
                    put_u32(line, at, addresses);
                }
            }
        }
    }
}

fn block_place(blocks: &mut [Line], block: u32) -> (&mut Line, usize) {
    (&mut blocks[(block / BLOCKS) as usize], (block % BLOCKS) as usize * BLOCK)
}

/// From bit `low` to bit `high`.
fn bits(low: u32, high: u32) -> u32 {
    u32::MAX << low & u32::MAX >> (31 - high)
}

fn trees(ranges: &[(u128, u128)]) -> [Tree; 2] {
    const UPPER: u128 = 1 << 127;
    let mut halves = [Vec::new(), Vec::new()];
    for &(start, end) in ranges {
        if start < UPPER && end >= UPPER {
            halves[1].push(0);
        }
        // What reaches to the end of its half has no boundary there.
        let after = end.checked_add(1).filter(|&after| after != UPPER);
        for boundary in std::iter::once(start).chain(after) {
            halves[usize::from(boundary >= UPPER)].push(boundary & !UPPER);
        }
    }
    halves.map(Tree::new)
}

fn v4_tree(ranges: &[(u32, u32)]) -> Tree {
    let after = |end: u32| u64::from(end) + 1;
    let boundaries = ranges.iter().flat_map(|&(start, end)| [u64::from(start), after(end)]);
    // As upper halves. What lies behind the last address is never reached.
    Tree::new(boundaries.map(|boundary| u128::from(boundary) << 64).collect())
}

/// A search tree over the addresses at which a set begins and ends.
#[derive(Debug)]
struct Tree {
    boundaries: Vec<u128>,
    /// Lengths in nodes, the root's first.
    levels: Vec<usize>,
}

impl Tree {
    fn new(mut boundaries: Vec<u128>) -> Self {
        boundaries.shrink_to_fit();
        let mut levels = Vec::new();
        let mut length = boundaries.len().div_ceil(KEYS);
        while length > 0 {
            levels.insert(0, length);
            length = if length == 1 { 0 } else { length.div_ceil(CHILDREN) };
        }
        // Memory for that many can't be had: 17^6 nodes of 256 bytes.
        assert!(levels.len() <= MOST_LEVELS);
        Self { boundaries, levels }
    }

    fn lines(&self) -> usize {
        self.levels.iter().sum()
    }

    fn write_level(&self, level: usize, nodes: &mut [Line]) {
        let height = (self.levels.len() - 1 - level) as u32;
        for (i, node) in nodes.iter_mut().enumerate() {
            for key in 0..KEYS {
                let boundary = match height {
                    0 => i * KEYS + key,
                    // The first of the next child.
                    _ => (i * CHILDREN + key + 1) * CHILDREN.pow(height - 1) * KEYS,
                };
                let (hi, lo) = match self.boundaries.get(boundary) {
                    Some(&boundary) => ((boundary >> 64) as u64, boundary as u64),
                    None => (NO_KEY, 0),
                };
                put_u64(node, 8 * key, hi);
                put_u64(node, 8 * (KEYS + key), lo);
            }
        }
    }
}

fn get_u32(line: &Line, at: usize) -> u32 {
    u32::from_ne_bytes(*line[at..].first_chunk().expect("within a line"))
}

fn put_u32(line: &mut Line, at: usize, value: u32) {
    line[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

fn put_u64(line: &mut Line, at: usize, value: u64) {
    line[at..at + 8].copy_from_slice(&value.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use Piece::{Part, Whole};

    #[test]
    fn ranges_fall_into_networks() {
        let all = |ranges: &[(u32, u32)]| pieces(ranges).collect::<Vec<_>>();
        assert_eq!(all(&[(0, u32::MAX)]), [Whole(0, 0xff_ffff)]);
        assert_eq!(all(&[(5, 5)]), [Part(0, 5, 5)]);
        assert_eq!(all(&[(0x100, 0x1ff)]), [Whole(1, 1)]);
        assert_eq!(all(&[(0x1f0, 0x20f)]), [Part(1, 0xf0, 0xff), Part(2, 0, 0x0f)]);
        assert_eq!(all(&[(0x1f0, 0x2ff)]), [Part(1, 0xf0, 0xff), Whole(2, 2)]);
        assert_eq!(all(&[(0x100, 0x300)]), [Whole(1, 2), Part(3, 0, 0)]);
        assert_eq!(all(&[(0x101, 0x400)]), [Part(1, 1, 255), Whole(2, 3), Part(4, 0, 0)]);
    }

    #[test]
    fn levels_hold_all_boundaries() {
        for (boundaries, levels) in [
            (0, vec![]),
            (1, vec![1]),
            (16, vec![1]),
            (17, vec![1, 2]),
            (272, vec![1, 17]),
            (273, vec![1, 2, 18]),
        ] {
            let tree = Tree::new((0..boundaries).collect());
            assert_eq!(tree.levels, levels, "{boundaries}");
        }
    }

    #[test]
    fn halves_are_closed() {
        let boundaries = |ranges: &[(u128, u128)]| trees(ranges).map(|tree| tree.boundaries);
        let upper = 1 << 127;
        assert_eq!(boundaries(&[(0, u128::MAX)]), [vec![0], vec![0]]);
        assert_eq!(boundaries(&[(7, upper - 1)]), [vec![7], vec![]]);
        assert_eq!(boundaries(&[(7, upper)]), [vec![7], vec![0, 1]]);
        assert_eq!(boundaries(&[(upper, upper)]), [vec![], vec![0, 1]]);
        assert_eq!(boundaries(&[(u128::MAX, u128::MAX)]), [vec![], vec![upper - 1]]);
    }
}
