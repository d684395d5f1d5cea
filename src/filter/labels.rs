// SPDX-License-Identifier: MIT OR Apache-2.0

//! The labels of an assembler, and the jumps to them.

use std::collections::HashMap;

use super::text::{Place, TextError};

/// A jump that waits for its label, which may come behind it.
#[derive(Debug)]
pub(super) struct Jump<F> {
    /// The instruction that jumps.
    pub(super) at: usize,
    /// What of the instruction gets the distance.
    pub(super) field: F,
    pub(super) label: String,
    pub(super) place: Place,
}

#[derive(Debug)]
pub(super) struct Labels<F> {
    places: HashMap<String, usize>,
    jumps: Vec<Jump<F>>,
}

impl<F> Default for Labels<F> {
    fn default() -> Self {
        Self { places: HashMap::new(), jumps: Vec::new() }
    }
}

impl<F> Labels<F> {
    /// The label stands before the instruction `at`.
    pub(super) fn define(
        &mut self,
        label: String,
        at: usize,
        place: Place,
    ) -> Result<(), TextError> {
        match self.places.get(&label) {
            Some(_) => Err(place.error(format!("the label `{label}` is here for the second time"))),
            None => {
                self.places.insert(label, at);
                Ok(())
            }
        }
    }

    /// The label stands there, if the text doesn't say where.
    pub(super) fn imply(&mut self, label: &str, at: usize) {
        self.places.entry(label.into()).or_insert(at);
    }

    pub(super) fn refer(&mut self, jump: Jump<F>) {
        self.jumps.push(jump);
    }

    /// Each jump, and the instruction that its label stands before.
    pub(super) fn resolve(&self) -> impl Iterator<Item = Result<(&Jump<F>, usize), TextError>> {
        self.jumps.iter().map(|jump| match self.places.get(&jump.label) {
            Some(&target) => Ok((jump, target)),
            None => Err(jump.place.error(format!("there is no label `{}`", jump.label))),
        })
    }
}
