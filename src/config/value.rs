//! [`Value`]: file, environment and flags in one tree, before anything is known about types.
//!
//! Text from the environment is read as whatever its key asks for: that is decided while deserializing.

use std::fmt;

use indexmap::IndexMap;
use serde::{
    Deserialize,
    de::{
        self, Deserializer, IntoDeserializer, Visitor,
        value::{Error, MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};

/// A tree of settings. Tables keep the order in which their keys were set.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Value {
    Table(IndexMap<String, Self>),
    List(Vec<Self>),
    Text(String),
    /// from the environment or a flag: a number, a list or JSON if its key asks for one
    Untyped(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
}

impl Value {
    pub(super) fn table() -> Self {
        Self::Table(IndexMap::new())
    }

    /// The value of a key of this table, whatever the case of its letters: variables are in capitals.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        let Self::Table(table) = self else { return None };
        table.get(spelling(table, key).unwrap_or(key))
    }

    pub(super) fn find(&self, path: &[String]) -> Option<&Self> {
        path.iter().try_fold(self, |value, key| value.get(key))
    }

    /// Sets the value at a path and makes the tables on the way. Text on the way is read as JSON.
    ///
    /// # Errors
    /// The path of what is in the way.
    pub(super) fn set(&mut self, path: &[String], value: Self) -> Result<(), Vec<String>> {
        let Some((last, parents)) = path.split_last() else { return Ok(()) };
        let mut here = self;
        for (depth, key) in parents.iter().enumerate() {
            let Some(table) = here.as_table() else { return Err(path.iter().take(depth).cloned().collect()) };
            let key = spelling(table, key).unwrap_or(key).to_owned();
            here = table.entry(key).or_insert_with(Self::table);
        }
        let Some(table) = here.as_table() else { return Err(parents.to_vec()) };
        let key = spelling(table, last).unwrap_or(last).to_owned();
        table.insert(key, value);
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &[String]) -> bool {
        let Some((last, parents)) = path.split_last() else { return false };
        let mut here = self;
        for key in parents {
            let Self::Table(table) = here else { return false };
            let Some(next) = table.get_mut(key) else { return false };
            here = next;
        }
        let Self::Table(table) = here else { return false };
        table.shift_remove(last).is_some()
    }

    /// Calls `visit` with the dotted path of every text in the tree.
    pub(super) fn each_text(&self, path: &mut Vec<String>, visit: &mut impl FnMut(&[String], &str)) {
        match self {
            Self::Table(table) => {
                for (key, value) in table {
                    path.push(key.clone());
                    value.each_text(path, visit);
                    path.pop();
                }
            }
            Self::List(values) => values.iter().for_each(|value| value.each_text(path, visit)),
            Self::Text(text) | Self::Untyped(text) => visit(path, text),
            Self::Integer(_) | Self::Float(_) | Self::Bool(_) => {}
        }
    }

    fn as_table(&mut self) -> Option<&mut IndexMap<String, Self>> {
        if let Self::Untyped(text) = self {
            *self = json(text).ok()?;
        }
        match self {
            Self::Table(table) => Some(table),
            _ => None,
        }
    }
}

/// The key as the table has it.
fn spelling<'a>(table: &'a IndexMap<String, Value>, key: &str) -> Option<&'a str> {
    if table.contains_key(key) {
        return None;
    }
    table.keys().find(|known| known.eq_ignore_ascii_case(key)).map(String::as_str)
}

fn json(text: &str) -> Result<Value, Error> {
    // The error's own text may show the value.
    serde_json::from_str(text)
        .map_err(|err| de::Error::custom(format!("is not JSON (line {}, column {})", err.line(), err.column())))
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Tree)
    }
}

struct Tree;

impl<'de> Visitor<'de> for Tree {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table, a list, a text, a number, true or false")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        i64::try_from(value).map(Value::Integer).map_err(E::custom)
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = access.next_element()? {
            values.push(value);
        }
        Ok(Value::List(values))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut table = IndexMap::new();
        while let Some((key, value)) = access.next_entry()? {
            table.insert(key, value);
        }
        Ok(Value::Table(table))
    }
}

impl IntoDeserializer<'_> for Value {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! read_as {
    ($($method:ident: $type:ty, $visit:ident;)+) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self {
                Self::Untyped(text) => match text.trim().parse::<$type>() {
                    Ok(value) => visitor.$visit(value),
                    Err(_) => visitor.visit_string(text),
                },
                other => other.deserialize_any(visitor),
            }
        })+
    };
}

impl<'de> Deserializer<'de> for Value {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Self::Table(table) => visitor.visit_map(MapDeserializer::new(table.into_iter())),
            Self::List(values) => visitor.visit_seq(SeqDeserializer::new(values.into_iter())),
            Self::Text(text) | Self::Untyped(text) => visitor.visit_string(text),
            Self::Integer(value) => visitor.visit_i64(value),
            Self::Float(value) => visitor.visit_f64(value),
            Self::Bool(value) => visitor.visit_bool(value),
        }
    }

    read_as! {
        deserialize_bool: bool, visit_bool;
        deserialize_u8: u64, visit_u64;
        deserialize_u16: u64, visit_u64;
        deserialize_u32: u64, visit_u64;
        deserialize_u64: u64, visit_u64;
        deserialize_i8: i64, visit_i64;
        deserialize_i16: i64, visit_i64;
        deserialize_i32: i64, visit_i64;
        deserialize_i64: i64, visit_i64;
        deserialize_f32: f64, visit_f64;
        deserialize_f64: f64, visit_f64;
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Self::Untyped(text) if text.trim_start().starts_with('[') => json(&text)?.deserialize_seq(visitor),
            Self::Untyped(text) => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                let parts: Vec<Self> = parts.map(|part| Self::Untyped(part.to_owned())).collect();
                visitor.visit_seq(SeqDeserializer::new(parts.into_iter()))
            }
            other => other.deserialize_any(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Self::Untyped(text) => json(&text)?.deserialize_any(visitor),
            other => other.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self {
            Self::Text(text) | Self::Untyped(text) => visitor.visit_enum(text.into_deserializer()),
            _ => Err(de::Error::custom(format!("is not one of `{}`", variants.join("`, `")))),
        }
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(dotted: &str) -> Vec<String> {
        dotted.split('.').map(str::to_owned).collect()
    }

    fn read<T: de::DeserializeOwned>(text: &str) -> Result<T, String> {
        T::deserialize(Value::Untyped(text.to_owned())).map_err(|err| err.to_string())
    }

    #[test]
    fn untyped_text_is_read_as_what_its_key_asks_for() {
        assert_eq!(read::<u32>(" 7 "), Ok(7));
        assert_eq!(read::<bool>("true"), Ok(true));
        assert_eq!(read::<Option<String>>("7"), Ok(Some("7".to_owned())));
        assert_eq!(read::<Vec<String>>("a, b,,c"), Ok(path("a.b.c")));
        assert_eq!(read::<Vec<u32>>("[1, 2]"), Ok(vec![1, 2]));
        assert_eq!(read::<IndexMap<String, u32>>(r#"{"b": 1, "a": 2}"#).unwrap().keys().last().unwrap(), "a");
        assert_eq!(read::<u32>("seven").unwrap_err(), "invalid type: string \"seven\", expected u32");
        assert_eq!(read::<IndexMap<String, u32>>("{hunter2").unwrap_err(), "is not JSON (line 1, column 2)");
    }

    #[test]
    fn a_path_may_lead_into_json_and_finds_keys_in_any_case() {
        let mut tree = Value::table();
        tree.set(&path("llm.providers"), Value::Untyped(r#"{"Fast": {"type": "demo"}}"#.to_owned())).unwrap();
        tree.set(&path("llm.providers.fast.label"), Value::Untyped("quick".to_owned())).unwrap();
        assert_eq!(tree.find(&path("llm.providers.Fast.label")), Some(&Value::Untyped("quick".to_owned())));
        assert_eq!(tree.find(&path("llm.providers.FAST.type")), Some(&Value::Text("demo".to_owned())));
        let blocked = tree.set(&path("llm.providers.fast.type.deeper"), Value::Bool(true));
        assert_eq!(blocked, Err(path("llm.providers.fast.type")));
        assert!(tree.remove(&path("llm.providers.Fast")));
        assert!(!tree.remove(&path("llm.providers.Fast")));
    }
}
