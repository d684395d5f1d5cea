// SPDX-License-Identifier: MIT OR Apache-2.0

//! The names of the flags of clone and clone3.

use crate::kernel::clone_trace::Name;

/// include/uapi/linux/sched.h, by bit.
const NAMES: [(u64, &str); 26] = [
    (0x100, "CLONE_VM"),
    (0x200, "CLONE_FS"),
    (0x400, "CLONE_FILES"),
    (0x800, "CLONE_SIGHAND"),
    (0x1000, "CLONE_PIDFD"),
    (0x2000, "CLONE_PTRACE"),
    (0x4000, "CLONE_VFORK"),
    (0x8000, "CLONE_PARENT"),
    (0x1_0000, "CLONE_THREAD"),
    (0x2_0000, "CLONE_NEWNS"),
    (0x4_0000, "CLONE_SYSVSEM"),
    (0x8_0000, "CLONE_SETTLS"),
    (0x10_0000, "CLONE_PARENT_SETTID"),
    (0x20_0000, "CLONE_CHILD_CLEARTID"),
    (0x40_0000, "CLONE_DETACHED"),
    (0x80_0000, "CLONE_UNTRACED"),
    (0x100_0000, "CLONE_CHILD_SETTID"),
    (0x200_0000, "CLONE_NEWCGROUP"),
    (0x400_0000, "CLONE_NEWUTS"),
    (0x800_0000, "CLONE_NEWIPC"),
    (0x1000_0000, "CLONE_NEWUSER"),
    (0x2000_0000, "CLONE_NEWPID"),
    (0x4000_0000, "CLONE_NEWNET"),
    (0x8000_0000, "CLONE_IO"),
    (0x1_0000_0000, "CLONE_CLEAR_SIGHAND"),
    (0x2_0000_0000, "CLONE_INTO_CGROUP"),
];

/// In clone's flags these bits are the exit signal.
const CSIGNAL: u64 = 0xff;
const CLONE_NEWTIME: u64 = 0x80;

/// The flags by name, and what has no name in hex.
pub(super) fn names(call: Option<Name>, flags: u64) -> Vec<String> {
    let old = call == Some(Name::Clone);
    let mut rest = if old { flags & !CSIGNAL } else { flags };
    let mut names = Vec::new();
    for (bit, name) in NAMES {
        // clone has 32 bits of flags.
        if rest & bit != 0 && !(old && bit > u64::from(u32::MAX)) {
            names.push(name.to_string());
            rest &= !bit;
        }
    }
    if !old && rest & CLONE_NEWTIME != 0 {
        names.push("CLONE_NEWTIME".into());
        rest &= !CLONE_NEWTIME;
    }
    if rest != 0 {
        names.push(format!("{rest:#x}"));
    }
    names
}

/// What the C libraries' pthread_create passes, nine names that fill a line.
pub(super) const PTHREAD: [&str; 9] = [
    "CLONE_VM",
    "CLONE_FS",
    "CLONE_FILES",
    "CLONE_SIGHAND",
    "CLONE_THREAD",
    "CLONE_SYSVSEM",
    "CLONE_SETTLS",
    "CLONE_PARENT_SETTID",
    "CLONE_CHILD_CLEARTID",
];

/// The flags for a table: without the prefix that they share, and PTHREAD for all that a C library's thread has.
pub(super) fn short(names: &[String]) -> String {
    let thread = PTHREAD.iter().all(|flag| names.iter().any(|name| name == flag));
    let rest = names
        .iter()
        .filter(|name| !(thread && PTHREAD.contains(&name.as_str())))
        .map(|name| name.strip_prefix("CLONE_").unwrap_or(name));
    let words: Vec<&str> = thread.then_some("PTHREAD").into_iter().chain(rest).collect();
    words.join("|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_low_byte_is_a_signal_for_clone_only() {
        assert_eq!(names(Some(Name::Clone), 0x100 | 0x80 | 17), ["CLONE_VM"]);
        assert_eq!(names(Some(Name::Clone3), 0x180), ["CLONE_VM", "CLONE_NEWTIME"]);
        assert_eq!(names(None, 0x80), ["CLONE_NEWTIME"]);
        assert!(names(Some(Name::Fork), 0).is_empty());
    }

    #[test]
    fn what_has_no_name_is_hex() {
        assert_eq!(
            names(Some(Name::Clone3), 0x8000_0000_0000_4001),
            ["CLONE_VFORK", "0x8000000000000001"]
        );
        assert_eq!(names(Some(Name::Clone), 0x1_0000_0011), ["0x100000000"]);
        assert_eq!(names(Some(Name::Clone3), 0x1_0000_0000), ["CLONE_CLEAR_SIGHAND"]);
    }

    #[test]
    fn every_bit_of_clone_has_a_name() {
        let all = names(Some(Name::Clone), 0xffff_ff00);
        assert_eq!(all.len(), 24, "{all:?}");
    }

    #[test]
    fn a_thread_is_short() {
        let glibc = names(Some(Name::Clone3), 0x3d_0f00);
        assert_eq!(glibc, PTHREAD);
        assert_eq!(short(&glibc), "PTHREAD");
        let musl = names(Some(Name::Clone), 0x7d_0f00);
        assert_eq!(short(&musl), "PTHREAD|DETACHED");
        let go = names(Some(Name::Clone), 0x5_0f00);
        assert_eq!(short(&go), "VM|FS|FILES|SIGHAND|THREAD|SYSVSEM");
        assert_eq!(short(&["0x1".to_string()]), "0x1");
        assert_eq!(short(&[]), "");
    }
}
