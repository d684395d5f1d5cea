// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the manual page says of `doctor`.

use super::FIELDS;
use crate::commands::man::Manual;
use crate::output::Field;

pub(crate) const MANUAL: Manual = Manual {
    command: "doctor",
    examples: &[
        ("bpftk doctor", "What works here, the facts it rests on, and what was left behind."),
        ("bpftk doctor --cleanup", "The same, and remove what was left behind."),
        (
            "bpftk doctor > /dev/null && bpftk tcpconnect",
            "In a script: go on only where every command works.",
        ),
        (
            "bpftk doctor --format json | jq -r 'select(.table == \"fact\" and .status == \"no\").name'",
            "What this kernel has not.",
        ),
    ],
    columns: &[
        ("COMMAND", "A command that needs the kernel."),
        (
            "BACKEND",
            "The back end that it would use here: it was armed by it, and disarmed at once.",
        ),
        ("STATUS", "ok or unavailable."),
        ("WHY", "Why not a better back end, or why none and what to do."),
        ("FACT", "Something that back ends rest on."),
        (
            "STATUS",
            "yes; no; unknown, where the kernel does not tell; not tried, where a capability is missing to try it; a dash, where the detail is all there is to tell.",
        ),
        ("DETAIL", "What was found, or why not."),
        ("ID", "Of a program that was left behind: its id, as bpftool(8) has it."),
        ("NAME", "Its name, which begins with bpftk_."),
        ("TYPE", "Its type, such as sched_cls or xdp."),
        ("AGE", "Time since it was loaded."),
        ("STATUS", "left; with --cleanup: removed, or failed."),
        (
            "HELD BY",
            "What keeps it loaded, with the network namespace's file where that is not bpftk's own, and why it could not be removed. A program that several places hold has a row for each.",
        ),
    ],
    fields: &[
        ("Fields of JSON lines of type row, and of CSV", FIELDS),
        ("Fields of the JSON line of type summary", SUMMARY),
    ],
    mechanism: &[
        "A command is tried by the code that the command itself runs, with its defaults: its programs are loaded and attached, and detached at once. What the table says works has worked.",
        "A fact is found by trying it, not by the kernel's version: a program of the kind is loaded and attached, a map is made, an event is opened. Programs for trials are called bpftk_probe. An XDP link is tried on the loopback of a network namespace that ends with the trial; tcx with an interface that does not exist, which kernels without tcx do not even look for.",
        "Without privileges, what can't be tried is told as not tried, with the capability that is missing.",
        "A program is bpftk's when its name begins with bpftk_. It has an owner while a process has a descriptor of it, or of a link or perf event that runs it. Links and events end with the process that has them, however it ends, so only what has neither can be left behind: a tc filter on clsact where there is no tcx, or what somebody pinned. Ownerless programs are looked for at the tc filters on ingress and egress, XDP and tcx hooks of every interface in every network namespace that a process, a descriptor or a mount refers to; at cgroups; at socket maps; and at pins in every bpffs that a process has mounted.",
        "--cleanup takes exactly these away, each after a last look that the same program is still at its place and still nobody's; a filter by its interface, parent, priority and handle. It asks for nothing and touches no program of another name. With the last filter goes the clsact qdisc, if the filter's name says that bpftk made it (+clsact). Any other stays, even an empty one: without filters it does nothing (tc qdisc del dev IFACE clsact removes it).",
        "Whether a program has an owner takes a look at the open files of every process. Without CAP_SYS_ADMIN and CAP_SYS_PTRACE, or from a PID namespace of its own (a container), bpftk can't tell, says so, and removes nothing. A program that only a socket holds, or a descriptor that is on its way from one process to another, is shown as held by nothing that was found, and can't be removed.",
    ],
    overhead: &[
        "One run, of some tenths of a second: most of it loading the programs of each command. While a command is armed, for a few milliseconds, what it traces runs its programs.",
        "Processes, namespaces and cgroups are walked through only if a program of bpftk is loaded when doctor runs.",
    ],
    exit_status: &[
        (
            "0, of doctor",
            "every command has a back end; with --cleanup, whatever was left behind is gone",
        ),
        (
            "1, of doctor",
            "something could not be removed; or a limit of the process, such as `ulimit -n`, kept doctor from trying, which says nothing of the machine",
        ),
        (
            "3, of doctor",
            "a command has no back end because a capability is missing; with --cleanup, leftovers could not be looked for",
        ),
        ("4, of doctor", "a command has no back end on this kernel"),
    ],
};

const SUMMARY: &[Field] = &[
    Field::new("command", "doctor"),
    Field::new("commands", "commands that were tried"),
    Field::new("unavailable", "of these, without a back end"),
    Field::new("not_tried", "of these, not tried for want of a capability that only trying takes"),
    Field::new(
        "leftovers",
        "places that hold a program of bpftk without an owner; null when that is not known",
    ),
    Field::new("removed", "of these, removed"),
    Field::new("failed", "of these, could not be removed"),
    Field::new("leftovers_unknown", "why it is not known what was left behind; else null"),
];
