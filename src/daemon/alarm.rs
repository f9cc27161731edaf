//! The clock that wakes the daemon: one-shot jobs of tokio-cron-scheduler, each for the moment that the timetable names.
//!
//! The scheduler freezes a job's time zone when the job is made, lets runs overlap and collapses those that were missed. So its
//! jobs never recur and never run anything: each only says that it is time to look at the timetable.

use chrono::{DateTime, Utc};
use tokio::sync::mpsc;
use tokio_cron_scheduler::{Job, JobScheduler};

use super::Message;
use crate::problem::{Explain, Outcome};

/// The alarm.
pub struct Alarm {
    scheduler: JobScheduler,
    main: mpsc::UnboundedSender<Message>,
    set: Option<(DateTime<Utc>, Job)>,
}

impl Alarm {
    /// Starts the scheduler.
    pub async fn new(main: mpsc::UnboundedSender<Message>) -> Outcome<Self> {
        let scheduler = JobScheduler::new().await.explain(|| "cannot start the scheduler")?;
        scheduler.start().await.explain(|| "cannot start the scheduler")?;
        Ok(Self { scheduler, main, set: None })
    }

    /// Wakes the main loop at that moment, and no longer at the one before.
    pub async fn set(&mut self, moment: Option<DateTime<Utc>>) -> Outcome<()> {
        if self.set.as_ref().map(|(at, _)| *at) == moment {
            return Ok(());
        }
        if let Some((_, job)) = self.set.take() {
            // it may just have rung
            let _ = self.scheduler.remove(&job.guid()).await;
        }
        let Some(at) = moment else { return Ok(()) };
        let main = self.main.clone();
        // a job knows whole seconds, and may ring up to two of them too early: the timetable then asks again
        let wait = (at - Utc::now()).to_std().unwrap_or_default();
        let job = Job::new_one_shot(wait, move |_, _| {
            let _ = main.send(Message::Ring);
        })
        .explain(|| "cannot set the alarm")?;
        self.scheduler.add(job.clone()).await.explain(|| "cannot set the alarm")?;
        self.set = Some((at, job));
        Ok(())
    }

    /// It has rung: the job is used up.
    pub fn rang(&mut self) {
        self.set = None;
    }
}
