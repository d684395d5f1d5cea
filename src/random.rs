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

/// How often a random test tries: `usual`, times BPFTK_ROUNDS. `make fuzz` has more of it.
pub(crate) fn rounds(usual: usize) -> usize {
    match std::env::var("BPFTK_ROUNDS") {
        Ok(text) => usual * text.parse::<usize>().expect("BPFTK_ROUNDS is a number"),
        Err(_) => usual,
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
