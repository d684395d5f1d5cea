// SPDX-License-Identifier: MIT OR Apache-2.0

//! One eBPF instruction, and its numbers: RFC 9669, and include/uapi/linux/bpf.h for what is Linux's own.

/// As the kernel takes it: 8 bytes, in the machine's byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Insn {
    pub(crate) code: u8,
    /// 4 bits.
    pub(crate) dst: u8,
    /// 4 bits.
    pub(crate) src: u8,
    pub(crate) off: i16,
    pub(crate) imm: i32,
}

impl Insn {
    pub(crate) const SIZE: usize = 8;

    pub(crate) const fn new(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Self {
        Self { code, dst, src, off, imm }
    }

    /// The bytes that the kernel of this machine takes.
    pub(crate) fn encode(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0] = self.code;
        // struct bpf_insn has two bit fields, so their order follows the byte order.
        bytes[1] = if cfg!(target_endian = "little") {
            self.src << 4 | self.dst
        } else {
            self.dst << 4 | self.src
        };
        bytes[2..4].copy_from_slice(&self.off.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.imm.to_ne_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: [u8; Self::SIZE]) -> Self {
        let [code, registers, off0, off1, imm @ ..] = bytes;
        let (low, high) = (registers & 0xf, registers >> 4);
        let (dst, src) = if cfg!(target_endian = "little") { (low, high) } else { (high, low) };
        Self { code, dst, src, off: i16::from_ne_bytes([off0, off1]), imm: i32::from_ne_bytes(imm) }
    }

    /// The three lowest bits: what the other bits mean.
    pub(crate) const fn class(self) -> u8 {
        self.code & 0x07
    }

    /// Of arithmetic and jumps: the operation.
    pub(crate) const fn op(self) -> u8 {
        self.code & 0xf0
    }

    pub(crate) const fn is_call(self) -> bool {
        self.code == class::JMP | jmp::CALL
    }

    pub(crate) const fn is_exit(self) -> bool {
        self.code == class::JMP | jmp::EXIT
    }

    /// Whether this is the first half of a 16-byte instruction, the only one there is.
    pub(crate) const fn is_wide(self) -> bool {
        self.code == class::LD | size::DW | mode::IMM
    }
}

/// `code & 0x07`.
pub(crate) mod class {
    pub(crate) const LD: u8 = 0x00;
    pub(crate) const LDX: u8 = 0x01;
    pub(crate) const ST: u8 = 0x02;
    pub(crate) const STX: u8 = 0x03;
    pub(crate) const ALU: u8 = 0x04;
    pub(crate) const JMP: u8 = 0x05;
    pub(crate) const JMP32: u8 = 0x06;
    pub(crate) const ALU64: u8 = 0x07;
}

/// Of loads and stores: `code & 0x18`.
pub(crate) mod size {
    pub(crate) const W: u8 = 0x00;
    pub(crate) const H: u8 = 0x08;
    pub(crate) const B: u8 = 0x10;
    pub(crate) const DW: u8 = 0x18;
}

/// Of loads and stores: `code & 0xe0`.
pub(crate) mod mode {
    pub(crate) const IMM: u8 = 0x00;
    pub(crate) const ABS: u8 = 0x20;
    pub(crate) const IND: u8 = 0x40;
    pub(crate) const MEM: u8 = 0x60;
    pub(crate) const MEMSX: u8 = 0x80;
    pub(crate) const ATOMIC: u8 = 0xc0;
}

/// Of arithmetic and jumps: where the second operand is, `code & 0x08`.
pub(crate) const K: u8 = 0x00;
pub(crate) const X: u8 = 0x08;

/// Of arithmetic: `code & 0xf0`.
pub(crate) mod alu {
    pub(crate) const ADD: u8 = 0x00;
    pub(crate) const SUB: u8 = 0x10;
    pub(crate) const MUL: u8 = 0x20;
    /// Signed when `off` is 1.
    pub(crate) const DIV: u8 = 0x30;
    pub(crate) const OR: u8 = 0x40;
    pub(crate) const AND: u8 = 0x50;
    pub(crate) const LSH: u8 = 0x60;
    pub(crate) const RSH: u8 = 0x70;
    pub(crate) const NEG: u8 = 0x80;
    /// Signed when `off` is 1.
    pub(crate) const MOD: u8 = 0x90;
    pub(crate) const XOR: u8 = 0xa0;
    /// Sign-extends from `off` bits when that is not 0.
    pub(crate) const MOV: u8 = 0xb0;
    pub(crate) const ARSH: u8 = 0xc0;
    /// In class ALU: to little endian (`K`) or big endian (`X`), of `imm` bits. In class ALU64: swap always.
    pub(crate) const END: u8 = 0xd0;
}

/// Of jumps: `code & 0xf0`.
pub(crate) mod jmp {
    /// Class JMP jumps by `off`, class JMP32 by `imm`.
    pub(crate) const JA: u8 = 0x00;
    pub(crate) const JEQ: u8 = 0x10;
    pub(crate) const JGT: u8 = 0x20;
    pub(crate) const JGE: u8 = 0x30;
    pub(crate) const JSET: u8 = 0x40;
    pub(crate) const JNE: u8 = 0x50;
    pub(crate) const JSGT: u8 = 0x60;
    pub(crate) const JSGE: u8 = 0x70;
    pub(crate) const CALL: u8 = 0x80;
    pub(crate) const EXIT: u8 = 0x90;
    pub(crate) const JLT: u8 = 0xa0;
    pub(crate) const JLE: u8 = 0xb0;
    pub(crate) const JSLT: u8 = 0xc0;
    pub(crate) const JSLE: u8 = 0xd0;
}

/// `imm` of an atomic operation.
pub(crate) mod atomic {
    pub(crate) const ADD: i32 = 0x00;
    pub(crate) const OR: i32 = 0x40;
    pub(crate) const AND: i32 = 0x50;
    pub(crate) const XOR: i32 = 0xa0;
    /// Ored to the others: the old value comes back in `src`.
    pub(crate) const FETCH: i32 = 0x01;
    pub(crate) const XCHG: i32 = 0xe1;
    pub(crate) const CMPXCHG: i32 = 0xf1;
}

/// `src` of a 16-byte load of an immediate value, and of a call.
pub(crate) mod pseudo {
    pub(crate) const MAP_FD: u8 = 1;
    pub(crate) const MAP_VALUE: u8 = 2;
    pub(crate) const BTF_ID: u8 = 3;
    pub(crate) const FUNC: u8 = 4;
    pub(crate) const MAP_IDX: u8 = 5;
    pub(crate) const MAP_IDX_VALUE: u8 = 6;
    /// Of a call: a function of the same program, `imm` instructions on.
    pub(crate) const CALL: u8 = 1;
    /// Of a call: a function of the kernel, by its BTF id.
    pub(crate) const KFUNC_CALL: u8 = 2;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_bytes() {
        let insn = Insn::new(class::LDX | size::H | mode::MEM, 1, 2, -2, 0x01020304);
        assert_eq!(Insn::decode(insn.encode()), insn);
        if cfg!(target_endian = "little") {
            assert_eq!(insn.encode(), [0x69, 0x21, 0xfe, 0xff, 4, 3, 2, 1]);
        }
        assert_eq!(insn.class(), class::LDX);
        assert!(Insn::new(0x18, 0, 0, 0, 0).is_wide());
        assert_eq!(Insn::new(0xb7, 0, 0, 0, 0).op(), alu::MOV);
    }
}
