// SPDX-License-Identifier: MIT OR Apache-2.0

//! Changes programs while libbpf loads them.

use std::collections::HashMap;
use std::io;
use std::mem::size_of;
use std::sync::{Mutex, PoisonError};

use libbpf_rs::libbpf_sys;

use crate::filter::ebpf::insn::Insn;
use crate::filter::ebpf::splice::{FuncInfo, LineInfo, Loadable};

/// While it lives, libbpf puts filters in the place of the stubs of XDP and tc programs that it loads, of sections `xdp` and
/// `tc`, and what their constants decide is decided before they are loaded.
#[derive(Debug)]
pub(crate) struct FilterHandlers {
    handlers: Vec<i32>,
    /// The callback has its address, so it stays where it is.
    work: Box<Work>,
}

/// What the callback needs, and what it leaves.
struct Work {
    change: Box<Change>,
    state: Mutex<State>,
}

type Change = dyn Fn(&mut Loadable) -> Result<(), String> + Send + Sync;

#[derive(Debug, Default)]
struct State {
    /// Tables that libbpf reads when the callback has returned.
    tables: Vec<(Vec<FuncInfo>, Vec<LineInfo>)>,
    error: Option<String>,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work").field("state", &self.state).finish_non_exhaustive()
    }
}

impl FilterHandlers {
    pub(crate) fn new(
        change: impl Fn(&mut Loadable) -> Result<(), String> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let work = Box::new(Work { change: Box::new(change), state: Mutex::default() });
        let opts = libbpf_sys::libbpf_prog_handler_opts {
            sz: size_of::<libbpf_sys::libbpf_prog_handler_opts>() as libbpf_sys::size_t,
            cookie: std::ptr::from_ref::<Work>(&work) as libc::c_long,
            prog_prepare_load_fn: Some(prepare),
            ..Default::default()
        };
        let mut handlers = Self { handlers: Vec::new(), work };
        for (section, prog_type, attach_type) in [
            (c"xdp", libbpf_sys::BPF_PROG_TYPE_XDP, libbpf_sys::BPF_XDP),
            (c"tc", libbpf_sys::BPF_PROG_TYPE_SCHED_CLS, 0),
        ] {
            // SAFETY: a C string and options of the size that they state, which libbpf copies. The callback gets the
            // address of `work`, which lives until the handlers are unregistered. libbpf's registry is not for several
            // threads: objects are opened on the main thread only.
            let handler = unsafe {
                libbpf_sys::libbpf_register_prog_handler(
                    section.as_ptr(),
                    prog_type,
                    attach_type,
                    &opts,
                )
            };
            if handler < 0 {
                return Err(io::Error::from_raw_os_error(-handler));
            }
            handlers.handlers.push(handler);
        }
        Ok(handlers)
    }

    /// Why the last load failed, if it was for a filter's sake.
    pub(crate) fn error(&self) -> Option<String> {
        self.work.state.lock().unwrap_or_else(PoisonError::into_inner).error.clone()
    }
}

impl Drop for FilterHandlers {
    fn drop(&mut self) {
        for handler in self.handlers.drain(..) {
            // SAFETY: registered by `new`, and not unregistered before.
            unsafe { libbpf_sys::libbpf_unregister_prog_handler(handler) };
        }
    }
}

/// A table of libbpf's, copied. None where its records are not of the size that they had in Linux 5.10.
///
/// # Safety
/// `table` is null or points to `count` records of `size` bytes.
unsafe fn table<const N: usize>(
    table: *const libc::c_void,
    count: u32,
    size: u32,
) -> Option<Vec<[u32; N]>> {
    if table.is_null() || count == 0 {
        return Some(Vec::new());
    }
    (size as usize == N * 4).then(|| {
        // SAFETY: the caller's promise, and the records are of numbers.
        unsafe { std::slice::from_raw_parts(table.cast::<[u32; N]>(), count as usize) }.to_vec()
    })
}

/// What is in a map of one value that programs can't write to. Of those, libbpf makes the ones for constants, and freezes them
/// before it loads programs.
fn constants_of(map: i32) -> Option<Vec<u8>> {
    // SAFETY: all zeros is a valid value.
    let mut info: libbpf_sys::bpf_map_info = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libbpf_sys::bpf_map_info>() as u32;
    // SAFETY: room of the size that is stated; the kernel says how much of it there is.
    let failed = unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(map, std::ptr::from_mut(&mut info).cast(), &mut size)
    };
    let constant = libbpf_sys::BPF_F_RDONLY_PROG;
    if failed != 0 || info.max_entries != 1 || info.map_flags & constant == 0 {
        return None;
    }
    let mut value = vec![0_u8; (info.value_size as usize).next_multiple_of(8)];
    // SAFETY: a key of 4 bytes, as arrays have, and room for a value.
    let failed = unsafe {
        libbpf_sys::bpf_map_lookup_elem(
            map,
            std::ptr::from_ref(&0_u32).cast(),
            value.as_mut_ptr().cast(),
        )
    };
    (failed == 0).then_some(value)
}

unsafe extern "C" fn prepare(
    program: *mut libbpf_sys::bpf_program,
    opts: *mut libbpf_sys::bpf_prog_load_opts,
    cookie: libc::c_long,
) -> libc::c_int {
    // SAFETY: the address of a `Work` that lives as long as the handler is registered.
    let work = unsafe { &*(cookie as *const Work) };
    let mut state = work.state.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: libbpf calls this with a program that it is about to load, and its own options for that.
    let (insns, opts) = unsafe {
        let count = libbpf_sys::bpf_program__insn_cnt(program) as usize;
        let insns = libbpf_sys::bpf_program__insns(program).cast::<[u8; 8]>();
        (std::slice::from_raw_parts(insns, count), &mut *opts)
    };
    // SAFETY: libbpf states the size and the number of its records.
    let tables = unsafe {
        (
            table(opts.func_info, opts.func_info_cnt, opts.func_info_rec_size),
            table(opts.line_info, opts.line_info_cnt, opts.line_info_rec_size),
        )
    };
    let (Some(functions), Some(lines)) = tables else {
        state.error = Some("libbpf's tables of functions and lines have a new layout".into());
        return -libc::EPROTO;
    };
    let insns = insns.iter().map(|&bytes| Insn::decode(bytes)).collect();
    let mut loadable = Loadable { insns, functions, lines };
    if let Err(error) = (work.change)(&mut loadable) {
        state.error = Some(error);
        return -libc::EINVAL;
    }
    let mut constants = HashMap::new();
    loadable.fold(|map, offset, size| {
        let value = constants.entry(map).or_insert_with(|| constants_of(map)).as_ref()?;
        let at = usize::try_from(offset).ok()?;
        let bytes = value.get(at..at.checked_add(size)?)?;
        let mut word = [0; 8];
        let begin = if cfg!(target_endian = "little") { 0 } else { 8 - size };
        word[begin..begin + size].copy_from_slice(bytes);
        Some(u64::from_ne_bytes(word))
    });
    let mut bytes: Vec<[u8; 8]> = loadable.insns.iter().map(|insn| insn.encode()).collect();
    opts.func_info = loadable.functions.as_ptr().cast();
    opts.func_info_cnt = loadable.functions.len() as u32;
    opts.line_info = loadable.lines.as_ptr().cast();
    opts.line_info_cnt = loadable.lines.len() as u32;
    state.tables.push((loadable.functions, loadable.lines));
    // SAFETY: the instructions and their number; libbpf copies them.
    unsafe {
        libbpf_sys::bpf_program__set_insns(
            program,
            bytes.as_mut_ptr().cast(),
            bytes.len() as libbpf_sys::size_t,
        )
    }
}
