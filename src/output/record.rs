// SPDX-License-Identifier: MIT OR Apache-2.0

//! One row, before it is decided how it looks.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::ser::{Serialize, SerializeMap, Serializer};

/// What a JSON line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One thing that happened.
    Event,
    /// One row of an interval's table.
    Row,
    /// The last line: totals and losses.
    Summary,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Row => "row",
            Self::Summary => "summary",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    Texts(Vec<String>),
    Numbers(Vec<u32>),
    Addr(IpAddr),
    Time(Timestamp),
    /// Named values inside a value, such as the arguments of a call.
    Map(Vec<(&'static str, Self)>),
}

macro_rules! value_from {
    ($($variant:ident($($from:ty),+)),+ $(,)?) => {
        $($(impl From<$from> for Value {
            fn from(value: $from) -> Self {
                Self::$variant(value.into())
            }
        })+)+
    };
}

value_from! {
    Bool(bool),
    Unsigned(u64, u32, u16, u8),
    Signed(i64, i32),
    Float(f64),
    Text(String, &str),
    Texts(Vec<String>),
    Numbers(Vec<u32>),
    Addr(IpAddr),
    Time(Timestamp),
    Map(Vec<(&'static str, Value)>),
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl Value {
    /// How the value stands in a table or in CSV. Nothing is escaped here.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Null => String::new(),
            Self::Bool(value) => value.to_string(),
            Self::Unsigned(value) => value.to_string(),
            Self::Signed(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Text(value) => value.clone(),
            Self::Texts(values) => values.join(","),
            Self::Numbers(values) => {
                let texts: Vec<String> = values.iter().map(u32::to_string).collect();
                texts.join(",")
            }
            Self::Addr(value) => value.to_string(),
            Self::Time(value) => value.to_string(),
            Self::Map(entries) => entries
                .iter()
                .map(|(name, value)| format!("{name}={}", value.text()))
                .collect::<Vec<_>>()
                .join(" "),
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Unsigned(value) => serializer.serialize_u64(*value),
            Self::Signed(value) => serializer.serialize_i64(*value),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Text(value) => serializer.serialize_str(value),
            Self::Texts(values) => values.serialize(serializer),
            Self::Numbers(values) => values.serialize(serializer),
            Self::Addr(value) => serializer.collect_str(value),
            Self::Time(value) => serializer.collect_str(value),
            Self::Map(entries) => {
                serializer.collect_map(entries.iter().map(|(name, value)| (name, value)))
            }
        }
    }
}

/// One row: a value for each field of its schema, in the schema's order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) kind: Kind,
    pub(crate) fields: Vec<(&'static str, Value)>,
    /// For columns alone: what is several fields to a program and one cell to people.
    shown: Vec<(&'static str, Value)>,
}

impl Record {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind, fields: Vec::new(), shown: Vec::new() }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    /// Adds what a table shows and JSON and CSV have in fields of their own.
    pub(crate) fn shown(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.shown.push((name, value.into()));
        self
    }

    pub(crate) fn get(&self, name: &str) -> &Value {
        self.fields
            .iter()
            .chain(&self.shown)
            .find(|(field, _)| *field == name)
            .map_or(&Value::Null, |(_, value)| value)
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.fields.len() + 1))?;
        map.serialize_entry("type", self.kind.name())?;
        for (name, value) in &self.fields {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// One field of a command's schema: its name in JSON and CSV, and what it says, with its unit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) doc: &'static str,
}

impl Field {
    pub(crate) const fn new(name: &'static str, doc: &'static str) -> Self {
        Self { name, doc }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_order_and_types() {
        let record = Record::new(Kind::Event)
            .with("time", Timestamp::UNIX_EPOCH)
            .with("pid", 7_u32)
            .with("comm", "a\u{1b}\"b")
            .with("saddr", None::<IpAddr>)
            .with("latency_us", 1.5)
            .with("name", vec!["a".to_string(), "b".to_string()]);
        assert_eq!(
            serde_json::to_string(&record).unwrap(),
            r#"{"type":"event","time":"1970-01-01T00:00:00Z","pid":7,"comm":"a\u001b\"b","saddr":null,"latency_us":1.5,"name":["a","b"]}"#
        );
    }
}
