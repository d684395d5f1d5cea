// SPDX-License-Identifier: MIT OR Apache-2.0

//! The skeletons that build.rs made of `bpf/*.bpf.c`, and for the tests of `tests/bpf/*.bpf.c`.

macro_rules! skeletons {
    ($($name:ident),+ $(,)?) => {
        $(
            // Generated code keeps to its generator's style.
            #[allow(
                clippy::all,
                clippy::undocumented_unsafe_blocks,
                clippy::use_self,
                dead_code,
                non_camel_case_types,
                non_snake_case,
                unreachable_pub
            )]
            pub(crate) mod $name {
                include!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".skel.rs"));

                /// The kernel types that its relocations refer to.
                pub(crate) const RELOCATED_TYPES: &str =
                    include_str!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".types"));
            }
        )+
    };
}

skeletons!(
    bypass,
    clone_trace,
    drop,
    egress,
    names,
    owners,
    owners_files,
    preflight,
    sockredir,
    tcpconnect
);

#[cfg(test)]
skeletons!(addrset_probe, egress_peer, filter_figures, socket_kind_probe);
