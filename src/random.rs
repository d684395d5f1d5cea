// SPDX-License-Identifier: MIT OR Apache-2.0

//! Randomness for tests, that can be had again.

/// Seeded by BPFTK_SEED, or anew; the seed is printed, and shown when the test fails.
pub(crate) fn seeded() -> fastrand::Rng {
    let seed = match std::env::var("BPFTK_SEED") {
        Ok(text) => text.parse().expect("BPFTK_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    println!("BPFTK_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Where processors are emulated, in a guest of the kernel matrix (`tests/vm`), random tests are shorter.
pub(crate) fn here_or_guest<T>(here: T, guest: T) -> T {
    if std::env::var_os("BPFTK_VM").is_some() { guest } else { here }
}

/// How often a random test tries that has nothing to do with the kernel: `usual`, times BPFTK_ROUNDS. `make fuzz` has more of
/// it; a guest of the kernel matrix does the same as the machine around it, so that little of it has to do there.
pub(crate) fn rounds(usual: usize) -> usize {
    match std::env::var("BPFTK_ROUNDS") {
        Ok(text) => usual * text.parse::<usize>().expect("BPFTK_ROUNDS is a number"),
        Err(_) => here_or_guest(usual, usual / 50),
    }
}

/// Figures are printed, not judged, and take long: only `make bench` has them, by BPFTK_FIGURES. Elsewhere says why not.
pub(crate) fn figures_wanted() -> bool {
    let wanted = std::env::var_os("BPFTK_FIGURES").is_some();
    if !wanted {
        println!("SKIP figures are printed by `make bench`");
    }
    wanted
}
