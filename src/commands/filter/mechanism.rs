// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the manual page says of filters at XDP and tc.
//!
//! Each constant is a paragraph.

/// How an expression gets to a hook.
pub(crate) const TRANSLATION: &str = "At XDP and tc an expression runs as eBPF that bpftk translates from the classic program that libpcap makes of it, and that the verifier checks. The translation takes the place of a stub in the tool's own program as that is loaded, inlined where it is called: there is no tail call and, as a rule, no call. Several expressions are one function, and the first that matches counts. A load beyond the packet's end, or a division by zero, is no match, also behind `not`.";

/// What is looked at.
pub(crate) const WIRE: &str = "What matches is what tcpdump shows for the packet as it was on the wire. The kernel takes a VLAN tag off before tc ingress, and puts the one of a VLAN interface on behind tc egress, so for a packet with such a tag the translation loads through a helper, with the tag at its place: `vlan`, `not vlan`, offsets and `len` mean the same at every hook, at some tens of nanoseconds for each load. A filter that asks the kernel for the tag (vlan_avail, vlan_tci, vlan_tpid; tc only) sees the packet as a socket does, without it. XDP sees the tag among the bytes, unless the network card takes tags off (ethtool -k: rx-vlan-offload), which leaves XDP without any trace of them.";

/// Packets that are not in one piece.
pub(crate) const PIECES: &str = "What a packet has beyond its first piece is loaded with bpf_skb_load_bytes at tc, and at XDP with bpf_xdp_load_bytes (Linux 5.18, where the program is loaded for several buffers; before, and without, XDP gets no such packets). The packet is not changed. A packet that the kernel gives no access to does not match, and is counted. At tc `len`, `greater` and `less` see what the kernel handles as one packet: with segmentation or receive offload up to 64 KiB and more, not the frames on the wire.";

/// Where programs differ.
pub(crate) const RULES: &str = "Where libpcap and Linux run the same program differently, the translation follows libpcap, as tcpdump -r does: a shift by 32 and more gives 0, and [x + k] is out of bounds where the sum has more than 32 bits. Offsets from -0x200000 on (SKF_LL_OFF), which libpcap has no meaning for, are of the packet's start, as in the kernel; those from -0x100000 on (SKF_NET_OFF) are of the network header, whose place only a socket knows, and refused. `protochain` is a loop, and refused; filter run has interpreters for it. Of Linux's extensions, tc has type (always outgoing at egress), ifidx, proto, mark, queue, rxhash, vlan_tci, vlan_avail and vlan_tpid, XDP ifidx and queue, and both cpu, rand and len; an expression that asks for another is refused by name.";

/// What it takes to load.
pub(crate) const LOADING: &str = "Loading needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN. Filters of up to 4096 classic instructions are translated; one whose jumps would be longer than 32767 eBPF instructions is refused. `filter check` loads the translation at every hook, attached to nothing, and prints what the verifier says.";
