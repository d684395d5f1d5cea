/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/* The hooks of xdp-drop and tc-drop. What is not dropped goes on to the next program. */

#include "drop.bpf.h"
#include "tc.bpf.h"

/* bpf_xdp_get_buff_len, Linux 5.18. */
const volatile bool knows_frags;

SEC("xdp")
int bpftk_xdp_drop(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	/* To know the interface takes three dependent loads. */
	__u32 place = drop_has_one_place() ? 0 : drop_place(ctx->ingress_ifindex, false);
	struct packet on_stack, *packet = packet_in_memory(&on_stack);
	__u64 bytes;

	if (place >= DROP_PLACES)
		return XDP_PASS;
	packet_parse(data, end, drop_is_l3(place), by_address, by_address, true, knows_frags, packet);
	/*
	 * A call costs as much as all the rest does. A packet that ends in the first piece has no others: the trailer that somebody
	 * put behind one, if it is so long that it needs more pieces, isn't counted.
	 */
	bytes = knows_frags && !packet->whole ? bpf_xdp_get_buff_len(ctx) : end - data;
	return drop_verdict(packet, place, drop_row(ctx, packet, false), 1, bytes) ? XDP_DROP : XDP_PASS;
}

static __always_inline int tc_drop(struct __sk_buff *skb, bool egress)
{
	__u32 place = drop_has_one_place() ? 0 : drop_place(skb->ifindex, egress);
	struct packet on_stack, *packet = packet_in_memory(&on_stack);
	__u64 packets, bytes;

	if (place >= DROP_PLACES)
		return TC_ACT_UNSPEC;
	tc_parse(skb, drop_is_l3(place), by_address, by_address, true, packet);
	packets = tc_packets(skb, packet);
	bytes = tc_bytes(skb, egress, packets);
	return drop_verdict(packet, place, drop_row(skb, packet, egress), packets, bytes) ? TC_ACT_SHOT :
												 TC_ACT_UNSPEC;
}

SEC("tc")
int bpftk_tc_in(struct __sk_buff *skb)
{
	return tc_drop(skb, false);
}

SEC("tc")
int bpftk_tc_out(struct __sk_buff *skb)
{
	return tc_drop(skb, true);
}
