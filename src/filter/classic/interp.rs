// SPDX-License-Identifier: MIT OR Apache-2.0

//! The interpreter.

use std::fmt;
use std::ops::ControlFlow;

use super::insn::{Alu, BPF_MEMWORDS, Cond, Ext, Insn, Op, SKF_LL_OFF, SKF_NET_OFF, Size, Src};

/// Where libpcap and Linux read the same program differently. Everything else is the same for both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Rules {
    /// A shift by 32 and more gives 0, and `[x + k]` is out of bounds where the sum does not fit 32 bits.
    #[default]
    Libpcap,
    /// A shift takes the low five bits, `[x + k]` wraps around, and offsets below zero are of the headers.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests compare with the kernel by it"))]
    Linux,
}

/// A packet, and what is known about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet<'a> {
    /// The bytes that were captured.
    pub(crate) data: &'a [u8],
    /// How long it was on the wire.
    pub(crate) length: u32,
    /// Where the network header starts, for Linux's offsets.
    pub(crate) network: usize,
    /// What Linux's extensions give, as far as it is known.
    pub(crate) known: &'a [(Ext, u32)],
}

impl<'a> Packet<'a> {
    /// A packet of which only its bytes are known.
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self { data, length: data.len() as u32, network: 14, known: &[] }
    }
}

/// Why a program returns nothing for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stuck {
    /// It asks for what nobody recorded.
    Unknown(Ext),
    /// It is a loop, and goes round more often than the packet has bytes.
    Endless,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(ext) => {
                write!(f, "the filter asks for `#{}`, which no capture file tells", ext.name())
            }
            Self::Endless => f.write_str(
                "the filter is a loop that goes round more often than the packet has bytes",
            ),
        }
    }
}

/// The machine before an instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) pc: usize,
    pub(crate) a: u32,
    pub(crate) x: u32,
    pub(crate) mem: [u32; BPF_MEMWORDS],
}

/// What the program returns for the packet: how many bytes of it are wanted, 0 for no match. The program is one that
/// [`super::check::check`] or [`super::check::check_with_loops`] takes; of any other, the first instruction that can't
/// be carried out returns 0.
pub(crate) fn run(program: &[Insn], packet: &Packet<'_>, rules: Rules) -> Result<u32, Stuck> {
    trace(program, packet, rules, |_| {})
}

/// The same, with a look at the machine before each instruction.
pub(crate) fn trace(
    program: &[Insn],
    packet: &Packet<'_>,
    rules: Rules,
    mut look: impl FnMut(&State),
) -> Result<u32, Stuck> {
    let mut state = State::default();
    // What libpcap makes of `protochain` goes from header to header, and each has bytes of the packet.
    let mut steps = (program.len() as u64).saturating_mul(packet.data.len() as u64 + 1);
    while let Some(insn) = program.get(state.pc) {
        steps = steps.checked_sub(1).ok_or(Stuck::Endless)?;
        look(&state);
        let Some(op) = insn.decode() else { return Ok(0) };
        state.pc += 1;
        if let ControlFlow::Break(verdict) = state.step(op, packet, rules)? {
            return Ok(verdict);
        }
    }
    Ok(0)
}

type Step = Result<ControlFlow<u32>, Stuck>;

impl State {
    fn step(&mut self, op: Op, packet: &Packet<'_>, rules: Rules) -> Step {
        // A load out of bounds and a division by zero end the program: no match.
        const NO_MATCH: Step = Ok(ControlFlow::Break(0));
        let slot = |k: u32| k as usize % BPF_MEMWORDS;
        match op {
            Op::LdAbs(size, k) => {
                let loaded = match Ext::at(k) {
                    Some(ext) => Some(self.extension(ext, packet)?),
                    None => packet.load(k, size, rules),
                };
                match loaded {
                    Some(value) => self.a = value,
                    None => return NO_MATCH,
                }
            }
            Op::LdInd(size, k) => {
                let offset = match rules {
                    Rules::Libpcap => self.x.checked_add(k),
                    Rules::Linux => Some(self.x.wrapping_add(k)),
                };
                match offset.and_then(|offset| packet.load(offset, size, rules)) {
                    Some(value) => self.a = value,
                    None => return NO_MATCH,
                }
            }
            Op::LdLen => self.a = packet.length,
            Op::LdImm(k) => self.a = k,
            Op::LdMem(k) => self.a = self.mem[slot(k)],
            Op::LdxLen => self.x = packet.length,
            Op::LdxImm(k) => self.x = k,
            Op::LdxMem(k) => self.x = self.mem[slot(k)],
            Op::LdxMsh(k) => match packet.load(k, Size::Byte, rules) {
                Some(value) => self.x = (value & 0xf) << 2,
                None => return NO_MATCH,
            },
            Op::St(k) => self.mem[slot(k)] = self.a,
            Op::Stx(k) => self.mem[slot(k)] = self.x,
            Op::Alu(alu, src) => match arithmetic(alu, self.a, self.operand(src), rules) {
                Some(value) => self.a = value,
                None => return NO_MATCH,
            },
            Op::Neg => self.a = self.a.wrapping_neg(),
            // Backward, too: libpcap takes the distance as signed.
            Op::Ja(by) => self.pc = self.pc.wrapping_add_signed(by as i32 as isize),
            Op::Jump { cond, src, jt, jf } => {
                let operand = self.operand(src);
                let holds = match cond {
                    Cond::Eq => self.a == operand,
                    Cond::Gt => self.a > operand,
                    Cond::Ge => self.a >= operand,
                    Cond::Set => self.a & operand != 0,
                };
                self.pc += usize::from(if holds { jt } else { jf });
            }
            Op::RetK(k) => return Ok(ControlFlow::Break(k)),
            Op::RetA => return Ok(ControlFlow::Break(self.a)),
            Op::Tax => self.x = self.a,
            Op::Txa => self.a = self.x,
        }
        Ok(ControlFlow::Continue(()))
    }

    const fn operand(&self, src: Src) -> u32 {
        match src {
            Src::K(k) => k,
            Src::X => self.x,
        }
    }

    fn extension(&self, ext: Ext, packet: &Packet<'_>) -> Result<u32, Stuck> {
        match ext {
            Ext::AluXorX => Ok(self.a ^ self.x),
            Ext::Nlattr => Ok(attribute(packet.data, self.a, self.x, false)),
            Ext::NlattrNest => Ok(attribute(packet.data, self.a, self.x, true)),
            _ => {
                let known = packet.known.iter().find(|(known, _)| *known == ext);
                known.map(|(_, value)| *value).ok_or(Stuck::Unknown(ext))
            }
        }
    }
}

/// Nothing for a division by zero.
pub(crate) fn arithmetic(alu: Alu, a: u32, operand: u32, rules: Rules) -> Option<u32> {
    Some(match alu {
        Alu::Add => a.wrapping_add(operand),
        Alu::Sub => a.wrapping_sub(operand),
        Alu::Mul => a.wrapping_mul(operand),
        Alu::Div => return a.checked_div(operand),
        Alu::Mod => return a.checked_rem(operand),
        Alu::And => a & operand,
        Alu::Or => a | operand,
        Alu::Xor => a ^ operand,
        Alu::Lsh => match rules {
            Rules::Libpcap => a.checked_shl(operand).unwrap_or(0),
            Rules::Linux => a.wrapping_shl(operand),
        },
        Alu::Rsh => match rules {
            Rules::Libpcap => a.checked_shr(operand).unwrap_or(0),
            Rules::Linux => a.wrapping_shr(operand),
        },
    })
}

impl Packet<'_> {
    fn load(&self, offset: u32, size: Size, rules: Rules) -> Option<u32> {
        let offset = match (rules, i32::try_from(offset)) {
            (_, Ok(offset)) => offset as usize,
            (Rules::Libpcap, Err(_)) => return None,
            // net/core/filter.c, bpf_internal_load_pointer_neg_helper
            (Rules::Linux, Err(_)) if offset >= SKF_NET_OFF => {
                self.network + (offset - SKF_NET_OFF) as usize
            }
            (Rules::Linux, Err(_)) if offset >= SKF_LL_OFF => (offset - SKF_LL_OFF) as usize,
            (Rules::Linux, Err(_)) => return None,
        };
        let bytes = self.data.get(offset..)?.get(..size.bytes() as usize)?;
        Some(bytes.iter().fold(0, |value, &byte| value << 8 | u32::from(byte)))
    }
}

/// Where in the packet the netlink attribute of type `kind` is, looked for from `at` on: 0 when it isn't there. With
/// `nested`, looked for in the attribute at `at`. As net/core/filter.c and nla_find have it.
fn attribute(data: &[u8], at: u32, kind: u32, nested: bool) -> u32 {
    const HEADER: usize = 4;
    // A length and a type, both of the machine's byte order; two bits of the type are flags.
    let header = |at: usize| -> Option<(usize, u16)> {
        let bytes = data.get(at..at + HEADER)?;
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        Some((length, u16::from_ne_bytes([bytes[2], bytes[3]]) & 0x3fff))
    };
    let mut at = at as usize;
    let mut end = data.len();
    if data.len() < HEADER || at > data.len() - HEADER {
        return 0;
    }
    if nested {
        match header(at) {
            Some((length, _)) if length >= HEADER && length <= data.len() - at => {
                end = at + length;
                at += HEADER;
            }
            _ => return 0,
        }
    }
    while at + HEADER <= end {
        let Some((length, found)) = header(at) else { return 0 };
        if length < HEADER || length > end - at {
            return 0;
        }
        if u32::from(found) == kind {
            return at as u32;
        }
        at += length.next_multiple_of(4);
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(program: &[(u16, u8, u8, u32)], data: &[u8], rules: Rules) -> u32 {
        let program: Vec<Insn> =
            program.iter().map(|&(code, jt, jf, k)| Insn::new(code, jt, jf, k)).collect();
        run(&program, &Packet::new(data), rules).unwrap()
    }

    const RET_A: (u16, u8, u8, u32) = (0x16, 0, 0, 0);

    #[test]
    fn loads_and_their_bounds() {
        let data = [1, 2, 3, 4, 0x45];
        for (code, k, expected) in [
            (0x20, 0, 0x0102_0304),
            (0x20, 1, 0x0203_0445),
            (0x20, 2, 0),
            (0x28, 3, 0x0445),
            (0x28, 4, 0),
            (0x30, 4, 0x45),
            (0x30, 5, 0),
            (0x30, 0x7fff_ffff, 0),
            (0x30, 0x8000_0000, 0),
            (0x80, 0, 5),
        ] {
            for rules in [Rules::Libpcap, Rules::Linux] {
                let program = [(code, 0, 0, k), RET_A];
                assert_eq!(verdict(&program, &data, rules), expected, "{code:#x} {k}");
            }
        }
        // Out of bounds ends the program; it does not just load 0.
        assert_eq!(verdict(&[(0x30, 0, 0, 5), (6, 0, 0, 9)], &data, Rules::Linux), 0);
        let msh = [(0xb1, 0, 0, 4), (0x87, 0, 0, 0), RET_A];
        assert_eq!(verdict(&msh, &data, Rules::Libpcap), 20);
    }

    #[test]
    fn where_libpcap_and_linux_differ() {
        let data = [7, 8, 9];
        let wraps = [(0x01, 0, 0, u32::MAX), (0x50, 0, 0, 2), RET_A];
        assert_eq!(verdict(&wraps, &data, Rules::Linux), 8);
        assert_eq!(verdict(&wraps, &data, Rules::Libpcap), 0);
        let shift = [(0x00, 0, 0, 3), (0x01, 0, 0, 33), (0x6c, 0, 0, 0), RET_A];
        assert_eq!(verdict(&shift, &data, Rules::Linux), 6);
        assert_eq!(verdict(&shift, &data, Rules::Libpcap), 0);
        let link = [(0x30, 0, 0, SKF_LL_OFF + 1), RET_A];
        assert_eq!(verdict(&link, &data, Rules::Linux), 8);
        assert_eq!(verdict(&link, &data, Rules::Libpcap), 0);
    }

    #[test]
    fn loops_end_with_the_packet() {
        // X goes from byte to byte until there is a 9.
        let find = [
            (0x50, 0, 0, 0),
            (0x15, 4, 0, 9),
            (0x87, 0, 0, 0),
            (0x04, 0, 0, 1),
            (0x07, 0, 0, 0),
            (0x05, 0, 0, -6_i32 as u32),
            (0x06, 0, 0, 5),
        ];
        for rules in [Rules::Libpcap, Rules::Linux] {
            assert_eq!(verdict(&find, &[1, 2, 3, 9], rules), 5);
            assert_eq!(verdict(&find, &[0; 70_000], rules), 0);
        }
        let endless = [Insn::stmt(0x05, u32::MAX), Insn::stmt(0x06, 0)];
        assert_eq!(run(&endless, &Packet::new(&[0; 9]), Rules::Libpcap), Err(Stuck::Endless));
    }

    #[test]
    fn division_by_zero_is_no_match() {
        for code in [0x3c, 0x9c] {
            assert_eq!(verdict(&[(code, 0, 0, 0), (6, 0, 0, 1)], &[], Rules::Linux), 0);
        }
    }

    #[test]
    fn an_attribute_is_found() {
        let mut data = vec![0xff; 4];
        for (length, kind) in [(5_u16, 1_u16), (8, 2)] {
            data.extend(length.to_ne_bytes());
            data.extend(kind.to_ne_bytes());
            data.extend([0; 4]);
        }
        assert_eq!(attribute(&data, 4, 2, false), 12);
        assert_eq!(attribute(&data, 4, 3, false), 0);
        assert_eq!(attribute(&data, u32::MAX, 1, false), 0);
        let program = [(0x00, 0, 0, 4), (0x01, 0, 0, 2), (0x20, 0, 0, 0xffff_f00c), RET_A];
        assert_eq!(verdict(&program, &data, Rules::Linux), 12);
    }

    #[test]
    fn what_nobody_knows_is_said() {
        let program = [Insn::stmt(0x20, Ext::Mark.offset()), Insn::stmt(0x16, 0)];
        let packet = Packet::new(&[]);
        assert_eq!(run(&program, &packet, Rules::Linux), Err(Stuck::Unknown(Ext::Mark)));
        let packet = Packet { known: &[(Ext::Mark, 5)], ..packet };
        assert_eq!(run(&program, &packet, Rules::Linux), Ok(5));
    }
}
