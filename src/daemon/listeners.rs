//! Who listens to a piece of work. One that is gone, or reads too slowly, is left; one may leave, and the others go on.

use tokio::sync::mpsc;

use super::message::Answer;
use crate::report::Event;

/// One client.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Its number.
    pub id: u64,
    /// Where answers go.
    pub answers: mpsc::Sender<Answer>,
}

/// All clients of a piece of work.
#[derive(Debug, Clone, Default)]
pub struct Listeners(Vec<Listener>);

impl Listeners {
    /// One more.
    pub fn join(&mut self, listener: Option<Listener>) {
        self.0.extend(listener);
    }

    /// Tells everyone, without waiting.
    pub fn tell(&mut self, answer: &Answer) {
        let droppable = matches!(answer, Answer::Event(stamped) if matches!(stamped.event, Event::Progress { .. }));
        self.0.retain(|listener| match listener.answers.try_send(answer.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => droppable,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
    }

    /// One leaves, and is told why; false: it was not among them.
    pub fn leave(&mut self, id: u64, answer: Answer) -> bool {
        let Some(at) = self.0.iter().position(|listener| listener.id == id) else { return false };
        let _ = self.0.swap_remove(at).answers.try_send(answer);
        true
    }

    /// Whether somebody but this one is still there.
    pub fn others_than(&mut self, id: u64) -> bool {
        self.0.retain(|listener| !listener.answers.is_closed());
        self.0.iter().any(|listener| listener.id != id)
    }

    /// Whether nobody is there any more.
    pub fn is_empty(&mut self) -> bool {
        self.0.retain(|listener| !listener.answers.is_closed());
        self.0.is_empty()
    }
}
