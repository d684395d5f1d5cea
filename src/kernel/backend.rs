// SPDX-License-Identifier: MIT OR Apache-2.0

//! The first back end that this kernel really offers: found by arming it, not by the kernel's version.

use std::fmt::Display;

use anyhow::{Result, anyhow};

use super::caps::{Cap, Held};
use super::{limits, refusal};
use crate::error::{Status, limited, not_permitted, status_of, unsupported};

/// What was chosen, and why not what came before it.
#[derive(Debug)]
pub(crate) struct Chosen<B, T> {
    pub(crate) backend: B,
    pub(crate) armed: T,
    pub(crate) passed_over: Vec<(B, String)>,
}

/// Arms the first of `order` that can be, or just `forced`. `arm` leaves nothing behind when it fails.
pub(crate) fn choose<B: Copy + Display, T>(
    order: &[B],
    forced: Option<B>,
    mut arm: impl FnMut(B) -> Result<T>,
) -> Result<Chosen<B, T>> {
    if let Some(backend) = forced {
        return match arm(backend) {
            Ok(armed) => Ok(Chosen { backend, armed, passed_over: Vec::new() }),
            Err(error) => {
                out_of(&error)?;
                Err(as_unsupported(error, &format!("back end {backend}")))
            }
        };
    }
    let mut passed_over = Vec::new();
    let mut forbidden = false;
    for &backend in order {
        match arm(backend) {
            Ok(armed) => {
                return Ok(Chosen { backend, armed, passed_over });
            }
            Err(error) => {
                // Not for this a poorer one.
                out_of(&error)?;
                forbidden |= status_of(&error) == Status::NotPermitted;
                passed_over.push((backend, format!("{error:#}")));
            }
        }
    }
    let reasons: Vec<String> =
        passed_over.iter().map(|(backend, reason)| format!("{backend}: {reason}")).collect();
    let reasons = reasons.join("; ");
    // What was only forbidden may work: that is no verdict on the kernel.
    Err(if forbidden {
        not_permitted(format!("no back end works with these privileges; {reasons}"))
    } else {
        unsupported(format!("no back end works on this kernel; {reasons}"))
    })
}

/// Refuses if it is a limit that kept a back end from being armed, and nothing that the kernel can't do. Where locked
/// memory is what is missing, the kernel's own words are of permission.
fn out_of(error: &anyhow::Error) -> Result<()> {
    if let Some(named) = limits::named(error) {
        return Err(named);
    }
    if let Some(advice) = limits::too_few_files() {
        return Err(limited(format!("{error:#}; {advice}")));
    }
    if Held::read()?.has(Cap::Bpf) {
        refusal::check()?;
        refusal::check_memory()?;
    }
    Ok(())
}

/// What the kernel can't do is told as such; what already knows its status keeps it.
fn as_unsupported(error: anyhow::Error, what: &str) -> anyhow::Error {
    if status_of(&error) == Status::Failed {
        unsupported(format!("{what}: {error:#}"))
    } else {
        anyhow!(error).context(what.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_arms_is_chosen() {
        let chosen = choose(&["a", "b", "c"], None, |backend| {
            if backend == "a" { Err(anyhow!("missing")) } else { Ok(backend) }
        })
        .unwrap();
        assert_eq!((chosen.backend, chosen.armed), ("b", "b"));
        assert_eq!(chosen.passed_over, [("a", "missing".to_string())]);
    }

    #[test]
    fn a_limit_ends_the_choice() {
        for forced in [None, Some("a")] {
            let error = choose(&["a", "b"], forced, |backend| match backend {
                "a" => Err(unsupported("cannot load: Too many open files (os error 24)")),
                _ => Ok(()),
            })
            .unwrap_err();
            assert_eq!(status_of(&error), Status::Failed);
            assert!(format!("{error:#}").contains("`ulimit -n`"), "{error:#}");
        }
    }

    #[test]
    fn a_forced_one_is_not_replaced() {
        let error = choose(&["a", "b"], Some("a"), |backend| match backend {
            "a" => Err(anyhow!("missing")),
            _ => Ok(()),
        })
        .unwrap_err();
        assert_eq!(status_of(&error), Status::Unsupported);
        assert!(format!("{error:#}").contains("a: missing"));
    }

    #[test]
    fn all_reasons_are_told() {
        let error = choose(&["a", "b"], None, |b| Err::<(), _>(anyhow!("no {b}"))).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("a: no a") && text.contains("b: no b"), "{text}");
        assert_eq!(status_of(&error), Status::Unsupported);
        let error = choose(&["a", "b"], None, |backend| match backend {
            "a" => Err::<(), _>(not_permitted("CAP_X")),
            _ => Err(unsupported("missing")),
        })
        .unwrap_err();
        assert_eq!(status_of(&error), Status::NotPermitted);
        let error =
            choose(&["a"], Some("a"), |_| Err::<(), _>(not_permitted("CAP_BPF"))).unwrap_err();
        assert_eq!(status_of(&error), Status::NotPermitted);
    }
}
