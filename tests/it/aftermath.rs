//! What must be true once a run is over, however it ended: the source up with its data, every destination whole and what the
//! exit code promises, `recover` clean, nobody left, and the next run a run like any other.

use std::time::{Duration, Instant};

use crate::world::{Outcome, Server, World, content, signal};

/// After this time without a controller the guard must have brought the source back.
pub const GUARD_LIMIT: Duration = Duration::from_secs(25);

/// A world in which silence and outages are short.
pub fn fault_world() -> World {
    let world = World::builder().in_memory().build();
    world.set("daemon.host_timeout", "\"4s\"");
    world.set("refreshes.nightly.max_outage", "\"30s\"");
    world
}

/// What must be true once a run is over, however it ended; `new` is what the source holds, `old` what was served before.
pub struct Aftermath<'w> {
    world: &'w World,
    /// What the destinations served before.
    pub old: Vec<String>,
    /// What the source holds.
    pub new: String,
}

impl<'w> Aftermath<'w> {
    /// Notes what is served now, and stamps the source with a number it has not had.
    pub fn prepare(world: &'w World, stamp: u32) -> Aftermath<'w> {
        world.stamp(stamp);
        Aftermath { world, old: world.destinations.iter().map(content).collect(), new: format!("prod-{stamp}") }
    }

    /// The source answers within the bound, without anyone's help, and has lost nothing.
    pub fn source_is_up(&self) {
        // an agent that outlives its controller may be about to stop the source, which answers until then; one that hangs is not waited for
        let agent = |process: &crate::world::Process| process.args.windows(2).any(|two| two == ["--role", "source"]);
        let end = Instant::now() + Duration::from_secs(5);
        while self.world.program_processes().iter().any(agent) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.world.source.wait_up(GUARD_LIMIT);
        assert_eq!(self.world.content(&self.world.source), self.new, "the source's data");
        let written = "REPLACE INTO ledger.commits VALUES (1, 0); DELETE FROM ledger.commits WHERE n = 1";
        assert_eq!(self.world.source.sql(&format!("{written}; SELECT @@GLOBAL.read_only")), "0\n", "read_only");
    }

    /// This destination serves one of these, whole, with its own accounts, and nothing of the run is left beside it.
    pub fn serves(&self, server: &Server, old: &str, wanted: &[&str]) {
        server.wait_up(Duration::from_secs(5));
        let serves = self.world.content(server);
        assert!(
            wanted.contains(&serves.as_str()),
            "{} serves {serves}, had {old}, the source holds {}",
            server.name,
            self.new
        );
        let accounts = server.sql("SELECT SUM(User = 'analyst'), SUM(User LIKE 'prod%') FROM mysql.global_priv");
        assert_eq!(accounts, "2\t0\n", "{}: accounts", server.name);
        assert!(!server.work().join("stage").exists(), "{}: a stage is left", server.name);
        assert!(!server.work().join("swap.json").exists(), "{}: a swap is left unfinished", server.name);
    }

    /// Everyone serves the new content.
    pub fn all_new(&self) {
        for (server, old) in self.world.destinations.iter().zip(&self.old) {
            self.serves(server, old, &[&self.new]);
        }
    }

    /// Everyone serves the old content.
    pub fn all_old(&self) {
        for (server, old) in self.world.destinations.iter().zip(&self.old) {
            self.serves(server, old, &[old]);
        }
    }

    /// Everyone serves the one or the other.
    pub fn old_or_new(&self) {
        for (server, old) in self.world.destinations.iter().zip(&self.old) {
            self.serves(server, old, &[old, &self.new]);
        }
    }

    /// What an exit code promises.
    pub fn as_promised(&self, outcome: &Outcome) {
        self.source_is_up();
        self.keeps_its_promise(outcome);
    }

    /// The same of the destinations only.
    pub fn keeps_its_promise(&self, outcome: &Outcome) {
        match outcome.code() {
            0 => self.all_new(),
            1 | 4 | 130 => self.all_old(),
            _ => {}
        }
    }

    /// Recovery is clean, and again; then every promise holds, and nobody is left.
    pub fn recovers(&self) {
        self.world.recover().expect(0);
        self.world.recover().expect(0);
        self.source_is_up();
        self.old_or_new();
        crate::frozen::nothing_frozen(self.world);
        self.world.expect_nobody_left();
    }

    /// The next run is a run like any other.
    pub fn runs_again(&self) {
        self.world.refresh().run().expect(0);
        self.source_is_up();
        self.all_new();
    }
}

/// Kills the processes of the program that `which` selects by their arguments.
pub fn kill_program(world: &World, which: impl Fn(&str) -> bool) -> usize {
    let victims: Vec<_> = world.program_processes().into_iter().filter(|p| which(&p.args.join(" "))).collect();
    victims.iter().for_each(|p| signal(p.pid, "-KILL"));
    victims.len()
}
