//! The edge: arguments in, exit code out. The only place that prints.

mod args;
mod ask;
mod doctor;
mod one_off;
mod own_account;
mod owner;
mod past;
mod plot;
mod status;
mod terminal;
mod views;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use secrecy::SecretString;
use tokio::signal::unix::{SignalKind, signal};

use self::args::{Cli, Command, ConfigCommand, Global, RoleArg};
use self::terminal::Volume;
use crate::agent::{guard, lane, launch, serve};
use crate::authority::Authority;
use crate::config::{self, Config, HostId, Refresh, Sources};
use crate::daemon::message::Request;
use crate::daemon::{self, Work};
use crate::host::Typed;
use crate::problem::{Explain, Kind, Outcome, Problem};
use crate::refresh::{self, Job, recover, rollback};
use crate::report::{Ending, Pulse, Sink, Step};
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
    let _ = writeln!(std::io::stdout(), "{}", terminal::plain(text));
}

fn dispatch(cli: Cli) -> Outcome<u8> {
    let global = cli.global;
    if let Some(names) = &cli.now {
        if cli.command.is_some() {
            return Err(Problem::new(Kind::Usage, "--now stands instead of a command")
                .hint("Use `mysql-refreshd --now REFRESH…`, or `mysql-refreshd run REFRESH…`."));
        }
        let how = How { no_wait: cli.no_wait, dry_run: cli.dry_run, despite_blackout: cli.despite_blackout };
        return match (&cli.one_off.source, names.is_empty()) {
            (Some(_), true) => one_off::run(&global, &cli.one_off, how),
            (Some(_), false) => Err(Problem::new(
                Kind::Usage,
                "--now takes names of refreshes, or --source and --destination, not both",
            )),
            (None, false) => run(&global, names, how),
            (None, true) => Err(Problem::new(Kind::Usage, "--now needs the name of a refresh")
                .hint("Name one, or say --source and --destination.")),
        };
    }
    match cli.command {
        None => Err(Problem::new(Kind::Usage, "nothing to do").hint("See `mysql-refreshd --help`.")),
        Some(Command::Run { refreshes, no_wait, despite_blackout }) => {
            run(&global, &refreshes, How { no_wait, dry_run: false, despite_blackout })
        }
        Some(Command::Daemon) => serve(&global),
        Some(Command::Status { watch, nagios, refresh, warning, critical }) => {
            let seconds = |limit: Option<humantime::Duration>| limit.map(|limit| limit.as_secs());
            let limits = crate::status::Limits { warning_s: seconds(warning), critical_s: seconds(critical) };
            status::run(
                &global,
                if nagios { status::How::Nagios(refresh, limits) } else { status::How::Person { watch } },
            )
        }
        Some(Command::Cancel { run }) => ask::simple(&global, Request::Cancel { run }),
        Some(Command::Pause { refresh }) => ask::simple(&global, Request::Pause { refresh }),
        Some(Command::Resume { refresh }) => ask::simple(&global, Request::Resume { refresh }),
        Some(Command::Reload) => ask::simple(&global, Request::Reload),
        Some(Command::Plan { refresh }) => plan(&global, &refresh),
        Some(Command::Check { offline }) => check(&global, offline),
        Some(Command::Config { command: ConfigCommand::Show }) => config_show(&global),
        Some(Command::Config { command: ConfigCommand::Hosts }) => config_hosts(&global),
        Some(Command::Doctor { host }) => doctor::run(&global, &host),
        Some(Command::Host { command }) => owner::host(&global, command),
        Some(Command::Consent { command }) => owner::consent(&global, command),
        Some(Command::Gate) => owner::gate().map(|()| failure::DONE),
        Some(Command::History { refresh, destination, result, since, until, limit, plot }) => {
            let wanted = past::Wanted { refresh, destination, result, since, until, limit };
            past::history(&global, &wanted, plot)
        }
        Some(Command::Show { run }) => past::show(&global, &run),
        Some(Command::Rollback { destination, no_wait }) => roll_back(&global, &destination, no_wait),
        Some(Command::Recover { forget: Some(run), .. }) => forget(&global, &run),
        Some(Command::Recover { forget: None, password_file }) => recover_all(&global, password_file),
        Some(Command::Completions { shell }) => completions(shell),
        Some(Command::Man { folder }) => manual(&folder),
        Some(Command::Agent { list_points: true, .. }) => list_points(),
        Some(Command::Agent { lane: true, .. }) => lane::run().map(|()| failure::DONE),
        Some(Command::Agent { role, trust_controller, policy, .. }) => {
            agent(role, &if trust_controller { Authority::trusting(policy) } else { Authority::strict() })
        }
        Some(Command::Guard { file, cap: None }) => guard::watch::run(&file, &terminal::say).map(|()| failure::DONE),
        Some(Command::Guard { file, cap: Some(run) }) => {
            guard::watch::cap(&file, &run, &terminal::say).map(|()| failure::DONE)
        }
        Some(Command::Launch { log, program, arguments }) => {
            launch::middle(&log, &program, &arguments).map(|()| failure::DONE)
        }
    }
}

fn agent(role: Option<RoleArg>, authority: &Authority) -> Outcome<u8> {
    let role = match role {
        Some(RoleArg::Source) => Role::Source,
        Some(RoleArg::Destination) => Role::Destination,
        None => return Err(Problem::new(Kind::Usage, "an agent needs a role")),
    };
    serve::run(role, authority).map(|()| failure::DONE)
}

fn list_points() -> Outcome<u8> {
    for step in Step::ALL {
        out(&format!("controller:{step}:before"));
        out(&format!("controller:{step}:after"));
    }
    serve::points().iter().for_each(|point| out(point));
    guard::watch::POINTS.iter().for_each(|point| out(&format!("guard:{point}")));
    Ok(failure::DONE)
}

fn load(global: &Global) -> Outcome<Config> {
    load_from(global, false)
}

/// `optional`: the configuration's file may be missing.
fn load_from(global: &Global, optional: bool) -> Outcome<Config> {
    let (file, set) = (global.config.clone(), global.set.clone());
    config::load(&Sources { file, optional, set, env: Sources::process_env() }).map_err(|errors| {
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
    let stops = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    with_runtime_and(&stops, "stopping: putting things back", work)
}

/// The same with other signals as the wish to stop, and what is said then; those that are not named end this process.
fn with_runtime_and<T>(
    stops: &[SignalKind],
    word: &'static str,
    work: impl AsyncFnOnce(Cancel) -> Outcome<T>,
) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().explain(|| "cannot start")?;
    let result = runtime.block_on(async {
        let cancel = Cancel::default();
        watch_signals(stops, word, &cancel)?;
        work(cancel).await
    });
    runtime.shutdown_background();
    result
}

fn watch_signals(kinds: &[SignalKind], word: &'static str, cancel: &Cancel) -> Outcome<()> {
    for kind in kinds {
        let mut stream = signal(*kind).explain(|| "cannot watch for signals")?;
        let cancel = cancel.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                let again = cancel.is_cancelled();
                cancel.cancel();
                terminal::say(if again { "still putting things back; please wait" } else { word });
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
    start_logging_to(config, logging::Aloud::No);
}

fn start_logging_to(config: &Config, aloud: logging::Aloud) {
    failpoint::init(vec!["controller".into()]);
    if let Err(problem) = logging::start(&config.daemon, aloud) {
        terminal::say(&format!("warning: {problem}"));
    }
}

/// A password in a file that the command line names.
fn secret_in(file: &Path) -> Outcome<SecretString> {
    config::SecretRef::File(file.to_owned()).resolve().map_err(|error| {
        let problem = Problem::new(Kind::Usage, "no password").because(&error);
        error.hint().into_iter().fold(problem, Problem::hint)
    })
}

/// How a run is asked for.
#[derive(Clone, Copy)]
struct How {
    no_wait: bool,
    dry_run: bool,
    despite_blackout: bool,
}

/// What a person types when asked, beside what the command line gave.
fn typed(global: &Global, password: Option<SecretString>) -> Outcome<Typed> {
    let sudo = match global.ask_sudo_password {
        true => Some(terminal::secret("Password for sudo on the hosts: ")?),
        false => None,
    };
    Ok(Typed { password, sudo })
}

fn run(global: &Global, names: &[String], how: How) -> Outcome<u8> {
    let config = load(global)?;
    let refreshes = names.iter().map(|name| find(&config, name)).collect::<Outcome<Vec<_>>>()?;
    if let Some(twice) = names.iter().enumerate().find_map(|(n, name)| names[..n].contains(name).then_some(name)) {
        return Err(Problem::new(Kind::Usage, format!("{twice} is named twice")));
    }
    if !how.dry_run {
        let work: Vec<Work> = names.iter().cloned().map(Work::Refresh).collect();
        if let Some(code) = ask::to_do(global, &config, &work, how)? {
            return Ok(code);
        }
        own_account::become_owner(&config)?;
    }
    run_all(global, &config, &refreshes, how, &typed(global, None)?)
}

/// The daemon, until it is told to end.
fn serve(global: &Global) -> Outcome<u8> {
    let config = load(global)?;
    own_account::become_owner(&config)?;
    start_logging_to(&config, logging::Aloud::Yes);
    let again = global.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().explain(|| "cannot start")?;
    let result = runtime.block_on(daemon::serve(config, Box::new(move || load(&again))));
    runtime.shutdown_background();
    result.map(|()| failure::DONE)
}

fn run_all(global: &Global, config: &Config, refreshes: &[&Refresh], how: How, typed: &Typed) -> Outcome<u8> {
    if how.dry_run {
        let show = |refresh: &&Refresh| show_plan(global, config, refresh, typed);
        let codes = refreshes.iter().map(show).collect::<Outcome<Vec<_>>>()?;
        return Ok(codes.into_iter().fold(failure::DONE, failure::worse));
    }
    start_logging(config);
    let store = Store::open(&config.daemon.state_dir)?;
    with_runtime(async |cancel| {
        let mut code = failure::DONE;
        for refresh in refreshes.iter().copied() {
            let job = Job {
                config,
                store: store.clone(),
                sinks: sinks(global),
                cancel: cancel.clone(),
                no_wait: how.no_wait,
                despite_blackout: how.despite_blackout,
                typed: typed.clone(),
                pulse: Pulse::default(),
            };
            let summary = match refresh::run(job, refresh).await {
                Ok(summary) => summary,
                Err(problem) if refreshes.len() == 1 => return Err(problem),
                Err(problem) => {
                    // what was before it must not be forgotten
                    terminal::say(&failure::text(&problem));
                    code = failure::worse(code, failure::of_problem(&problem));
                    continue;
                }
            };
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
    show_plan(global, &config, refresh, &typed(global, None)?)
}

fn show_plan(global: &Global, config: &Config, refresh: &Refresh, typed: &Typed) -> Outcome<u8> {
    let store = views::existing_store(config);
    let plan = with_runtime(async |cancel| refresh::plan::plan(config, refresh, store.as_ref(), cancel, typed).await)?;
    out(&if global.json { views::json(&plan)? } else { views::plan(&plan) });
    Ok(if plan.refusals.is_empty() { failure::DONE } else { failure::REFUSED })
}

fn check(global: &Global, offline: bool) -> Outcome<u8> {
    let config = load(global)?;
    let mut plans = Vec::new();
    if !offline {
        let (store, typed) = (views::existing_store(&config), typed(global, None)?);
        with_runtime(async |cancel| {
            for refresh in config.refreshes.values() {
                plans.push((
                    refresh.name.clone(),
                    refresh::plan::plan(&config, refresh, store.as_ref(), cancel.clone(), &typed).await,
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

fn config_hosts(global: &Global) -> Outcome<u8> {
    let config = load(global)?;
    config.hosts().for_each(|host| out(&views::host_line(host)));
    Ok(failure::DONE)
}

/// The configuration, for asking the daemon. One with errors still tells where the daemon is: a run must be cancelled, and the
/// state be seen, whatever somebody has just written. With what is wrong, if something is.
fn load_to_ask(global: &Global) -> Outcome<(Config, Option<Problem>)> {
    let problem = match load(global) {
        Ok(config) => return Ok((config, None)),
        Err(problem) => problem,
    };
    let mut set = Vec::new();
    let mut parts: Vec<PathBuf> = global
        .config
        .parent()
        .and_then(|folder| std::fs::read_dir(folder.join("conf.d")).ok())
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    parts.retain(|part| part.extension().is_some_and(|end| end == "toml"));
    parts.sort();
    for file in std::iter::once(&global.config).chain(&parts) {
        let table = std::fs::read_to_string(file).ok().and_then(|text| text.parse::<toml::Table>().ok());
        // whose daemon it is cannot be told, unless it is the usual one
        let Some(table) = table else {
            if global.config.as_os_str() == args::DEFAULT_CONFIG {
                continue;
            }
            return Err(problem);
        };
        for key in ["state_dir", "socket"] {
            if let Some(value) = table.get("daemon").and_then(|daemon| daemon.get(key)?.as_str()) {
                set.push(format!("daemon.{key}={value}"));
            }
        }
    }
    set.extend(global.set.iter().filter(|flag| flag.starts_with("daemon.")).cloned());
    let ours = |name: &str| name.starts_with("MYSQL_REFRESHD_DAEMON__");
    let env = Sources::process_env().into_iter().filter(|(name, _)| ours(name)).collect();
    let nowhere = Sources { file: PathBuf::from("/nonexistent/config.toml"), optional: true, set, env };
    match config::load(&nowhere) {
        Ok(config) if config.daemon.socket.exists() => Ok((config, Some(problem))),
        _ => Err(problem),
    }
}

/// The configuration, for commands about what was done: that of a one-off run may have none, and its history in the account's
/// own home.
fn load_kept(global: &Global) -> Outcome<Config> {
    load_from(global, global.config.as_os_str() == args::DEFAULT_CONFIG)
}

fn roll_back(global: &Global, destination: &str, no_wait: bool) -> Outcome<u8> {
    let config = load(global)?;
    let id: HostId = destination.parse().map_err(|_| {
        Problem::new(Kind::Usage, format!("{destination:?} is not a host")).hint("Name it as ENVIRONMENT/HOST.")
    })?;
    let how = How { no_wait, dry_run: false, despite_blackout: false };
    if let Some(code) = ask::to_do(global, &config, &[Work::Rollback(id.clone())], how)? {
        return Ok(code);
    }
    own_account::become_owner(&config)?;
    start_logging(&config);
    let store = Store::open(&config.daemon.state_dir)?;
    let typed = typed(global, None)?;
    with_runtime(async |cancel| {
        let job = Job {
            config: &config,
            store,
            sinks: sinks(global),
            cancel,
            no_wait,
            despite_blackout: false,
            typed,
            pulse: Pulse::default(),
        };
        let summary = rollback::run(job, &id).await?;
        finish(global, &summary);
        Ok(failure::of_summary(&summary))
    })
}

fn forget(global: &Global, run: &str) -> Outcome<u8> {
    let mut forgotten = false;
    for store in past::stores(&load_kept(global)?) {
        forgotten |= store.forget(run)?;
    }
    if !forgotten {
        return Err(Problem::new(Kind::Usage, format!("nothing of run {run:?} waits for recovery"))
            .hint("`mysql-refreshd history` lists the runs."));
    }
    out(&format!("run {run} is given up; look at its hosts yourself"));
    Ok(failure::DONE)
}

fn recover_all(global: &Global, password_file: Option<PathBuf>) -> Outcome<u8> {
    let config = load_kept(global)?;
    let mut own = config.clone();
    if !own_account::is_anothers(&config) {
        one_off::own_places(&mut own);
        return recover_in(global, &own, password_file.as_deref());
    }
    // root's own one-off runs first, then the service's, as its account
    let mut code = failure::DONE;
    if one_off::into_home(&mut own) && own.daemon.state_dir.join("history.db").exists() {
        code = recover_in(global, &own, password_file.as_deref())?;
    }
    Ok(failure::worse(code, own_account::as_owner(&config)?))
}

fn recover_in(global: &Global, config: &Config, password_file: Option<&Path>) -> Outcome<u8> {
    let typed = &typed(global, password_file.map(secret_in).transpose()?)?;
    start_logging(config);
    let store = Store::open(&config.daemon.state_dir)?;
    with_runtime(async |_| {
        let recovered = recover::all(&config.daemon, &store, sinks(global), typed, &Pulse::default()).await?;
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

fn completions(shell: clap_complete::Shell) -> Outcome<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "mysql-refreshd", &mut text);
    out(String::from_utf8_lossy(&text).trim_end());
    Ok(failure::DONE)
}

fn manual(folder: &Path) -> Outcome<u8> {
    let cannot = || format!("cannot write the manual to {}", folder.display());
    std::fs::create_dir_all(folder).explain(cannot)?;
    clap_mangen::generate_to(Cli::command(), folder).explain(cannot)?;
    Ok(failure::DONE)
}
