//! What the running daemon is asked for, and how its answers are shown as if the work were done here.

use super::args::Global;
use tokio::signal::unix::SignalKind;

use super::{How, finish, out, sinks, terminal, with_runtime_and};
use crate::config::Config;
use crate::daemon::Work;
use crate::daemon::client::Client;
use crate::daemon::message::{Answer, Request};
use crate::failure;
use crate::problem::{Kind, Outcome, Problem};
use crate::report::Ending;
use crate::run::Cancel;

fn strange() -> Problem {
    Problem::failed("the daemon gave an answer to something else")
}

/// Lets the daemon do it, one after the other, and shows how it goes; the exit code. None: no daemon runs.
pub(super) fn to_do(global: &Global, config: &Config, work: &[Work], how: How) -> Outcome<Option<u8>> {
    // until it is known that there is a daemon, Ctrl-C ends this program as it ends any
    if !with_runtime_and(&[], "", async |_| Ok(Client::connect(config).await?.is_some()))? {
        return Ok(None);
    }
    // a lost terminal ends this client, and not what the daemon does
    with_runtime_and(&[SignalKind::interrupt(), SignalKind::terminate()], "withdrawing it", async |cancel| {
        let mut code = failure::DONE;
        for one in work {
            let Some(client) = Client::connect(config).await? else {
                return Err(Problem::failed("the daemon has ended meanwhile"));
            };
            if global.ask_sudo_password {
                return Err(Problem::new(Kind::Usage, "a daemon runs, and cannot use a password that is typed")
                    .hint("Name a file or command with `sudo_password` of the host, or stop the daemon."));
            }
            let (no_wait, despite_blackout) = (how.no_wait, how.despite_blackout);
            let request = Request::Do { work: one.clone(), no_wait, despite_blackout };
            let views = sinks(global);
            // the log is the daemon's
            let view = &views[0];
            let answer = client
                .ask(config, request, &cancel, |answer| match answer {
                    Answer::Event(stamped) => view(&stamped),
                    Answer::Note(text) if !global.quiet => terminal::say(&format!("  … {text}")),
                    _ => {}
                })
                .await?;
            match answer {
                Answer::Finished(summary) => {
                    finish(global, &summary);
                    code = failure::worse(code, failure::of_summary(&summary));
                    if summary.ending == Ending::Cancelled {
                        break;
                    }
                }
                Answer::Failed(problem) if work.len() == 1 => return Err(problem),
                Answer::Failed(problem) => {
                    // what was before it must not be forgotten
                    terminal::say(&failure::text(&problem));
                    code = failure::worse(code, failure::of_problem(&problem));
                    if problem.kind == Kind::Cancelled {
                        break;
                    }
                }
                _ => return Err(strange()),
            }
        }
        Ok(Some(code))
    })
}

/// A question that has one answer; None: no daemon runs.
pub(super) fn about(config: &Config, request: Request) -> Outcome<Option<Answer>> {
    // a question changes nothing: Ctrl-C ends it as it ends any program
    with_runtime_and(&[], "", async |_| {
        let Some(client) = Client::connect(config).await? else { return Ok(None) };
        match client.ask(config, request, &Cancel::default(), |_| ()).await? {
            Answer::Failed(problem) => Err(problem),
            answer => Ok(Some(answer)),
        }
    })
}

/// A wish that only a running daemon can fulfil.
pub(super) fn simple(global: &Global, request: Request) -> Outcome<u8> {
    let (config, broken) = super::load_to_ask(global)?;
    if let Some(problem) = broken.filter(|_| !matches!(request, Request::Reload)) {
        terminal::say(&format!("warning: {problem}; asking the daemon all the same"));
    }
    with_runtime_and(&[], "", async |_| {
        let Some(client) = Client::connect(&config).await? else {
            let problem = Problem::new(Kind::Refused, "no daemon runs");
            if let Request::Cancel { run } = &request
                && let Some(holder) = super::views::existing_store(&config).and_then(|store| store.at_work(run))
            {
                let (pid, host) = (holder.pid, holder.host);
                return Err(
                    problem.hint(format!("Process {pid} on {host} is at this run: kill -INT {pid} cancels it."))
                );
            }
            return Err(problem.hint("Start it: systemctl start mysql-refreshd."));
        };
        match client.ask(&config, request, &Cancel::default(), |_| ()).await? {
            Answer::Done(text) => {
                if global.json {
                    out(&serde_json::json!({ "done": text }).to_string());
                } else if !global.quiet {
                    out(&text);
                }
                Ok(failure::DONE)
            }
            Answer::Failed(problem) => Err(problem),
            _ => Err(strange()),
        }
    })
}
