//! Who has asked for a piece of work, and who of them still listens. A terminal that is lost, or a client that reads too slowly, is
//! told nothing more, but has not changed its mind: only who withdraws is out.

use tokio::sync::mpsc;

use super::message::Answer;
use crate::report::Event;

/// Somebody's wish.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Its number.
    pub id: u64,
    /// Whose it is.
    pub who: String,
    /// Even in a blackout.
    pub despite_blackout: bool,
    /// Where answers go; None: nobody reads them any more.
    pub answers: Option<mpsc::Sender<Answer>>,
}

/// All wishes for a piece of work.
#[derive(Debug, Clone, Default)]
pub struct Listeners(Vec<Listener>);

impl Listeners {
    /// One more.
    pub fn join(&mut self, listener: Option<Listener>) {
        self.0.extend(listener);
    }

    /// Tells everyone who listens, without waiting.
    pub fn tell(&mut self, answer: &Answer) {
        let droppable = matches!(answer, Answer::Event(stamped) if matches!(stamped.event, Event::Progress { .. }));
        for listener in &mut self.0 {
            let Some(answers) = &listener.answers else { continue };
            match answers.try_send(answer.clone()) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(_)) if droppable => {}
                Err(_) => listener.answers = None,
            }
        }
    }

    /// One withdraws, and is told what that means.
    pub fn leave(&mut self, id: u64, answer: Answer) {
        if let Some(at) = self.0.iter().position(|listener| listener.id == id)
            && let Some(answers) = self.0.swap_remove(at).answers
        {
            let _ = answers.try_send(answer);
        }
    }

    /// Whether somebody but this one wants it.
    pub fn others_than(&self, id: u64) -> bool {
        self.0.iter().any(|listener| listener.id != id)
    }

    /// Whether nobody wants it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether nobody would hear an answer.
    pub fn is_deaf(&self) -> bool {
        self.0.iter().all(|listener| listener.answers.as_ref().is_none_or(mpsc::Sender::is_closed))
    }

    /// Whether somebody wants it even in a blackout.
    pub fn despite_blackout(&self) -> bool {
        self.0.iter().any(|listener| listener.despite_blackout)
    }

    /// Who was first.
    pub fn first(&self) -> Option<&str> {
        self.0.first().map(|listener| listener.who.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_terminal_has_not_changed_its_mind() {
        let listener = |id, despite_blackout| {
            let (answers, told) = mpsc::channel(4);
            (Listener { id, who: format!("p{id}"), despite_blackout, answers: Some(answers) }, told)
        };
        let ((one, one_told), (two, mut two_told)) = (listener(1, true), listener(2, false));
        let mut all = Listeners::default();
        all.join(Some(one));
        all.join(Some(two));
        drop(one_told);
        all.tell(&Answer::Note("x".into()));
        assert!(matches!(two_told.try_recv(), Ok(Answer::Note(_))));
        assert!(all.others_than(2) && all.despite_blackout() && !all.is_deaf());
        all.leave(2, Answer::Done("gone".into()));
        assert!(matches!(two_told.try_recv(), Ok(Answer::Done(_))));
        assert!(all.is_deaf() && !all.is_empty() && all.first() == Some("p1"));
        all.leave(1, Answer::Done("gone".into()));
        assert!(all.is_empty() && !all.despite_blackout());
    }
}
