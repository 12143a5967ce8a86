//! Flags of the command line: `--name value`, in any order.

use std::collections::BTreeMap;

use crate::Failure;

/// The flags that were given.
#[derive(Debug)]
pub(crate) struct Flags(BTreeMap<String, String>);

impl Flags {
    /// Reads them.
    pub(crate) fn parse(words: &[String]) -> Result<Self, Failure> {
        let mut flags = BTreeMap::new();
        for pair in words.chunks(2) {
            let [name, value] = pair else { return Err(format!("{} needs a value", pair[0])) };
            let name = name.strip_prefix("--").ok_or_else(|| format!("{name} is no flag"))?;
            flags.insert(name.to_owned(), value.clone());
        }
        Ok(Self(flags))
    }

    /// Refuses flags other than these.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), Failure> {
        let other = self.0.keys().find(|name| !known.contains(&name.as_str()));
        other.map_or(Ok(()), |name| Err(format!("there is no --{name} here")))
    }

    /// A flag's value.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A flag's number, or what it is without the flag.
    pub(crate) fn number(&self, name: &str, usual: u64) -> Result<u64, Failure> {
        self.text(name).map_or(Ok(usual), |text| {
            text.parse().map_err(|_| format!("--{name} {text}: a number was expected"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_have_values_and_are_known() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let flags = Flags::parse(&words("--rate 5 --peer a:1")).unwrap();
        assert_eq!((flags.number("rate", 1), flags.number("other", 7)), (Ok(5), Ok(7)));
        assert_eq!(flags.text("peer"), Some("a:1"));
        assert!(flags.number("peer", 1).is_err());
        assert!(flags.only(&["rate"]).unwrap_err().contains("--peer"));
        assert!(Flags::parse(&words("--rate")).is_err() && Flags::parse(&words("rate 5")).is_err());
    }
}
