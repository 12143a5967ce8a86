//! The processor's identity, by `proc_cpuinfo(5)`.

use std::fs;
use std::path::PathBuf;

use ferry_contract::{Extra, Processor};

use crate::probe::ProbeError;

pub(super) fn processor() -> Result<Processor, ProbeError> {
    let path = PathBuf::from("/proc/cpuinfo");
    let text = fs::read_to_string(&path).map_err(|source| ProbeError::File { path, source })?;
    Ok(identity(&text))
}

/// The first processor of `proc_cpuinfo(5)`; what it does not say is empty or 0.
fn identity(cpuinfo: &str) -> Processor {
    let of = |name: &str| {
        let pairs = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        pairs
            .map(|(name, value)| (name.trim(), value.trim()))
            .find(|(known, _)| *known == name)
            .map_or("", |pair| pair.1)
    };
    let number = |name: &str| of(name).parse().unwrap_or(0);
    Processor {
        vendor: of("vendor_id").to_owned(),
        family: number("cpu family"),
        model: number("model"),
        stepping: number("stepping"),
        brand: of("model name").to_owned(),
        microcode: of("microcode")
            .strip_prefix("0x")
            .and_then(|hex| u64::from_str_radix(hex, 16).ok())
            .unwrap_or(0),
        extra: Extra::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_processor_is_read() {
        let text = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: A: B\nstepping\t: 8\nmicrocode\t: 0x2b000603\n\nprocessor\t: 1\nmodel\t\t: 1\n";
        let processor = identity(text);
        assert_eq!((processor.family, processor.model, processor.stepping), (6, 143, 8));
        assert_eq!((processor.vendor.as_str(), processor.brand.as_str()), ("GenuineIntel", "A: B"));
        assert_eq!(processor.microcode, 0x2b00_0603);
        assert_eq!(identity(""), Processor::default());
    }
}
