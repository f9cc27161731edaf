//! Days of schedules with a controlled clock.

use super::*;
use crate::config::{HostId, Method, Policy};

fn refresh(name: &str, expression: &str, zone: chrono_tz::Tz) -> Refresh {
    Refresh {
        name: name.to_owned(),
        source: HostId::new("prod", "db1").unwrap(),
        destinations: vec![HostId::new("rnd", "r1").unwrap()],
        schedule: Some(Schedule::parse(expression, zone).unwrap()),
        after: None,
        enabled: true,
        catch_up: CatchUp::No,
        blackout: Blackout::none(),
        jitter: Duration::ZERO,
        method: Method::default(),
        policy: Policy::default(),
    }
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// From begin to end, awake only when the timetable asks for it; what happened, in the zone's time.
fn simulate(refreshes: &[Refresh], zone: chrono_tz::Tz, begin: &str, end: &str) -> Vec<String> {
    let (mut now, end) = (at(begin), at(end));
    let mut table = Timetable::new(refreshes.iter(), &BTreeMap::new(), now);
    let mut told = Vec::new();
    loop {
        for (name, verdict) in table.due(now) {
            let what = match verdict {
                Verdict::Run { late: false, .. } => "runs".to_owned(),
                Verdict::Run { late: true, .. } => "runs late".to_owned(),
                Verdict::Missed { why, .. } => format!("missed: {why}"),
            };
            told.push(format!("{} {name} {what}", now.with_timezone(&zone).format("%m-%d %H:%M:%S %z")));
        }
        match table.wake(now) {
            Some(next) if next < end => {
                assert!(next > now, "it asks to be woken in the past: {next} at {now}");
                now = next;
            }
            _ => return told,
        }
    }
}

#[test]
fn a_day_is_a_day_when_the_clock_goes_forward() {
    let zone = chrono_tz::Europe::Berlin;
    let night = refresh("night", "30 2 * * *", zone);
    let quarters = refresh("quarters", "0 0/6 * * *", zone);
    let told = simulate(&[night, quarters], zone, "2027-03-27T11:30:00Z", "2027-03-29T04:30:00Z");
    assert_eq!(
        told,
        [
            "03-27 18:00:00 +0100 quarters runs",
            "03-28 00:00:00 +0100 quarters runs",
            "03-28 03:00:00 +0200 night runs",
            "03-28 06:00:00 +0200 quarters runs",
            "03-28 12:00:00 +0200 quarters runs",
            "03-28 18:00:00 +0200 quarters runs",
            "03-29 00:00:00 +0200 quarters runs",
            "03-29 02:30:00 +0200 night runs",
            "03-29 06:00:00 +0200 quarters runs",
        ]
    );
}

#[test]
fn a_day_is_a_day_when_the_clock_goes_back() {
    let zone = chrono_tz::Europe::Berlin;
    let night = refresh("night", "30 2 * * *", zone);
    let told = simulate(std::slice::from_ref(&night), zone, "2027-10-30T10:00:00Z", "2027-11-02T00:00:00Z");
    assert_eq!(told, ["10-31 02:30:00 +0200 night runs", "11-01 02:30:00 +0100 night runs"]);
    // one in another zone knows nothing of it
    let utc = refresh("utc", "30 0 * * *", chrono_tz::UTC);
    let told = simulate(&[utc, night], zone, "2027-10-30T10:00:00Z", "2027-11-01T00:00:00Z");
    assert_eq!(told, ["10-31 02:30:00 +0200 night runs", "10-31 02:30:00 +0200 utc runs"]);
}

#[test]
fn every_minute_of_both_days_comes_once() {
    let zone = chrono_tz::Europe::Berlin;
    for (begin, end) in
        [("2027-03-27T23:00:00Z", "2027-03-28T22:00:00Z"), ("2027-10-30T22:00:00Z", "2027-10-31T23:00:00Z")]
    {
        let told = simulate(&[refresh("often", "*/10 * * * *", zone)], zone, begin, end);
        let hours = (at(end) - at(begin)).num_hours() as usize;
        let mut once = told.clone();
        once.dedup();
        assert_eq!(once, told);
        // croner takes a time of the hour that comes twice once
        assert!(told.len() >= (hours - 1) * 6 - 1 && told.len() <= hours * 6, "{} in {hours} hours", told.len());
    }
}

/// After a time nobody was there.
fn after_absence(refresh: &Refresh, seen: &str, now: &str) -> Option<(String, Verdict)> {
    let text = refresh.schedule.as_ref().unwrap().text();
    let row = ScheduleRow { seen: Some(at(seen)), schedule: Some(text), ..ScheduleRow::default() };
    let rows = BTreeMap::from([(refresh.name.clone(), row)]);
    let mut table = Timetable::new(std::iter::once(refresh), &rows, at(now));
    let told = table.due(at(now));
    assert!(table.due(at(now)).is_empty(), "dealt with once");
    told.into_iter().next()
}

#[test]
fn missed_runs_are_made_good_once_if_that_is_wished() {
    let mut night = refresh("night", "30 2 * * *", chrono_tz::UTC);
    let (seen, planned) = ("2027-01-01T02:30:00Z", at("2027-01-05T02:30:00Z"));
    let told = after_absence(&night, seen, "2027-01-05T09:00:00Z").unwrap().1;
    assert!(matches!(&told, Verdict::Missed { planned: p, .. } if *p == planned), "{told:?}");
    night.catch_up = CatchUp::Yes;
    let told = after_absence(&night, seen, "2027-01-05T09:00:00Z").unwrap().1;
    assert_eq!(told, Verdict::Run { planned, late: true }, "four were missed, one is made good");
    night.catch_up = CatchUp::Within(Duration::from_secs(6 * 3600));
    let told = after_absence(&night, seen, "2027-01-05T08:00:00Z").unwrap().1;
    assert_eq!(told, Verdict::Run { planned, late: true });
    assert!(matches!(after_absence(&night, seen, "2027-01-05T09:00:00Z").unwrap().1, Verdict::Missed { .. }));
    assert_eq!(after_absence(&night, "2027-01-05T02:30:00Z", "2027-01-05T09:00:00Z"), None);
    // a moment late is on time
    night.catch_up = CatchUp::No;
    let told = after_absence(&night, "2027-01-04T02:30:00Z", "2027-01-05T02:31:00Z").unwrap().1;
    assert_eq!(told, Verdict::Run { planned, late: false });
    let often = refresh("often", "* * * * * *", chrono_tz::UTC);
    let told = after_absence(&often, "2020-01-01T00:00:00Z", "2027-01-05T09:00:00Z").unwrap().1;
    assert!(matches!(told, Verdict::Run { late: false, .. }), "seven years of seconds: {told:?}");
}

#[test]
fn what_falls_into_a_blackout_waits_for_its_end_or_is_left_out() {
    let zone = chrono_tz::UTC;
    let mut noon = refresh("noon", "0 12 * * *", zone);
    noon.blackout = Blackout::parse(&["mon-fri 08:00-18:00".to_owned()], zone).unwrap();
    // 2027-01-08 is a Friday
    let (begin, end) = ("2027-01-08T00:00:00Z", "2027-01-10T00:00:00Z");
    let told = simulate(std::slice::from_ref(&noon), zone, begin, end);
    assert_eq!(told, ["01-08 12:00:00 +0000 noon missed: a blackout forbade it", "01-09 12:00:00 +0000 noon runs"]);
    noon.catch_up = CatchUp::Within(Duration::from_secs(6 * 3600));
    let told = simulate(std::slice::from_ref(&noon), zone, begin, end);
    assert_eq!(told, ["01-08 18:00:00 +0000 noon runs late", "01-09 12:00:00 +0000 noon runs"]);
    // the same, noticed a moment later; and on disk it is not dealt with before
    let mut table = Timetable::new(std::iter::once(&noon), &BTreeMap::new(), at(begin));
    assert!(table.due(at("2027-01-08T12:00:00Z")).is_empty());
    assert_eq!(table.seen("noon").unwrap().0, at("2027-01-08T11:59:59Z"));
    assert!(matches!(table.due(at("2027-01-08T18:00:01Z"))[0].1, Verdict::Run { late: true, .. }));
    noon.catch_up = CatchUp::Within(Duration::from_secs(5 * 3600));
    assert!(simulate(std::slice::from_ref(&noon), zone, begin, end)[0].contains("missed"));
    let table = Timetable::new(std::iter::once(&noon), &BTreeMap::new(), at(begin));
    assert_eq!(table.next("noon", at(begin)), Some(at("2027-01-09T12:00:00Z")), "what status shows");
}

#[test]
fn a_clock_that_is_set_never_begins_a_run_twice() {
    let night = refresh("night", "30 2 * * *", chrono_tz::UTC);
    let mut table = Timetable::new(std::iter::once(&night), &BTreeMap::new(), at("2027-01-01T00:00:00Z"));
    assert_eq!(table.due(at("2027-01-01T02:30:00Z")).len(), 1);
    assert!(table.due(at("2027-01-01T02:29:00Z")).is_empty(), "a minute back");
    assert!(table.due(at("2027-01-01T02:30:30Z")).is_empty());
    // years ahead by mistake, and back: the schedule goes on
    assert_eq!(table.due(at("2033-01-01T12:00:00Z")).len(), 1);
    for now in ["2027-01-01T03:00:00Z", "2027-01-01T03:10:00Z", "2027-01-01T03:16:00Z"] {
        assert!(table.due(at(now)).is_empty());
    }
    assert_eq!(table.due(at("2027-01-02T02:30:00Z")).len(), 1);
    // a machine that boots with a clock two hours behind, and sets it
    assert!(table.due(at("2027-01-02T00:30:00Z")).is_empty());
    assert!(table.due(at("2027-01-02T00:35:00Z")).is_empty());
    assert!(table.due(at("2027-01-02T02:40:00Z")).is_empty());
    assert_eq!(table.due(at("2027-01-03T02:30:00Z")).len(), 1);
}

#[test]
fn jitter_is_drawn_once_for_each_occurrence() {
    let mut night = refresh("night", "30 2 * * *", chrono_tz::UTC);
    night.jitter = Duration::from_secs(600);
    let told = simulate(std::slice::from_ref(&night), chrono_tz::UTC, "2027-01-01T00:00:00Z", "2027-02-01T00:00:00Z");
    assert_eq!(told.len(), 31);
    let times: std::collections::BTreeSet<&str> = told.iter().map(|line| &line[6..14]).collect();
    assert!(times.len() > 20, "{times:?}");
    assert!(times.iter().all(|time| ("02:30:00".."02:40:01").contains(time)), "{times:?}");
    assert_eq!(told, simulate(&[night], chrono_tz::UTC, "2027-01-01T00:00:00Z", "2027-02-01T00:00:00Z"));
}

#[test]
fn a_pause_leaves_out_and_makes_nothing_good() {
    let mut night = refresh("night", "30 2 * * *", chrono_tz::UTC);
    night.catch_up = CatchUp::Yes;
    let mut table = Timetable::new(std::iter::once(&night), &BTreeMap::new(), at("2027-01-01T00:00:00Z"));
    table.pause("night", true, at("2027-01-01T01:00:00Z"));
    assert!(table.due(at("2027-01-03T02:30:00Z")).is_empty());
    assert_eq!((table.wake(at("2027-01-03T02:30:00Z")), table.next("night", at("2027-01-03T02:30:00Z"))), (None, None));
    table.pause("night", false, at("2027-01-03T12:00:00Z"));
    assert!(table.due(at("2027-01-03T12:00:01Z")).is_empty());
    assert_eq!(table.wake(at("2027-01-03T12:00:01Z")), Some(at("2027-01-04T02:30:00Z")));
}

#[test]
fn another_schedule_has_missed_nothing() {
    let mut night = refresh("night", "0 12 * * *", chrono_tz::UTC);
    night.catch_up = CatchUp::Yes;
    let row = ScheduleRow {
        seen: Some(at("2027-01-01T02:30:00Z")),
        schedule: Some("30 2 * * * UTC".into()),
        ..ScheduleRow::default()
    };
    let rows = BTreeMap::from([("night".to_owned(), row)]);
    let mut table = Timetable::new(std::iter::once(&night), &rows, at("2027-01-01T13:00:00Z"));
    assert!(table.due(at("2027-01-01T13:00:00Z")).is_empty());
}
