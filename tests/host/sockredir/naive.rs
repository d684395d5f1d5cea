// SPDX-License-Identifier: MIT OR Apache-2.0

//! The usual example of redirection, loaded.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use libbpf_rs::{Link, MapCore, MapMut, Object, ObjectBuilder, OpenObject, ProgramMut};

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sockmap_naive.bpf.o"));

pub(crate) struct Naive {
    /// Dropped before the object.
    _link: Link,
    object: Object,
}

impl Naive {
    pub(crate) fn attach(cgroup: &Path, lenient: bool) -> Self {
        let mut open: OpenObject = ObjectBuilder::default().open_memory(OBJECT).expect("an object");
        let mut constants = open
            .maps_mut()
            .find(|map| map.name().to_string_lossy().ends_with(".rodata"))
            .expect("the object has constants");
        constants.initial_value_mut().expect("constants have a value")[0] = lenient.into();
        let object = open.load().expect("it loads");
        let map = object.maps().find(|map| map.name() == "naive_socks").unwrap();
        let map = map.as_fd().as_raw_fd();
        let program = |name: &str| -> ProgramMut<'_> {
            object.progs_mut().find(|p| p.name() == name).unwrap()
        };
        program("naive_sk_msg").attach_sockmap(map).expect("it attaches");
        let cgroup = File::open(cgroup).unwrap();
        let link = program("naive_sockops").attach_cgroup(cgroup.as_raw_fd()).expect("it attaches");
        Self { _link: link, object }
    }

    /// Cleans up, as the examples do at their end.
    #[allow(dead_code, reason = "not what the figures are about")]
    pub(crate) fn delete_entries(&mut self) {
        let map: MapMut<'_> = self.object.maps_mut().find(|m| m.name() == "naive_socks").unwrap();
        let keys: Vec<Vec<u8>> = map.keys().collect();
        assert!(!keys.is_empty(), "the sockets are in the map");
        for key in keys {
            let _ = map.delete(&key);
        }
    }
}
