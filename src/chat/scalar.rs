//! The values of an entry's metadata.

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, Visitor},
};

/// Small facts that ride with an entry; at most 32 keys.
pub type Metadata = BTreeMap<String, Scalar>;

/// The value of one key of an entry's metadata.
#[derive(Clone, PartialEq, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Scalar {
    /// true or false
    Bool(bool),
    /// a whole number
    Integer(i64),
    /// any other number
    Number(f64),
    /// a text of at most 1000 characters
    Text(String),
}

/// Reads a value as what it is. The derived reader would try one kind after the other, and make an error, with its
/// text, for each that it is not.
impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

struct Any;

impl Visitor<'_> for Any {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a number or a boolean")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Scalar, E> {
        Ok(Scalar::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Scalar, E> {
        Ok(Scalar::Integer(value))
    }

    #[expect(clippy::cast_precision_loss, reason = "what no i64 holds is kept as precisely as JSON's other readers do")]
    fn visit_u64<E: Error>(self, value: u64) -> Result<Scalar, E> {
        Ok(i64::try_from(value).map_or(Scalar::Number(value as f64), Scalar::Integer))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Scalar, E> {
        Ok(Scalar::Number(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Scalar, E> {
        Ok(Scalar::Text(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_what_they_are() {
        let read = serde_json::from_str::<Metadata>(
            r#"{"a":"x","b":true,"c":-3,"d":1.5,"e":18446744073709551615,"f":"\u00e9"}"#,
        );
        let expected = [
            ("a", Scalar::Text("x".to_owned())),
            ("b", Scalar::Bool(true)),
            ("c", Scalar::Integer(-3)),
            ("d", Scalar::Number(1.5)),
            ("e", Scalar::Number(18_446_744_073_709_551_615.0)),
            ("f", Scalar::Text("é".to_owned())),
        ];
        assert_eq!(read.unwrap(), expected.map(|(key, value)| (key.to_owned(), value)).into());
        for other in [r#"{"a":null}"#, r#"{"a":[1]}"#, r#"{"a":{}}"#] {
            let refused = serde_json::from_str::<Metadata>(other).unwrap_err().to_string();
            assert!(refused.contains("expected a string, a number or a boolean"), "{refused}");
        }
    }
}
