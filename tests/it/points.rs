//! Every point of the program times every fault: a failure there, the death of each process while one is at that point, and the loss
//! of each connection. Whatever it is, the source is back without anyone's help, the destination serves the old content or the new
//! one, whole and with its own accounts, the exit code's promise holds, `recover` is clean, twice, nobody is left, and the next
//! run succeeds.
//!
//! The points are asked from the program itself, so that none can be forgotten; they are dealt out to a fixed number of
//! tests, each with a world of its own. Where nobody minds the time (`MR_FAULTS=all`, which `utils/test.sh --matrix` sets) each point meets every
//! fault; else half of them, its neighbour the other half. At the controller's points, where anybody can be lost, one death and one
//! lost connection of others is tried at each, in turn; all of them are the matter of `others_…`, which only `--matrix` runs.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::aftermath::{Aftermath, fault_world, kill_program};
use crate::world::{Call, Hold, Outcome, PROGRAM, RUN_LIMIT, Running, World, output, signal, unique, wait_for};

/// Every fail point of the program, as `WHERE:POINT`.
fn points() -> Vec<String> {
    let listed = output(Command::new(PROGRAM).args(["agent", "--list-points"]));
    let mut points: Vec<String> = listed.lines().map(str::to_owned).collect();
    assert!(points.len() > 60, "few points: {points:?}");
    let unique: BTreeSet<_> = points.iter().cloned().collect();
    assert_eq!(unique.len(), points.len(), "a point is listed twice");
    points.sort();
    points
}

/// Who can be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Controller,
    Source,
    Destination,
    Guard,
}

impl Victim {
    const ALL: [Victim; 4] = [Victim::Controller, Victim::Source, Victim::Destination, Victim::Guard];

    /// Whose point it is.
    fn at(point: &str) -> Victim {
        let place = point.split(':').next().unwrap();
        *Victim::ALL.iter().find(|victim| victim.place() == place).unwrap_or_else(|| panic!("whose point is {point}?"))
    }

    fn place(self) -> &'static str {
        match self {
            Victim::Controller => "controller",
            Victim::Source => "source",
            Victim::Destination => "destination",
            Victim::Guard => "guard",
        }
    }

    /// Whether a command line is this process's.
    fn is(self, args: &str) -> bool {
        match self {
            Victim::Controller => false,
            Victim::Source | Victim::Destination => args.contains(&format!("--role {}", self.place())),
            Victim::Guard => args.contains("guard --file"),
        }
    }

    fn is_there(self, world: &World) -> bool {
        world.program_processes().iter().any(|process| self.is(&process.args.join(" ")))
    }
}

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It fails, whenever it is reached.
    Error,
    /// Whoever is there is killed, once: a machine on which every new agent dies, too, cannot put anything back.
    Kill,
    /// The same for every new agent that comes there: then only `recover` can put it right.
    KillAlways,
    /// Whoever is there loses its connection.
    Cut,
    /// Somebody else is killed meanwhile.
    Killed(Victim),
    /// Somebody else loses its connection meanwhile.
    Lost(Victim),
}

impl Fault {
    /// Whether it takes a connection away, rather than a process.
    fn cuts(self) -> bool {
        matches!(self, Fault::Cut | Fault::Lost(_))
    }

    /// Whether another one at the controller's point has met with what this one brings.
    fn has_had_its_turn(self, point: &str, turns: &BTreeSet<bool>) -> bool {
        let of_another = matches!(self, Fault::Killed(_) | Fault::Lost(_));
        of_another && Victim::at(point) == Victim::Controller && turns.contains(&self.cuts())
    }
}

/// Requests by which something is put back: if they fail again and again, a run cannot put everything back.
const WAY_BACK: [&str; 6] = ["start-server", "disarm-guard", "undrain", "undo-swap", "discard-stage", "thaw"];

/// Inside of one of them.
const ON_THE_WAY_BACK: &str = "source:freeze:removed";

fn leads_back(point: &str) -> bool {
    point == ON_THE_WAY_BACK || WAY_BACK.iter().any(|request| point.split(':').nth(1) == Some(request))
}

/// How much of the cross.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cross {
    /// Every fault of whoever is at the point; of the others at the controller's points one is killed and one is cut off.
    InTurn,
    /// Every other one at the controller's points, killed and cut off.
    Others,
}

/// The first of these; and the others, too, where nobody minds the time (`MR_FAULTS=all`).
fn half(mut faults: Vec<Fault>, others: Vec<Fault>) -> Vec<Fault> {
    if std::env::var("MR_FAULTS").is_ok_and(|all| all == "all") {
        faults.extend(others);
    }
    faults
}

/// Everything that can happen at the `nth` point. The first of them tells which way leads there, and who is there.
fn faults(point: &str, nth: usize, cross: Cross) -> Vec<Fault> {
    use Fault::{Cut, Error, Kill, KillAlways, Killed, Lost};
    use Victim::{Controller, Destination, Guard, Source};
    if point == MOVES {
        // whoever is held there is held at every move; mounts.rs has the controller's death
        return vec![Cut, Error, Kill];
    }
    let mut faults = match Victim::at(point) {
        Controller => {
            let mut killed = vec![Killed(Source), Killed(Destination), Killed(Guard)];
            let mut lost = vec![Lost(Destination), Lost(Source)];
            killed.rotate_left(nth % 3);
            lost.rotate_left(nth % 2);
            killed.extend(lost);
            if cross == Cross::InTurn {
                killed.extend([Error, Kill]);
            }
            killed
        }
        Source | Destination if nth.is_multiple_of(2) => half(vec![Kill, Cut], vec![Killed(Controller), Error]),
        Source | Destination => half(vec![Killed(Controller), Error], vec![Kill, Cut]),
        Guard if nth.is_multiple_of(2) => {
            half(vec![Kill, Lost(Source)], vec![Killed(Controller), Killed(Source), Error])
        }
        Guard => half(vec![Killed(Controller), Killed(Source), Error], vec![Kill, Lost(Source)]),
    };
    if leads_back(point) {
        faults.push(KillAlways);
    }
    faults
}

/// A way that leads to points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A run that succeeds.
    Run,
    /// One that fails late, so that what was done until then is put back.
    FailsLate,
    /// One that fails before it has stopped the source.
    FailsEarly,
    /// A destination's rollback.
    Rollback,
    /// One that loses an agent after the copy, whose successor goes on.
    LosesAgent,
    /// One that loses the source's agent while the source is down.
    LosesSource,
}

impl Way {
    const ALL: [Way; 6] = [Way::Run, Way::FailsLate, Way::FailsEarly, Way::Rollback, Way::LosesAgent, Way::LosesSource];

    /// All of them, that which is likely to lead there first: it saves the runs that miss the point.
    fn likely(point: &str) -> Vec<Way> {
        let first = match point.split(':').nth(1).unwrap() {
            "undrain" => Way::FailsEarly,
            "undo-swap" | "discard-stage" => Way::FailsLate,
            "rollback" => Way::Rollback,
            "resume" => Way::LosesAgent,
            "fire" => Way::LosesSource,
            _ => Way::Run,
        };
        let mut ways = vec![first];
        ways.extend(Way::ALL.into_iter().filter(|way| *way != first));
        ways
    }

    fn call(self, world: &World) -> Call<'_> {
        match self {
            Way::Run => world.refresh(),
            Way::FailsLate => world.refresh().fault("controller:verify:before=error"),
            Way::FailsEarly => world.refresh().fault("controller:drain:after=error"),
            Way::Rollback => world.call(&["rollback", "rnd/r1"]),
            Way::LosesAgent => {
                let once = world.root().join(format!("once-{}", unique()));
                world.refresh().fault(&format!("destination:install:before=kill-once:{}", once.display()))
            }
            Way::LosesSource => {
                let once = world.root().join(format!("once-{}", unique()));
                // whoever else could start the source takes its time, so that the guard comes to it
                world.refresh().fault(&format!(
                    "source:stream:half=kill-once:{},source:start-server:before=sleep:3000",
                    once.display()
                ))
            }
        }
    }
}

/// One point in a world.
struct Place<'w> {
    world: &'w World,
    point: &'w str,
    stamp: &'w mut u32,
    way: Option<Way>,
    there: BTreeSet<Victim>,
}

/// What became of one execution.
enum Struck {
    /// It went past the point.
    Yes(Outcome),
    /// It did not come there.
    No(Outcome),
}

impl Place<'_> {
    /// One fault, then everything that must hold.
    fn suffer(&mut self, fault: Fault) -> String {
        let ways = self.way.map_or_else(|| Way::likely(self.point), |way| vec![way]);
        let mut tried = String::new();
        let begun = Instant::now();
        for way in ways {
            *self.stamp += 1;
            let after = Aftermath::prepare(self.world, *self.stamp);
            if way == Way::Rollback {
                self.world.refresh().run().expect(0);
            }
            let struck = self.strike(way, fault);
            let ran = begun.elapsed();
            let (outcome, missed) = match struck {
                Struck::Yes(outcome) => (outcome, false),
                Struck::No(outcome) => (outcome, true),
            };
            // the controller is gone or done: agents put back on their own what they can, the guard does the rest
            after.source_is_up();
            self.as_promised(&after, fault, way, &outcome);
            let up = begun.elapsed();
            if missed {
                tried += &format!("\n{way:?}: {outcome}");
                continue;
            }
            self.way = Some(way);
            after.recovers();
            self.world.poller().judge();
            let recovered = begun.elapsed();
            return format!(
                "{} by {way:?}: {} in {ran:.1?} + {:.1?} + {:.1?}",
                self.point,
                outcome.code(),
                up - ran,
                recovered - up
            );
        }
        panic!("nothing leads to {}{tried}", self.point);
    }

    /// The exit code, and what it promises.
    fn as_promised(&self, after: &Aftermath<'_>, fault: Fault, way: Way, outcome: &Outcome) {
        let controller = fault == Fault::Killed(Victim::Controller)
            || (fault == Fault::Kill && Victim::at(self.point) == Victim::Controller);
        if controller && outcome.code() == 137 {
            return;
        }
        let last = self.point == "controller:finish:after";
        let codes: &[i32] = match fault {
            // everything is done already, and only the ending itself is in trouble
            Fault::Error if last => &[0, 6],
            Fault::Error if Victim::at(self.point) == Victim::Controller => &[1, 4],
            Fault::Error | Fault::KillAlways if leads_back(self.point) => &[0, 1, 4, 5],
            // there was nobody to lose, and it was interrupted instead
            Fault::Killed(victim) | Fault::Lost(victim) if !self.there.contains(&victim) => &[0, 130],
            _ => &[0, 1, 4],
        };
        outcome.clone().expect_any(codes);
        if way == Way::Rollback {
            return after.old_or_new();
        }
        if last && fault == Fault::Error {
            after.all_new();
        }
        if outcome.code() == 5 {
            return;
        }
        after.keeps_its_promise(outcome);
        // nor does anybody have to clear up
        self.world.expect_nobody_left();
    }

    fn strike(&mut self, way: Way, fault: Fault) -> Struck {
        let call = way.call(self.world);
        let once = self.world.root().join(format!("once-{}", unique()));
        let controller = Victim::at(self.point) == Victim::Controller;
        let action = match fault {
            Fault::Killed(victim) => return self.lose(call, victim, false),
            Fault::Lost(victim) => return self.lose(call, victim, true),
            Fault::Error => "error".to_owned(),
            Fault::KillAlways => "kill".to_owned(),
            Fault::Kill if controller => "kill".to_owned(),
            Fault::Kill => format!("kill-once:{}", once.display()),
            Fault::Cut => format!("cut-once:{}", once.display()),
        };
        let outcome = call.fault(&format!("{}={action}", self.point)).run();
        let hit = match fault {
            Fault::Kill if controller => outcome.code() == 137,
            Fault::Kill | Fault::Cut => once.exists(),
            _ => true,
        };
        if hit { Struck::Yes(outcome) } else { Struck::No(outcome) }
    }

    /// Holds at the point; meanwhile somebody else is lost.
    fn lose(&mut self, call: Call<'_>, victim: Victim, by_cut: bool) -> Struck {
        let cut = self.world.root().join(format!("cut-{}", unique()));
        let call = if by_cut {
            call.fault(&format!("{}:open:after=cut-when:{}", victim.place(), cut.display()))
        } else {
            call
        };
        let (call, hold) = call.hold(self.point);
        let mut running = call.spawn();
        let since = Instant::now();
        while !hold.file.exists() {
            assert!(since.elapsed() < RUN_LIMIT, "never at {}\n{}", self.point, running.so_far());
            if running.ended().is_some() {
                return Struck::No(running.wait());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.there = Victim::ALL.into_iter().filter(|v| *v == Victim::Controller || v.is_there(self.world)).collect();
        if victim == Victim::Controller {
            signal(running.pid(), "-KILL");
            wait_for("the controller's end", Duration::from_secs(5), || running.ended().is_some());
        } else if self.there.contains(&victim) && by_cut {
            std::fs::write(&cut, "").unwrap();
            wait_for("the cut", Duration::from_secs(5), || !cut.exists());
        } else if !self.there.contains(&victim) || kill_program(self.world, |args| victim.is(args)) == 0 {
            // only a guard that was just dismissed may have been on its way out
            let may_go = victim == Victim::Guard && guard_is_dismissed(self.world);
            assert!(!self.there.remove(&victim) || may_go, "{victim:?} is gone already");
            signal(running.pid(), "-INT");
            std::thread::sleep(Duration::from_millis(200));
        }
        Struck::Yes(let_go(running, &hold))
    }
}

/// By the record on the source's host.
fn guard_is_dismissed(world: &World) -> bool {
    let records = std::fs::read_dir(world.root().join("host/guard")).into_iter().flatten().flatten();
    let mut records = records.map(|file| file.path()).filter(|path| path.extension() == Some("json".as_ref()));
    records.any(|path| {
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        record["dismissed"] == true
    })
}

/// Lets it go on to its end; successors of agents come to the same point.
fn let_go(mut running: Running, hold: &Hold) -> Outcome {
    let since = Instant::now();
    while running.ended().is_none() && since.elapsed() < RUN_LIMIT {
        let _ = std::fs::remove_file(&hold.file);
        std::thread::sleep(Duration::from_millis(10));
    }
    // whoever outlives the controller goes on, too
    let _ = std::fs::remove_file(&hold.file);
    running.wait()
}

/// Where the entries of a datadir are moved, which only one that is a mount point leads to.
const MOVES: &str = "destination:swap:moving";

/// Points that only a source leads to whose filesystem can freeze its files.
fn freezes(point: &str) -> bool {
    point.contains(":freeze:") || point.contains(":thaw:")
}

/// Points that only a source leads to that is copied while it runs.
fn snaps(point: &str) -> bool {
    point.contains(":snapshot:") || point == "destination:install:recovering"
}

/// Points that every world leads to.
fn usual(point: &str) -> bool {
    point != MOVES && !freezes(point) && !snaps(point)
}

/// No fault here makes an outage last; a machine that is slow must not end a run before it comes to the point.
fn patient_world() -> World {
    let world = fault_world();
    world.set("refreshes.nightly.max_outage", "\"60s\"");
    world
}

/// After the faults of so many points a run must succeed.
const NEXT_RUN: usize = 3;

/// Takes every `of`-th point, beginning with the `nth`; a fresh world after a failure; all failures in one message.
fn survive_share(points: &[String], nth: usize, of: usize, cross: Cross, fault_world: impl Fn() -> World) {
    let share: Vec<_> = points.iter().enumerate().skip(nth).step_by(of).collect();
    assert!(!share.is_empty(), "a share of nothing");
    let mut failures = BTreeMap::new();
    let mut world = fault_world();
    let mut stamp = 0;
    for (n, (at, point)) in share.iter().enumerate() {
        let (mut way, mut there) = (None, BTreeSet::from(Victim::ALL));
        let mut turns = BTreeSet::new();
        for fault in faults(point, *at, cross) {
            // who is not there cannot be lost; the first fault has looked
            if let Fault::Killed(victim) | Fault::Lost(victim) = fault
                && !there.contains(&victim)
            {
                continue;
            }
            if cross == Cross::InTurn && fault.has_had_its_turn(point, &turns) {
                continue;
            }
            let mut place = Place { world: &world, point, stamp: &mut stamp, way, there: there.clone() };
            let result = catch_unwind(AssertUnwindSafe(|| place.suffer(fault)));
            (way, there) = (place.way, place.there);
            if let Fault::Killed(victim) | Fault::Lost(victim) = fault
                && there.contains(&victim)
            {
                turns.insert(fault.cuts());
            }
            match result {
                Ok(text) => eprintln!("{fault:?} at {text}"),
                Err(panic) => {
                    fail(&mut failures, &world, format!("{fault:?} at {point}"), &*panic);
                    world = fault_world();
                }
            }
        }
        // that a run gets as far as the next fault says something already
        if n % NEXT_RUN != NEXT_RUN - 1 && n + 1 != share.len() {
            continue;
        }
        let begun = Instant::now();
        stamp += 1;
        let next = catch_unwind(AssertUnwindSafe(|| Aftermath::prepare(&world, stamp).runs_again()));
        match next {
            Ok(()) => eprintln!("the next run: {:.1?}", begun.elapsed()),
            Err(panic) => {
                fail(&mut failures, &world, format!("the next run after {point}"), &*panic);
                world = fault_world();
            }
        }
    }
    let told: Vec<_> = failures.iter().map(|(what, text)| format!("== {what}\n{text}")).collect();
    assert!(failures.is_empty(), "{} do not end well:\n{}", failures.len(), told.join("\n"));
}

/// Notes a failure, and goes on in a new world; what the old one's poller has seen is part of it.
fn fail(failures: &mut BTreeMap<String, String>, world: &World, what: String, panic: &(dyn std::any::Any + Send)) {
    let text = panic.downcast_ref::<String>().cloned().or(panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    let seen = world.poller().verdicts().join("\n");
    eprintln!("FAILED {what}");
    failures.insert(what, format!("{}\n{seen}\n{}", text.unwrap_or_default(), world.last_calls()));
}

macro_rules! shares {
    ($cross:ident, $prefix:literal of $of:literal: $($name:ident = $nth:literal),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                let points: Vec<_> = points().into_iter().filter(|p| p.starts_with($prefix) && usual(p)).collect();
                survive_share(&points, $nth, $of, Cross::$cross, patient_world);
            }
        )*
    };
}

shares!(InTurn, "controller:" of 5: at_the_controllers_a = 0, at_the_controllers_b = 1, at_the_controllers_c = 2,
    at_the_controllers_d = 3, at_the_controllers_e = 4);
shares!(InTurn, "source:" of 4: at_the_sources_a = 0, at_the_sources_b = 1, at_the_sources_c = 2, at_the_sources_d = 3);
shares!(InTurn, "destination:" of 6: at_the_destinations_a = 0, at_the_destinations_b = 1, at_the_destinations_c = 2,
    at_the_destinations_d = 3, at_the_destinations_e = 4, at_the_destinations_f = 5);
shares!(InTurn, "guard:" of 2: at_the_guards_a = 0, at_the_guards_b = 1);

shares!(Others, "controller:" of 5: others_at_the_controllers_a = 0, others_at_the_controllers_b = 1,
    others_at_the_controllers_c = 2, others_at_the_controllers_d = 3, others_at_the_controllers_e = 4);

#[test]
fn at_the_moves_of_a_mounted_datadir() {
    if crate::mounts::world_on_a_mount().is_some() {
        survive_share(&[MOVES.to_owned()], 0, 1, Cross::InTurn, || crate::mounts::world_on_a_mount().unwrap());
    }
}

fn at_freezing(nth: usize) {
    if crate::frozen::world_on_clones("xfs").is_some() {
        let points: Vec<_> = points().into_iter().filter(|point| freezes(point)).collect();
        survive_share(&points, nth, 2, Cross::InTurn, || crate::frozen::world_on_clones("xfs").unwrap());
    }
}

#[test]
fn at_the_freezing_of_a_source_a() {
    at_freezing(0);
}

#[test]
fn at_the_freezing_of_a_source_b() {
    at_freezing(1);
}

/// And one where its files are frozen: the way back is another here.
#[test]
fn at_the_snapshot_of_a_running_source() {
    if crate::snapshot::world_on_snapshots().is_some() {
        let own = |point: &String| snaps(point) || point == "source:freeze:made";
        let points: Vec<_> = points().into_iter().filter(own).collect();
        survive_share(&points, 0, 1, Cross::InTurn, || crate::snapshot::world_on_snapshots().unwrap());
    }
}

#[test]
fn every_point_belongs_to_a_share() {
    assert!(points().contains(&MOVES.to_owned()));
    let places: BTreeSet<_> = points().iter().map(|point| Victim::at(point).place()).collect();
    assert_eq!(
        places,
        BTreeSet::from(["controller", "source", "destination", "guard"]),
        "each place has its shares above"
    );
}

/// Holds at every point at once and lets each go on; what was reached.
fn reached(world: &World, call: Call<'_>, points: &[String]) -> (BTreeSet<String>, Outcome) {
    let folder = world.root().join(format!("points-{}", unique()));
    std::fs::create_dir(&folder).unwrap();
    let file = |n: usize| -> PathBuf { folder.join(n.to_string()) };
    let spec: Vec<_> = points.iter().enumerate().map(|(n, p)| format!("{p}=hold:{}", file(n).display())).collect();
    let (end, mut seen) = (AtomicBool::new(false), BTreeSet::new());
    let outcome = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !end.load(Ordering::Relaxed) {
                for entry in std::fs::read_dir(&folder).unwrap().flatten() {
                    let n: usize = entry.file_name().to_str().unwrap().parse().unwrap();
                    seen.insert(points[n].clone());
                    let _ = std::fs::remove_file(entry.path());
                }
                std::thread::sleep(Duration::from_millis(3));
            }
            seen
        });
        let outcome = call.fault(&spec.join(",")).run();
        end.store(true, Ordering::Relaxed);
        seen = watcher.join().unwrap();
        outcome
    });
    (seen, outcome)
}

#[test]
fn every_point_is_reached_by_a_run_its_undo_or_a_rollback() {
    let points = points();
    let world = fault_world();
    let (mut all, outcome) = reached(&world, world.refresh(), &points);
    outcome.expect(0);
    // before a failing run, which gives up the previous generation as soon as it stages
    let (more, outcome) = reached(&world, world.call(&["rollback", "rnd/r1"]), &points);
    outcome.expect(0);
    all.extend(more);
    for late in ["controller:verify:before", "controller:copy:after", "controller:drain:after"] {
        let others: Vec<_> = points.iter().filter(|p| *p != late).cloned().collect();
        let (more, outcome) = reached(&world, world.refresh().fault(&format!("{late}=error")), &others);
        outcome.expect(1);
        all.extend(more);
    }
    let (more, outcome) = reached(&world, Way::LosesAgent.call(&world), &points);
    outcome.expect(0);
    all.extend(more);
    let others: Vec<_> = points.iter().filter(|p| !p.starts_with("source:")).cloned().collect();
    let (more, outcome) = reached(&world, Way::LosesSource.call(&world), &others);
    outcome.expect(1);
    all.extend(more);
    if let Some(world) = crate::mounts::world_on_a_mount() {
        let (more, outcome) = reached(&world, world.refresh(), &points);
        outcome.expect(0);
        all.extend(more);
    } else {
        all.insert(MOVES.to_owned());
    }
    if let Some(world) = crate::frozen::world_on_clones("xfs") {
        let (more, outcome) = reached(&world, world.refresh(), &points);
        outcome.expect(0);
        all.extend(more);
    } else {
        all.extend(points.iter().filter(|point| freezes(point)).cloned());
    }
    if let Some(world) = crate::snapshot::world_on_snapshots() {
        let (more, outcome) = reached(&world, world.refresh(), &points);
        outcome.expect(0);
        all.extend(more);
    } else {
        all.extend(points.iter().filter(|point| snaps(point)).cloned());
    }
    let missing: Vec<_> = points.iter().filter(|p| !all.contains(*p)).collect();
    assert!(missing.is_empty(), "points that nothing leads to: {missing:?}");
}
