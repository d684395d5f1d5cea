// SPDX-License-Identifier: MIT OR Apache-2.0

//! The names of error numbers.

use nix::errno::Errno;

/// `ECONNREFUSED` for 111; `E` and the number for what has no name, such as the kernel's internal 524.
pub(crate) fn name(errno: i32) -> String {
    match Errno::from_raw(errno) {
        Errno::UnknownErrno => format!("E{errno}"),
        // Two names, one number; connect(2) says this one.
        known => format!("{known:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn names() {
        assert_eq!(name(libc::ECONNREFUSED), "ECONNREFUSED");
        assert_eq!(name(libc::EAGAIN), "EAGAIN");
        assert_eq!(name(524), "E524");
    }
}
