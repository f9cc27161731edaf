//! The edge: arguments in, exit code out. The only place that prints.

mod args;
mod terminal;
mod views;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use tokio::signal::unix::{SignalKind, signal};

use self::args::{Cli, Command, ConfigCommand, Global, RoleArg};
use self::terminal::Volume;
use crate::agent::{guard, launch, serve};
use crate::config::{self, Config, HostId, Refresh, Sources};
use crate::problem::{Explain, Kind, Outcome, Problem};
use crate::refresh::{self, Job, recover, rollback};
use crate::report::{Ending, Sink, Step};
use crate::run::Cancel;
use crate::store::Store;
use crate::wire::message::Role;
use crate::{failpoint, failure, logging};

/// Runs the program.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(if help { failure::DONE } else { failure::USAGE });
        }
    };
    let json = cli.global.json;
    match dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(problem) => {
            let code = failure::of_problem(&problem);
            if json {
                let error = serde_json::json!({ "event": "exit_error", "code": code, "problem": problem });
                out(&error.to_string());
            }
            terminal::say(&failure::text(&problem));
            ExitCode::from(code)
        }
    }
}

/// A line on stdout; a closed stdout is no reason to fail.
fn out(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn dispatch(cli: Cli) -> Outcome<u8> {
    let global = cli.global;
    if !cli.now.is_empty() {
        if cli.command.is_some() {
            return Err(Problem::new(Kind::Usage, "--now stands instead of a command")
                .hint("Use `mysql-refreshd --now REFRESH…`, or `mysql-refreshd run REFRESH…`."));
        }
        return run(&global, &cli.now, cli.no_wait);
    }
    match cli.command {
        None => Err(Problem::new(Kind::Usage, "nothing to do").hint("See `mysql-refreshd --help`.")),
        Some(Command::Run { refreshes, no_wait }) => run(&global, &refreshes, no_wait),
        Some(Command::Plan { refresh }) => plan(&global, &refresh),
        Some(Command::Check { offline }) => check(&global, offline),
        Some(Command::Config { command: ConfigCommand::Show }) => config_show(&global),
        Some(Command::History { refresh, limit }) => history(&global, refresh.as_deref(), limit),
        Some(Command::Show { run }) => show(&global, &run),
        Some(Command::Rollback { destination, no_wait }) => roll_back(&global, &destination, no_wait),
        Some(Command::Recover { forget: Some(run) }) => forget(&global, &run),
        Some(Command::Recover { forget: None }) => recover_all(&global),
        Some(Command::Agent { list_points: true, .. }) => list_points(),
        Some(Command::Agent { role, .. }) => agent(role),
        Some(Command::Guard { file }) => guard::run(&file).map(|()| failure::DONE),
        Some(Command::Launch { log, program, arguments }) => {
            launch::middle(&log, &program, &arguments).map(|()| failure::DONE)
        }
    }
}

fn agent(role: Option<RoleArg>) -> Outcome<u8> {
    let role = match role {
        Some(RoleArg::Source) => Role::Source,
        Some(RoleArg::Destination) => Role::Destination,
        None => return Err(Problem::new(Kind::Usage, "an agent needs a role")),
    };
    serve::run(role).map(|()| failure::DONE)
}

fn list_points() -> Outcome<u8> {
    for step in Step::ALL {
        out(&format!("controller:{step}:before"));
        out(&format!("controller:{step}:after"));
    }
    serve::points().iter().for_each(|point| out(point));
    Ok(failure::DONE)
}

fn load(global: &Global) -> Outcome<Config> {
    let sources = Sources { file: global.config.clone(), set: global.set.clone(), env: Sources::process_env() };
    config::load(&sources).map_err(|errors| {
        let mut problem = Problem::new(
            Kind::Usage,
            match errors.0.len() {
                1 => "the configuration has an error".to_owned(),
                n => format!("the configuration has {n} errors"),
            },
        );
        for error in &errors.0 {
            problem.causes.push(views::config_error(error));
        }
        problem
    })
}

fn find<'a>(config: &'a Config, name: &str) -> Outcome<&'a Refresh> {
    config.refresh(name).ok_or_else(|| {
        let known: Vec<&str> = config.refreshes.keys().map(String::as_str).collect();
        let problem = Problem::new(Kind::Usage, format!("no refresh {name:?} in the configuration"));
        let nearest = known
            .iter()
            .map(|k| (strsim::damerau_levenshtein(k, name), k))
            .min()
            .filter(|(distance, _)| *distance <= 3);
        match nearest {
            Some((_, near)) => problem.hint(format!("Did you mean {near:?}?")),
            None => problem.hint(format!("Refreshes are: {}.", known.join(", "))),
        }
    })
}

/// Everything a run needs: runtime, log, history, listeners, signals.
fn with_runtime<T>(work: impl AsyncFnOnce(Cancel) -> Outcome<T>) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().explain(|| "cannot start")?;
    let result = runtime.block_on(async {
        let cancel = Cancel::default();
        watch_signals(cancel.clone())?;
        work(cancel).await
    });
    runtime.shutdown_background();
    result
}

fn watch_signals(cancel: Cancel) -> Outcome<()> {
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut stream = signal(kind).explain(|| "cannot watch for signals")?;
        let cancel = cancel.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                let again = cancel.is_cancelled();
                cancel.cancel();
                terminal::say(if again {
                    "still putting things back; please wait"
                } else {
                    "stopping: putting things back"
                });
            }
        });
    }
    Ok(())
}

fn sinks(global: &Global) -> Vec<Sink> {
    let volume = match (global.quiet, global.verbose) {
        (true, _) => Volume::Quiet,
        (_, true) => Volume::Verbose,
        _ => Volume::Normal,
    };
    let view = if global.json { terminal::json() } else { terminal::person(volume) };
    vec![view, std::sync::Arc::new(logging::log)]
}

fn start_logging(config: &Config) {
    failpoint::init(vec!["controller".into()]);
    if let Err(problem) = logging::start(&config.daemon) {
        terminal::say(&format!("warning: {problem}"));
    }
}

fn run(global: &Global, names: &[String], no_wait: bool) -> Outcome<u8> {
    let config = load(global)?;
    let refreshes = names.iter().map(|name| find(&config, name)).collect::<Outcome<Vec<_>>>()?;
    start_logging(&config);
    let store = Store::open(&config.daemon.state_dir)?;
    with_runtime(async |cancel| {
        let mut code = failure::DONE;
        for refresh in refreshes {
            let job = Job {
                config: &config,
                refresh,
                store: store.clone(),
                sinks: sinks(global),
                cancel: cancel.clone(),
                no_wait,
            };
            let summary = refresh::run(job).await?;
            finish(global, &summary);
            code = failure::worse(code, failure::of_summary(&summary));
            if summary.ending == Ending::Cancelled {
                break;
            }
        }
        Ok(code)
    })
}

/// What is said after a run.
fn finish(global: &Global, summary: &crate::report::Summary) {
    if !global.json && !global.quiet {
        out(&terminal::summary(summary));
    }
    for problem in summary.problem.iter().chain(&summary.not_put_back) {
        terminal::say(&failure::text(problem));
    }
}

fn plan(global: &Global, name: &str) -> Outcome<u8> {
    let config = load(global)?;
    let refresh = find(&config, name)?;
    let store = views::existing_store(&config);
    let plan = with_runtime(async |cancel| refresh::plan::plan(&config, refresh, store.as_ref(), cancel).await)?;
    out(&if global.json { views::json(&plan)? } else { views::plan(&plan) });
    Ok(if plan.refusals.is_empty() { failure::DONE } else { failure::REFUSED })
}

fn check(global: &Global, offline: bool) -> Outcome<u8> {
    let config = load(global)?;
    let mut plans = Vec::new();
    if !offline {
        let store = views::existing_store(&config);
        with_runtime(async |cancel| {
            for refresh in config.refreshes.values() {
                plans.push((
                    refresh.name.clone(),
                    refresh::plan::plan(&config, refresh, store.as_ref(), cancel.clone()).await,
                ));
            }
            Ok(())
        })?;
    }
    let code = plans.iter().fold(failure::DONE, |code, (_, plan)| match plan {
        Ok(plan) if plan.refusals.is_empty() => code,
        Ok(_) => failure::worse(code, failure::REFUSED),
        Err(problem) => failure::worse(code, failure::of_problem(problem)),
    });
    out(&if global.json { views::check_json(&config, &plans)? } else { views::check(&config, &plans) });
    Ok(code)
}

fn config_show(global: &Global) -> Outcome<u8> {
    let config = load(global)?;
    out(&if global.json { views::json(&config.effective)? } else { views::effective(&config.effective) });
    Ok(failure::DONE)
}

fn history(global: &Global, refresh: Option<&str>, limit: u32) -> Outcome<u8> {
    let config = load(global)?;
    let rows = match views::existing_store(&config) {
        Some(store) => store.history(refresh, limit)?,
        None => Vec::new(),
    };
    out(&if global.json { views::json(&rows)? } else { views::history(&rows) });
    Ok(failure::DONE)
}

fn show(global: &Global, run: &str) -> Outcome<u8> {
    let config = load(global)?;
    let found = views::existing_store(&config).and_then(|store| store.show(run).transpose()).transpose()?;
    let (row, events) = found.ok_or_else(|| {
        Problem::new(Kind::Usage, format!("no run {run:?} in the history"))
            .hint("`mysql-refreshd history` lists the runs.")
    })?;
    out(&if global.json {
        views::json(&serde_json::json!({ "run": row, "events": events }))?
    } else {
        views::show(&row, &events)
    });
    Ok(failure::DONE)
}

fn roll_back(global: &Global, destination: &str, no_wait: bool) -> Outcome<u8> {
    let config = load(global)?;
    let id: HostId = destination.parse().map_err(|_| {
        Problem::new(Kind::Usage, format!("{destination:?} is not a host")).hint("Name it as ENVIRONMENT/HOST.")
    })?;
    start_logging(&config);
    let store = Store::open(&config.daemon.state_dir)?;
    with_runtime(async |cancel| {
        let summary = rollback::run(&config, &id, &store, sinks(global), cancel, no_wait).await?;
        finish(global, &summary);
        Ok(failure::of_summary(&summary))
    })
}

fn forget(global: &Global, run: &str) -> Outcome<u8> {
    let config = load(global)?;
    let forgotten = views::existing_store(&config).map(|store| store.forget(run)).transpose()?.unwrap_or(false);
    if !forgotten {
        return Err(Problem::new(Kind::Usage, format!("nothing of run {run:?} waits for recovery"))
            .hint("`mysql-refreshd history` lists the runs."));
    }
    out(&format!("run {run} is given up; look at its hosts yourself"));
    Ok(failure::DONE)
}

fn recover_all(global: &Global) -> Outcome<u8> {
    let config = load(global)?;
    start_logging(&config);
    let store = Store::open(&config.daemon.state_dir)?;
    with_runtime(async |_| {
        let recovered = recover::all(&config.daemon, &store, sinks(global)).await?;
        if global.json {
            out(&views::json(&recovered)?);
        } else if !global.quiet {
            out(&views::recovered(&recovered));
        }
        for problem in recovered.iter().flat_map(|r| &r.left) {
            terminal::say(&failure::text(problem));
        }
        Ok(if recovered.iter().all(|r| r.left.is_empty()) { failure::DONE } else { failure::HUMAN })
    })
}
