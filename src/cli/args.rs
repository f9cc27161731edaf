//! The command line as typed. No look-ups, no defaults of the configuration.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Where the configuration is unless told otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/mysql-refreshd/config.toml";

/// Keeps R&D MySQL and MariaDB servers fresh from production.
///
/// A refresh stops the source cleanly, copies its datadir, starts it again at once, and installs the copy on every
/// destination with that server's own identity, settings and accounts. A destination serves the complete old data or the
/// complete new data, never a mix; whatever fails is put back.
#[derive(Debug, Parser)]
#[command(name = "mysql-refreshd", version, arg_required_else_help = true, after_help = AFTER)]
pub struct Cli {
    /// Run these refreshes now, one after the other (the same as `run`)
    #[arg(long, value_name = "REFRESH", num_args = 1..)]
    pub now: Vec<String>,

    /// With --now: do not wait for another run's lock, fail with exit code 3
    #[arg(long, requires = "now")]
    pub no_wait: bool,

    /// What every command takes
    #[command(flatten)]
    pub global: Global,

    /// What to do
    #[command(subcommand)]
    pub command: Option<Command>,
}

const AFTER: &str = "\
Exit codes:
  0    done
  1    failed, everything was put back
  2    usage or configuration
  3    locked by another run
  4    refused by a safety rule, nothing was touched
  5    failed and not all was put back: a human is needed
  6    some destinations done, some failed
  130  cancelled, everything was put back

Every key of the configuration can be set in the environment, too: MYSQL_REFRESHD_REFRESHES__NIGHTLY__MAX_OUTAGE=10m

First steps:
  mysql-refreshd check --offline    is the configuration right?
  mysql-refreshd plan nightly       what would it do, on which host?
  mysql-refreshd --now nightly      do it";

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The configuration; conf.d/*.toml beside it is read, too
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub config: PathBuf,

    /// Override one key of the configuration, refreshes.nightly.max_outage=10m for example; may be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Machine-readable output on stdout
    #[arg(long, global = true)]
    pub json: bool,

    /// Say more
    #[arg(long, short, global = true, conflicts_with = "quiet")]
    pub verbose: bool,

    /// Say nothing but errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run refreshes now, one after the other
    Run {
        /// Names of refreshes in the configuration
        #[arg(required = true, value_name = "REFRESH")]
        refreshes: Vec<String>,
        /// Do not wait for another run's lock, fail with exit code 3
        #[arg(long)]
        no_wait: bool,
    },
    /// Show everything a refresh would do, on every host, without doing it
    Plan {
        /// Name of a refresh in the configuration
        refresh: String,
    },
    /// Check the configuration, and ask every host whether its refreshes could run
    Check {
        /// Only the configuration; no host is asked
        #[arg(long)]
        offline: bool,
    },
    /// Look at the configuration
    Config {
        /// What to do with it
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// List past runs, newest first
    History {
        /// Only of this refresh
        refresh: Option<String>,
        /// How many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Show one run: its steps, destinations, and what went wrong
    Show {
        /// The run's id, as `history` lists it
        run: String,
    },
    /// Give a destination its previous generation back; again, to return
    Rollback {
        /// The host, as ENVIRONMENT/HOST
        destination: String,
        /// Do not wait for another run's lock, fail with exit code 3
        #[arg(long)]
        no_wait: bool,
    },
    /// Put back what interrupted runs have left; any number of times
    Recover {
        /// Give this run up: nothing of it is put back any more
        #[arg(long, value_name = "RUN")]
        forget: Option<String>,
    },
    /// (internal) Serve a controller on stdin and stdout
    #[command(hide = true)]
    Agent {
        /// What it may do
        #[arg(long, required_unless_present = "list_points")]
        role: Option<RoleArg>,
        /// List all fail points
        #[arg(long)]
        list_points: bool,
    },
    /// (internal) Guard a stopped source
    #[command(hide = true)]
    Guard {
        /// The guard's record
        #[arg(long)]
        file: PathBuf,
    },
    /// (internal) Start a process that outlives this one
    #[command(hide = true)]
    Launch {
        /// Where its stderr goes
        log: PathBuf,
        /// The program
        program: std::ffi::OsString,
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

/// Commands about the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show every effective value and where it was set
    Show,
}

/// An agent's role as typed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum RoleArg {
    /// Reads, stops and starts
    Source,
    /// Stages and swaps
    Destination,
}
