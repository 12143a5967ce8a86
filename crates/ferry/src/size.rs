//! Sizes and durations as a command line writes them.

use std::str::FromStr;
use std::time::Duration;

/// A number of bytes: digits, then nothing, K, M, G or T (powers of 1024).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || "give a whole number of bytes, or one with K, M, G or T after it".to_owned();
        let (digits, shift) = match text.char_indices().last() {
            Some((at, 'K' | 'k')) => (&text[..at], 10),
            Some((at, 'M' | 'm')) => (&text[..at], 20),
            Some((at, 'G' | 'g')) => (&text[..at], 30),
            Some((at, 'T' | 't')) => (&text[..at], 40),
            _ => (text, 0),
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(error());
        }
        let number: u64 = digits.parse().map_err(|_| "that is more than 64 bits hold".to_owned())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| "that is more than 64 bits hold".to_owned())
    }
}

/// A duration in milliseconds; fractions are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Millis(pub(crate) Duration);

impl FromStr for Millis {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        duration(text, 1e-3, "milliseconds").map(Self)
    }
}

/// A duration in seconds; fractions are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seconds(pub(crate) Duration);

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        duration(text, 1.0, "seconds").map(Self)
    }
}

/// The longest duration that makes sense: a year.
const MAX_SECONDS: f64 = 365.0 * 86_400.0;

fn duration(text: &str, unit_seconds: f64, unit: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().unwrap_or(f64::NAN) * unit_seconds;
    if seconds > 0.0 && seconds <= MAX_SECONDS {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("give a number of {unit} above 0, at most a year"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("4K", 4096), ("512M", 512 << 20), ("2g", 2 << 30)] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for bad in ["", "K", "-1", "1.5G", "1KB", "4 K", "99999999999999999999", "17179869184G", "ä"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_positive_and_bounded() {
        assert_eq!("1.5".parse(), Ok(Millis(Duration::from_micros(1500))));
        for bad in ["0", "-1", "nan", "inf", "x", ""] {
            assert!(bad.parse::<Seconds>().is_err(), "{bad}");
        }
    }
}
