//! One Linux guest: how it starts, what it is told, how it moves.

use std::time::{Duration, Instant};

use ferry_lab::{Machine, Pair};
use serde_json::Value;

use super::lines;
use crate::ok;

/// The memory of guests, those with payloads included, so that their figures may be compared.
pub(super) const MEMORY: &str = "192M";

/// Where each host has the guests' kernel.
const KERNEL: &str = "--kernel /lab/linux/vmlinuz --initramfs /lab/linux/initramfs";

/// A step that waits for an emulated kernel inside an emulated machine.
const GUEST_MAX: Duration = Duration::from_secs(300);

/// All kinds of work at once. The clocks' step limit is that of a pause between emulated hosts.
const LOAD: &str = "--files /disk/load --files-mib 4 --memory-mib 24 --rate-kib 256 --threads 2 --clock-ms 100 \
                    --step-limit-ms 120000 --messages 10";

/// The kinds of work by name.
const CHECKS: [&str; 5] = ["files", "memory", "vectors", "clocks", "stream"];

/// A Linux guest.
pub(super) struct Guest {
    pub(super) name: &'static str,
    number: u8,
    /// Where it is.
    pub(super) on_target: bool,
}

impl Guest {
    pub(super) const fn new(name: &'static str, number: u8) -> Self {
        Self { name, number, on_target: false }
    }

    /// Its disk's image, on whichever host it is.
    pub(super) fn disk(&self) -> String {
        format!("/tmp/{}.img", self.name)
    }

    /// Where its console is written.
    pub(super) fn serial(&self) -> String {
        format!("/tmp/{}.serial", self.name)
    }

    fn address(&self) -> String {
        format!("10.77.0.{}", 10 + self.number)
    }

    /// Boots it; answers with the seconds until it has a shell.
    pub(super) fn run(&self, host: &mut Machine, born: &str) -> f64 {
        let Self { name, number, .. } = self;
        let run = format!(
            "ferry run --id {name} --memory {MEMORY} --cpus 2 {born} \
             {KERNEL} \
             --cmdline 'console=ttyS0 net.ifnames=0 lab.address={address}' \
             --disk {disk} --net ${{LAB_TAP}}{number},mac=52:54:00:77:01:0{number} --entropy --serial {serial}",
            disk = self.disk(),
            address = self.address(),
            serial = self.serial(),
        );
        ok(host, &format!("cp /tmp/images/disk {}", self.disk()));
        let begin = Instant::now();
        start(host, name, &run);
        wait(host, &format!("grep 'lab: a shell' {}", self.serial()));
        let seconds = begin.elapsed().as_secs_f64();
        wait(host, &format!("grep 'ferry-load: ready' {}", self.serial()));
        self.ask(host, "sh mount | grep /disk");
        seconds
    }

    /// Starts the other end of its connection.
    pub(super) fn peer(&self, host: &mut Machine) {
        let (name, port, control) = (self.name, self.port(), self.control());
        let peer = format!("ferry-load peer --listen {}:{port} --control {control}", Pair::SOURCE);
        ok(host, &format!("{peer} >/tmp/peer-{name}.log 2>&1 &"));
    }

    fn port(&self) -> u16 {
        7800 + u16::from(self.number)
    }

    /// Where its peer takes orders.
    fn control(&self) -> String {
        format!("127.0.0.1:{}", 7810 + u16::from(self.number))
    }

    /// Gives an order from that host.
    pub(super) fn ask(&self, host: &mut Machine, order: &str) -> String {
        run(
            host,
            &format!(
                "ferry-load ask {}:7700 --within 120 {}",
                self.address(),
                ferry_lab::files::quoted(order)
            ),
        )
    }

    /// Starts its load.
    pub(super) fn load(&self, host: &mut Machine) {
        self.ask(host, "sh mkdir -p /disk/load");
        self.ask(host, &format!("start {LOAD} --peer {}:{}", Pair::SOURCE, self.port()));
    }

    /// All kinds of its work go on, and none has a fault.
    pub(super) fn works(&self, host: &mut Machine) {
        let done = |reports: &[Value]| -> Vec<u64> {
            CHECKS.iter().map(|check| faultless(self.name, reports, check)).collect()
        };
        let before = done(&lines(&self.ask(host, "report")));
        let limit = Instant::now() + GUEST_MAX;
        loop {
            ok(host, "sleep 1");
            let now = done(&lines(&self.ask(host, "report")));
            if now.iter().zip(&before).all(|(now, before)| now > before) {
                return;
            }
            assert!(
                Instant::now() < limit,
                "`{}` does not work on: {CHECKS:?} {before:?} {now:?}",
                self.name
            );
        }
    }

    /// Ends its load and the other end of its connection; no kind of work had a fault.
    pub(super) fn stop(&self, host: &mut Machine) -> Vec<String> {
        let said = self.ask(host, "stop");
        let reports = lines(&said);
        for check in CHECKS {
            faultless(self.name, &reports, check);
        }
        let peer = run(host, &format!("ferry-load ask {} stop", self.control()));
        faultless(self.name, &lines(&peer), "peer");
        said.lines().chain(peer.lines()).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// Leaves its disk clean and switches it off; its process ends well.
    pub(super) fn power_off(&self, pair: &mut Pair) {
        self.ask(&mut pair.source, "sh umount /disk");
        self.ask(&mut pair.source, "sh (sleep 1; poweroff -f) >/dev/null 2>&1 &");
        let host = pair.host(self.on_target);
        let ended = format!("/tmp/ended-{}", self.name);
        wait(host, &format!("[ -s {ended} ]"));
        let status = ok(host, &format!("cat {ended}"));
        assert_eq!(status.trim(), "0", "`{}`: {}", self.name, said(host));
    }

    /// Where its devices lie on a host that it comes to.
    pub(super) fn places(&self) -> String {
        format!("--disk 0={} --net 0=${{LAB_TAP}}{} {KERNEL}", self.disk(), self.number)
    }
}

/// How much of that work was done, all of it without a fault.
fn faultless(guest: &str, reports: &[Value], check: &str) -> u64 {
    let report = reports.iter().find(|report| report["check"] == check);
    let report = report.unwrap_or_else(|| panic!("`{guest}` does nothing of {check}: {reports:?}"));
    assert_eq!(report["faults"], 0, "`{guest}`: {report}");
    report["done"].as_u64().unwrap()
}

/// Runs a command that waits for a guest.
pub(super) fn run(host: &mut Machine, script: &str) -> String {
    host.expect(script, GUEST_MAX).unwrap_or_else(|error| panic!("{error}\n{}", said(host)))
}

/// Repeats a command until it ends well.
pub(super) fn wait(host: &mut Machine, script: &str) {
    let until = format!("until {{ {script}; }} >/dev/null 2>&1; do usleep 100000; done");
    run(host, &format!("timeout 280 sh -c {}", ferry_lab::files::quoted(&until)));
}

/// What processes and consoles of guests said last.
fn said(host: &mut Machine) -> String {
    let script = "for log in /tmp/*.log /tmp/*.serial; do echo \"== $log\"; tail -n 20 $log; done";
    host.run(script, crate::STEP_MAX).map_or_else(|error| error.to_string(), |output| output.text())
}

/// Starts a guest's process on a host; what it says, and once it has ended its status, is in files there.
pub(super) fn start(host: &mut Machine, name: &str, command: &str) {
    let own = ferry_lab::files::quoted(&format!("echo $$ >/tmp/{name}.pid; exec {command}"));
    let script =
        format!("{{ sh -c {own} >/tmp/{name}.log 2>&1; echo $? >/tmp/ended-{name}; }} >/dev/null 2>&1 &");
    ok(host, &format!("rm -f /tmp/ended-{name} /tmp/{name}.log; {script}"));
}

/// Ends a guest's process.
pub(super) fn end(host: &mut Machine, name: &str) {
    ok(host, &format!("kill $(cat /tmp/{name}.pid)"));
    wait(host, &format!("[ -s /tmp/ended-{name} ]"));
}

/// What a move of payload and idle guests may take, in a host that is emulated beside another one.
pub(super) const LONG: &str = "--downtime-limit 20000";

/// A move, as its report says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Carried {
    pub(super) downtime_ms: f64,
    pub(super) rounds: u64,
}

/// Moves a guest to the other host, where its devices lie at those places.
pub(super) fn carry(pair: &mut Pair, name: &str, from_target: bool, places: &str, how: &str) -> Carried {
    let address = if from_target { Pair::SOURCE } else { Pair::TARGET };
    let to = pair.host(!from_target);
    let serial = format!("--serial /tmp/{name}.serial");
    start(to, name, &format!("ferry receive --insecure --listen {address}:7000 {serial} {places}"));
    wait(to, &format!("grep waiting /tmp/{name}.log"));
    let migrate = format!("ferry migrate {name} --to {address}:7000 {how} --wait --output json");
    let from = pair.host(from_target);
    let output = from.run(&migrate, GUEST_MAX).unwrap_or_else(|error| panic!("{error}"));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    if output.status != 0 || report["outcome"] != "moved" {
        let heard = [pair.source.console(), said(&mut pair.source), said(&mut pair.target)].join("\n");
        panic!("{name}: {} {report} {}\n{heard}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    println!(
        "{name}: {} ms, {} bytes, {} rounds",
        report["total_ms"], report["data_bytes"], report["rounds"]
    );
    Carried {
        downtime_ms: report["downtime_ms"].as_f64().unwrap(),
        rounds: report["rounds"].as_u64().unwrap(),
    }
}
