//! `ferry bench precopy`: how fast a guest of random memory moves, beside the raw loop.
//!
//! Pairs of raw loop and migration are interleaved, so that both see the same machine; each pair gives a
//! ratio, and the median of these is the figure.

use ferry_vmm::GuestTime;
use indicatif::{HumanBytes, HumanDuration};
use serde_json::{Value, json};

use super::qemu;
use super::raw::{Figures, Memory};
use crate::children::{Process, Wish};
use crate::cli::{BenchPrecopyArgs, Format, GuestArgs, PayloadName, Peer};
use crate::error::CliError;
use crate::form::{ArrivalForm, MigrationReport, millis};
use crate::output;
use crate::spread::Spread;
use crate::verbs::choose;

/// One raw loop and the migration after it.
#[derive(Debug)]
struct Pair {
    raw: Figures,
    report: MigrationReport,
    arrival: ArrivalForm,
    faults: u64,
    /// The other VMM's migration of such a guest.
    peer: Option<qemu::Figures>,
}

impl Pair {
    fn ratio(&self) -> f64 {
        quotient(self.report.throughput_bytes_per_second, self.raw.bytes_per_second)
    }

    fn cpu_ratio(&self) -> f64 {
        let raw = millis(self.raw.cpu);
        if raw > 0.0 { (self.report.cpu_ms + self.arrival.cpu_ms) / raw } else { 0.0 }
    }

    fn peer_ratio(&self) -> Option<f64> {
        self.peer.map(|peer| quotient(peer.throughput_bytes_per_second, self.raw.bytes_per_second))
    }
}

pub(crate) fn precopy(args: &BenchPrecopyArgs, format: Format) -> Result<u8, CliError> {
    let guest = GuestArgs { payload: PayloadName::Idle, ..args.guest.clone() };
    guest.config().validate().map_err(|error| CliError::usage(error.to_string()))?;
    let backend = choose(guest.backend)?.name();
    let bytes = usize::try_from(guest.memory.0).map_err(|error| CliError::of(&error))?;
    let mut memory = Memory::new(bytes);
    let mut peer = args.peer.map(|Peer::Qemu| {
        let limit = args.downtime_limit.0;
        qemu::Peer::find(args.peer_binary.as_deref(), bytes, args.lanes, limit)
    });
    let mut source = Process::run("bench", &guest, backend, &["--fill-random"])?;
    source.await_work()?;
    let memcpy: Vec<_> = (0..3).map(|_| memory.memcpy()).collect();
    let wish = Wish {
        downtime_limit: args.downtime_limit.0,
        verify: false,
        lanes: args.lanes,
        guest_time: GuestTime::Stops,
    };
    let mut pairs = Vec::new();
    for number in 1..=args.pairs {
        let raw = memory.moved(usize::from(args.lanes)).map_err(|error| CliError::of(&error))?;
        let mut target = Process::receive(&source.id, &guest, backend)?;
        let report = source.migrate_to(&target, wish, Format::Json)?;
        source.await_end()?;
        let arrival = target.arrival()?;
        let faults = target.check()?.faults;
        let beside = measured(&mut peer);
        let pair = Pair { raw, report, arrival, faults, peer: beside };
        if format == Format::Text {
            output::line(&pair_line(number, &pair));
        }
        pairs.push(pair);
        source = target;
    }
    source.stop()?;
    let mut document = document(args, backend, &pairs, &memcpy);
    if let Some(peer) = &peer {
        document["peer"] = peer_document(peer, &pairs);
    }
    match format {
        Format::Json => output::json(&document),
        Format::Text => output::lines(&summary(&document)),
    }
    let faults: u64 = pairs.iter().map(|pair| pair.faults).sum();
    if faults == 0 {
        Ok(0)
    } else {
        Err(CliError::plain(format!("the guest found {faults} faults after moves")))
    }
}

/// One migration of the other VMM; what fails ends its part of the bench with the reason.
fn measured(peer: &mut Option<Result<qemu::Peer, String>>) -> Option<qemu::Figures> {
    let moved = peer.as_ref()?.as_ref().ok()?.moved();
    moved.map_err(|why| *peer = Some(Err(why))).ok()
}

fn peer_document(peer: &Result<qemu::Peer, String>, pairs: &[Pair]) -> Value {
    let figures: Vec<_> = pairs.iter().filter_map(|pair| pair.peer).collect();
    let peer = match peer {
        Ok(peer) => peer,
        Err(why) => return json!({ "name": "qemu", "not_measured": why }),
    };
    let spread = |of: fn(&qemu::Figures) -> u64| Spread::of(figures.iter().map(of).map(as_f64).collect());
    let ratio = Spread::of(pairs.iter().filter_map(Pair::peer_ratio).collect());
    let raw_cpu = |pair: &Pair| Some(as_f64(pair.peer?.cpu_ms) / millis(pair.raw.cpu).max(1.0));
    let downtime = spread(|figures| figures.downtime_ms);
    json!({
        "name": "qemu",
        "version": peer.version,
        "ratio": ratio.median, "ratio_min": ratio.min, "ratio_max": ratio.max,
        "cpu_ratio": Spread::of(pairs.iter().filter_map(raw_cpu).collect()).median,
        "throughput_bytes_per_second": spread(|figures| figures.throughput_bytes_per_second).median,
        "downtime_ms": downtime.median, "downtime_ms_min": downtime.min, "downtime_ms_max": downtime.max,
        "total_ms": spread(|figures| figures.total_ms).median,
        "each": figures,
    })
}

/// What the summary says of the other VMM.
fn peer_line(peer: &Value) -> String {
    if let Some(why) = peer["not_measured"].as_str() {
        return format!("QEMU        not measured: {why}");
    }
    let number = |name: &str| peer[name].as_f64().unwrap_or(0.0);
    format!(
        "QEMU        {}: {}/s, ratio {:.2} of the raw loop, {:.2} to {:.2}, CPU {:.2}; downtime median {:.0} ms",
        peer["version"].as_str().unwrap_or("?"),
        HumanBytes(as_u64(number("throughput_bytes_per_second"))),
        number("ratio"),
        number("ratio_min"),
        number("ratio_max"),
        number("cpu_ratio"),
        number("downtime_ms"),
    )
}

fn pair_line(number: u32, pair: &Pair) -> String {
    let beside = pair.peer.zip(pair.peer_ratio()).map(|(peer, ratio)| {
        let rate = HumanBytes(peer.throughput_bytes_per_second);
        format!("; QEMU {rate}/s, ratio {ratio:.2}, downtime {} ms", peer.downtime_ms)
    });
    format!(
        "pair {number:<6} raw {}/s, migration {}/s, ratio {:.2}, CPU {:.2} of raw, downtime {:.3} ms, setup {:.0} ms{}",
        HumanBytes(pair.raw.bytes_per_second),
        HumanBytes(pair.report.throughput_bytes_per_second),
        pair.ratio(),
        pair.cpu_ratio(),
        pair.report.downtime_ms.unwrap_or(0.0),
        pair.report.setup_ms,
        beside.unwrap_or_default(),
    )
}

fn document(args: &BenchPrecopyArgs, backend: &str, pairs: &[Pair], memcpy: &[u64]) -> Value {
    let spread = |of: fn(&Pair) -> f64| Spread::of(pairs.iter().map(of).collect());
    let ratio = spread(Pair::ratio);
    let cpu = spread(Pair::cpu_ratio);
    let downtime = spread(|pair| pair.report.downtime_ms.unwrap_or(0.0));
    let total = spread(|pair| pair.report.total_ms);
    let setup = spread(|pair| pair.report.setup_ms);
    let throughput = spread(|pair| as_f64(pair.report.throughput_bytes_per_second));
    let raw = spread(|pair| as_f64(pair.raw.bytes_per_second));
    let memcpy = Spread::of(memcpy.iter().map(|&rate| as_f64(rate)).collect());
    let last = pairs.last();
    json!({
        "backend": backend,
        "memory_bytes": args.guest.memory.0,
        "lanes": args.lanes,
        "pairs": pairs.len(),
        "verdict": last.and_then(|pair| pair.report.verdict.clone()),
        "verified": pairs.iter().all(|pair| pair.faults == 0),
        "ratio": ratio.median, "ratio_min": ratio.min, "ratio_max": ratio.max,
        "cpu_ratio": cpu.median, "cpu_ratio_min": cpu.min, "cpu_ratio_max": cpu.max,
        "throughput_bytes_per_second": throughput.median,
        "raw_loopback_bytes_per_second": raw.median,
        "memcpy_bytes_per_second": memcpy.median,
        "downtime_ms": downtime.median, "downtime_ms_min": downtime.min, "downtime_ms_max": downtime.max,
        "downtime_parts_ms": last.map(|pair| pair.report.downtime_parts_ms),
        "total_ms": total.median,
        "setup_ms": setup.median,
        "rounds": last.map(|pair| pair.report.rounds),
        "each": pairs.iter().map(|pair| json!({
            "raw_loopback_bytes_per_second": pair.raw.bytes_per_second,
            "raw_cpu_ms": millis(pair.raw.cpu),
            "report": pair.report,
            "arrival": pair.arrival,
        })).collect::<Vec<_>>(),
    })
}

fn summary(document: &Value) -> Vec<String> {
    let number = |name: &str| document[name].as_f64().unwrap_or(0.0);
    let rate = |name: &str| HumanBytes(as_u64(number(name)));
    let mut lines = vec![
        format!(
            "limit       raw loop {}/s, memcpy {}/s",
            rate("raw_loopback_bytes_per_second"),
            rate("memcpy_bytes_per_second")
        ),
        format!("migration   {}/s over {} lanes", rate("throughput_bytes_per_second"), document["lanes"]),
        format!(
            "ratio       {:.2} of the raw loop, median of {} pairs, {:.2} to {:.2}",
            number("ratio"),
            document["pairs"],
            number("ratio_min"),
            number("ratio_max")
        ),
        format!(
            "CPU         {:.2} of the raw loop's, {:.2} to {:.2}",
            number("cpu_ratio"),
            number("cpu_ratio_min"),
            number("cpu_ratio_max")
        ),
        format!(
            "downtime    median {:.3} ms, {:.3} to {:.3} ms",
            number("downtime_ms"),
            number("downtime_ms_min"),
            number("downtime_ms_max")
        ),
        format!(
            "setup       {} before the first page",
            HumanDuration(std::time::Duration::from_secs_f64(number("setup_ms").max(0.0) / 1e3))
        ),
    ];
    lines.extend(document.get("peer").map(peer_line));
    lines
}

fn quotient(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { as_f64(a) / as_f64(b) }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people; 53 bits are plenty")]
fn as_f64(value: u64) -> f64 {
    value as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate, not negative")]
fn as_u64(value: f64) -> u64 {
    value.max(0.0) as u64
}
