//! Commands on this machine, as children of this process.

use super::{End, Later, Pipe, Starter, child};
use crate::failpoint;
use crate::problem::{Outcome, Problem};

/// This machine.
pub(super) struct Local;

impl Starter for Local {
    fn start<'a>(&'a self, words: &'a [String]) -> Later<'a, Outcome<Pipe>> {
        Box::pin(async move {
            let fail = if cfg!(feature = "failpoints") { &[failpoint::VARIABLE][..] } else { &[] };
            child::start(words, fail, &[])
        })
    }

    fn place(&self) -> String {
        "this machine".to_owned()
    }

    fn explain(&self, _: &End) -> Option<Problem> {
        None
    }
}
