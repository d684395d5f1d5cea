// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs as text: the kernel's assembly, and tcpdump's `-d`, `-dd` and `-ddd`.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::check::Invalid;
use super::insn::{Alu, Ext, Insn, Op, Size, Src};

/// Whose spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// The kernel's bpf_asm
    Kernel,
    /// tcpdump -d
    Tcpdump,
}

/// Assembly that [`super::asm::assemble`] makes the same bytes of, with a label where a jump lands. Refuses what the
/// syntax cannot say: no code, no jump out of the program, nothing in a field that the instruction doesn't use.
pub(crate) fn assembly(program: &[Insn]) -> Result<String, Invalid> {
    let mut labels = BTreeSet::new();
    for (at, insn) in program.iter().enumerate() {
        let fail = |why: String| Invalid { at: Some(at), why };
        let op = sayable(*insn).map_err(fail)?;
        for by in jumps(op) {
            if i32::try_from(by).is_err() {
                return Err(fail(
                    "jumps backward; the assembler's labels only lead forward".into(),
                ));
            }
            let target = at + 1 + by as usize;
            if target >= program.len() {
                return Err(fail("jumps out of the program".into()));
            }
            labels.insert(target);
        }
    }
    let mut text = String::new();
    for (at, insn) in program.iter().enumerate() {
        if labels.contains(&at) {
            let _ = writeln!(text, "l{at}:");
        }
        let Some(op) = insn.decode() else { continue };
        let _ = writeln!(text, "    {}", line(op, at));
    }
    Ok(text)
}

fn jumps(op: Op) -> Vec<u32> {
    match op {
        Op::Ja(by) => vec![by],
        // The targets that `line` names.
        Op::Jump { cond, jt: 0, jf, .. } if jf > 0 && cond.inverted_name().is_some() => {
            vec![jf.into()]
        }
        Op::Jump { jt, jf: 0, .. } => vec![jt.into()],
        Op::Jump { jt, jf, .. } => vec![jt.into(), jf.into()],
        _ => Vec::new(),
    }
}

/// One instruction of [`assembly`].
fn line(op: Op, at: usize) -> String {
    let (name, operand) = words(op, at, Style::Kernel);
    let label = |by: u8| format!("l{}", at + 1 + usize::from(by));
    match op {
        Op::Ja(by) => format!("jmp l{}", at + 1 + by as usize),
        Op::Jump { cond, jt, jf, .. } => match (jt, jf, cond.inverted_name()) {
            (0, 1.., Some(inverted)) => format!("{inverted} {operand}, {}", label(jf)),
            (_, 0, _) => format!("{name} {operand}, {}", label(jt)),
            _ => format!("{name} {operand}, {}, {}", label(jt), label(jf)),
        },
        _ if operand.is_empty() => name.into(),
        _ => format!("{name} {operand}"),
    }
}

fn sayable(insn: Insn) -> Result<Op, String> {
    let Some(op) = insn.decode() else {
        return Err(format!("there is no instruction of code {:#06x}", insn.code));
    };
    let jumps = matches!(op, Op::Jump { .. });
    if !jumps && (insn.jt != 0 || insn.jf != 0) {
        return Err("has a jt or jf, which only conditional jumps use".into());
    }
    let uses_k = !matches!(
        op,
        Op::LdLen
            | Op::LdxLen
            | Op::Neg
            | Op::RetA
            | Op::Tax
            | Op::Txa
            | Op::Alu(_, Src::X)
            | Op::Jump { src: Src::X, .. }
    );
    if !uses_k && insn.k != 0 {
        return Err(format!("has a k of {:#x}, which it does not use", insn.k));
    }
    match op {
        Op::LdMem(k) | Op::LdxMem(k) | Op::St(k) | Op::Stx(k)
            if k as usize >= super::insn::BPF_MEMWORDS =>
        {
            Err(format!("there is no M[{k}]"))
        }
        _ => Ok(op),
    }
}

/// The name and the operand.
fn words(op: Op, at: usize, style: Style) -> (&'static str, String) {
    let sized = |size| match size {
        Size::Word => "ld",
        Size::Half => "ldh",
        Size::Byte => "ldb",
    };
    let length = if style == Style::Kernel { "#len" } else { "#pktlen" };
    match op {
        Op::LdAbs(size, k) => (sized(size), absolute(k, style)),
        Op::LdInd(size, k) => (sized(size), format!("[x + {}]", k as i32)),
        Op::LdLen => ("ld", length.into()),
        Op::LdImm(k) => ("ld", format!("#{k:#x}")),
        Op::LdMem(k) => ("ld", format!("M[{}]", k as i32)),
        Op::LdxLen => ("ldx", length.into()),
        Op::LdxImm(k) => ("ldx", format!("#{k:#x}")),
        Op::LdxMem(k) => ("ldx", format!("M[{}]", k as i32)),
        Op::LdxMsh(k) => ("ldxb", format!("4*([{}]&0xf)", k as i32)),
        Op::St(k) => ("st", format!("M[{}]", k as i32)),
        Op::Stx(k) => ("stx", format!("M[{}]", k as i32)),
        Op::Alu(alu, Src::X) => (alu.name(), "x".into()),
        Op::Alu(alu @ (Alu::And | Alu::Or | Alu::Xor), Src::K(k)) => {
            (alu.name(), format!("#{k:#x}"))
        }
        Op::Alu(alu, Src::K(k)) => (alu.name(), format!("#{}", k as i32)),
        Op::Neg => ("neg", String::new()),
        Op::Ja(by) => ("ja", format!("{}", (at as u32).wrapping_add(1).wrapping_add(by) as i32)),
        Op::Jump { cond, src: Src::X, .. } => (cond.name(), "x".into()),
        Op::Jump { cond, src: Src::K(k), .. } => (cond.name(), format!("#{k:#x}")),
        Op::RetK(k) => ("ret", format!("#{}", k as i32)),
        Op::RetA if style == Style::Kernel => ("ret", "a".into()),
        Op::RetA => ("ret", String::new()),
        Op::Tax => ("tax", String::new()),
        Op::Txa => ("txa", String::new()),
    }
}

fn absolute(k: u32, style: Style) -> String {
    match (Ext::at(k), style) {
        // The assembler has no name for this one, only its offset.
        (Some(Ext::AluXorX) | None, Style::Kernel) | (None, Style::Tcpdump) => {
            format!("[{}]", k as i32)
        }
        (Some(ext), Style::Kernel) => format!("#{}", ext.name()),
        (Some(Ext::VlanTagPresent), Style::Tcpdump) => "[vlanp]".into(),
        (Some(Ext::Random), Style::Tcpdump) => "[random]".into(),
        (Some(ext), Style::Tcpdump) => format!("[{}]", ext.name()),
    }
}

/// One line of tcpdump -d.
pub(crate) fn image(insn: Insn, at: usize) -> String {
    let Some(op) = insn.decode() else {
        return format!("({at:03}) unimp    {:#x}", insn.code);
    };
    let (name, operand) = words(op, at, Style::Tcpdump);
    match op {
        Op::Jump { jt, jf, .. } => format!(
            "({at:03}) {name:<8} {operand:<16} jt {}\tjf {}",
            at + 1 + usize::from(jt),
            at + 1 + usize::from(jf)
        ),
        _ => format!("({at:03}) {name:<8} {operand}"),
    }
}

/// tcpdump -d
pub(crate) fn listing(program: &[Insn]) -> String {
    program.iter().enumerate().map(|(at, &insn)| image(insn, at) + "\n").collect()
}

/// tcpdump -dd: a C array's initialisers
pub(crate) fn c_array(program: &[Insn]) -> String {
    let line = |insn: &Insn| {
        format!("{{ 0x{:x}, {}, {}, 0x{:08x} }},\n", insn.code, insn.jt, insn.jf, insn.k)
    };
    program.iter().map(line).collect()
}

/// tcpdump -ddd: the number of instructions, and each in decimal
pub(crate) fn decimal(program: &[Insn]) -> String {
    let mut text = format!("{}\n", program.len());
    for insn in program {
        let _ = writeln!(text, "{} {} {} {}", insn.code, insn.jt, insn.jf, insn.k);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::asm::assemble;
    use super::*;

    #[test]
    fn what_was_disassembled_assembles_to_the_same() {
        let text = "ldh [12]\n jeq #0x806, l1, l2\nl1: ldb [x + -4]\n jset #3, l2, l3\nl2: ret #0\n\
                    l3: ld #vlan_tci\n ldx 4*([14]&0xf)\n jlt x, end\n ld [-4056]\n st M[3]\n jmp end\n\
                    ret #-1\n end: ret a\n";
        let program = assemble(text).unwrap();
        let again = assembly(&program).unwrap();
        assert_eq!(assemble(&again).unwrap(), program, "{again}");
        assert!(again.contains("jlt x, l12\n") && again.contains("ld #vlan_tci\n"), "{again}");
        assert!(
            again.contains("jne #0x806, l4\n") && again.contains("jset #0x3, l4, l5\n"),
            "{again}"
        );
    }

    #[test]
    fn what_the_syntax_cannot_say_is_refused() {
        for (insn, part) in [
            (Insn::new(0x06, 1, 0, 0), "jt or jf"),
            (Insn::new(0x07, 0, 0, 1), "k of 0x1"),
            (Insn::new(0x0c, 0, 0, 1), "k of 0x1"),
            (Insn::new(0xff, 0, 0, 0), "0x00ff"),
            (Insn::new(0x05, 0, 0, u32::MAX), "jumps backward"),
            (Insn::new(0x05, 0, 0, 9), "jumps out"),
            (Insn::new(0x15, 0, 1, 0), "jumps out"),
            (Insn::new(0x60, 0, 0, 16), "M[16]"),
        ] {
            let error = assembly(&[insn, Insn::new(6, 0, 0, 0)]).unwrap_err().to_string();
            assert!(error.starts_with("instruction 0: ") && error.contains(part), "{error}");
        }
    }

    #[test]
    fn tcpdump_prints_the_same() {
        let program = assemble("ldh [12]\njne #0x806, drop\nret #262144\ndrop: ret #0").unwrap();
        assert_eq!(
            listing(&program),
            "(000) ldh      [12]\n(001) jeq      #0x806           jt 2\tjf 3\n(002) ret      #262144\n(003) ret      #0\n"
        );
        assert_eq!(
            c_array(&program),
            "{ 0x28, 0, 0, 0x0000000c },\n{ 0x15, 0, 1, 0x00000806 },\n{ 0x6, 0, 0, 0x00040000 },\n{ 0x6, 0, 0, 0x00000000 },\n"
        );
        assert_eq!(decimal(&program), "4\n40 0 0 12\n21 0 1 2054\n6 0 0 262144\n6 0 0 0\n");
    }
}
