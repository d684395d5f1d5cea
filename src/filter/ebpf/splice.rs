// SPDX-License-Identifier: MIT OR Apache-2.0

//! Puts a translated filter in the place of a program's stub (`bpf/filter.bpf.h`). Works on what libbpf is about to load: all
//! functions in a row, calls relative, and tables of where each function and each source line starts.

use std::collections::BTreeSet;
use std::fmt;

use super::insn::{Insn, alu, class, pseudo};
use super::translate::Function;

/// What a stub's one constant is, with its slot's number added. BPFTK_FILTER_STUB in `bpf/filter.bpf.h`.
const STUB: i32 = 0x6270_6600;
/// Slots are numbered from 0.
pub(crate) const SLOTS: u32 = 16;

/// `struct bpf_func_info`: an instruction, a type.
pub(crate) type FuncInfo = [u32; 2];
/// `struct bpf_line_info`: an instruction, and the line.
pub(crate) type LineInfo = [u32; 4];

/// A program as it is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Loadable {
    pub(crate) insns: Vec<Insn>,
    pub(crate) functions: Vec<FuncInfo>,
    pub(crate) lines: Vec<LineInfo>,
}

/// No function of the program is this slot's stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoStub(pub(crate) u32);

impl fmt::Display for NoStub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the program has no stub for filter {}", self.0)
    }
}

impl Loadable {
    /// Puts `function` in the place of the stub of `slot`.
    pub(crate) fn splice(&mut self, slot: u32, function: &Function) -> Result<(), NoStub> {
        let (begin, end) = self.stub(slot).ok_or(NoStub(slot))?;
        let grown = function.insns.len() as i64 - (end - begin) as i64;
        let moved = |at: usize| if at < end { at as i64 } else { at as i64 + grown };

        let calls: Vec<(usize, usize)> = (0..self.insns.len())
            .filter(|&at| at < begin || at >= end)
            .filter_map(|at| Some((at, self.callee(at)?)))
            .collect();
        for (at, callee) in calls {
            self.insns[at].imm = (moved(callee) - moved(at) - 1) as i32;
        }
        self.insns.splice(begin..end, function.insns.iter().copied());
        // The kernel wants each function in both tables. What a filter calls is the stub's, as far as they know.
        replace(&mut self.functions, begin, end, grown, &function.starts);
        replace(&mut self.lines, begin, end, grown, &function.starts);
        Ok(())
    }

    /// From where to where the function goes that has the slot's constant in it.
    fn stub(&self, slot: u32) -> Option<(usize, usize)> {
        let constant = STUB + slot as i32;
        let mut half = false;
        let at = self.insns.iter().position(|insn| {
            // The second half of a wide instruction is a number.
            let number = half;
            half = !number && insn.is_wide();
            !number
                && matches!(insn.class(), class::ALU | class::ALU64)
                && insn.op() == alu::MOV
                && insn.imm == constant
        })?;
        let starts: BTreeSet<usize> =
            (0..self.insns.len()).filter_map(|at| self.callee(at)).chain([0]).collect();
        let begin = *starts.range(..=at).next_back()?;
        let end = starts.range(at + 1..).next().copied().unwrap_or(self.insns.len());
        // The whole program is no stub.
        (begin > 0).then_some((begin, end))
    }

    /// The function of this program that the instruction calls, or takes the address of.
    fn callee(&self, at: usize) -> Option<usize> {
        let insn = self.insns[at];
        let calls = insn.is_call() && insn.src == pseudo::CALL;
        let refers = insn.is_wide() && insn.src == pseudo::FUNC;
        (calls || refers).then(|| (at as i64 + 1 + i64::from(insn.imm)) as usize)
    }
}

/// Records of a table, whose first number is an instruction's: those of the stub give way to one for each start.
fn replace<const N: usize>(
    table: &mut Vec<[u32; N]>,
    begin: usize,
    end: usize,
    grown: i64,
    starts: &[usize],
) {
    let Some(first) = table.iter().position(|record| record[0] as usize == begin) else { return };
    let behind = table.iter().position(|record| record[0] as usize >= end).unwrap_or(table.len());
    for record in &mut table[behind..] {
        record[0] = (i64::from(record[0]) + grown) as u32;
    }
    let of_stub = table[first];
    let new = starts.iter().map(|&start| {
        let mut record = of_stub;
        record[0] = (begin + start) as u32;
        record
    });
    table.splice(first..behind, new);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::ebpf::insn::{K, jmp};

    const EXIT: Insn = Insn::new(class::JMP | jmp::EXIT, 0, 0, 0, 0);

    fn mov(imm: i32) -> Insn {
        Insn::new(class::ALU64 | alu::MOV | K, 0, 0, 0, imm)
    }

    fn call(distance: i32) -> Insn {
        Insn::new(class::JMP | jmp::CALL, 0, pseudo::CALL, 0, distance)
    }

    /// main calls the stub and what is behind it; what is behind it calls the stub.
    fn program() -> Loadable {
        Loadable {
            insns: vec![call(2), call(3), EXIT, mov(STUB + 1), EXIT, call(-3), EXIT],
            functions: vec![[0, 10], [3, 11], [5, 12]],
            lines: vec![
                [0, 1, 1, 1],
                [1, 1, 1, 2],
                [3, 1, 1, 3],
                [4, 1, 1, 4],
                [5, 1, 1, 5],
                [6, 1, 1, 6],
            ],
        }
    }

    #[test]
    fn a_stub_gives_way() {
        let mut loadable = program();
        let function = Function {
            insns: vec![call(2), mov(1), EXIT, mov(2), mov(3), EXIT],
            starts: vec![0, 3],
        };
        loadable.splice(1, &function).unwrap();
        assert_eq!(
            loadable.insns,
            [vec![call(2), call(7), EXIT], function.insns.clone(), vec![call(-7), EXIT],].concat()
        );
        assert_eq!(loadable.functions, [[0, 10], [3, 11], [6, 11], [9, 12]]);
        assert_eq!(
            loadable.lines,
            [[0, 1, 1, 1], [1, 1, 1, 2], [3, 1, 1, 3], [6, 1, 1, 3], [9, 1, 1, 5], [10, 1, 1, 6]]
        );
    }

    #[test]
    fn a_shorter_one_too_and_the_last() {
        let mut loadable = program();
        let function = Function { insns: vec![EXIT], starts: vec![0] };
        loadable.splice(1, &function).unwrap();
        assert_eq!(loadable.insns, [call(2), call(2), EXIT, EXIT, call(-2), EXIT]);
        let mut loadable = Loadable {
            insns: vec![call(1), EXIT, mov(STUB), EXIT],
            functions: vec![],
            lines: vec![],
        };
        loadable.splice(0, &function).unwrap();
        assert_eq!(loadable.insns, [call(1), EXIT, EXIT]);
    }

    #[test]
    fn other_slots_and_numbers_are_left_alone() {
        let mut loadable = program();
        let function = Function { insns: vec![EXIT], starts: vec![0] };
        assert_eq!(loadable.splice(0, &function), Err(NoStub(0)));
        assert_eq!(loadable, program());
        // A constant in main, or in a wide instruction's second half, is none.
        let wide = Insn::new(0x18, 1, 0, 0, 5);
        let half = Insn::new(class::ALU64 | alu::MOV, 0, 0, 0, STUB);
        for insns in [vec![mov(STUB), EXIT], vec![call(1), EXIT, wide, half, EXIT]] {
            let mut loadable = Loadable { insns, functions: vec![], lines: vec![] };
            assert_eq!(loadable.splice(0, &function), Err(NoStub(0)));
        }
    }
}
