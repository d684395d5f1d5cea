// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether Linux takes a program: the rules of bpf_check_classic (net/core/filter.c).

use std::fmt;

use super::insn::{Alu, BPF_MAXINSNS, BPF_MEMWORDS, Ext, Insn, Op, SKF_AD_OFF, Src};

/// What is wrong with a program, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    /// The instruction, from 0; none when it is the whole.
    pub(crate) at: Option<usize>,
    pub(crate) why: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some(at) => write!(f, "instruction {at}: {}", self.why),
            None => f.write_str(&self.why),
        }
    }
}

impl std::error::Error for Invalid {}

/// Checks what a socket would check before it takes the program.
pub(crate) fn check(program: &[Insn]) -> Result<(), Invalid> {
    check_jumping(program, Jumps::Forward)
}

/// The same, but that `ja` may jump backward, as libpcap's `protochain` does: for interpreters outside of the kernel.
/// That the program ends is not said by this.
pub(crate) fn check_with_loops(program: &[Insn]) -> Result<(), Invalid> {
    check_jumping(program, Jumps::BothWays)
}

/// Whether a jump goes backward.
pub(crate) fn has_loop(program: &[Insn]) -> bool {
    program.iter().any(|insn| matches!(insn.decode(), Some(Op::Ja(by)) if by > i32::MAX as u32))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Jumps {
    Forward,
    BothWays,
}

fn check_jumping(program: &[Insn], jumps: Jumps) -> Result<(), Invalid> {
    let whole = |why: String| Err(Invalid { at: None, why });
    if program.is_empty() {
        return whole("the program is empty; expected at least a `ret`".into());
    }
    if program.len() > BPF_MAXINSNS {
        return whole(format!(
            "the program has {} instructions; Linux takes at most {BPF_MAXINSNS}",
            program.len()
        ));
    }
    for (at, &insn) in program.iter().enumerate() {
        check_insn(insn, at, program.len(), jumps).map_err(|why| Invalid { at: Some(at), why })?;
    }
    let last = program.len() - 1;
    if !matches!(program[last].decode(), Some(Op::RetK(_) | Op::RetA)) {
        return Err(Invalid { at: Some(last), why: "the last instruction is no `ret`".into() });
    }
    check_memory(program)
}

fn check_insn(insn: Insn, at: usize, length: usize, jumps: Jumps) -> Result<(), String> {
    let Some(op) = insn.decode() else {
        return Err(format!("there is no instruction of code {:#06x}", insn.code));
    };
    // How far the end is: a jump has to land on an instruction.
    let left = (length - at - 1) as u32;
    let lands = |by: u32| {
        if by < left {
            return Ok(());
        }
        Err(match i32::try_from(by) {
            Err(_) => format!("jumps backward, by {}", i64::from(by) - (1 << 32)),
            Ok(by) => format!("jumps to {}, behind the end", at as i64 + 1 + i64::from(by)),
        })
    };
    match op {
        Op::Alu(Alu::Div | Alu::Mod, Src::K(0)) => Err("divides by zero".into()),
        Op::Alu(Alu::Lsh | Alu::Rsh, Src::K(by)) if by > 31 => {
            Err(format!("shifts by {by}; a word has 32 bits"))
        }
        Op::LdMem(k) | Op::LdxMem(k) | Op::St(k) | Op::Stx(k) if k as usize >= BPF_MEMWORDS => {
            Err(format!("there is no M[{k}]; the last is M[{}]", BPF_MEMWORDS - 1))
        }
        Op::LdAbs(_, k) if k >= SKF_AD_OFF && Ext::at(k).is_none() => {
            Err(format!("{k:#x} is no offset that Linux gives a meaning to"))
        }
        // As far as to the first instruction.
        Op::Ja(by) if jumps == Jumps::BothWays && by.wrapping_neg() as usize <= at + 1 => Ok(()),
        Op::Ja(by) => lands(by),
        Op::Jump { jt, jf, .. } => lands(jt.into()).and_then(|()| lands(jf.into())),
        _ => Ok(()),
    }
}

/// A word of M[] must be written on every way to where it is read.
fn check_memory(program: &[Insn]) -> Result<(), Invalid> {
    let mut reached = vec![u16::MAX; program.len()];
    loop {
        let before = reached.clone();
        check_memory_once(program, &mut reached)?;
        // What comes from behind is known after the first time.
        if reached == before || !has_loop(program) {
            return Ok(());
        }
    }
}

/// `reached`: the words that are written on every way to an instruction, as far as the ways are known.
fn check_memory_once(program: &[Insn], reached: &mut [u16]) -> Result<(), Invalid> {
    let mut written: u16 = 0;
    for (at, insn) in program.iter().enumerate() {
        written &= reached[at];
        match insn.decode() {
            Some(Op::St(k) | Op::Stx(k)) => written |= 1 << k,
            Some(Op::LdMem(k) | Op::LdxMem(k)) if written & (1 << k) == 0 => {
                let why = format!("reads M[{k}], which is not written on every way to here");
                return Err(Invalid { at: Some(at), why });
            }
            Some(Op::Ja(by)) => {
                reached[(at + 1).wrapping_add_signed(by as i32 as isize)] &= written;
                written = u16::MAX;
            }
            Some(Op::Jump { jt, jf, .. }) => {
                reached[at + 1 + usize::from(jt)] &= written;
                reached[at + 1 + usize::from(jf)] &= written;
                written = u16::MAX;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(program: &[(u16, u8, u8, u32)]) -> String {
        let program: Vec<Insn> =
            program.iter().map(|&(code, jt, jf, k)| Insn::new(code, jt, jf, k)).collect();
        check(&program).map_err(|invalid| invalid.to_string()).err().unwrap_or_default()
    }

    #[test]
    fn what_linux_takes() {
        assert_eq!(why(&[(0x06, 0, 0, 0)]), "");
        assert_eq!(why(&[(0x28, 0, 0, 12), (0x15, 0, 1, 0x806), (6, 0, 0, 1), (6, 0, 0, 0)]), "");
        assert_eq!(why(&[(0x20, 0, 0, 0xffff_f000), (0x16, 0, 0, 0)]), "");
        assert_eq!(why(&[(0x02, 0, 0, 15), (0x60, 0, 0, 15), (0x16, 0, 0, 0)]), "");
        assert_eq!(why(&vec![(0x06, 0, 0, 0); 4096]), "");
    }

    #[test]
    fn loops_are_for_other_interpreters() {
        let of = |program: &[(u16, u8, u8, u32)]| -> Vec<Insn> {
            program.iter().map(|&(code, jt, jf, k)| Insn::new(code, jt, jf, k)).collect()
        };
        let back = |by: i32| (0x05, 0, 0, by as u32);
        let round = of(&[(0x30, 0, 0, 0), (0x15, 1, 0, 0), back(-3), (6, 0, 0, 1)]);
        assert!(has_loop(&round) && check(&round).is_err());
        assert_eq!(check_with_loops(&round), Ok(()));
        for (program, part) in [
            (
                &[(0x30, 0, 0, 0), (0x15, 1, 0, 0), back(-4), (6, 0, 0, 1)][..],
                "jumps backward, by -4",
            ),
            (&[(0x05, 0, 0, 5), (6, 0, 0, 1)], "behind the end"),
            // Comes to the load the first time with M[1] written, and then with M[2] alone.
            (
                &[
                    (0x02, 0, 0, 1),
                    (0x05, 0, 0, 1),
                    (0x60, 0, 0, 1),
                    (0x15, 0, 1, 0),
                    back(-3),
                    (6, 0, 0, 1),
                ],
                "",
            ),
            (
                &[
                    (0x15, 1, 0, 0),
                    (0x05, 0, 0, 2),
                    (0x02, 0, 0, 1),
                    (0x60, 0, 0, 1),
                    back(-2),
                    (6, 0, 0, 0),
                ],
                "instruction 3: reads M[1]",
            ),
        ] {
            let why = check_with_loops(&of(program)).map_err(|invalid| invalid.to_string());
            assert!(why.clone().err().unwrap_or_default().contains(part), "{part}: {why:?}");
        }
    }

    #[test]
    fn what_linux_refuses() {
        for (program, part) in [
            (&[][..], "empty"),
            (&vec![(6, 0, 0, 0); 4097], "4097"),
            (&[(0x28, 0, 0, 12)], "no `ret`"),
            (
                &[(0x08, 0, 0, 0), (6, 0, 0, 0)],
                "instruction 0: there is no instruction of code 0x0008",
            ),
            (&[(0x0e, 0, 0, 0)], "0x000e"),
            (&[(0x34, 0, 0, 0), (6, 0, 0, 0)], "divides by zero"),
            (&[(0x94, 0, 0, 0), (6, 0, 0, 0)], "divides by zero"),
            (&[(0x64, 0, 0, 32), (6, 0, 0, 0)], "shifts by 32"),
            (&[(0x02, 0, 0, 16), (6, 0, 0, 0)], "no M[16]"),
            (&[(0x60, 0, 0, 3), (6, 0, 0, 0)], "reads M[3]"),
            (
                &[(0x15, 1, 0, 0), (0x02, 0, 0, 1), (0x60, 0, 0, 1), (6, 0, 0, 0)],
                "instruction 2: reads M[1]",
            ),
            (&[(0x20, 0, 0, 0xffff_f001), (6, 0, 0, 0)], "0xfffff001"),
            (&[(0x20, 0, 0, 0xffff_f040), (6, 0, 0, 0)], "0xfffff040"),
            (&[(0x05, 0, 0, 1), (6, 0, 0, 0)], "jumps to 2, behind the end"),
            (&[(0x05, 0, 0, 0xffff_fffe), (6, 0, 0, 0)], "jumps backward, by -2"),
            (&[(0x15, 0, 1, 0), (6, 0, 0, 0)], "jumps to 2"),
            (&[(0x15, 1, 0, 0), (6, 0, 0, 0)], "jumps to 2"),
        ] {
            assert!(why(program).contains(part), "{part}: {}", why(program));
        }
    }
}
