// SPDX-License-Identifier: MIT OR Apache-2.0

//! Puts a translated filter in the place of a program's stub (`bpf/filter.bpf.h`). Works on what libbpf is about to load: all
//! functions in a row, calls relative, and tables of where each function and each source line starts.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use super::insn::{Insn, alu, class, jmp, pseudo};
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
    ///
    /// Its first part goes to where the stub is called, if it can: where returns are slowed down against speculation, a call
    /// costs more than the filter. What it calls goes to the stub's place. If it can't, the whole function goes there.
    pub(crate) fn splice(&mut self, slot: u32, function: &Function) -> Result<(), NoStub> {
        let stub = self.stub(slot).ok_or(NoStub(slot))?;
        let inlined = inlinable(function).and_then(|body| self.rebuilt(&stub, function, body));
        match inlined.or_else(|| self.rebuilt(&stub, function, 0)) {
            Some(rebuilt) => *self = rebuilt,
            // Without inlining no jump gets longer.
            None => unreachable!("calls have 32 bits"),
        }
        Ok(())
    }

    /// The program with the first `body` instructions of `function` where the stub was called, and the others in its place.
    /// None when a jump gets too far.
    fn rebuilt(&self, stub: &Range<usize>, function: &Function, body: usize) -> Option<Self> {
        let kept = &function.insns[body..];
        let calls_stub =
            |at: usize| body > 0 && !stub.contains(&at) && self.callee(at) == Some(stub.start);
        // By old instruction: where it is now. The stub's are where what is kept of the function begins.
        let mut place = Vec::with_capacity(self.insns.len() + 1);
        let mut count = 0;
        for at in 0..self.insns.len() {
            place.push(count);
            count += match at {
                _ if at == stub.start => kept.len(),
                _ if stub.contains(&at) => 0,
                _ if calls_stub(at) => body,
                _ => 1,
            };
        }
        place.push(count);

        let mut insns = Vec::with_capacity(count);
        for (at, &insn) in self.insns.iter().enumerate() {
            if at == stub.start {
                insns.extend(kept);
            } else if calls_stub(at) {
                let begin = insns.len();
                for (offset, &insn) in function.insns[..body].iter().enumerate() {
                    insns.push(match function.callee(offset) {
                        _ if insn.is_exit() => jump(body - offset - 1)?,
                        Some(callee) => {
                            let callee = place[stub.start] + callee - body;
                            Insn { imm: distance(begin + offset, callee), ..insn }
                        }
                        None => insn,
                    });
                }
            } else if !stub.contains(&at) {
                insns.push(match (self.callee(at), self.target(at)) {
                    (Some(callee), _) => Insn { imm: distance(place[at], place[callee]), ..insn },
                    (None, Some(target)) => {
                        let off = i16::try_from(distance(place[at], place[target])).ok()?;
                        Insn { off, ..insn }
                    }
                    (None, None) => insn,
                });
            }
        }
        // The kernel wants each function in both tables. What a filter calls is the stub's, as far as they know.
        let starts: Vec<usize> = function
            .starts
            .iter()
            .filter(|&&start| start >= body)
            .map(|start| place[stub.start] + start - body)
            .collect();
        Some(Self {
            insns,
            functions: moved(&self.functions, &place, stub, &starts),
            lines: moved(&self.lines, &place, stub, &starts),
        })
    }

    /// From where to where the function goes that has the slot's constant in it.
    fn stub(&self, slot: u32) -> Option<Range<usize>> {
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
        (begin > 0).then_some(begin..end)
    }

    /// The function of this program that the instruction calls, or takes the address of.
    pub(super) fn callee(&self, at: usize) -> Option<usize> {
        callee(&self.insns, at)
    }

    /// Where the instruction jumps to.
    pub(super) fn target(&self, at: usize) -> Option<usize> {
        let insn = self.insns[at];
        // The second half of a wide instruction has code 0, and a jump by 32 bits is not made before BPF v4.
        let jumps = matches!(insn.class(), class::JMP | class::JMP32)
            && !matches!(insn.op(), jmp::CALL | jmp::EXIT);
        jumps.then(|| (at as i64 + 1 + i64::from(insn.off)) as usize)
    }
}

impl Function {
    fn callee(&self, at: usize) -> Option<usize> {
        callee(&self.insns, at)
    }
}

fn callee(insns: &[Insn], at: usize) -> Option<usize> {
    let insn = insns[at];
    let calls = insn.is_call() && insn.src == pseudo::CALL;
    let refers = insn.is_wide() && insn.src == pseudo::FUNC;
    (calls || refers).then(|| (at as i64 + 1 + i64::from(insn.imm)) as usize)
}

fn distance(from: usize, to: usize) -> i32 {
    (to as i64 - from as i64 - 1) as i32
}

fn jump(by: usize) -> Option<Insn> {
    Some(Insn::new(class::JMP | jmp::JA, 0, 0, i16::try_from(by).ok()?, 0))
}

/// How many instructions of a function can stand in the place of a call of it: those of its first part, if they touch
/// nothing that a call leaves alone, which are the stack and the registers from 6 on.
fn inlinable(function: &Function) -> Option<usize> {
    const SAVED: u8 = 6;
    let body = function.starts.get(1).copied().unwrap_or(function.insns.len());
    let kept = function.insns[..body].iter().all(|insn| insn.dst < SAVED && insn.src < SAVED);
    kept.then_some(body)
}

/// A table, whose records begin with an instruction's number: those of the stub give way to one for each of `starts`.
fn moved<const N: usize>(
    table: &[[u32; N]],
    place: &[usize],
    stub: &Range<usize>,
    starts: &[usize],
) -> Vec<[u32; N]> {
    let mut records = Vec::with_capacity(table.len() + starts.len());
    for record in table {
        let at = record[0] as usize;
        let with = |place: usize| {
            let mut record = *record;
            record[0] = place as u32;
            record
        };
        if at == stub.start {
            records.extend(starts.iter().map(|&start| with(start)));
        } else if !stub.contains(&at) {
            records.push(with(place[at]));
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::ebpf::insn::K;

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

    /// r6 = r1; call the next function; exit
    fn not_inlinable() -> Function {
        let save = Insn::new(class::ALU64 | alu::MOV, 6, 1, 0, 0);
        Function { insns: vec![save, call(1), EXIT, mov(2), mov(3), EXIT], starts: vec![0, 3] }
    }

    #[test]
    fn a_stub_gives_way() {
        let mut loadable = program();
        let function = not_inlinable();
        loadable.splice(1, &function).unwrap();
        assert_eq!(
            loadable.insns,
            [vec![call(2), call(7), EXIT], function.insns.clone(), vec![call(-7), EXIT]].concat()
        );
        assert_eq!(loadable.functions, [[0, 10], [3, 11], [6, 11], [9, 12]]);
        assert_eq!(
            loadable.lines,
            [[0, 1, 1, 1], [1, 1, 1, 2], [3, 1, 1, 3], [6, 1, 1, 3], [9, 1, 1, 5], [10, 1, 1, 6]]
        );
    }

    #[test]
    fn a_call_gives_way_and_jumps_get_longer() {
        let ja = |off| Insn::new(class::JMP | jmp::JA, 0, 0, off, 0);
        let mut loadable = Loadable {
            // Jumps over the call, and back to it.
            insns: vec![ja(1), call(3), ja(-2), EXIT, call(2), mov(STUB), EXIT, call(-3), EXIT],
            functions: vec![[0, 10], [5, 11], [7, 12]],
            lines: vec![[0, 1, 1, 1], [2, 1, 1, 2], [5, 1, 1, 3], [7, 1, 1, 4]],
        };
        // The stub is where it is called from elsewhere, too.
        let function =
            Function { insns: vec![mov(1), EXIT, call(1), EXIT, mov(2), EXIT], starts: vec![0, 4] };
        loadable.splice(0, &function).unwrap();
        assert_eq!(
            loadable.insns,
            [
                vec![ja(4), mov(1), ja(2), call(4), ja(0), ja(-5), EXIT, call(2)],
                vec![mov(2), EXIT],
                vec![mov(1), ja(2), call(-5), ja(0), EXIT],
            ]
            .concat()
        );
        assert_eq!(loadable.functions, [[0, 10], [8, 11], [10, 12]]);
        assert_eq!(loadable.lines, [[0, 1, 1, 1], [5, 1, 1, 2], [8, 1, 1, 3], [10, 1, 1, 4]]);
    }

    #[test]
    fn what_calls_nothing_leaves_no_function() {
        let mut loadable = program();
        let function = Function { insns: vec![mov(7), EXIT], starts: vec![0] };
        loadable.splice(1, &function).unwrap();
        let ja = Insn::new(class::JMP | jmp::JA, 0, 0, 0, 0);
        assert_eq!(loadable.insns, [mov(7), ja, call(1), EXIT, mov(7), ja, EXIT]);
        assert_eq!(loadable.functions, [[0, 10], [4, 12]]);
        assert_eq!(loadable.lines, [[0, 1, 1, 1], [2, 1, 1, 2], [4, 1, 1, 5], [6, 1, 1, 6]]);
    }

    #[test]
    fn where_a_jump_gets_too_far_the_call_stays() {
        let mut loadable = Loadable {
            insns: vec![
                Insn::new(class::JMP | jmp::JA, 0, 0, 1, 0),
                call(1),
                EXIT,
                mov(STUB),
                EXIT,
            ],
            functions: vec![[0, 10], [3, 11]],
            lines: vec![],
        };
        let function =
            Function { insns: [vec![mov(7); 40_000], vec![EXIT]].concat(), starts: vec![0] };
        loadable.splice(0, &function).unwrap();
        assert_eq!(
            loadable.insns[..3],
            [Insn::new(class::JMP | jmp::JA, 0, 0, 1, 0), call(1), EXIT]
        );
        assert_eq!(loadable.insns[3..], function.insns);
        assert_eq!(loadable.functions, [[0, 10], [3, 11]]);
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
