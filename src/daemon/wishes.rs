//! What clients wish: work, cancelling, pausing, another configuration, and to see. Each wish is answered once.

use std::collections::VecDeque;
use std::sync::Arc;

use chrono::Utc;
use tokio::sync::mpsc;

use super::control::Client;
use super::message::{Answer, Greeting, Request};
use super::queue::{Entry, Origin, Work};
use super::timetable::Timetable;
use super::{Daemon, Message, Waiting, Wish, client, tell};
use crate::problem::{Kind, Outcome, Problem};
use crate::store::Paused;

impl Daemon {
    pub(super) fn asked(&mut self, greeting: Greeting, client: Client) {
        let Client { who, answers, withdrawn } = client;
        let say = |answer| {
            let _ = answers.try_send(answer);
        };
        let done = |result: Outcome<String>| result.map_or_else(Answer::Failed, Answer::Done);
        match greeting.request {
            Request::Do { .. } if self.stopping => {
                say(Answer::Failed(
                    Problem::new(Kind::Refused, "the daemon is about to end").hint("Ask again when it runs."),
                ));
            }
            Request::Do { work, no_wait, despite_blackout } => {
                if greeting.configuration != client::fingerprint(&self.config) {
                    say(Answer::Note(
                        "warning: the daemon's configuration is not the one you see now; `systemctl reload mysql-refreshd` \
                         makes it read the files again"
                            .to_owned(),
                    ));
                }
                let wish = Wish { no_wait, despite_blackout };
                match self.enqueue(work, Origin::Person(who), wish, Some(answers.clone())) {
                    Ok(ticket) => self.until_withdrawn(ticket, withdrawn),
                    Err(problem) => say(Answer::Failed(problem)),
                }
            }
            Request::Cancel { run } => say(done(self.cancel(&run, &who))),
            Request::Pause { refresh } => say(done(self.pause(&refresh, Some(who)))),
            Request::Resume { refresh } => say(done(self.pause(&refresh, None))),
            Request::Reload => say(done(self.reload())),
            Request::Status => say(match self.view() {
                Ok(status) => Answer::Status(Box::new(status)),
                Err(problem) => Answer::Failed(problem),
            }),
            Request::History(filter) => say(self.store.history(&filter).map_or_else(Answer::Failed, Answer::History)),
            Request::Show { run } => {
                say(self.store.show(&run).map_or_else(Answer::Failed, |found| Answer::Shown(found.map(Box::new))));
            }
        }
    }

    fn until_withdrawn(&self, ticket: u64, mut withdrawn: mpsc::UnboundedReceiver<()>) {
        let main = self.main.clone();
        tokio::spawn(async move {
            while withdrawn.recv().await.is_some() {
                let _ = main.send(Message::Withdrawn(ticket));
            }
        });
    }

    fn cancel(&mut self, run: &str, who: &str) -> Outcome<String> {
        let ticket = self.running.keys().copied().find(|ticket| self.live.run_of(*ticket).as_deref() == Some(run));
        let Some(ticket) = ticket else {
            return Err(Problem::new(Kind::Usage, format!("no run {run:?} is under way here"))
                .hint("`mysql-refreshd status` shows what is under way."));
        };
        self.withdraw(ticket, &format!("by {who}"));
        Ok(format!("run {run} is cancelled: everything is being put back"))
    }

    /// `by`: who wishes a pause; None: the schedule is followed again.
    fn pause(&mut self, name: &str, by: Option<String>) -> Outcome<String> {
        let config = self.config.clone();
        let refresh = config
            .refresh(name)
            .ok_or_else(|| Problem::new(Kind::Usage, format!("the daemon's configuration has no refresh {name:?}")))?;
        if refresh.schedule.is_none() && refresh.after.is_none() {
            return Err(Problem::new(Kind::Usage, format!("{name} has no schedule"))
                .hint("It runs only when somebody asks for it."));
        }
        let now = Utc::now();
        let mut row = self.store.schedules()?.remove(name).unwrap_or_default();
        let text = match &by {
            Some(who) => {
                tracing::info!(refresh = name, by = who, "paused");
                format!(
                    "{name} is paused: it runs only when somebody asks for it, until `mysql-refreshd resume {name}`"
                )
            }
            None if row.paused.is_none() => return Ok(format!("{name} was not paused")),
            None => {
                tracing::info!(refresh = name, "resumed");
                format!("{name} is followed again")
            }
        };
        self.timetable.pause(name, by.is_some(), now);
        row.paused = by.map(|by| Paused { since: now, by });
        if let Some((seen, schedule)) = self.timetable.seen(name) {
            row.seen = Some(seen);
            row.schedule = Some(schedule);
        }
        self.store.keep_schedule(name, &row)?;
        Ok(text)
    }

    pub(super) fn reload(&mut self) -> Outcome<String> {
        self.service.reloading();
        let result = self.take_configuration();
        self.reload_failed = result.as_ref().err().map(|problem| {
            let mut text = problem.message.clone();
            problem.causes.iter().for_each(|cause| text.push_str(&format!("; {cause}")));
            tracing::error!(problem = text, "the configuration is not read again: the one before stays in force");
            text
        });
        self.service.ready();
        result
    }

    fn take_configuration(&mut self) -> Outcome<String> {
        let mut config = (self.load)()?;
        let (old, new) = (&self.config.daemon, &config.daemon);
        let mut text = "the configuration was read again".to_owned();
        if (&old.state_dir, &old.socket, &old.log_dir) != (&new.state_dir, &new.socket, &new.log_dir) {
            text.push_str("; `state_dir`, `socket` and `log_dir` are taken at the next start");
            config.daemon.state_dir.clone_from(&old.state_dir);
            config.daemon.socket.clone_from(&old.socket);
        }
        let mut timetable = Timetable::new(config.refreshes.values(), &self.store.schedules()?, Utc::now());
        timetable.inherit(&self.timetable);
        self.timetable = timetable;
        self.config = Arc::new(config);
        self.remember();
        // what waits is judged by what is in force when it begins
        let gone = |waiting: &Waiting| match &waiting.entry.work {
            Work::Refresh(name) => self.config.refresh(name).is_none(),
            Work::Rollback(host) => self.config.host(host).is_none(),
        };
        let (gone, stay): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.waiting).into_iter().partition(gone);
        self.waiting = stay;
        for mut waiting in gone {
            tell(
                &mut waiting.listeners,
                &Answer::Failed(Problem::new(Kind::Usage, "it is no longer in the configuration")),
            );
        }
        for waiting in &mut self.waiting {
            if let Work::Refresh(name) = &waiting.entry.work
                && let Some(refresh) = self.config.refresh(name)
            {
                waiting.entry.hosts = Entry::hosts_of(refresh);
            }
        }
        tracing::info!("the configuration was read again");
        Ok(text)
    }
}
