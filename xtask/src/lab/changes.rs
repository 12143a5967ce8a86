//! What differs between two profiles of one host, a line for each value.

use std::collections::BTreeMap;

use serde_json::Value;

/// The fields by which the entries of a profile's lists are told apart: CPUID entries, MSRs,
/// capabilities and modules, components of extended state.
const KEYS: &[&[&str]] = &[&["leaf", "subleaf"], &["index"], &["name"], &["component"]];

/// The changes from one profile to another, by their places.
pub(super) fn changes(old: &Value, new: &Value) -> Vec<String> {
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    flatten(old, String::new(), &mut before);
    flatten(new, String::new(), &mut after);
    let mut places: Vec<&String> = before.keys().chain(after.keys()).collect();
    places.sort();
    places.dedup();
    let line = |place: &String| match (before.get(place), after.get(place)) {
        (Some(before), Some(after)) if before == after => None,
        (Some(before), Some(after)) => Some(format!("{place}: {before} -> {after}")),
        (Some(value), None) => Some(format!("{place}: gone{}", shown(value))),
        (None, Some(value)) => Some(format!("{place}: new{}", shown(value))),
        (None, None) => None,
    };
    places.into_iter().filter_map(line).collect()
}

/// Writes down each value with its place; of a list's plain values the value itself is the place.
fn flatten(value: &Value, place: String, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            let dot = if place.is_empty() { "" } else { "." };
            for (name, value) in fields {
                flatten(value, format!("{place}{dot}{name}"), into);
            }
        }
        Value::Array(entries) => {
            for entry in entries {
                let (keys, rest) = without_keys(entry);
                flatten(&rest, format!("{place}[{keys}]"), into);
            }
        }
        plain => {
            into.insert(place, text(plain));
        }
    }
}

/// The key of a list's entry, and what else it holds: nothing, if the entry is a plain value.
fn without_keys(entry: &Value) -> (String, Value) {
    let Value::Object(fields) = entry else { return (text(entry), Value::String(String::new())) };
    let keys = KEYS.iter().find(|keys| keys.iter().all(|key| fields.contains_key(*key)));
    let mut rest = fields.clone();
    let found: Vec<String> = keys
        .into_iter()
        .flat_map(|keys| keys.iter())
        .filter_map(|key| rest.remove(*key))
        .map(|key| text(&key))
        .collect();
    (found.join("."), Value::Object(rest))
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn shown(value: &str) -> String {
    if value.is_empty() { String::new() } else { format!(" ({value})") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn profile() -> Value {
        json!({
            "cpuid": { "supported": [
                { "leaf": "0x00000001", "subleaf": "0x00000000", "eax": "0x00000001", "ebx": "0x00000000" },
                { "leaf": "0x00000007", "subleaf": "0x00000000", "eax": "0x00000000", "ebx": "0x00000000" },
            ] },
            "capabilities": [{ "number": 3, "name": "KVM_CAP_A", "vm": 1 }],
            "msrs": { "listed": ["0x00000010", "0x0000001b"] },
            "tsc": { "scales": false },
        })
    }

    #[test]
    fn each_change_is_named_by_its_place() {
        let old = profile();
        let mut new = profile();
        new["cpuid"]["supported"][0]["eax"] = "0x00000003".into();
        new["cpuid"]["supported"].as_array_mut().unwrap().remove(1);
        new["capabilities"][0]["vm"] = 2.into();
        new["tsc"]["scales"] = true.into();
        new["msrs"]["listed"] = json!(["0x00000010", "0x00000011"]);
        assert_eq!(
            changes(&old, &new),
            [
                "capabilities[KVM_CAP_A].vm: 1 -> 2",
                "cpuid.supported[0x00000001.0x00000000].eax: 0x00000001 -> 0x00000003",
                "cpuid.supported[0x00000007.0x00000000].eax: gone (0x00000000)",
                "cpuid.supported[0x00000007.0x00000000].ebx: gone (0x00000000)",
                "msrs.listed[0x00000011]: new",
                "msrs.listed[0x0000001b]: gone",
                "tsc.scales: false -> true",
            ]
        );
        assert_eq!(changes(&old, &old), [""; 0]);
    }
}
