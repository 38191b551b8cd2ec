//! The protocol's descriptors, indexed by name, with the comments of the .proto files.
//!
//! The OpenAPI document is made from them, and query parameters get their types from them.

use std::collections::{BTreeMap, HashMap};

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

/// Messages, enums and services by full name, without a leading dot.
#[derive(Debug, Default)]
pub(crate) struct Descriptors {
    pub(crate) messages: BTreeMap<String, MessageInfo>,
    pub(crate) enums: BTreeMap<String, EnumInfo>,
    pub(crate) services: BTreeMap<String, ServiceInfo>,
}

/// A message type.
#[derive(Debug)]
pub(crate) struct MessageInfo {
    pub(crate) comment: String,
    pub(crate) fields: Vec<FieldInfo>,
}

/// A field of a message.
#[derive(Debug)]
pub(crate) struct FieldInfo {
    pub(crate) name: String,
    pub(crate) json_name: String,
    pub(crate) comment: String,
    pub(crate) kind: Kind,
    pub(crate) repeated: bool,
    /// Has presence: it is left out of JSON when unset.
    pub(crate) optional: bool,
    /// The oneof that it belongs to.
    pub(crate) oneof: Option<i32>,
}

/// The type of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    Text,
    Bytes,
    Float,
    /// 32 bits, signed or not.
    Number {
        signed: bool,
    },
    /// 64 bits, a string in JSON.
    Long {
        signed: bool,
    },
    Enum(String),
    Message(String),
}

/// An enum type.
#[derive(Debug)]
pub(crate) struct EnumInfo {
    pub(crate) comment: String,
    /// Names with their comments.
    pub(crate) values: Vec<(String, String)>,
}

/// A gRPC service.
#[derive(Debug)]
pub(crate) struct ServiceInfo {
    pub(crate) comment: String,
    pub(crate) methods: Vec<MethodInfo>,
}

/// A method of a service.
#[derive(Debug)]
pub(crate) struct MethodInfo {
    pub(crate) name: String,
    pub(crate) comment: String,
    pub(crate) request: String,
    pub(crate) response: String,
    pub(crate) streaming: bool,
}

/// The comments of one file by the path of what they stand at.
type Comments = HashMap<Vec<i32>, String>;

// Field numbers of descriptor.proto, of which the paths of comments are made.
const FILE_MESSAGE: i32 = 4;
const FILE_ENUM: i32 = 5;
const FILE_SERVICE: i32 = 6;
const MESSAGE_FIELD: i32 = 2;
const MESSAGE_NESTED: i32 = 3;
const MESSAGE_ENUM: i32 = 4;
const ENUM_VALUE: i32 = 2;
const SERVICE_METHOD: i32 = 2;

impl Descriptors {
    /// The descriptors of `berth.v1`.
    ///
    /// # Errors
    /// The embedded set can't be decoded: the build is broken.
    pub(crate) fn load() -> Result<Self, prost::DecodeError> {
        let set = FileDescriptorSet::decode(berth_proto::FILE_DESCRIPTOR_SET)?;
        let mut all = Self::default();
        for file in &set.file {
            all.add_file(file);
        }
        Ok(all)
    }

    /// The method of a service of `berth.v1`.
    pub(crate) fn method(&self, service: &str, method: &str) -> Option<&MethodInfo> {
        let service = self.services.get(&format!("berth.v1.{service}"))?;
        service.methods.iter().find(|info| info.name == method)
    }

    fn add_file(&mut self, file: &FileDescriptorProto) {
        let comments = comments(file);
        let package = file.package();
        for (at, message) in (0..).zip(&file.message_type) {
            self.add_message(package, message, &[FILE_MESSAGE, at], &comments);
        }
        for (at, item) in (0..).zip(&file.enum_type) {
            self.add_enum(package, item, &[FILE_ENUM, at], &comments);
        }
        for (at, service) in (0..).zip(&file.service) {
            let path = [FILE_SERVICE, at];
            let methods = (0..).zip(&service.method).map(|(index, method)| MethodInfo {
                name: method.name().to_owned(),
                comment: below(&comments, &path, &[SERVICE_METHOD, index]),
                request: method.input_type().trim_start_matches('.').to_owned(),
                response: method.output_type().trim_start_matches('.').to_owned(),
                streaming: method.server_streaming(),
            });
            let info =
                ServiceInfo { comment: below(&comments, &path, &[]), methods: methods.collect() };
            self.services.insert(format!("{package}.{}", service.name()), info);
        }
    }

    fn add_message(
        &mut self,
        scope: &str,
        message: &DescriptorProto,
        path: &[i32],
        comments: &Comments,
    ) {
        let full_name = format!("{scope}.{}", message.name());
        for (at, nested) in (0..).zip(&message.nested_type) {
            let nested_path = [path, &[MESSAGE_NESTED, at]].concat();
            self.add_message(&full_name, nested, &nested_path, comments);
        }
        for (at, item) in (0..).zip(&message.enum_type) {
            self.add_enum(&full_name, item, &[path, &[MESSAGE_ENUM, at]].concat(), comments);
        }
        let fields = (0..)
            .zip(&message.field)
            .map(|(at, field)| field_info(field, below(comments, path, &[MESSAGE_FIELD, at])));
        let info = MessageInfo { comment: below(comments, path, &[]), fields: fields.collect() };
        self.messages.insert(full_name, info);
    }

    fn add_enum(
        &mut self,
        scope: &str,
        item: &EnumDescriptorProto,
        path: &[i32],
        comments: &Comments,
    ) {
        let values = (0..)
            .zip(&item.value)
            .map(|(at, value)| (value.name().to_owned(), below(comments, path, &[ENUM_VALUE, at])));
        let info = EnumInfo { comment: below(comments, path, &[]), values: values.collect() };
        self.enums.insert(format!("{scope}.{}", item.name()), info);
    }
}

impl MessageInfo {
    /// A field by either of its names.
    pub(crate) fn field(&self, name: &str) -> Option<&FieldInfo> {
        self.fields.iter().find(|field| field.json_name == name || field.name == name)
    }
}

fn comments(file: &FileDescriptorProto) -> Comments {
    let Some(info) = &file.source_code_info else { return Comments::new() };
    info.location
        .iter()
        .filter_map(|location| {
            let text = location.leading_comments.as_deref()?;
            Some((location.path.clone(), tidy(text)))
        })
        .collect()
}

/// A comment as one text: lines of a paragraph are joined, paragraphs kept.
fn tidy(comment: &str) -> String {
    let mut text = String::new();
    for line in comment.lines().map(str::trim) {
        if line.is_empty() {
            if !text.is_empty() && !text.ends_with("\n\n") {
                text.push_str("\n\n");
            }
            continue;
        }
        if !text.is_empty() && !text.ends_with('\n') {
            text.push(' ');
        }
        text.push_str(line);
    }
    text.trim_end().to_owned()
}

fn below(comments: &Comments, path: &[i32], rest: &[i32]) -> String {
    comments.get(&[path, rest].concat()).cloned().unwrap_or_default()
}

fn field_info(field: &FieldDescriptorProto, comment: String) -> FieldInfo {
    let type_name = || field.type_name().trim_start_matches('.').to_owned();
    let kind = match field.r#type() {
        Type::Bool => Kind::Bool,
        Type::String => Kind::Text,
        Type::Bytes => Kind::Bytes,
        Type::Double | Type::Float => Kind::Float,
        Type::Int32 | Type::Sint32 | Type::Sfixed32 => Kind::Number { signed: true },
        Type::Uint32 | Type::Fixed32 => Kind::Number { signed: false },
        Type::Int64 | Type::Sint64 | Type::Sfixed64 => Kind::Long { signed: true },
        Type::Uint64 | Type::Fixed64 => Kind::Long { signed: false },
        Type::Enum => Kind::Enum(type_name()),
        Type::Message | Type::Group => Kind::Message(type_name()),
    };
    let repeated = field.label() == Label::Repeated;
    let optional = field.proto3_optional();
    FieldInfo {
        name: field.name().to_owned(),
        json_name: field.json_name().to_owned(),
        comment,
        optional: optional || (!repeated && matches!(kind, Kind::Message(_))),
        oneof: if optional { None } else { field.oneof_index },
        kind,
        repeated,
    }
}

#[cfg(test)]
mod tests {
    use super::{Descriptors, Kind};

    #[test]
    fn comments_and_types_come_from_the_proto_files() {
        let all = Descriptors::load().expect("the embedded set decodes");
        let reservation = &all.messages["berth.v1.Reservation"];
        let epoch = reservation.field("epoch").expect("a reservation has an epoch");
        assert_eq!(epoch.kind, Kind::Long { signed: false });
        assert!(epoch.comment.starts_with("Fencing number."), "{:?}", epoch.comment);
        let expires = reservation.field("expires_at").expect("found by its proto name");
        assert_eq!(expires.json_name, "expiresAt");
        assert!(expires.optional);
        let watch = all.method("Events", "Watch").expect("there is a Watch");
        assert!(watch.streaming);
        assert!(all.enums["berth.v1.Owner.Kind"].values.iter().any(|(name, _)| name == "FOREIGN"));
    }
}
