//! What clients wish: work, cancelling, pausing, another configuration, and to see. Each wish is answered once.

use std::collections::VecDeque;
use std::sync::Arc;

use chrono::Utc;
use tokio::sync::mpsc;

use super::control::Client;
use super::listeners::Listener;
use super::message::{Answer, Greeting, Request};
use super::queue::{Entry, Origin, Work};
use super::timetable::Timetable;
use super::{Daemon, Message, Waiting, Wish, client};
use crate::problem::{Kind, Outcome, Problem};
use crate::refresh;
use crate::status;
use crate::store::{Paused, Store};

/// Rows of the history that a client gets at most.
const MOST_ROWS: u32 = 10_000;

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
                // what is about to be overwritten is decided by one configuration: the one that the person sees
                if greeting.configuration != client::fingerprint(&self.config) {
                    let what =
                        "the daemon's configuration is not the one you see: files, MYSQL_REFRESHD_… or --set differ";
                    return say(Answer::Failed(Problem::new(Kind::Usage, what).hint(
                        "After a change of the files: mysql-refreshd reload. What is only in your environment or in --set \
                         works without a daemon.",
                    )));
                }
                // before it waits for hours; the run looks again
                if let Work::Refresh(name) = &work
                    && let Some(refresh) = self.config.refresh(name).filter(|_| !despite_blackout)
                    && let Err(problem) = refresh::outside_blackout(refresh)
                {
                    return say(Answer::Failed(problem));
                }
                let wish = Wish { no_wait, despite_blackout };
                let listener = Listener {
                    id: self.next_ticket,
                    who: who.clone(),
                    despite_blackout,
                    answers: Some(answers.clone()),
                };
                self.next_ticket += 1;
                let id = listener.id;
                match self.enqueue(work, Origin::Person(who), wish, Some(listener)) {
                    Ok(ticket) => self.until_withdrawn(ticket, id, withdrawn),
                    Err(problem) => say(Answer::Failed(problem)),
                }
            }
            Request::Cancel { run } => say(done(self.cancel(&run, &who))),
            Request::Pause { refresh } => say(done(self.pause(&refresh, Some(who)))),
            Request::Resume { refresh } => say(done(self.pause(&refresh, None))),
            Request::Reload => say(done(self.reload())),
            Request::Status => {
                let (config, view) = (self.config.clone(), self.view());
                self.look(answers, move |store| {
                    let status = status::build(&config, Some(store), Some(view), Utc::now())?;
                    Ok(Answer::Status(Box::new(status)))
                });
            }
            Request::History(mut filter) => {
                filter.limit = filter.limit.min(MOST_ROWS);
                self.look(answers, move |store| store.history(&filter).map(Answer::History));
            }
            Request::Show { run } => {
                self.look(answers, move |store| Ok(Answer::Shown(store.show(&run)?.map(Box::new))));
            }
        }
    }

    /// Looks something up in the history, on a thread and a connection of its own: neither this loop nor a run's journal waits
    /// for whoever is curious.
    fn look(&self, answers: mpsc::Sender<Answer>, work: impl FnOnce(&Store) -> Outcome<Answer> + Send + 'static) {
        let folder = self.store.folder().to_owned();
        tokio::task::spawn_blocking(move || {
            let answer = Store::open(&folder).and_then(|store| work(&store));
            let _ = answers.try_send(answer.unwrap_or_else(Answer::Failed));
        });
    }

    fn until_withdrawn(&self, ticket: u64, listener: u64, mut withdrawn: mpsc::UnboundedReceiver<()>) {
        let main = self.main.clone();
        tokio::spawn(async move {
            while withdrawn.recv().await.is_some() {
                let _ = main.send(Message::Withdrawn(ticket, listener));
            }
        });
    }

    /// A run by its id, or what waits by its name.
    fn cancel(&mut self, run: &str, who: &str) -> Outcome<String> {
        if let Some(at) = self.waiting.iter().position(|waiting| waiting.entry.work.to_string() == run)
            && let Some(mut waiting) = self.waiting.remove(at)
        {
            tracing::info!(work = %waiting.entry.work, by = who, "taken out of the queue");
            if waiting.entry.origin.leads_on() {
                self.keep(run, |_| ());
            }
            waiting.listeners.tell(&Answer::Failed(Problem::cancelled().cause(format!("by {who}"))));
            return Ok(format!("{run} waits no more"));
        }
        let ticket = self.running.keys().copied().find(|ticket| self.live.run_of(*ticket).as_deref() == Some(run));
        let Some(ticket) = ticket else {
            return Err(Problem::new(Kind::Usage, format!("no run {run:?} is under way here"))
                .hint("`mysql-refreshd status` shows what is under way."));
        };
        if let Some(running) = self.running.get(&ticket) {
            tracing::info!(work = %running.entry.work, run, by = who, "cancelled");
            running.cancel.cancel();
        }
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
        let paused = by.is_some();
        row.paused = by.map(|by| Paused { since: now, by });
        if let Some((seen, schedule)) = self.timetable.seen(name) {
            row.seen = Some(seen.max(now));
            row.schedule = Some(schedule);
        }
        self.store.keep_schedule(name, &row)?;
        self.timetable.pause(name, paused, now);
        if paused {
            // what somebody has asked for, too, stays as theirs
            let own = Work::Refresh(name.to_owned());
            for waiting in self.waiting.iter_mut().filter(|waiting| waiting.entry.work == own) {
                if let Some(who) = waiting.listeners.first() {
                    waiting.entry.origin = Origin::Person(who.to_owned());
                }
            }
            self.waiting.retain(|waiting| waiting.entry.work != own || !waiting.entry.origin.leads_on());
        }
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
        for waiting in &self.waiting {
            if let (Work::Refresh(name), Origin::Schedule(planned)) = (&waiting.entry.work, &waiting.entry.origin) {
                timetable.pass(name, *planned);
            }
        }
        self.timetable = timetable;
        self.config = Arc::new(config);
        self.remember();
        // what waits is judged by what is in force when it begins
        let gone = |waiting: &Waiting| match &waiting.entry.work {
            Work::Refresh(name) => {
                self.config.refresh(name).is_none_or(|refresh| waiting.entry.origin.leads_on() && !refresh.enabled)
            }
            Work::Rollback(host) => self.config.host(host).is_none(),
        };
        let (gone, stay): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.waiting).into_iter().partition(gone);
        self.waiting = stay;
        for mut waiting in gone {
            waiting.listeners.tell(&Answer::Failed(Problem::new(Kind::Usage, "it is no longer in the configuration")));
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
