//! Orders over TCP, a line each, one for a connection: `start` and flags of the work, `report`, `stop`, or `sh` and a command for
//! the shell.
//!
//! The answer ends with a line `end STATUS`; so a side that asks knows a whole answer from one that broke off. Whoever reaches
//! the port is obeyed: it is for networks inside the lab.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use crate::flags::Flags;
use crate::{Failure, Work};

/// The longest order.
const ORDER_BYTES_MAX: u64 = 64 << 10;

/// How long an answer may take, unless `--within` says so.
const ANSWER_SECONDS: u64 = 60;

/// Obeys orders, one after another, for as long as the process lives.
pub(crate) fn serve(address: &str, mut work: Work) -> Result<ExitCode, Failure> {
    let listener =
        TcpListener::bind(address).map_err(|error| format!("cannot listen on {address}: {error}"))?;
    let _ = writeln!(std::io::stdout(), "ferry-load: ready on {address}");
    loop {
        // What a connection says wrong concerns nobody else.
        if let Ok((stream, _)) = listener.accept() {
            let _ = obey(stream, &mut work);
        }
    }
}

fn obey(mut stream: TcpStream, work: &mut Work) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut order = String::new();
    BufReader::new(stream.try_clone()?.take(ORDER_BYTES_MAX)).read_line(&mut order)?;
    let (text, status) = answer(order.trim_end(), work);
    stream.write_all(&text)?;
    stream.write_all(format!("\nend {status}\n").as_bytes())
}

/// What is said to an order, and its status.
fn answer(order: &str, work: &mut Work) -> (Vec<u8>, i32) {
    match order.split_once(' ').unwrap_or((order, "")) {
        ("report", _) => (work.board.report().into_bytes(), 0),
        ("stop", _) => {
            work.end();
            (work.board.report().into_bytes(), 0)
        }
        ("start", flags) => {
            let flags: Vec<String> = flags.split_whitespace().map(str::to_owned).collect();
            match Flags::parse(&flags).and_then(|flags| crate::begin(work, &flags)) {
                Ok(()) => (Vec::new(), 0),
                Err(failure) => (failure.into_bytes(), 2),
            }
        }
        ("sh", script) => {
            let script = format!("{{ {script}\n}} 2>&1");
            match Command::new("/bin/sh").args(["-c", &script]).stdin(Stdio::null()).output() {
                Ok(output) => (output.stdout, output.status.code().unwrap_or(-1)),
                Err(error) => (error.to_string().into_bytes(), 127),
            }
        }
        _ => (format!("there is no order `{order}`").into_bytes(), 2),
    }
}

/// Gives one order and prints the answer; its status is the process's.
pub(crate) fn ask(words: &[String]) -> Result<ExitCode, Failure> {
    let (address, rest) = words.split_first().ok_or("ask needs an address and an order")?;
    let (within, order) = match rest {
        [flag, seconds, order @ ..] if flag == "--within" => {
            (seconds.parse().map_err(|_| format!("--within {seconds}: a number was expected"))?, order)
        }
        order => (ANSWER_SECONDS, order),
    };
    let (text, status) = asked(address, &order.join(" "), Duration::from_secs(within))?;
    std::io::stdout().write_all(&text).map_err(|error| error.to_string())?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(255)))
}

fn asked(address: &str, order: &str, within: Duration) -> Result<(Vec<u8>, i32), Failure> {
    let failed = |what: &'static str| move |error: std::io::Error| format!("{what} {address}: {error}");
    let resolved = address.to_socket_addrs().map_err(failed("no address"))?.next();
    let resolved = resolved.ok_or_else(|| format!("no address {address}"))?;
    let mut stream = TcpStream::connect_timeout(&resolved, within).map_err(failed("cannot reach"))?;
    stream.set_read_timeout(Some(within)).map_err(failed("cannot wait for"))?;
    stream.write_all(format!("{}\n", order.replace('\n', "; ")).as_bytes()).map_err(failed("cannot tell"))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(failed("no answer from"))?;
    let cut = format!("the answer of {address} broke off");
    let line = answer.strip_suffix(b"\n").and_then(|rest| rest.iter().rposition(|byte| *byte == b'\n'));
    let at = line.ok_or_else(|| cut.clone())?;
    let last = String::from_utf8_lossy(&answer[at + 1..]).into_owned();
    let status = last.trim_end().strip_prefix("end ").and_then(|status| status.parse().ok());
    let status = status.ok_or(cut)?;
    answer.truncate(at);
    Ok((answer, status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn orders_are_answered_with_a_status() {
        let mut work = Work::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = thread::spawn(move || {
            for _ in 0..6 {
                obey(listener.accept().unwrap().0, &mut work).unwrap();
            }
        });
        let ask = |order: &str| {
            let (text, status) = asked(&address, order, Duration::from_secs(60)).unwrap();
            (String::from_utf8(text).unwrap(), status)
        };
        assert_eq!(ask("sh printf 'a\\nb'; exit 3"), ("a\nb".to_owned(), 3));
        assert_eq!(ask("start --memory-mib 1 --clock-ms 1"), (String::new(), 0));
        assert_eq!(ask("start --moon 1").1, 2);
        assert!(ask("report").0.contains(r#""check":"clocks""#));
        let stopped = ask("stop").0;
        assert_eq!(stopped.matches(r#""faults":0"#).count(), 2, "{stopped}");
        assert_eq!(ask("dance").1, 2);
        server.join().unwrap();
        assert!(asked("127.0.0.1:1", "report", Duration::from_secs(5)).is_err());
    }
}
