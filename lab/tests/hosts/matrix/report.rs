//! Verdict and truth of every pair, as a table, and what disagrees.

use std::collections::BTreeMap;
use std::fmt;

use ferry_lab::Host;

use super::births::OFFERED;
use super::known::{SHOWN, Shown, UNSEEN, Unseen};
use super::truth::{Told, Verdict};

/// What came of all guests of one contract from one host on another.
#[derive(Debug, Default)]
struct Cell {
    /// Registers and other subjects for which the offer was refused.
    refused: Vec<String>,
    /// Why a guest was refused after the offer.
    late: Vec<String>,
    /// Guests that were accepted.
    accepted: usize,
    /// What shows that they are not as they were, with the payload that showed it.
    shown: Vec<String>,
}

/// How verdict and truth of a pair stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stand {
    /// Accepted, and nothing shows.
    Accepted,
    /// Refused at the offer, and something shows.
    Refused,
    /// Refused at the offer, and nothing shows.
    Unseen,
    /// Not refused at the offer, and something shows.
    Shown,
}

impl Cell {
    fn add(&mut self, told: &Told) {
        let shown = told.outcome.shown().into_iter().map(|text| format!("{text} ({})", told.saved.payload));
        self.shown.extend(shown);
        match &told.outcome.verdict {
            Verdict::Accepted { guest } => {
                self.accepted += 1;
                let wrong = guest.wrong().map(|text| format!("{text} ({}, received)", told.saved.payload));
                self.shown.extend(wrong);
            }
            Verdict::Refused { findings } => {
                self.refused.extend(findings.iter().map(|finding| finding.subject.clone()));
                self.refused.sort();
                self.refused.dedup();
            }
            Verdict::Late { why } => self.late.push(format!("{why} ({})", told.saved.payload)),
        }
    }

    fn stand(&self) -> Stand {
        match (self.refused.is_empty(), self.late.is_empty() && self.shown.is_empty()) {
            (true, true) => Stand::Accepted,
            (true, false) => Stand::Shown,
            (false, true) => Stand::Unseen,
            (false, false) => Stand::Refused,
        }
    }

    /// What is in no list of known disagreements; marks in `used` what is.
    fn unknown(&self, used: &mut Used) -> Vec<String> {
        match self.stand() {
            Stand::Accepted | Stand::Refused => Vec::new(),
            Stand::Unseen => {
                let unknown = self.refused.iter().filter(|subject| !used.covers(subject));
                unknown.map(|subject| format!("refused for {subject}, and nothing shows")).collect()
            }
            Stand::Shown => {
                let late = self.late.iter().filter(|why| !used.lets(false, why));
                let late = late.map(|why| format!("refused after the offer only: {why}")).collect::<Vec<_>>();
                let shown = self.shown.iter().filter(|text| !used.lets(self.accepted > 0, text));
                let shown = shown.map(|text| format!("accepted, and it shows: {text}"));
                // What was refused after the offer may show; only an accept must not.
                let shown = shown.filter(|_| self.accepted > 0);
                late.into_iter().chain(shown).collect()
            }
        }
    }

    fn words(&self) -> String {
        match self.stand() {
            Stand::Accepted => "accepted, nothing shows".to_owned(),
            Stand::Refused => format!("refused for {}; shows: {}", self.refused.join(", "), self.shown[0]),
            Stand::Unseen => format!("refused for {}; nothing shows", self.refused.join(", ")),
            Stand::Shown => {
                let all: Vec<&str> = self.late.iter().chain(&self.shown).map(String::as_str).collect();
                format!("not refused at the offer; {}", all.join("; "))
            }
        }
    }
}

/// Which known disagreements occurred, and how often.
#[derive(Debug, Default)]
struct Used {
    unseen: Vec<usize>,
    shown: Vec<usize>,
}

impl Used {
    fn new() -> Self {
        Self { unseen: vec![0; UNSEEN.len()], shown: vec![0; SHOWN.len()] }
    }

    /// Whether every bit of the subject of a refusal is known to be one that nothing shows.
    fn covers(&mut self, subject: &str) -> bool {
        let (register, mut left) = bits_of(subject);
        for (Unseen { bits, .. }, count) in
            UNSEEN.iter().zip(&mut self.unseen).filter(|(known, _)| known.register == register)
        {
            *count += usize::from(left & bits != 0);
            left &= !bits;
        }
        left == 0
    }

    /// Whether what shows is known to.
    fn lets(&mut self, is_accepted: bool, text: &str) -> bool {
        let fits = |known: &Shown| known.accepted == is_accepted && text.starts_with(known.begins);
        let mut known = SHOWN.iter().zip(&mut self.shown);
        known.find(|(known, _)| fits(known)).is_some_and(|(_, count)| {
            *count += 1;
            true
        })
    }
}

/// The register of a finding's subject, and its bits, as `NAME[31,9-7]`; a subject without bits has all.
fn bits_of(subject: &str) -> (&str, u64) {
    let Some((register, bits)) = subject.strip_suffix(']').and_then(|text| text.split_once('[')) else {
        return (subject, u64::MAX);
    };
    let number = |text: &str| text.parse::<u32>().unwrap();
    let mask = bits.split(',').fold(0, |mask, run| {
        let (high, low) = run.split_once('-').map_or((run, run), |(high, low)| (high, low));
        (number(low)..=number(high)).fold(mask, |mask, bit| mask | 1 << bit)
    });
    (register, mask)
}

/// All pairs.
#[derive(Debug)]
pub(super) struct Report {
    hosts: Vec<String>,
    /// By contract, source and target.
    cells: BTreeMap<(String, usize, usize), Cell>,
    /// Pairs for which `ferry check` says something else than the target did.
    unlike: Vec<String>,
}

impl Report {
    /// From what came of every guest, and from what `ferry check` says of each pair: for what it is refused.
    pub(super) fn new(hosts: &[Host], told: &[Told], checked: &[Vec<Vec<String>>]) -> Self {
        let mut cells: BTreeMap<_, Cell> = BTreeMap::new();
        for told in told {
            let key = (told.saved.contract.clone(), told.saved.source, told.target);
            cells.entry(key).or_default().add(told);
        }
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let offered = cells.iter().filter(|((contract, ..), _)| contract == OFFERED);
        let unlike = offered
            .filter(|((_, source, target), cell)| !is_same(&checked[*source][*target], &cell.refused))
            .map(|((_, source, target), _)| format!("{} -> {}", hosts[*source], hosts[*target]))
            .map(|pair| format!("{pair}: `ferry check` says otherwise than the target"))
            .collect();
        Self { hosts, cells, unlike }
    }

    pub(super) fn pairs(&self) -> usize {
        self.cells.len()
    }

    /// Disagreements that are in no list; with all hosts there, also known ones that do not occur any more.
    pub(super) fn findings(&self, all: bool) -> Vec<String> {
        let mut used = Used::new();
        let mut findings = self.unlike.clone();
        for ((contract, source, target), cell) in &self.cells {
            let name = format!("{contract}: {} -> {}", self.hosts[*source], self.hosts[*target]);
            findings.extend(cell.unknown(&mut used).iter().map(|what| format!("{name}: {what}")));
        }
        let vendor = self.hosts[0].split('/').next();
        let gone = |count: usize, of: &str| all && count == 0 && Some(of) == vendor;
        for (known, count) in UNSEEN.iter().zip(&used.unseen) {
            if gone(*count, known.vendor) {
                findings.push(format!("known, and does not occur: {} {:#x}", known.register, known.bits));
            }
        }
        for (known, count) in SHOWN.iter().zip(&used.shown) {
            if gone(*count, known.vendor) {
                findings.push(format!("known, and does not occur: {}", known.begins));
            }
        }
        findings
    }

    fn count(&self, stand: Stand) -> usize {
        self.cells.values().filter(|cell| cell.stand() == stand).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut used = Used::new();
        self.cells.values().for_each(|cell| drop(cell.unknown(&mut used)));
        for (number, host) in self.hosts.iter().enumerate() {
            writeln!(f, "{number:>3}  {host}")?;
        }
        let mut contracts: Vec<&String> = self.cells.keys().map(|(contract, ..)| contract).collect();
        contracts.dedup();
        for contract in contracts {
            write!(f, "\ncontract `{contract}`; a line is a source, a column a target\n   ")?;
            (0..self.hosts.len()).try_for_each(|target| write!(f, "{target:>3}"))?;
            for source in 0..self.hosts.len() {
                write!(f, "\n{source:>3}")?;
                for target in 0..self.hosts.len() {
                    let stand = self.cells.get(&(contract.clone(), source, target)).map(Cell::stand);
                    let letter = stand.map_or(' ', letter);
                    write!(f, "  {letter}")?;
                }
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "\nA accepted, confirmed: {}; R refused, confirmed: {}; disagreements: u refused, nothing shows: {}; \
             s shows, not refused at the offer: {}",
            self.count(Stand::Accepted),
            self.count(Stand::Refused),
            self.count(Stand::Unseen),
            self.count(Stand::Shown),
        )?;
        for (known, count) in UNSEEN.iter().zip(used.unseen).filter(|(_, count)| *count > 0) {
            writeln!(f, "u {count} times {} {:#x}: {}", known.register, known.bits, known.reason)?;
        }
        for (known, count) in SHOWN.iter().zip(used.shown).filter(|(_, count)| *count > 0) {
            writeln!(f, "s {count} times `{}`: {}", known.begins, known.reason)?;
        }
        writeln!(f)?;
        for ((contract, source, target), cell) in &self.cells {
            let (source, target) = (&self.hosts[*source], &self.hosts[*target]);
            writeln!(f, "{contract}: {source} -> {target}: {}", cell.words())?;
        }
        Ok(())
    }
}

/// Whether the same was found, the TSC aside: each boot measures it anew.
fn is_same(one: &[String], other: &[String]) -> bool {
    let without = |subjects: &[String]| {
        let stays = |subject: &&String| subject.as_str() != "TSC frequency";
        let mut subjects: Vec<String> = subjects.iter().filter(stays).cloned().collect();
        subjects.sort();
        subjects
    };
    without(one) == without(other)
}

fn letter(stand: Stand) -> char {
    match stand {
        Stand::Accepted => 'A',
        Stand::Refused => 'R',
        Stand::Unseen => 'u',
        Stand::Shown => 's',
    }
}

#[test]
fn the_bits_of_a_subject_are_read() {
    assert_eq!(bits_of("CPUID.7.0:EBX[9-7,3]"), ("CPUID.7.0:EBX", 0b11_1000_1000));
    assert_eq!(bits_of("TSC frequency"), ("TSC frequency", u64::MAX));
    assert_eq!(bits_of("MSR 0x10a[62]"), ("MSR 0x10a", 1 << 62));
}
