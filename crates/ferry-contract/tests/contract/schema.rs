//! As much of JSON Schema 2020-12 as `docs/profile.schema.json` uses; a keyword that it does not know is
//! an error, so that the schema cannot say more than is checked.

use serde_json::{Map, Value};

/// The first thing that is wrong, with its path.
pub(crate) fn check(schema: &Value, value: &Value) -> Result<(), String> {
    Checker { root: schema }.check(schema, value, "$")
}

struct Checker<'a> {
    root: &'a Value,
}

impl Checker<'_> {
    fn check(&self, schema: &Value, value: &Value, path: &str) -> Result<(), String> {
        let schema = schema.as_object().ok_or("a schema is no object")?;
        for (keyword, rule) in schema {
            self.keyword(schema, keyword, rule, value, path)
                .map_err(|what| if what.starts_with('$') { what } else { format!("{path}: {what}") })?;
        }
        Ok(())
    }

    fn keyword(
        &self,
        schema: &Map<String, Value>,
        keyword: &str,
        rule: &Value,
        value: &Value,
        path: &str,
    ) -> Result<(), String> {
        let hold = |holds: bool| {
            if holds { Ok(()) } else { Err(format!("{keyword} {rule} does not hold for {value}")) }
        };
        let number =
            |value: &Value| value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
        match keyword {
            "$schema" | "$id" | "$defs" | "title" | "description" => Ok(()),
            "$ref" => {
                let name =
                    rule.as_str().and_then(|rule| rule.strip_prefix("#/$defs/")).ok_or("a foreign $ref")?;
                self.check(&self.root["$defs"][name], value, path)
            }
            "const" => hold(rule == value),
            "enum" => hold(rule.as_array().is_some_and(|list| list.contains(value))),
            "type" => hold(match rule.as_str() {
                Some("object") => value.is_object(),
                Some("array") => value.is_array(),
                Some("string") => value.is_string(),
                Some("boolean") => value.is_boolean(),
                Some("integer") => number(value).is_some(),
                _ => return Err("an unknown type".into()),
            }),
            "minimum" => hold(number(value) >= number(rule)),
            "maximum" => hold(number(value) <= number(rule)),
            "maxLength" => {
                hold(value.as_str().is_some_and(|text| text.len() as u64 <= rule.as_u64().unwrap()))
            }
            "maxItems" => {
                hold(value.as_array().is_some_and(|list| list.len() as u64 <= rule.as_u64().unwrap()))
            }
            "pattern" if rule == "^0x([0-9a-f]{2}){1,256}$" => {
                let digits = value.as_str().unwrap_or_default().strip_prefix("0x").unwrap_or_default();
                let even = digits.len().is_multiple_of(2) && (2..=512).contains(&digits.len());
                hold(even && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
            }
            "pattern" => {
                let digits = match rule.as_str() {
                    Some("^0x[0-9a-f]{8}$") => 8,
                    Some("^0x[0-9a-f]{16}$") => 16,
                    _ => return Err("an unknown pattern".into()),
                };
                let text = value.as_str().unwrap_or_default().strip_prefix("0x").unwrap_or_default();
                hold(text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
            }
            "required" => {
                let names = rule.as_array().ok_or("required is no list")?;
                hold(names.iter().all(|name| value.get(name.as_str().unwrap()).is_some()))
            }
            "items" => value
                .as_array()
                .into_iter()
                .flatten()
                .enumerate()
                .try_for_each(|(index, item)| self.check(rule, item, &format!("{path}[{index}]"))),
            "properties" => {
                rule.as_object().ok_or("properties is no object")?.iter().try_for_each(|(name, rule)| {
                    value.get(name).map_or(Ok(()), |value| self.check(rule, value, &format!("{path}.{name}")))
                })
            }
            "additionalProperties" => {
                let known = schema.get("properties").and_then(Value::as_object);
                let mut others = value.as_object().into_iter().flatten();
                others.try_for_each(|(name, value)| match rule {
                    _ if known.is_some_and(|known| known.contains_key(name)) => Ok(()),
                    Value::Bool(false) => Err(format!("{name} is not allowed")),
                    rule => self.check(rule, value, &format!("{path}.{name}")),
                })
            }
            _ => Err(format!("keyword {keyword} is not checked")),
        }
    }
}
