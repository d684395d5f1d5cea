// SPDX-License-Identifier: MIT OR Apache-2.0

//! The instruction of classic BPF, as `struct sock_filter` and libpcap's `struct bpf_insn` lay it out.

// The class, in the low three bits of the code.
pub(crate) const BPF_LD: u16 = 0x00;
pub(crate) const BPF_LDX: u16 = 0x01;
pub(crate) const BPF_ST: u16 = 0x02;
pub(crate) const BPF_STX: u16 = 0x03;
pub(crate) const BPF_ALU: u16 = 0x04;
pub(crate) const BPF_JMP: u16 = 0x05;
pub(crate) const BPF_RET: u16 = 0x06;
pub(crate) const BPF_MISC: u16 = 0x07;

// How much a load takes from the packet.
pub(crate) const BPF_W: u16 = 0x00;
pub(crate) const BPF_H: u16 = 0x08;
pub(crate) const BPF_B: u16 = 0x10;

// Where a load takes it from.
pub(crate) const BPF_IMM: u16 = 0x00;
pub(crate) const BPF_ABS: u16 = 0x20;
pub(crate) const BPF_IND: u16 = 0x40;
pub(crate) const BPF_MEM: u16 = 0x60;
pub(crate) const BPF_LEN: u16 = 0x80;
pub(crate) const BPF_MSH: u16 = 0xa0;

pub(crate) const BPF_ADD: u16 = 0x00;
pub(crate) const BPF_SUB: u16 = 0x10;
pub(crate) const BPF_MUL: u16 = 0x20;
pub(crate) const BPF_DIV: u16 = 0x30;
pub(crate) const BPF_OR: u16 = 0x40;
pub(crate) const BPF_AND: u16 = 0x50;
pub(crate) const BPF_LSH: u16 = 0x60;
pub(crate) const BPF_RSH: u16 = 0x70;
pub(crate) const BPF_NEG: u16 = 0x80;
pub(crate) const BPF_MOD: u16 = 0x90;
pub(crate) const BPF_XOR: u16 = 0xa0;

pub(crate) const BPF_JA: u16 = 0x00;
pub(crate) const BPF_JEQ: u16 = 0x10;
pub(crate) const BPF_JGT: u16 = 0x20;
pub(crate) const BPF_JGE: u16 = 0x30;
pub(crate) const BPF_JSET: u16 = 0x40;

// The operand of arithmetic and jumps; `BPF_A` is `ret`'s.
pub(crate) const BPF_K: u16 = 0x00;
pub(crate) const BPF_X: u16 = 0x08;
pub(crate) const BPF_A: u16 = 0x10;

pub(crate) const BPF_TAX: u16 = 0x00;
pub(crate) const BPF_TXA: u16 = 0x80;

/// Words of scratch memory, M[0] to M[15].
pub(crate) const BPF_MEMWORDS: usize = 16;
/// The longest program that the kernel takes.
pub(crate) const BPF_MAXINSNS: usize = 4096;

// Linux gives absolute loads at offsets below zero a meaning of their own (include/uapi/linux/filter.h).
/// From here: what the kernel knows about the packet ([`Ext`]).
pub(crate) const SKF_AD_OFF: u32 = -0x1000_i32 as u32;
/// From here: bytes from the network header on.
pub(crate) const SKF_NET_OFF: u32 = -0x10_0000_i32 as u32;
/// From here: bytes from the link-layer header on.
pub(crate) const SKF_LL_OFF: u32 = -0x20_0000_i32 as u32;

/// One instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub(crate) struct Insn {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

const _: () = assert!(size_of::<Insn>() == 8);

/// How much a load takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    Byte,
    Half,
    Word,
}

impl Size {
    pub(crate) const fn bytes(self) -> u32 {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
        }
    }
}

/// The second operand of arithmetic and jumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Src {
    K(u32),
    X,
}

/// Arithmetic on A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alu {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    And,
    Or,
    Xor,
    Lsh,
    Rsh,
}

/// What a conditional jump tests of A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cond {
    /// A == operand
    Eq,
    /// A > operand, unsigned
    Gt,
    /// A >= operand, unsigned
    Ge,
    /// A & operand
    Set,
}

/// What the instruction does, decoded. Each valid code decodes to exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// A = packet[k]; offsets from [`SKF_LL_OFF`] on are not of the packet: see [`Ext`]
    LdAbs(Size, u32),
    /// A = packet[X + k]
    LdInd(Size, u32),
    /// A = length of the packet
    LdLen,
    /// A = k
    LdImm(u32),
    /// A = M[k]
    LdMem(u32),
    /// X = length of the packet
    LdxLen,
    /// X = k
    LdxImm(u32),
    /// X = M[k]
    LdxMem(u32),
    /// X = 4 * (packet[k] & 0xf): the length of an IPv4 header
    LdxMsh(u32),
    /// M[k] = A
    St(u32),
    /// M[k] = X
    Stx(u32),
    /// A = A op operand
    Alu(Alu, Src),
    /// A = -A
    Neg,
    /// Jump k instructions ahead; for libpcap, and not for Linux, k is signed
    Ja(u32),
    /// Jump `jt` instructions ahead if it holds, else `jf`
    Jump { cond: Cond, src: Src, jt: u8, jf: u8 },
    /// Return k
    RetK(u32),
    /// Return A
    RetA,
    /// X = A
    Tax,
    /// A = X
    Txa,
}

impl Op {
    /// Whether it loads from where a header starts, instead of the packet's start: Linux gives these offsets that
    /// meaning, and to others they are offsets beyond any packet. `[x - 4]` is none of these, and neither is the
    /// `4*([-2]&0xf)` that libpcap makes for link types behind which it knows of no IP header.
    pub(crate) const fn loads_by_header(self) -> bool {
        match self {
            Self::LdAbs(_, k) | Self::LdInd(_, k) | Self::LdxMsh(k) => {
                k >= SKF_LL_OFF && k < SKF_AD_OFF
            }
            _ => false,
        }
    }
}

impl Insn {
    pub(crate) const fn new(code: u16, jt: u8, jf: u8, k: u32) -> Self {
        Self { code, jt, jf, k }
    }

    pub(crate) const fn stmt(code: u16, k: u32) -> Self {
        Self::new(code, 0, 0, k)
    }

    #[cfg(test)]
    pub(crate) const fn class(self) -> u16 {
        self.code & 0x07
    }

    /// What it does, or nothing for a code that the kernel refuses.
    pub(crate) const fn decode(self) -> Option<Op> {
        let k = self.k;
        let src = if self.code & BPF_X != 0 { Src::X } else { Src::K(k) };
        Some(match self.code {
            0x20 => Op::LdAbs(Size::Word, k),
            0x28 => Op::LdAbs(Size::Half, k),
            0x30 => Op::LdAbs(Size::Byte, k),
            0x40 => Op::LdInd(Size::Word, k),
            0x48 => Op::LdInd(Size::Half, k),
            0x50 => Op::LdInd(Size::Byte, k),
            0x80 => Op::LdLen,
            0x00 => Op::LdImm(k),
            0x60 => Op::LdMem(k),
            0x81 => Op::LdxLen,
            0x01 => Op::LdxImm(k),
            0x61 => Op::LdxMem(k),
            0xb1 => Op::LdxMsh(k),
            0x02 => Op::St(k),
            0x03 => Op::Stx(k),
            0x04 | 0x0c => Op::Alu(Alu::Add, src),
            0x14 | 0x1c => Op::Alu(Alu::Sub, src),
            0x24 | 0x2c => Op::Alu(Alu::Mul, src),
            0x34 | 0x3c => Op::Alu(Alu::Div, src),
            0x44 | 0x4c => Op::Alu(Alu::Or, src),
            0x54 | 0x5c => Op::Alu(Alu::And, src),
            0x64 | 0x6c => Op::Alu(Alu::Lsh, src),
            0x74 | 0x7c => Op::Alu(Alu::Rsh, src),
            0x84 => Op::Neg,
            0x94 | 0x9c => Op::Alu(Alu::Mod, src),
            0xa4 | 0xac => Op::Alu(Alu::Xor, src),
            0x05 => Op::Ja(k),
            0x15 | 0x1d => Op::Jump { cond: Cond::Eq, src, jt: self.jt, jf: self.jf },
            0x25 | 0x2d => Op::Jump { cond: Cond::Gt, src, jt: self.jt, jf: self.jf },
            0x35 | 0x3d => Op::Jump { cond: Cond::Ge, src, jt: self.jt, jf: self.jf },
            0x45 | 0x4d => Op::Jump { cond: Cond::Set, src, jt: self.jt, jf: self.jf },
            0x06 => Op::RetK(k),
            0x16 => Op::RetA,
            0x07 => Op::Tax,
            0x87 => Op::Txa,
            _ => return None,
        })
    }
}

/// What Linux tells a filter beside the packet's bytes: absolute loads from [`SKF_AD_OFF`] on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Ext {
    /// The EtherType, in host order
    Protocol = 0,
    /// To this host, broadcast, multicast, to another host, outgoing: PACKET_HOST and so on
    PktType = 4,
    Ifindex = 8,
    Nlattr = 12,
    NlattrNest = 16,
    Mark = 20,
    Queue = 24,
    HaType = 28,
    RxHash = 32,
    Cpu = 36,
    /// A = A ^ X, from before there was an instruction for it
    AluXorX = 40,
    VlanTag = 44,
    VlanTagPresent = 48,
    /// Where the payload starts, as the kernel's flow dissector sees it
    PayOffset = 52,
    Random = 56,
    VlanTpid = 60,
}

impl Ext {
    pub(crate) const ALL: [Self; 16] = [
        Self::Protocol,
        Self::PktType,
        Self::Ifindex,
        Self::Nlattr,
        Self::NlattrNest,
        Self::Mark,
        Self::Queue,
        Self::HaType,
        Self::RxHash,
        Self::Cpu,
        Self::AluXorX,
        Self::VlanTag,
        Self::VlanTagPresent,
        Self::PayOffset,
        Self::Random,
        Self::VlanTpid,
    ];

    /// The offset of an absolute load that means this.
    pub(crate) const fn offset(self) -> u32 {
        SKF_AD_OFF.wrapping_add(self as u32)
    }

    /// What an absolute load at this offset means, if it isn't of the packet.
    pub(crate) fn at(offset: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|ext| ext.offset() == offset)
    }

    /// Its name in the kernel's assembler, without the `#`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Protocol => "proto",
            Self::PktType => "type",
            Self::Ifindex => "ifidx",
            Self::Nlattr => "nla",
            Self::NlattrNest => "nlan",
            Self::Mark => "mark",
            Self::Queue => "queue",
            Self::HaType => "hatype",
            Self::RxHash => "rxhash",
            Self::Cpu => "cpu",
            Self::AluXorX => "xor_x",
            Self::VlanTag => "vlan_tci",
            Self::VlanTagPresent => "vlan_avail",
            Self::PayOffset => "poff",
            Self::Random => "rand",
            Self::VlanTpid => "vlan_tpid",
        }
    }
}
