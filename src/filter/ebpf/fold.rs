// SPDX-License-Identifier: MIT OR Apache-2.0

//! Takes out of a program what its constants decide.
//!
//! Options reach a program as constants in a map that nobody can write to. The verifier knows their values, and removes code that
//! is never reached; but each look at a constant stays a load, and a branch that always goes the same way stays a branch where
//! something else leads to the other side, too. For a packet, that is a good part of the work. Here, before the program is
//! loaded, such loads become numbers, decided branches become jumps or nothing, and what is not reached or not used any more
//! goes.

use super::insn::{Insn, K, X, alu, class, jmp, mode, pseudo, size};
use super::splice::Loadable;

/// r0 to r10.
const REGISTERS: usize = 11;

/// What is known of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Unknown,
    Number(u64),
    /// An address in a map's value: the map's descriptor, and from where on.
    Place(i32, i32),
}

type Registers = [Value; REGISTERS];

impl Loadable {
    /// `constant` tells the number of so many bytes at an offset of a map's value, if they will never change.
    pub(crate) fn fold(&mut self, mut constant: impl FnMut(i32, i32, usize) -> Option<u64>) {
        // Each round makes it shorter, or is the last.
        loop {
            self.thread();
            let mut keep = self.decide(&mut constant);
            self.drop_unused(&mut keep);
            self.drop_idle_jumps(&mut keep);

            if keep.iter().all(|keep| *keep) {
                return;
            }
            self.retain(&keep);
        }
    }

    /// A jump to a jump goes to where that one leads.
    fn thread(&mut self) {
        for at in self.starts() {
            let Some(mut target) = self.target(at) else {
                continue;
            };
            // As long as it goes on ahead: there may be circles.
            while self.insns[target].code == class::JMP | jmp::JA
                && let Some(next) = self.target(target)
                && next > target
                && let Ok(off) = i16::try_from(next as i64 - at as i64 - 1)
            {
                self.insns[at].off = off;
                target = next;
            }
        }
    }

    /// Puts numbers in the place of loads and jumps in the place of decided branches. Tells what is still reached.
    fn decide(&mut self, constant: &mut impl FnMut(i32, i32, usize) -> Option<u64>) -> Vec<bool> {
        let known = self.known(constant);
        let mut keep = vec![false; self.insns.len()];
        for at in self.starts() {
            let Some(registers) = &known[at] else {
                continue;
            };
            let insn = self.insns[at];
            let (next, half) = self.behind(at);
            keep[at..next].fill(true);
            self.insns[at] = match self.target(at).map(|_| decided(insn, registers)) {
                Some(Some(taken)) => {
                    let off = if taken { insn.off } else { 0 };
                    Insn::new(class::JMP | jmp::JA, 0, 0, off, 0)
                }
                Some(None) => with_number(insn, registers),
                None => step(insn, half, &mut registers.clone(), constant),
            };
        }
        keep
    }

    /// What is known of the registers before each instruction that can be reached.
    fn known(
        &self,
        constant: &mut impl FnMut(i32, i32, usize) -> Option<u64>,
    ) -> Vec<Option<Registers>> {
        let mut known: Vec<Option<Registers>> = vec![None; self.insns.len()];
        known[0] = Some([Value::Unknown; REGISTERS]);
        let starts: Vec<usize> = self.starts().collect();
        // The first time through follows ways ahead; each other one, what came back from behind. What is known gets less
        // each time, so that it ends.
        let mut changed = true;
        while changed {
            changed = false;
            for &at in &starts {
                let Some(mut registers) = known[at] else {
                    continue;
                };
                let insn = self.insns[at];
                let (next, half) = self.behind(at);
                let mut reaches = |place: usize, registers: Registers| {
                    let both = meet(known[place], Some(registers));
                    changed |= place <= at && both != known[place];
                    known[place] = both;
                };
                if let Some(callee) = self.callee(at) {
                    reaches(callee, [Value::Unknown; REGISTERS]);
                }
                if let Some(target) = self.target(at) {
                    let taken = decided(insn, &registers);
                    if taken != Some(false) {
                        reaches(target, registers);
                    }
                    if taken != Some(true) {
                        reaches(next, registers);
                    }
                } else if !insn.is_exit() {
                    step(insn, half, &mut registers, constant);
                    reaches(next, registers);
                }
            }
        }
        known
    }

    /// Where the next instruction begins, and the number in the second half of this one.
    fn behind(&self, at: usize) -> (usize, i32) {
        if self.insns[at].is_wide() { (at + 2, self.insns[at + 1].imm) } else { (at + 1, 0) }
    }

    /// Where each instruction begins.
    fn starts(&self) -> impl Iterator<Item = usize> + use<> {
        let mut half = false;
        let starts: Vec<usize> = (0..self.insns.len())
            .filter(|&at| {
                let begins = !half;
                half = begins && self.insns[at].is_wide();
                begins
            })
            .collect();
        starts.into_iter()
    }

    /// Arithmetic whose result nobody reads goes.
    fn drop_unused(&self, keep: &mut [bool]) {
        let starts: Vec<usize> = self.starts().filter(|&at| keep[at]).collect();
        // The registers that are read at or behind an instruction before they are written.
        let mut live = vec![0_u16; self.insns.len() + 2];
        loop {
            let mut changed = false;
            for &at in starts.iter().rev() {
                let insn = self.insns[at];
                let (next, _) = self.behind(at);
                let later = match self.target(at) {
                    Some(target) if insn.op() == jmp::JA => live[target],
                    Some(target) => live[target] | live[next],
                    None if insn.is_exit() => 0,
                    None => live[next],
                };
                let (reads, writes) = uses(insn);
                let now = if is_idle(insn, later) { later } else { later & !writes | reads };
                changed |= live[at] != now;
                live[at] = now;
            }
            if !changed {
                break;
            }
        }
        for &at in &starts {
            let (next, _) = self.behind(at);
            if is_idle(self.insns[at], live[next]) {
                keep[at..next].fill(false);
            }
        }
    }

    /// Jumps to what comes next anyway go.
    fn drop_idle_jumps(&self, keep: &mut [bool]) {
        for at in self.starts() {
            if let Some(target) = self.target(at)
                && target > at
                && keep[at + 1..target].iter().all(|keep| !keep)
            {
                keep[at] = false;
            }
        }
    }

    /// Leaves only these instructions.
    fn retain(&mut self, keep: &[bool]) {
        let mut place = Vec::with_capacity(keep.len() + 1);
        let mut count = 0;
        for &keep in keep {
            place.push(count);
            count += usize::from(keep);
        }
        place.push(count);
        let distance = |from: usize, to: usize| (place[to] as i64 - place[from] as i64 - 1) as i32;
        let mut insns = Vec::with_capacity(count);
        for at in (0..keep.len()).filter(|&at| keep[at]) {
            let insn = self.insns[at];
            // The second half of a wide instruction has code 0, and is neither.
            insns.push(match (self.callee(at), self.target(at)) {
                (Some(callee), _) => Insn { imm: distance(at, callee), ..insn },
                // Nothing gets farther away.
                (None, Some(target)) => Insn { off: distance(at, target) as i16, ..insn },
                (None, None) => insn,
            });
        }
        let ends: Vec<usize> = self
            .functions
            .iter()
            .map(|function| function[0] as usize)
            .skip(1)
            .chain([keep.len()])
            .collect();
        // A function of which nothing is left is in no table.
        let end_of = |at: usize| ends.iter().copied().find(|&end| end > at).unwrap_or(keep.len());
        self.functions = moved(&self.functions, &place, end_of);
        self.lines = moved(&self.lines, &place, end_of);
        self.insns = insns;
    }
}

/// A table, whose records begin with an instruction's number. The record of one that is gone is for the next in its function.
fn moved<const N: usize>(
    table: &[[u32; N]],
    place: &[usize],
    end_of: impl Fn(usize) -> usize,
) -> Vec<[u32; N]> {
    let mut records: Vec<[u32; N]> = Vec::with_capacity(table.len());
    for record in table {
        let at = record[0] as usize;
        if place[at] == place[end_of(at)] {
            continue;
        }
        let mut record = *record;
        record[0] = place[at] as u32;
        match records.last_mut() {
            Some(last) if last[0] == record[0] => *last = record,
            _ => records.push(record),
        }
    }
    records
}

fn meet(one: Option<Registers>, other: Option<Registers>) -> Option<Registers> {
    let (Some(one), Some(other)) = (one, other) else {
        return one.or(other);
    };
    let mut both = one;
    for (value, other) in both.iter_mut().zip(other) {
        if *value != other {
            *value = Value::Unknown;
        }
    }
    Some(both)
}

/// What the instruction does to the registers; and what does the same, and knows the number that it loads.
fn step(
    insn: Insn,
    half: i32,
    registers: &mut Registers,
    constant: &mut impl FnMut(i32, i32, usize) -> Option<u64>,
) -> Insn {
    let (dst, src) = (usize::from(insn.dst), usize::from(insn.src));
    if insn.is_wide() {
        registers[dst] = match insn.src {
            0 => Value::Number(u64::from(half as u32) << 32 | u64::from(insn.imm as u32)),
            pseudo::MAP_VALUE => Value::Place(insn.imm, half),
            _ => Value::Unknown,
        };
        return insn;
    }
    match insn.class() {
        class::LDX => {
            let number = match registers[src] {
                Value::Place(map, offset) if insn.code & 0xe0 == mode::MEM => offset
                    .checked_add(insn.off.into())
                    .and_then(|offset| constant(map, offset, bytes(insn))),
                _ => None,
            };
            registers[dst] = number.map_or(Value::Unknown, Value::Number);
            match number.map(u32::try_from) {
                Some(Ok(number)) => {
                    return Insn::new(class::ALU | alu::MOV | K, insn.dst, 0, 0, number as i32);
                }
                _ => return insn,
            }
        }
        class::ALU | class::ALU64 => {
            let same = with_number(insn, registers);
            registers[dst] = computed(insn, registers);
            return match registers[dst] {
                Value::Number(number) if number <= u64::from(u32::MAX) => {
                    Insn::new(class::ALU | alu::MOV | K, insn.dst, 0, 0, number as i32)
                }
                _ => same,
            };
        }
        _ => {
            let (_, writes) = uses(insn);
            for (register, value) in registers.iter_mut().enumerate() {
                if writes >> register & 1 == 1 {
                    *value = Value::Unknown;
                }
            }
        }
    }
    insn
}

fn bytes(insn: Insn) -> usize {
    match insn.code & 0x18 {
        size::W => 4,
        size::H => 2,
        size::B => 1,
        _ => 8,
    }
}

/// The same, with a number as second operand if it is known.
fn with_number(insn: Insn, registers: &Registers) -> Insn {
    let wide = matches!(insn.class(), class::ALU64 | class::JMP);
    let unlike = matches!(insn.class(), class::ALU | class::ALU64)
        && (matches!(insn.op(), alu::NEG | alu::END | alu::DIV | alu::MOD) || insn.off != 0);
    match registers[usize::from(insn.src)] {
        Value::Number(number) if insn.code & X == X && !unlike => {
            // A wide operation extends the sign of its 32 bits.
            let imm = number as i32;
            let shifts = matches!(insn.class(), class::ALU | class::ALU64)
                && matches!(insn.op(), alu::LSH | alu::RSH | alu::ARSH);
            let bits = if wide { 64 } else { 32 };
            if wide && i64::from(imm) as u64 != number || shifts && number >= bits {
                return insn;
            }
            Insn { code: insn.code & !X, src: 0, imm, ..insn }
        }
        _ => insn,
    }
}

fn operand(insn: Insn, registers: &Registers) -> Value {
    match insn.code & X {
        K => Value::Number(i64::from(insn.imm) as u64),
        _ => registers[usize::from(insn.src)],
    }
}

fn computed(insn: Insn, registers: &Registers) -> Value {
    let wide = insn.class() == class::ALU64;
    let before = registers[usize::from(insn.dst)];
    let operand = match insn.op() {
        // Those have no second operand, or mean something else by its bit; and `off` makes another operation.
        alu::NEG | alu::END => return Value::Unknown,
        _ if insn.off != 0 => return Value::Unknown,
        _ => operand(insn, registers),
    };
    let number = match (insn.op(), before, operand) {
        (alu::MOV, _, Value::Number(number)) => number,
        (alu::MOV, _, place) if wide => return place,
        (alu::ADD, Value::Place(map, offset), Value::Number(number)) if wide => {
            return i32::try_from(i64::from(offset).wrapping_add(number as i64))
                .map_or(Value::Unknown, |offset| Value::Place(map, offset));
        }
        (op, Value::Number(one), Value::Number(other)) => {
            let (one, bits) = if wide { (one, 64) } else { (u64::from(one as u32), 32) };
            let shift = (other % bits) as u32;
            match op {
                alu::ADD => one.wrapping_add(other),
                alu::SUB => one.wrapping_sub(other),
                alu::MUL => one.wrapping_mul(other),
                alu::OR => one | other,
                alu::AND => one & other,
                alu::XOR => one ^ other,
                alu::LSH => one << shift,
                alu::RSH => one >> shift,
                _ => return Value::Unknown,
            }
        }
        _ => return Value::Unknown,
    };
    Value::Number(if wide { number } else { u64::from(number as u32) })
}

/// Whether a branch is always taken, or never.
fn decided(insn: Insn, registers: &Registers) -> Option<bool> {
    if insn.op() == jmp::JA {
        return Some(true);
    }
    let (Value::Number(one), Value::Number(other)) =
        (registers[usize::from(insn.dst)], operand(insn, registers))
    else {
        return None;
    };
    let (one, other, signed) = if insn.class() == class::JMP {
        (one, other, (one as i64, other as i64))
    } else {
        let (one, other) = (one as u32, other as u32);
        (one.into(), other.into(), (i64::from(one as i32), i64::from(other as i32)))
    };
    Some(match insn.op() {
        jmp::JEQ => one == other,
        jmp::JNE => one != other,
        jmp::JGT => one > other,
        jmp::JGE => one >= other,
        jmp::JLT => one < other,
        jmp::JLE => one <= other,
        jmp::JSET => one & other != 0,
        jmp::JSGT => signed.0 > signed.1,
        jmp::JSGE => signed.0 >= signed.1,
        jmp::JSLT => signed.0 < signed.1,
        jmp::JSLE => signed.0 <= signed.1,
        _ => return None,
    })
}

/// Whether the instruction only computes what none of the registers that are read later gets.
fn is_idle(insn: Insn, read_later: u16) -> bool {
    let computes = matches!(insn.class(), class::ALU | class::ALU64)
        || insn.is_wide() && insn.src != pseudo::FUNC;
    computes && read_later >> insn.dst & 1 == 0
}

/// How many arguments a call has, from r1 on; all that there can be, where it isn't known.
fn arguments(insn: Insn) -> u32 {
    if insn.src != 0 {
        return 5;
    }
    // include/uapi/linux/bpf.h, __BPF_FUNC_MAPPER
    match insn.imm {
        // ktime_get_ns, get_smp_processor_id, ktime_get_boot_ns
        5 | 8 | 125 => 0,
        // spin_lock, spin_unlock
        93 | 94 => 1,
        // map_lookup_elem, map_delete_elem
        1 | 3 => 2,
        // map_update_elem, ringbuf_output
        2 | 130 => 4,
        _ => 5,
    }
}

/// One bit a register: those that it reads, and those that it writes. What isn't known well reads all.
fn uses(insn: Insn) -> (u16, u16) {
    const CLOBBERED: u16 = 0b11_1111;
    let (dst, src) = (1 << insn.dst, 1 << insn.src);
    let second = if insn.code & X == X { src } else { 0 };
    match insn.class() {
        class::LD if insn.is_wide() => (0, dst),
        // The packet loads of old: the context is in r6.
        class::LD => (1 << 6 | src, CLOBBERED),
        class::LDX => (src, dst),
        class::ST => (dst, 0),
        class::STX if insn.code & 0xe0 == mode::MEM => (dst | src, 0),
        // Some of the atomic operations bring something back.
        class::STX => (dst | src | 1, src | 1),
        class::ALU | class::ALU64 => match insn.op() {
            alu::MOV => (second, dst),
            alu::NEG | alu::END => (dst, dst),
            _ => (dst | second, dst),
        },
        _ => match insn.op() {
            jmp::CALL => (((1 << arguments(insn)) - 1) << 1, CLOBBERED),
            jmp::EXIT => (1, 0),
            jmp::JA => (0, 0),
            _ => (dst | second, 0),
        },
    }
}

#[cfg(test)]
mod tests;
