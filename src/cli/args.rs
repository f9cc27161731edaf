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
    /// Run these refreshes now, one after the other (the same as `run`); or the one that --source and --destination describe
    #[arg(long, value_name = "REFRESH", num_args = 0..)]
    pub now: Option<Vec<String>>,

    /// With --now: do not wait for another run's lock, fail with exit code 3
    #[arg(long, requires = "now")]
    pub no_wait: bool,

    /// With --now: show what would be done, on every host, and do nothing
    #[arg(long, requires = "now")]
    pub dry_run: bool,

    /// With --now: even in a window in which the refresh must not begin (`blackout`)
    #[arg(long, requires = "now")]
    pub despite_blackout: bool,

    /// A refresh that no configuration describes
    #[command(flatten)]
    pub one_off: OneOffArgs,

    /// What every command takes
    #[command(flatten)]
    pub global: Global,

    /// What to do
    #[command(subcommand)]
    pub command: Option<Command>,
}

const AFTER: &str = "\
Exit codes:
  0    done; or left out because of another run (`on_busy` says skip)
  1    failed, everything was put back
  2    usage or configuration
  3    locked by another run
  4    refused by a safety rule, nothing was touched
  5    failed and not all was put back: a human is needed
  6    some destinations done, some failed
  130  cancelled, everything was put back

Every key of the configuration can be set in the environment, too: MYSQL_REFRESHD_REFRESHES__NIGHTLY__MAX_OUTAGE=10m

As a service:
  systemctl enable --now mysql-refreshd; mysql-refreshd status

First steps:
  mysql-refreshd check --offline    is the configuration right?
  mysql-refreshd plan nightly       what would it do, on which host?
  mysql-refreshd --now nightly      do it

Without a configuration:
  mysql-refreshd --now -s db1 -d rnd1,rnd2 -u deploy --password-file FILE";

/// The one-off form of --now.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "One-off refresh (with --now, needs no configuration)")]
pub struct OneOffArgs {
    /// Where the data comes from: [USER@]ADDRESS[:PORT], localhost, or a host of the configuration
    #[arg(long, short = 's', value_name = "HOST", requires = "now", requires = "destination")]
    pub source: Option<String>,

    /// Where it goes; several with commas
    #[arg(long, short = 'd', value_name = "HOST,…", value_delimiter = ',', requires = "now", requires = "source")]
    pub destination: Vec<String>,

    /// The UNIX account on the hosts; it needs sudo unless it is root
    #[arg(long, short = 'u', value_name = "USER", requires = "source")]
    pub username: Option<String>,

    /// The password of the servers' SQL account root. Others may see it for a moment, and your shell keeps it: rather use
    /// --password-file, or accounts with unix_socket authentication, which need none
    #[arg(long, short = 'p', value_name = "PASSWORD", requires = "source", conflicts_with = "password_file")]
    pub password: Option<String>,

    /// A file with that password
    #[arg(long, value_name = "FILE", requires = "source")]
    pub password_file: Option<PathBuf>,

    /// (internal) A pipe with that password
    #[arg(long, hide = true, requires = "source")]
    pub password_fd: Option<u32>,

    /// Databases by name; not in this version
    #[arg(long, value_name = "NAME", requires = "source")]
    pub database: Vec<String>,

    /// How the hosts are reached
    #[arg(long, value_name = "TRANSPORT", requires = "source", default_value = "ssh")]
    pub transport: TransportArg,

    /// The agent there: put there for the occasion, or installed by the host's owner
    #[arg(long, value_name = "AGENT", requires = "source", default_value = "uploaded")]
    pub agent: AgentArg,
}

/// A transport as typed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TransportArg {
    /// Our own SSH client
    Ssh,
    /// The system's ssh, with its own configuration
    Openssh,
}

/// An agent as typed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum AgentArg {
    /// This program is put there
    Uploaded,
    /// What is installed there is used
    Installed,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
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

    /// Ask once for the password that sudo wants on the hosts
    #[arg(long, global = true)]
    pub ask_sudo_password: bool,

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
        /// Even in a window in which the refresh must not begin (`blackout`)
        #[arg(long)]
        despite_blackout: bool,
    },
    /// Follow the schedules of the configuration, until told to end; the service runs this
    Daemon,
    /// What goes on, what runs next, how old each destination's data is
    Status {
        /// Show it again every two seconds, until Ctrl-C
        #[arg(long, conflicts_with = "nagios")]
        watch: bool,
        /// One line for monitoring, and its exit codes: 0 ok, 1 warning, 2 critical, 3 unknown
        #[arg(long)]
        nagios: bool,
        /// With --nagios: only this refresh
        #[arg(value_name = "REFRESH", requires = "nagios")]
        refresh: Option<String>,
        /// With --nagios: a warning when a destination's data is older than this, "26h" for example
        #[arg(long, value_name = "DURATION", requires = "nagios")]
        warning: Option<humantime::Duration>,
        /// With --nagios: critical when it is older than this
        #[arg(long, value_name = "DURATION", requires = "nagios")]
        critical: Option<humantime::Duration>,
    },
    /// Cancel a run of the daemon, and everything is put back; or take a refresh out of the queue
    Cancel {
        /// The run's id, or the name of what waits, as `status` shows it
        run: String,
    },
    /// Do not follow a refresh's schedule until `resume`; on demand it still runs
    Pause {
        /// Name of a refresh in the configuration
        refresh: String,
    },
    /// Follow a paused refresh's schedule again; what was left out meanwhile is not made good
    Resume {
        /// Name of a refresh in the configuration
        refresh: String,
    },
    /// Make the daemon read the configuration again; with errors in it, it keeps the one it has
    Reload,
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
        /// Only with this destination, as ENVIRONMENT/HOST
        #[arg(long, value_name = "HOST")]
        destination: Option<String>,
        /// Only with this result: done, failed, usage, locked, skipped, refused, human, partial or cancelled
        #[arg(long, value_name = "RESULT")]
        result: Option<String>,
        /// Only begun then or later: a date, a time (RFC 3339), or how long ago, "7d" for example
        #[arg(long, value_name = "WHEN")]
        since: Option<String>,
        /// Only begun then or before
        #[arg(long, value_name = "WHEN")]
        until: Option<String>,
        /// How many
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Draw how long the source was down, and how long each run took
        #[arg(long)]
        plot: bool,
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
        /// A file with the password that was typed for a one-off refresh
        #[arg(long, value_name = "FILE", conflicts_with = "forget")]
        password_file: Option<PathBuf>,
    },
    /// Say what hosts lack, and what mends it
    Doctor {
        /// Hosts of the configuration, as ENVIRONMENT/HOST; all of them if none is named
        host: Vec<String>,
    },
    /// (on a host) What agents may do here
    Host {
        /// What to do with it
        #[command(subcommand)]
        command: HostCommand,
    },
    /// (on a host) The owner's consent that a server be overwritten
    Consent {
        /// What to do with it
        #[command(subcommand)]
        command: ConsentCommand,
    },
    /// (on a host) As the command= of a key in authorized_keys: starts agents and nothing else
    Gate,
    /// Print a completion script for a shell
    #[command(hide = true)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages
    #[command(hide = true)]
    Man {
        /// The folder they are written to
        folder: PathBuf,
    },
    /// (internal) Serve a controller on stdin and stdout
    #[command(hide = true)]
    Agent {
        /// What it may do
        #[arg(long, required_unless_present_any = ["list_points", "lane"])]
        role: Option<RoleArg>,
        /// Carry bytes for an agent over one more session
        #[arg(long, exclusive = true)]
        lane: bool,
        /// Do what the controller says, not what the host's policy says; needs consents all the same
        #[arg(long)]
        trust_controller: bool,
        /// Where the policy with the consents is
        #[arg(long, requires = "trust_controller")]
        policy: Option<PathBuf>,
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
        /// Start the server if the guard of this run has not
        #[arg(long, value_name = "RUN")]
        cap: Option<String>,
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
    /// List the hosts, one a line, fields parted by tabs: name, transport, user, address, port, identity, known_hosts, agent,
    /// agent's path
    Hosts,
}

/// Commands about this host's policy.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Write what runs here into the policy, in a role
    Init {
        /// What agents may be here
        #[arg(long, required = true)]
        role: Vec<RoleArg>,
        /// The name of the instance
        #[arg(long, default_value = "main")]
        instance: String,
        /// Its datadir, where several servers run
        #[arg(long, value_name = "DIR")]
        datadir: Option<PathBuf>,
        /// Never a destination, whatever any consent says
        #[arg(long)]
        protected: bool,
        /// A file with the password of the SQL account root
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// The policy's file
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
    },
    /// Put back what an interrupted run has left on this host; at boot a unit does it
    Repair {
        /// The policy's file
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
    },
    /// Show the policy as agents understand it
    Show {
        /// The policy's file
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
    },
}

/// Commands about consents.
#[derive(Debug, Subcommand)]
pub enum ConsentCommand {
    /// Allow that an instance of this host be overwritten
    Grant {
        /// The environment whose data is accepted; may be repeated
        #[arg(long, required = true, value_name = "ENVIRONMENT")]
        from: Vec<String>,
        /// The instance, by its name in the policy
        #[arg(long, default_value = "main")]
        instance: String,
        /// Its datadir, where the policy does not know the instance yet
        #[arg(long, value_name = "DIR")]
        datadir: Option<PathBuf>,
        /// For how long, "90d" for example; without it, for ever
        #[arg(long, value_name = "DURATION")]
        expires: Option<humantime::Duration>,
        /// The policy's file
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
    },
    /// Show consents and whether they count; exit code 0 if one does
    Show {
        /// Only of this instance
        #[arg(long)]
        instance: Option<String>,
        /// Whether data from this environment is accepted
        #[arg(long, value_name = "ENVIRONMENT")]
        from: Option<String>,
        /// The policy's file
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
    },
    /// Take a consent back
    Revoke {
        /// The instance
        #[arg(long, default_value = "main")]
        instance: String,
        /// The policy's file
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
    },
}

/// An agent's role as typed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum RoleArg {
    /// Reads, stops and starts
    Source,
    /// Stages and swaps
    Destination,
}
