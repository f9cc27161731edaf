//! How a run takes its image, in the order of preference that the source's filesystem allows: from frozen files, with the source up again;
//! else in passes while it runs and a last one over what has changed by its stop; else, only when asked for, all of it while it is
//! down. What every destination has already does not travel.
//!
//! Knows what passes there are and when the next one pays. The order of the run's steps is the pipeline's.

use std::time::{Duration, Instant};

use super::extra;
use super::hosts::Hosts;
use super::transfer::{self, Moved};
use crate::config::{Basis, Compression, Config, Freeze, OnDestinationFailure, Proof, Refresh};
use crate::delta::hash::{Hash, Totals};
use crate::problem::{Outcome, Problem};
use crate::report::{Reporter, Taken, human_bytes};
use crate::route::Way;
use crate::run::Cancel;
use crate::wire::message::{Filled, FreezeWish, Pass, Passed, ReceiveOptions, SeedOptions, Seeded, StreamOptions};

/// Bytes that had to be read anew in a hot pass and that are not worth another one.
const LITTLE: u64 = 32 << 20;

/// How a run's image is taken, and what that has moved so far.
pub struct Taking {
    /// The way in which the source's files will be frozen, in words; None: they will not be.
    pub frozen: Option<String>,
    /// They will be frozen while it runs.
    running: bool,
    options: Fixed,
    /// Passes made while the source ran.
    pub rounds: usize,
    /// Some destination has a basis.
    basis: bool,
    /// The connections have carried a pass.
    begun: bool,
    /// Bytes that went over the wire from the source.
    pub sent: u64,
    /// The source's work in all passes.
    pub passed: Passed,
    /// Bytes read while the source was down.
    pub cold: u64,
    /// The image, once it is taken.
    pub image: Option<(Totals, Hash)>,
}

/// What does not change from pass to pass.
struct Fixed {
    level: Option<i32>,
    from_disk: bool,
    abort: bool,
    expected: u64,
    stall: Duration,
}

/// How the source's files would be frozen, by the operator's wish; an error if that wish cannot be had.
pub async fn way(refresh: &Refresh, hosts: &mut Hosts, report: &Reporter) -> Outcome<Option<String>> {
    let stops = refresh.method.stops();
    let wish = match refresh.policy.freeze {
        Freeze::None => return Ok(None),
        Freeze::Auto if !stops => FreezeWish::Atomic,
        Freeze::Auto => FreezeWish::Auto,
        Freeze::Reflink => FreezeWish::Reflink,
        Freeze::Btrfs => FreezeWish::Btrfs,
        Freeze::Lvm => FreezeWish::Lvm,
        Freeze::Zfs => FreezeWish::Zfs,
    };
    match hosts.source()?.can_freeze(wish).await? {
        Ok(way) => Ok(Some(way)),
        Err(why) if wish == FreezeWish::Auto => {
            report.note(&refresh.source, format!("nothing is frozen: {why}"));
            Ok(None)
        }
        Err(why) if !stops => {
            let what = format!("no snapshot can be made of the files of {} while its server runs", refresh.source);
            let hint = "Set `method = \"cold\"`, or put the datadir on btrfs, ZFS, or a logical volume with room for a snapshot.";
            Err(Problem::refused(what).cause(why).hint(hint))
        }
        Err(why) => {
            let what =
                format!("the files of {} cannot be frozen by `freeze = \"{}\"`", refresh.source, refresh.policy.freeze);
            Err(Problem::refused(what).cause(why).hint("Use `freeze = \"auto\"`, which takes what there is."))
        }
    }
}

impl Taking {
    /// Before anything was moved. `expected`: bytes of the source's files.
    pub fn new(config: &Config, refresh: &Refresh, hosts: &Hosts, frozen: Option<String>, expected: u64) -> Self {
        let policy = &refresh.policy;
        Self {
            frozen,
            running: !refresh.method.stops(),
            options: Fixed {
                level: level(policy.compression, hosts),
                from_disk: policy.proof == Proof::Disk,
                abort: policy.on_destination_failure == OnDestinationFailure::Abort,
                expected,
                stall: config.daemon.host_timeout,
            },
            rounds: 0,
            basis: false,
            begun: false,
            sent: 0,
            passed: Passed::default(),
            cold: 0,
            image: None,
        }
    }

    /// Brings what the destinations serve into their stages, to compare with; `precopy`: the first pass is
    /// one while the source runs.
    pub async fn seed(
        &mut self,
        precopy: bool,
        refresh: &Refresh,
        hosts: &mut Hosts,
        report: &Reporter,
    ) -> Outcome<()> {
        if refresh.policy.basis == Basis::None {
            return Ok(());
        }
        let filled = match (&self.frozen, precopy) {
            (Some(_), _) => Filled::CopiesBefore,
            (None, true) => Filled::Beside,
            (None, false) => Filled::Before,
        };
        let options = SeedOptions { from_disk: self.options.from_disk, filled };
        let any = std::cell::Cell::new(false);
        hosts
            .each(report, self.options.abort, async |d| {
                let seeded = d.host.seed(options).await?;
                any.set(any.get() || seeded.bytes > 0);
                let how = match seeded {
                    Seeded { shared: true, .. } => "shared with",
                    Seeded { reused: true, .. } => "taken over from the one before",
                    _ => "copied from",
                };
                let of = if seeded.reused { "" } else { " the current generation" };
                let bytes = human_bytes(seeded.bytes);
                let told = format!("basis: {} files, {bytes}, {how}{of}", seeded.files);
                report.note(d.host.0.name(), if seeded.bytes > 0 { told } else { "basis: none".to_owned() });
                Ok(())
            })
            .await?;
        self.basis = any.get();
        Ok(())
    }

    /// One pass while the source runs. How many bytes had to be read.
    pub async fn hot(
        &mut self,
        refresh: &Refresh,
        hosts: &mut Hosts,
        report: &Reporter,
        cancel: &Cancel,
    ) -> Outcome<u64> {
        let moved = self.pass(Pass::Hot, None, refresh, hosts, report, cancel).await?;
        self.rounds += 1;
        report.note(
            &refresh.source,
            format!(
                "pass {} while it runs: {} files read, {}, of which {} were lacking",
                self.rounds,
                moved.passed.files,
                human_bytes(moved.passed.read),
                human_bytes(moved.passed.changed)
            ),
        );
        Ok(moved.passed.read)
    }

    /// Further passes, as long as each leaves much less to be read than the one before it.
    pub async fn settle(
        &mut self,
        refresh: &Refresh,
        hosts: &mut Hosts,
        report: &Reporter,
        cancel: &Cancel,
    ) -> Outcome<()> {
        let mut last = self.options.expected;
        while self.rounds < refresh.policy.precopy_rounds.max(1) && last > LITTLE {
            let read = self.hot(refresh, hosts, report, cancel).await?;
            if read > last / 2 {
                break;
            }
            last = read;
        }
        Ok(())
    }

    /// The pass that makes the image. `deadline`: when the source must be started again, if it is down.
    pub async fn cold(
        &mut self,
        deadline: Option<Instant>,
        refresh: &Refresh,
        hosts: &mut Hosts,
        report: &Reporter,
        cancel: &Cancel,
    ) -> Outcome<()> {
        let moved = self.pass(Pass::Cold, deadline, refresh, hosts, report, cancel).await?;
        if deadline.is_some() {
            self.cold = moved.passed.read;
        }
        self.image = moved.image;
        match moved.image {
            Some(_) => Ok(()),
            None => Err(Problem::failed("the source gave no image")),
        }
    }

    async fn pass(
        &mut self,
        pass: Pass,
        deadline: Option<Instant>,
        refresh: &Refresh,
        hosts: &mut Hosts,
        report: &Reporter,
        cancel: &Cancel,
    ) -> Outcome<Moved> {
        let (policy, fixed) = (&refresh.policy, &self.options);
        let options = transfer::Options {
            stream: StreamOptions {
                pass,
                level: fixed.level,
                extra: extra(refresh),
                // after a first pass the source knows what they have
                ask: self.basis && self.rounds == 0,
                paranoid: policy.paranoid,
                max_rate: policy.max_rate,
            },
            receive: ReceiveOptions { pass, from_disk: fixed.from_disk },
            first: !self.begun,
            expected: fixed.expected,
            abort: fixed.abort,
            deadline,
            stall: fixed.stall,
        };
        self.begun = true;
        let moved = transfer::copy(hosts, options, report, cancel).await?;
        self.sent += moved.sent;
        self.passed.files += moved.passed.files;
        self.passed.read += moved.passed.read;
        self.passed.changed += moved.passed.changed;
        Ok(moved)
    }

    /// How.
    pub fn taken(&self) -> Taken {
        match (&self.frozen, self.rounds) {
            (Some(way), _) if self.running => Taken::Snapshot(way.clone()),
            (Some(way), _) => Taken::Frozen(way.clone()),
            (None, 0) => Taken::Whole,
            (None, n) => Taken::Passes(n),
        }
    }
}

/// Compression costs the source time; on one machine it saves nothing.
fn level(compression: Compression, hosts: &Hosts) -> Option<i32> {
    let remote = hosts.destinations.iter().map(|d| d.host.0.host()).chain(hosts.source.iter().map(|s| s.0.host()));
    match compression {
        Compression::None => None,
        Compression::Level(level) => Some(level),
        Compression::Auto => remote.into_iter().any(|host| host.route.way != Way::Local).then_some(1),
    }
}
