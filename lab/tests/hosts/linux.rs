//! Linux guests between unlike hosts: Debian's cloud kernel with a disk and a network, under load, there and back.
//!
//! Two guests boot. One moves, the other stays where it is under the same load: what its kernel warns of, too, is no fault of a
//! move. The other end of each guest's connection is on the first host and stays there. What `ferry-load` (`lab/load`) finds
//! wrong in either guest fails the test; so does a warning of the moved one's kernel alone, and a file system that is not clean.

mod guest;
mod here;
mod image;
mod warnings;

use std::fmt::Write;
use std::path::Path;

use ferry_lab::{Host, Job, Pair, Vendor};
use serde_json::Value;

use self::guest::{Carried, Guest, MEMORY};
use super::{Ready, STEP_MAX, ok, ready, told};

/// Names the static `ferry-load` for the hosts and their guests; set for the tests of Linux guests.
const LOAD: &str = "FERRY_LAB_LOAD";

/// Names the file to which the figures are written.
const REPORT: &str = "FERRY_LAB_LINUX_REPORT";

/// Moves under load in one run, unless `FERRY_MOVES` says otherwise.
const MOVES: usize = 10;

/// What a move under load may take: so little that pages and blocks cross more than once before the pause.
const SHORT: &str = "--downtime-limit 500";

#[test]
fn linux_guests_of_amd_go_there_and_back_ten_times_under_load() {
    let Some(stage) = stage(["amd/6.1/EPYC", "amd/newest/EPYC"]) else { return };
    there_and_back(stage);
}

#[test]
fn linux_guests_of_arm64_go_there_and_back_ten_times_under_load() {
    let Some(stage) = stage(["arm64/6.12/cortex-a76", "arm64/6.18/cortex-a76"]) else { return };
    there_and_back(stage);
}

/// Two hosts with guests that move between them, and what was measured.
struct Stage {
    pair: Pair,
    figures: String,
    /// Whether the guest that moves is born on the second host, with what the first one offers.
    born_on_target: bool,
    ready: Ready,
}

/// The lab with hosts of Linux guests, if these tests are to run, and what starts each.
fn jobs(names: &[&str]) -> Option<(Ready, Vec<Job>)> {
    let ready = ready(names)?;
    let Some(load) = told(LOAD, &ready.hosts) else {
        println!("skipped: `cargo xtask test --lab=linux` runs this, with {LOAD}");
        return None;
    };
    let load = Path::new(&load);
    let job = |host: &Host| -> Job {
        let linux = ready.lab.linux(host, load).unwrap();
        ready.job.clone().program("ferry-load", load).memory(1536).linux(linux)
    };
    let jobs = ready.hosts.iter().map(job).collect();
    Some((ready, jobs))
}

/// Two emulated hosts, if these tests are to run.
fn stage(names: [&str; 2]) -> Option<Stage> {
    let (ready, jobs) = jobs(&names)?;
    let [source, target] = [&ready.hosts[0], &ready.hosts[1]];
    let pair = ready.lab.pair((source, &jobs[0]), (target, &jobs[1])).unwrap();
    let born_on_target = source.vendor == Vendor::Arm64;
    Some(Stage { pair, figures: format!("{source} and {target}\n"), born_on_target, ready })
}

fn there_and_back(mut stage: Stage) {
    let [idle_payload, churn] = stage.payloads();
    let mut moved = Guest::new("moved", 0);
    let still = Guest::new("still", 1);
    stage.boot(&mut moved, &still);

    let idle = [(); 2].map(|()| stage.carry(&mut moved, guest::LONG).downtime_ms);
    stage.figure("an idle Linux guest: downtime in ms there and back", &list(&idle));
    for guest in [&moved, &still] {
        guest.load(&mut stage.pair.source);
    }
    let mut loaded = Vec::new();
    let mut rounds = Vec::new();
    for turn in 1..=turns() {
        still.works(&mut stage.pair.source);
        moved.works(&mut stage.pair.source);
        let carried = stage.carry(&mut moved, SHORT);
        println!("move {turn}: {carried:?}");
        loaded.push(carried.downtime_ms);
        rounds.push(carried.rounds.to_string());
    }
    stage.figure("a loaded Linux guest: downtime in ms of each move", &list(&loaded));
    stage.figure("rounds of each, the last one in the pause", &rounds.join(" "));
    stage.figure(
        "downtime of the idle Linux guest, over payload `idle`",
        &format!("{:.1}", mean(&idle) / idle_payload),
    );
    stage.figure(
        "downtime of the loaded Linux guest, over payload `churn`",
        &format!("{:.1}", mean(&loaded) / churn),
    );
    stage.snapshot(&mut moved);
    moved.works(&mut stage.pair.source);
    stage.end(&moved, &still);
}

/// How many moves under load.
fn turns() -> usize {
    let Ok(told) = std::env::var("FERRY_MOVES") else { return MOVES };
    let turns = told.parse().ok().filter(|turns| *turns > 0);
    turns.unwrap_or_else(|| panic!("FERRY_MOVES is {told:?}: give a number of moves, 1 or more"))
}

impl Stage {
    fn figure(&mut self, what: &str, value: &str) {
        let _ = writeln!(self.figures, "  {what}: {value}");
        println!("{what}: {value}");
    }

    /// The downtime of payload guests between the same hosts, there and back; answers with the means of `idle` and `churn`.
    fn payloads(&mut self) -> [f64; 2] {
        ["idle", "churn"].map(|payload| {
            let run = format!("ferry run --id {payload} --memory {MEMORY} --payload {payload} --rate 4M");
            guest::start(&mut self.pair.source, payload, &run);
            guest::wait(&mut self.pair.source, &format!("ferry status {payload}"));
            let there = guest::carry(&mut self.pair, payload, false, "", guest::LONG).downtime_ms;
            let back = guest::carry(&mut self.pair, payload, true, "", guest::LONG).downtime_ms;
            guest::end(&mut self.pair.source, payload);
            self.figure(
                &format!("payload `{payload}`: downtime in ms there and back"),
                &list(&[there, back]),
            );
            mean(&[there, back])
        })
    }

    /// Boots both guests: the one that stays on the first host, the other on the host with the newer kernel, if a guest born there has
    /// to be told of the way back, and with what the older one offers.
    fn boot(&mut self, moved: &mut Guest, still: &Guest) {
        let disk = image::new(&self.ready.lab);
        for host in [&mut self.pair.source, &mut self.pair.target] {
            host.put(disk.path(), "/tmp/images", STEP_MAX).unwrap();
        }
        let mut born = String::new();
        moved.on_target = self.born_on_target;
        if moved.on_target {
            let profile = ok(&mut self.pair.source, "ferry probe --output json");
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("older.json"), profile).unwrap();
            self.pair.target.put(folder.path(), "/tmp/contracts", STEP_MAX).unwrap();
            "--contract /tmp/contracts/older.json".clone_into(&mut born);
        }
        let seconds = moved.run(self.pair.host(moved.on_target), &born);
        let host = self.pair.host(moved.on_target).name().to_owned();
        self.figure(&format!("from `ferry run` to a shell on {host}, in s"), &format!("{seconds:.1}"));
        let seconds = still.run(&mut self.pair.source, "");
        let host = self.pair.source.name().to_owned();
        self.figure(&format!("the same on {host}, in s"), &format!("{seconds:.1}"));
        for guest in [&*moved, still] {
            guest.peer(&mut self.pair.source);
        }
    }

    /// Moves the guest to the other host with its disk.
    fn carry(&mut self, guest: &mut Guest, limit: &str) -> Carried {
        let places = guest.places();
        let how = format!("--copy-storage {limit}");
        let carried = guest::carry(&mut self.pair, guest.name, guest.on_target, &places, &how);
        ok(self.pair.host(guest.on_target), &format!("rm -f {}", guest.disk()));
        guest.on_target = !guest.on_target;
        carried
    }

    /// Saves the guest to a file, and takes it from there on the other host.
    fn snapshot(&mut self, guest: &mut Guest) {
        let name = guest.name;
        let (file, to) = (format!("/tmp/{name}.ferry"), !guest.on_target);
        let save =
            format!("ferry migrate {name} --to file:{file} --copy-storage --downtime-limit 600000 --wait");
        guest::run(self.pair.host(guest.on_target), &save);
        let said = ok(
            self.pair.host(guest.on_target),
            &format!("ferry inspect {file} --output json; rm -f {}", guest.disk()),
        );
        self.figure("bytes of the state's sections", &sections(&said));
        let address = if to { Pair::TARGET } else { Pair::SOURCE };
        // Its input must not end: busybox's nc would tell the other end so, and that would take it for the end of all.
        let take = format!(
            "mkfifo /tmp/open; nc -l -p 7001 <>/tmp/open >{file} 2>/tmp/nc.log & echo $! >/tmp/nc.pid"
        );
        ok(self.pair.host(to), &take);
        guest::run(
            self.pair.host(guest.on_target),
            &format!("sleep 1; nc {address} 7001 <{file} && rm {file}"),
        );
        guest::wait(self.pair.host(to), "! [ -d /proc/$(cat /tmp/nc.pid) ]");
        let receive =
            format!("ferry receive --from file:{file} --serial {} {}", guest.serial(), guest.places());
        guest::start(self.pair.host(to), name, &receive);
        guest::wait(self.pair.host(to), &format!("ferry status {name}"));
        guest.on_target = to;
    }

    /// Ends the load and the guests, and looks at what they leave.
    fn end(mut self, moved: &Guest, still: &Guest) {
        let mut kinds = Vec::new();
        for guest in [moved, still] {
            let reports = guest.stop(&mut self.pair.source);
            self.figure(
                &format!("what the load of `{}` counted", guest.name),
                &format!("\n{}", reports.join("\n")),
            );
            let log = guest.ask(&mut self.pair.source, "sh dmesg -r");
            assert!(log.contains("Linux version"), "the log of `{}` lacks its begin: {log}", guest.name);
            kinds.push(warnings::kinds(&log));
            guest.power_off(&mut self.pair);
        }
        let more = warnings::more(&kinds[0], &kinds[1]);
        assert!(
            more.is_empty(),
            "the moved guest's kernel warned of what the other's did not:\n{}",
            more.join("\n")
        );
        for guest in [moved, still] {
            let host = self.pair.host(guest.on_target);
            let said = image::check(&self.ready.lab, host, &guest.disk());
            self.figure(&format!("the disk of `{}`", guest.name), &said);
        }
        report(&self.figures);
    }
}

/// Adds to the file of the figures.
fn report(text: &str) {
    if let Some(report) = std::env::var_os(REPORT) {
        let before = std::fs::read_to_string(&report).unwrap_or_default();
        std::fs::write(report, before + text).unwrap();
    }
}

/// The bytes of each section of a saved guest, those of its memory and disks beside them.
fn sections(inspected: &str) -> String {
    let saved: Value = serde_json::from_str(inspected).unwrap();
    let sections = saved["sections"].as_array().unwrap().iter().map(|section| {
        format!("{} {}: {}", section["name"].as_str().unwrap(), section["index"], section["body_bytes"])
    });
    sections.chain([format!("the file: {}", saved["file_bytes"])]).collect::<Vec<_>>().join(", ")
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / f64::from(u32::try_from(values.len()).unwrap())
}

fn list(values: &[f64]) -> String {
    values.iter().map(|value| format!("{value:.0}")).collect::<Vec<_>>().join(" ")
}

/// Lines of JSON.
fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
