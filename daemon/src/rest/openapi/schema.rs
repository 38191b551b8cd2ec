//! JSON Schemas of the messages, as their proto3 JSON mapping writes them.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::rest::descriptors::{Descriptors, EnumInfo, FieldInfo, Kind, MessageInfo};

/// Collects the schemas of what is referred to.
pub(super) struct Schemas<'a> {
    descriptors: &'a Descriptors,
    /// Full names of types that an answer can hold.
    answers: BTreeSet<String>,
    /// Full names of types that a request can hold.
    requests: BTreeSet<String>,
}

/// The name of a type among the schemas: its full name without the package.
pub(super) fn schema_name(full_name: &str) -> &str {
    full_name.strip_prefix("berth.v1.").unwrap_or(full_name)
}

/// A reference to a type's schema.
pub(super) fn reference(full_name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{}", schema_name(full_name)) })
}

impl<'a> Schemas<'a> {
    pub(super) fn new(descriptors: &'a Descriptors) -> Self {
        Self { descriptors, answers: BTreeSet::new(), requests: BTreeSet::new() }
    }

    /// Adds an answer's type and all that it holds.
    pub(super) fn add_answer(&mut self, full_name: &str) {
        let mut seen = std::mem::take(&mut self.answers);
        self.reach(full_name, &mut seen);
        self.answers = seen;
    }

    /// A request's own fields as the properties of a body. What they refer to is added.
    pub(super) fn body(&mut self, message: &MessageInfo, without: &[&str]) -> Map<String, Value> {
        let mut properties = Map::new();
        for field in message.fields.iter().filter(|field| !without.contains(&&*field.json_name)) {
            if let Kind::Message(name) | Kind::Enum(name) = &field.kind {
                let mut seen = std::mem::take(&mut self.requests);
                self.reach(name, &mut seen);
                self.requests = seen;
            }
            properties.insert(field.json_name.clone(), field_schema(field));
        }
        properties
    }

    fn reach(&self, full_name: &str, seen: &mut BTreeSet<String>) {
        if well_known(full_name).is_some() || !seen.insert(full_name.to_owned()) {
            return;
        }
        let Some(message) = self.descriptors.messages.get(full_name) else { return };
        for field in &message.fields {
            if let Kind::Message(name) | Kind::Enum(name) = &field.kind {
                self.reach(name, seen);
            }
        }
    }

    /// The schemas of everything that was added.
    pub(super) fn finish(&self) -> Map<String, Value> {
        let mut schemas = Map::new();
        for full_name in self.answers.union(&self.requests) {
            let schema = if let Some(message) = self.descriptors.messages.get(full_name) {
                message_schema(message, !self.requests.contains(full_name))
            } else if let Some(item) = self.descriptors.enums.get(full_name) {
                enum_schema(item)
            } else {
                continue;
            };
            schemas.insert(schema_name(full_name).to_owned(), schema);
        }
        schemas
    }
}

/// A message. `complete` says that it is only ever written by the daemon, which leaves out
/// nothing but what is unset and has presence.
fn message_schema(message: &MessageInfo, complete: bool) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    let mut one_of = Vec::new();
    for field in &message.fields {
        properties.insert(field.json_name.clone(), field_schema(field));
        if field.oneof.is_some() {
            one_of.push(json!({ "required": [field.json_name] }));
        } else if complete && !field.optional {
            required.push(field.json_name.clone());
        }
    }
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("object"));
    describe(&mut schema, &message.comment);
    schema.insert("properties".to_owned(), Value::Object(properties));
    if !required.is_empty() {
        schema.insert("required".to_owned(), json!(required));
    }
    if !one_of.is_empty() {
        schema.insert("oneOf".to_owned(), json!(one_of));
    }
    if !complete {
        schema.insert("additionalProperties".to_owned(), json!(false));
    }
    Value::Object(schema)
}

fn enum_schema(item: &EnumInfo) -> Value {
    let names: Vec<&str> = item.values.iter().map(|(name, _)| name.as_str()).collect();
    let mut text = item.comment.clone();
    for (name, comment) in item.values.iter().filter(|(_, comment)| !comment.is_empty()) {
        text.push_str(&format!("\n- `{name}`: {comment}"));
    }
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("string"));
    describe(&mut schema, text.trim());
    schema.insert("enum".to_owned(), json!(names));
    Value::Object(schema)
}

/// The schema of a field's value, with the field's comment.
pub(super) fn field_schema(field: &FieldInfo) -> Value {
    let one = kind_schema(&field.kind);
    let mut schema = if field.repeated {
        let mut list = Map::new();
        list.insert("type".to_owned(), json!("array"));
        list.insert("items".to_owned(), one);
        list
    } else {
        match one {
            Value::Object(one) => one,
            _ => Map::new(),
        }
    };
    describe(&mut schema, &field.comment);
    Value::Object(schema)
}

fn kind_schema(kind: &Kind) -> Value {
    match kind {
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Text => json!({ "type": "string" }),
        Kind::Bytes => json!({ "type": "string", "contentEncoding": "base64" }),
        Kind::Float => json!({ "type": "number" }),
        Kind::Number { signed: true } => json!({ "type": "integer", "format": "int32" }),
        Kind::Number { signed: false } => {
            json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX })
        }
        Kind::Long { signed: true } => {
            json!({ "type": "string", "format": "int64", "pattern": "^-?[0-9]+$" })
        }
        Kind::Long { signed: false } => {
            json!({ "type": "string", "format": "uint64", "pattern": "^[0-9]+$" })
        }
        Kind::Enum(name) => reference(name),
        Kind::Message(name) => well_known(name).unwrap_or_else(|| reference(name)),
    }
}

/// Types whose JSON is not that of a message.
fn well_known(full_name: &str) -> Option<Value> {
    match full_name {
        "google.protobuf.Timestamp" => Some(json!({ "type": "string", "format": "date-time" })),
        "google.protobuf.Struct" => Some(json!({ "type": "object" })),
        _ => None,
    }
}

fn describe(schema: &mut Map<String, Value>, comment: &str) {
    if !comment.is_empty() {
        schema.insert("description".to_owned(), json!(comment));
    }
}
