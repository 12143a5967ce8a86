//! `docs/guarantees.md` says what is computed: its tables are compared, or rewritten with
//! `FERRY_BLESS=1`.

use std::path::PathBuf;
use std::time::Duration;

use ferry_protocol::{SourceConfig, Timeouts};

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/guarantees.md")
}

/// A Markdown table; the first row is its head.
pub(crate) fn rendered(rows: &[Vec<String>]) -> String {
    let line = |row: &Vec<String>| format!("| {} |\n", row.join(" | "));
    let rule = format!("|{}\n", "---|".repeat(rows[0].len()));
    line(&rows[0]) + &rule + &rows[1..].iter().map(line).collect::<String>()
}

/// Compares the document's table of that name with the computed one.
pub(crate) fn check_or_bless(name: &str, computed: &str) {
    let document = std::fs::read_to_string(path()).expect("docs/guarantees.md is there");
    let begin = format!("<!-- table: {name} -->\n");
    let (before, rest) = document.split_once(&begin).expect("the table's begin is marked");
    let (written, after) = rest.split_once("<!-- end -->").expect("the table's end is marked");
    if written == computed {
        return;
    }
    if std::env::var_os("FERRY_BLESS").is_some() {
        let blessed = format!("{before}{begin}{computed}<!-- end -->{after}");
        return std::fs::write(path(), blessed).expect("docs/guarantees.md can be written");
    }
    let gone = written.lines().filter(|line| !computed.lines().any(|other| other == *line));
    let new = computed.lines().filter(|line| !written.lines().any(|other| other == *line));
    let diff: Vec<_> =
        gone.map(|line| format!("- {line}")).chain(new.map(|line| format!("+ {line}"))).collect();
    panic!(
        "the table `{name}` of docs/guarantees.md is not what the protocol does; if it should be, run this \
         test with FERRY_BLESS=1:\n{}",
        diff.join("\n")
    );
}

#[test]
fn the_timeouts_are_those_of_the_code() {
    // Without `..`: a new timeout does not compile until it stands here.
    let Timeouts {
        connect,
        hello,
        offer,
        verdict,
        build,
        silence,
        state,
        paused,
        ready,
        custody,
        running,
        ask,
        ask_interval,
        settle,
        release,
        total,
    } = Timeouts::default();
    let rows = [
        ("connect", connect, "source", "the link is made"),
        ("hello", hello, "both", "the target's hello; the first message on a new link"),
        ("offer", offer, "target", "the offer, after its hello"),
        ("verdict", verdict, "source", "the verdict"),
        ("build", build, "source", "the target builds the machine with its memory"),
        ("silence", silence, "both", "nothing could be sent, or nothing came, while pages cross"),
        ("state", state, "target", "the whole state, after the last round"),
        ("paused", paused, "source", "everything from the pause to giving custody"),
        ("ready", ready, "source", "the target's word that it is ready"),
        ("custody", custody, "target", "custody, after it said ready"),
        ("running", running, "source", "the target's word that the guest runs, after custody was given"),
        ("ask", ask, "source", "the answer to one question who runs the guest"),
        ("ask-interval", ask_interval, "source", "the pause between two questions"),
        ("settle", settle, "source", "from the first question to asking a person"),
        ("release", release, "target", "the source's word that it let the guest go"),
        ("total", total, "source", "the whole migration, up to custody"),
    ];
    let head = ["name", "default", "side", "what is waited for"].map(String::from).to_vec();
    let row = |(name, within, side, what): (&str, Duration, &str, &str)| {
        vec![format!("`{name}`"), format!("{} s", within.as_secs_f64()), side.into(), what.into()]
    };
    let rows: Vec<_> = std::iter::once(head).chain(rows.into_iter().map(row)).collect();
    check_or_bless("timeouts", &rendered(&rows));
}

#[test]
fn the_downtime_limit_is_that_of_the_code() {
    let document = std::fs::read_to_string(path()).unwrap();
    let limit = format!("(default {} ms)", SourceConfig::DOWNTIME_LIMIT.as_millis());
    assert!(document.contains(&limit), "docs/guarantees.md does not say `{limit}`");
}
