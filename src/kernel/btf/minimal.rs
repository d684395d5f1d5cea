// SPDX-License-Identifier: MIT OR Apache-2.0

//! The part of the kernel's BTF that a program is fitted to.
//!
//! A kernel's BTF has 100 000 types and more, of which a program's relocations name some dozens. libbpf indexes all
//! of them and searches them once for each relocated type, which is most of the time that a tracer takes to start, and
//! of its memory. One pass over the bytes finds the types that matter; libbpf gets those.
//!
//! Format: Documentation/bpf/btf.rst in the kernel's source.

use std::collections::HashMap;

const MAGIC: u16 = 0xeb9f;

const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FWD: u32 = 7;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const FLOAT: u32 = 16;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// `name_off`, `info`, and `size` or `type`.
const COMMON: usize = 12;

/// What one pass over a kernel's BTF found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// BTF with the wanted types and what they contain.
    pub(crate) btf: Vec<u8>,
    /// The ids of the wanted targets in the kernel's own BTF.
    pub(crate) targets: HashMap<String, u32>,
}

/// Looks for types by name, and for targets of tracing programs: functions, and the typedefs that the kernel has for its tracepoints
/// (`btf_trace_` and the tracepoint's name). `None` when `data` is not understood: then libbpf may try.
pub(crate) fn find(data: &[u8], types: &[&str], targets: &[&str]) -> Option<Found> {
    let source = Source::new(data)?;
    let (types, targets) = (NameSet::new(types), NameSet::new(targets));
    // The names of other kinds are not looked at.
    let named_types =
        [STRUCT, UNION, ENUM, ENUM64, TYPEDEF].iter().fold(0, |set, kind| set | 1 << kind);
    let named = named_types | if targets.names.is_empty() { 0 } else { 1 << FUNC };

    // A type takes 20 bytes and more on the average.
    let mut starts = Vec::with_capacity(source.types.len() / 20);
    starts.push(0);
    let mut roots = Vec::new();
    let mut target_ids = HashMap::new();
    let mut rest = source.types;
    while !rest.is_empty() {
        let ty = Type::read(rest)?;
        let id = starts.len() as u32;
        starts.push((source.types.len() - rest.len()) as u32);
        if 1 << ty.kind & named != 0 {
            if matches!(ty.kind, FUNC | TYPEDEF)
                && let Some(name) = targets.has(source.strings, ty.name)
            {
                target_ids.entry(name.to_string()).or_insert(id);
            }
            if ty.kind != FUNC && types.has(source.strings, ty.name).is_some() {
                roots.push(id);
            }
        }
        rest = rest.get(ty.len()?..)?;
    }
    let btf = Builder::new(&source, &starts).build(&roots)?;
    Some(Found { btf, targets: target_ids })
}

/// Some dozens of names, against which some ten thousand are held: nearly all differ in their first two bytes.
struct NameSet<'a> {
    names: Vec<&'a str>,
    /// One bit for each pair of first bytes, folded.
    first: [u64; 64],
}

impl<'a> NameSet<'a> {
    fn new(names: &[&'a str]) -> Self {
        let mut first = [0; 64];
        for name in names.iter().filter(|name| name.len() > 1) {
            let bit = Self::fold(name.as_bytes()[0], name.as_bytes()[1]);
            first[bit / 64] |= 1 << (bit % 64);
        }
        Self { names: names.to_vec(), first }
    }

    fn fold(a: u8, b: u8) -> usize {
        (usize::from(a) << 6 ^ usize::from(b)) & 0xfff
    }

    /// The name that stands at `at` in `strings`, if it is one of these.
    fn has(&self, strings: &[u8], at: u32) -> Option<&'a str> {
        let text = strings.get(at as usize..)?;
        let [a, b] = *text.first_chunk()?;
        let bit = Self::fold(a, b);
        if self.first[bit / 64] & 1 << (bit % 64) == 0 {
            return None;
        }
        self.names
            .iter()
            .find(|name| text.get(name.len()) == Some(&0) && text.starts_with(name.as_bytes()))
            .copied()
    }
}

struct Source<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    /// How many members, values or parameters follow.
    count: usize,
}

/// What follows the common part of each kind: so many bytes, and so many for each of `count`. Kinds that came after this
/// was written have no length.
const LENGTHS: [Option<(u8, u8)>; 32] = {
    let mut lengths = [None; 32];
    let known = [
        (INT, 4, 0),
        (PTR, 0, 0),
        (ARRAY, 12, 0),
        (STRUCT, 0, 12),
        (UNION, 0, 12),
        (ENUM, 0, 8),
        (FWD, 0, 0),
        (TYPEDEF, 0, 0),
        (VOLATILE, 0, 0),
        (CONST, 0, 0),
        (RESTRICT, 0, 0),
        (FUNC, 0, 0),
        (FUNC_PROTO, 0, 8),
        (VAR, 4, 0),
        (DATASEC, 0, 12),
        (FLOAT, 0, 0),
        (DECL_TAG, 4, 0),
        (TYPE_TAG, 0, 0),
        (ENUM64, 0, 12),
    ];
    let mut i = 0;
    while i < known.len() {
        let (kind, fixed, each) = known[i];
        lengths[kind as usize] = Some((fixed, each));
        i += 1;
    }
    lengths
};

impl Type {
    /// The type that `bytes` begins with.
    #[inline]
    fn read(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, d, e, f, g, h] = *bytes.first_chunk()?;
        let info = u32::from_ne_bytes([e, f, g, h]);
        Some(Self {
            name: u32::from_ne_bytes([a, b, c, d]),
            kind: info >> 24 & 0x1f,
            count: (info & 0xffff) as usize,
        })
    }

    /// In bytes.
    #[inline]
    fn len(self) -> Option<usize> {
        let (fixed, each) = LENGTHS[self.kind as usize]?;
        Some(COMMON + usize::from(fixed) + usize::from(each) * self.count)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

impl<'a> Source<'a> {
    fn new(data: &'a [u8]) -> Option<Self> {
        if u16::from_ne_bytes(data.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let body = data.get(word(data, 4)? as usize..)?;
        let section = |offset_at, length_at| {
            let start = word(data, offset_at)? as usize;
            body.get(start..start.checked_add(word(data, length_at)? as usize)?)
        };
        Some(Self { types: section(8, 12)?, strings: section(16, 20)? })
    }

    fn at(&self, at: usize) -> Option<Type> {
        Type::read(self.types.get(at..)?)
    }

    fn string(&self, at: u32) -> Option<&'a [u8]> {
        let rest = self.strings.get(at as usize..)?;
        Some(&rest[..rest.iter().position(|&byte| byte == 0)?])
    }
}

/// Copies types with new ids, and all that they contain by value. What a pointer points to is left out: where a program
/// follows it, it names that type itself.
struct Builder<'a> {
    source: &'a Source<'a>,
    /// Where each type starts, by id.
    starts: &'a [u32],
    ids: HashMap<u32, u32>,
    queue: Vec<u32>,
    types: Vec<u8>,
    strings: Vec<u8>,
    string_ids: HashMap<u32, u32>,
}

impl<'a> Builder<'a> {
    fn new(source: &'a Source<'a>, starts: &'a [u32]) -> Self {
        Self {
            source,
            starts,
            ids: HashMap::new(),
            queue: Vec::new(),
            types: Vec::new(),
            strings: vec![0],
            string_ids: HashMap::new(),
        }
    }

    fn build(mut self, roots: &[u32]) -> Option<Vec<u8>> {
        for &root in roots {
            self.id_of(root);
        }
        let mut next = 0;
        while let Some(&id) = self.queue.get(next) {
            self.copy(id)?;
            next += 1;
        }
        let mut btf = Vec::with_capacity(24 + self.types.len() + self.strings.len());
        btf.extend_from_slice(&MAGIC.to_ne_bytes());
        btf.extend_from_slice(&[1, 0]);
        let lengths = [self.types.len() as u32, self.strings.len() as u32];
        for field in [24, 0, lengths[0], lengths[0], lengths[1]] {
            btf.extend_from_slice(&field.to_ne_bytes());
        }
        btf.append(&mut self.types);
        btf.append(&mut self.strings);
        Some(btf)
    }

    /// The new id of a type, which is copied in its turn. 0 is void.
    fn id_of(&mut self, id: u32) -> u32 {
        if id == 0 {
            return 0;
        }
        let queue = &mut self.queue;
        *self.ids.entry(id).or_insert_with(|| {
            queue.push(id);
            queue.len() as u32
        })
    }

    fn string_of(&mut self, at: u32) -> Option<u32> {
        if let Some(&known) = self.string_ids.get(&at) {
            return Some(known);
        }
        let text = self.source.string(at)?;
        let new = if text.is_empty() { 0 } else { self.strings.len() as u32 };
        if new > 0 {
            self.strings.extend_from_slice(text);
            self.strings.push(0);
        }
        self.string_ids.insert(at, new);
        Some(new)
    }

    fn copy(&mut self, id: u32) -> Option<()> {
        let start = *self.starts.get(id as usize)? as usize;
        let ty = self.source.at(start)?;
        let mut bytes = self.source.types.get(start..start + ty.len()?)?.to_vec();
        let put = |bytes: &mut Vec<u8>, at: usize, value: u32| {
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        };
        let name = self.string_of(ty.name)?;
        put(&mut bytes, 0, name);
        match ty.kind {
            PTR => put(&mut bytes, 8, 0),
            TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => {
                let inner = self.id_of(word(&bytes, 8)?);
                put(&mut bytes, 8, inner);
            }
            ARRAY => {
                for at in [COMMON, COMMON + 4] {
                    let inner = self.id_of(word(&bytes, at)?);
                    put(&mut bytes, at, inner);
                }
            }
            STRUCT | UNION => {
                for member in 0..ty.count {
                    let at = COMMON + 12 * member;
                    let name = self.string_of(word(&bytes, at)?)?;
                    put(&mut bytes, at, name);
                    let inner = self.id_of(word(&bytes, at + 4)?);
                    put(&mut bytes, at + 4, inner);
                }
            }
            ENUM | ENUM64 => {
                let size = if ty.kind == ENUM { 8 } else { 12 };
                for value in 0..ty.count {
                    let at = COMMON + size * value;
                    let name = self.string_of(word(&bytes, at)?)?;
                    put(&mut bytes, at, name);
                }
            }
            INT | FLOAT | FWD => {}
            // Nothing contains a function, a variable or a section by value.
            _ => return None,
        }
        self.types.extend_from_slice(&bytes);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BTF by hand: types with their names.
    #[derive(Default)]
    struct Maker {
        types: Vec<u8>,
        strings: Vec<u8>,
    }

    impl Maker {
        fn add(&mut self, name: &str, kind: u32, count: u32, size: u32, rest: &[u32]) {
            let name = self.string(name);
            for field in [name, kind << 24 | count, size].iter().chain(rest) {
                self.types.extend_from_slice(&field.to_ne_bytes());
            }
        }

        fn string(&mut self, text: &str) -> u32 {
            if self.strings.is_empty() {
                self.strings.push(0);
            }
            if text.is_empty() {
                return 0;
            }
            let at = self.strings.len() as u32;
            self.strings.extend_from_slice(text.as_bytes());
            self.strings.push(0);
            at
        }

        fn finish(self) -> Vec<u8> {
            let mut btf = MAGIC.to_ne_bytes().to_vec();
            btf.extend_from_slice(&[1, 0]);
            let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
            for field in [24, 0, types, types, strings] {
                btf.extend_from_slice(&field.to_ne_bytes());
            }
            btf.extend(self.types);
            btf.extend(self.strings);
            btf
        }
    }

    fn sample() -> Vec<u8> {
        let mut maker = Maker::default();
        maker.add("int", INT, 0, 4, &[0x0100_0020]); // 1
        let (a, b, c) = (maker.string("inner"), maker.string("next"), maker.string("unused"));
        maker.add("other", STRUCT, 1, 4, &[c, 1, 0]); // 2
        maker.add("inner_t", STRUCT, 1, 4, &[a, 1, 0]); // 3
        maker.add("", PTR, 0, 5, &[]); // 4: points to wanted
        maker.add("wanted", STRUCT, 2, 16, &[a, 3, 0, b, 4, 64]); // 5
        maker.add("", FUNC_PROTO, 0, 0, &[]); // 6
        maker.add("a_function", FUNC, 0, 6, &[]); // 7
        maker.add("btf_trace_a_tracepoint", TYPEDEF, 0, 6, &[]); // 8
        maker.finish()
    }

    #[test]
    fn what_is_wanted_comes_with_what_it_contains() {
        let targets = ["a_function", "none", "btf_trace_a_tracepoint"];
        let found = find(&sample(), &["wanted", "absent"], &targets).unwrap();
        let ids = [("a_function".to_string(), 7), ("btf_trace_a_tracepoint".to_string(), 8)];
        assert_eq!(found.targets, HashMap::from(ids));
        let again = Source::new(&found.btf).unwrap();
        let names: Vec<&[u8]> = {
            let mut names = Vec::new();
            let mut at = 0;
            while at < again.types.len() {
                let ty = again.at(at).unwrap();
                names.push(again.string(ty.name).unwrap());
                at += ty.len().unwrap();
            }
            names
        };
        assert_eq!(names, [&b"wanted"[..], b"inner_t", b"", b"int"]);
        // The pointer's target is cut off; the members' ids are the new ones.
        assert_eq!(word(again.types, COMMON + 4), Some(2));
        assert_eq!(word(again.types, COMMON + 12 + 4), Some(3));
    }

    #[test]
    fn junk_is_not_understood() {
        let good = sample();
        assert!(find(b"", &["wanted"], &[]).is_none());
        assert!(find(b"\x7fELF and so on, more than a header", &["wanted"], &[]).is_none());
        // Whatever is cut or changed: no panic, no endless loop.
        for len in 0..good.len() {
            let _ = find(&good[..len], &["wanted"], &["a_function"]);
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            let _ = find(&bad, &["wanted"], &["a_function"]);
        }
    }

    #[test]
    fn the_running_kernels_types_are_found() {
        let Ok(data) = std::fs::read(super::super::VMLINUX) else {
            println!("SKIP this kernel has no BTF");
            return;
        };
        let found = find(&data, &["sock", "task_struct"], &["inet_stream_connect"]).unwrap();
        assert!(found.btf.len() < 300_000, "{} bytes", found.btf.len());
        assert!(found.targets.contains_key("inet_stream_connect"));
    }
}
