// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel's time stamps (CLOCK_BOOTTIME, which goes on during suspend) as wall-clock time.

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot.
pub(crate) fn boot_ns() -> u64 {
    nanos(ClockId::CLOCK_BOOTTIME) as u64
}

/// When `boot_ns` was. The difference of the clocks is taken anew: the wall clock may have been set meanwhile.
pub(crate) fn wall_time(boot_ns: u64) -> Timestamp {
    let offset = nanos(ClockId::CLOCK_REALTIME) - nanos(ClockId::CLOCK_BOOTTIME);
    Timestamp::from_nanosecond(i128::from(boot_ns as i64 + offset)).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn nanos(clock: ClockId) -> i64 {
    // Both clocks exist on every kernel that has BPF.
    clock_gettime(clock).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn now_is_now() {
        let difference = wall_time(boot_ns()).duration_since(Timestamp::now());
        assert!(difference.abs() < jiff::SignedDuration::from_millis(100), "{difference}");
    }
}
