//! The catalogue: profiles of hosts that anybody can boot, in the program itself.
//!
//! They lie in `catalog/VENDOR/KERNEL/MODEL.json`, where `cargo xtask lab probe` puts them, and are named
//! without the ending: `amd/6.12/EPYC`. `build.rs` makes the table.

use ferry_contract::MAX_FILE_BYTES;

/// Names and texts, packed; sorted by name.
static PROFILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/catalog.rs"));

/// The text of the profile of that name.
pub(crate) fn find(name: &str) -> Option<Vec<u8>> {
    let at = PROFILES.binary_search_by_key(&name, |(name, _)| name).ok()?;
    let (_, packed) = PROFILES.get(at)?;
    miniz_oxide::inflate::decompress_to_vec_with_limit(packed, MAX_FILE_BYTES).ok()
}

/// All names, sorted.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    PROFILES.iter().map(|(name, _)| *name)
}

/// The three names that are most like this one, the most like it first; none if none is like it.
pub(crate) fn nearest(given: &str) -> Vec<&'static str> {
    let mut ranked: Vec<_> = names().map(|name| (likeness(given, name), name)).collect();
    ranked.retain(|(likeness, _)| *likeness > 0);
    ranked.sort_by_key(|(likeness, _)| std::cmp::Reverse(*likeness));
    ranked.into_iter().take(3).map(|(_, name)| name).collect()
}

/// Part by part from the end, because a model's name says the most: equal parts count most, then how many
/// letters two parts begin with alike, then a length alike.
fn likeness(given: &str, name: &str) -> usize {
    const EQUAL: usize = 1000;
    let alike = |(given, name): (&str, &str)| {
        if given.eq_ignore_ascii_case(name) {
            return EQUAL;
        }
        let letters = given.chars().zip(name.chars());
        let begun = letters.take_while(|(given, name)| given.eq_ignore_ascii_case(name)).count();
        (begun * 4).saturating_sub(given.len().abs_diff(name.len()).min(3))
    };
    given.rsplit('/').zip(name.rsplit('/')).map(alike).sum()
}

#[cfg(test)]
mod tests {
    use ferry_contract::Profile;

    use super::*;

    #[test]
    fn every_profile_is_found_and_read_and_says_how_it_is_taken_again() {
        assert!(names().count() > 20);
        for name in names() {
            let text = find(name).unwrap();
            let profile = Profile::from_json(&text).unwrap();
            let fields: serde_json::Value = serde_json::from_slice(&text).unwrap();
            assert_eq!(fields["taken_with"], format!("cargo xtask lab probe {name}"));
            // The kernel's series is in the name, its exact version inside.
            let series = name.split('/').nth(1).unwrap();
            assert!(profile.kernel().release.starts_with(&format!("{series}.")), "{name}");
            let vendor = match &profile {
                Profile::X86(profile) => profile.processor.vendor.as_str(),
                Profile::Arm64(_) => "arm64",
            };
            let known = [("AuthenticAMD", "amd/"), ("GenuineIntel", "intel/"), ("arm64", "arm64/")];
            assert!(known.iter().any(|(known, at)| *known == vendor && name.starts_with(at)), "{name}");
            // It is as `ferry probe` would have written it.
            assert!(text == profile.to_json().as_bytes(), "{name}");
        }
        assert_eq!(find("amd/6.12"), None);
    }

    #[test]
    fn a_name_that_is_none_has_its_nearest() {
        assert_eq!(nearest("amd/6.12/EPYC-Milano")[0], "amd/6.12/EPYC-Milan");
        assert_eq!(nearest("amd/6.13/EPYC-Milan")[0], "amd/6.12/EPYC-Milan");
        assert!(nearest("epyc-rome").iter().all(|name| name.ends_with("/EPYC-Rome")));
        assert!(nearest("/tmp/?").is_empty());
    }
}
