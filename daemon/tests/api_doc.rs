//! `docs/api`: the OpenAPI document as a daemon serves it, and references made from it and from the
//! protocol. `BERTH_BLESS=1` (`cargo xtask docs`) writes them anew.

mod front_support;

use std::{collections::HashMap, fmt::Write as _, fs, path::PathBuf};

use berth_proto::FILE_DESCRIPTOR_SET;
use front_support::Running;
use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet, ServiceDescriptorProto, field_descriptor_proto::Label,
};
use serde_json::Value;

fn keep(name: &str, made: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/api").join(name);
    if std::env::var_os("BERTH_BLESS").is_some() {
        fs::write(&path, made).expect("write the document");
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(there == made, "docs/api/{name} isn't what it is made from: run `cargo xtask docs`");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_and_its_reference_are_kept() {
    let running = Running::start().await;
    let document = running.unix("GET", "/api/v1/openapi.json", None).await.json();
    keep("openapi.json", &format!("{:#}\n", document));
    keep("rest.md", &rest(&document));
}

#[test]
fn the_reference_of_grpc_is_kept() {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("descriptors");
    keep("grpc.md", &grpc(&set));
}

/// One line of a table, without what would end it.
fn cell(text: &str) -> String {
    text.trim().replace('\n', " ").replace('|', "\\|")
}

fn rest(document: &Value) -> String {
    let mut out = String::from(
        "# REST\n\nMade from [openapi.json](openapi.json) by `cargo xtask docs`. Every answer that isn't \
         a success is a `Problem` (RFC 9457, `application/problem+json`). Numbers of 64 bits are \
         strings. Over TCP without TLS there is only GET.\n",
    );
    let paths = document["paths"].as_object().expect("paths");
    for tag in document["tags"].as_array().expect("tags") {
        let name = tag["name"].as_str().expect("a name");
        let _ = write!(out, "\n## {name}\n\n{}\n", tag["description"].as_str().unwrap_or(""));
        for (path, methods) in paths {
            for (method, operation) in methods.as_object().expect("methods") {
                if operation["tags"][0] == name {
                    operation_text(&mut out, path, method, operation);
                }
            }
        }
    }
    out.push_str("\n## Schemas\n");
    for (name, schema) in document["components"]["schemas"].as_object().expect("schemas") {
        let text = schema["description"].as_str().unwrap_or_default();
        let _ = write!(out, "\n### {name}\n\n{text}\n");
        fields(&mut out, schema);
    }
    out
}

fn operation_text(out: &mut String, path: &str, method: &str, operation: &Value) {
    let verb = method.to_ascii_uppercase();
    let text = operation["description"].as_str().unwrap_or_default();
    let _ = write!(out, "\n### {verb} {path}\n\n{text}\n");
    if let Some(parameters) = operation["parameters"].as_array() {
        out.push_str("\n| parameter | in | type | |\n| --- | --- | --- | --- |\n");
        for it in parameters {
            let (name, place) = (it["name"].as_str(), it["in"].as_str());
            let (schema, text) = (&it["schema"], it["description"].as_str());
            let text = text.or(schema["description"].as_str()).unwrap_or_default();
            let (name, place) = (name.unwrap_or_default(), place.unwrap_or_default());
            let _ = writeln!(out, "| `{name}` | {place} | {} | {} |", kind(schema), cell(text));
        }
    }
    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
    let bodies = body["oneOf"].as_array().cloned().unwrap_or_else(|| vec![body.clone()]);
    for body in bodies.iter().filter(|body| body.is_object()) {
        out.push_str("\nThe body:\n");
        fields(out, body);
    }
    for (status, answer) in operation["responses"].as_object().expect("responses") {
        if let Some(content) = answer["content"]["application/json"]["schema"].as_object() {
            let schema = Value::Object(content.clone());
            let _ = writeln!(out, "\nAnswers {status}: {}.", kind(&schema));
        }
    }
}

fn fields(out: &mut String, schema: &Value) {
    if let Some(properties) = schema["properties"].as_object().filter(|all| !all.is_empty()) {
        out.push_str("\n| field | type | |\n| --- | --- | --- |\n");
        for (name, schema) in properties {
            let text = schema["description"].as_str().unwrap_or_default();
            let _ = writeln!(out, "| `{name}` | {} | {} |", kind(schema), cell(text));
        }
    }
}

fn kind(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        return format!("[{name}](#{})", anchor(name));
    }
    if let Some(first) = schema["allOf"][0].as_object() {
        return kind(&Value::Object(first.clone()));
    }
    if let Some(value) = schema.get("const") {
        return format!("`{}`", value.as_str().unwrap_or_default());
    }
    if schema["type"] == "array" {
        return format!("list of {}", kind(&schema["items"]));
    }
    let name = schema["type"].as_str().unwrap_or("any");
    schema["format"].as_str().map_or(name.to_owned(), |format| format!("{name} ({format})"))
}

/// As GitHub makes one of a heading.
fn anchor(heading: &str) -> String {
    let kept = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    heading.to_lowercase().replace(' ', "-").chars().filter(|c| kept(*c)).collect()
}

/// Comments by where they stand.
type Comments<'f> = HashMap<&'f [i32], &'f str>;

fn grpc(set: &FileDescriptorSet) -> String {
    let mut out = String::from(
        "# gRPC\n\nMade from the `.proto` files in [proto/berth/v1](../../proto/berth/v1) by `cargo xtask \
         docs`. The package is `berth.v1`. A refusal is a status with `google.rpc.ErrorInfo` and the \
         message `Refusal` among its details.\n",
    );
    let own: Vec<&FileDescriptorProto> =
        set.file.iter().filter(|file| file.package() == "berth.v1").collect();
    for file in &own {
        let comments = comments(file);
        for (index, service) in (0..).zip(&file.service) {
            service_text(&mut out, &comments, index, service);
        }
    }
    out.push_str("\n## Messages\n");
    for file in &own {
        let comments = comments(file);
        for (index, message) in (0..).zip(&file.message_type) {
            message_text(&mut out, &comments, &[4, index], "", message);
        }
        for (index, item) in (0..).zip(&file.enum_type) {
            enum_text(&mut out, &comments, &[5, index], "", item);
        }
    }
    out
}

fn comments(file: &FileDescriptorProto) -> Comments<'_> {
    let places = file.source_code_info.iter().flat_map(|info| &info.location);
    places.map(|place| (place.path.as_slice(), place.leading_comments())).collect()
}

fn comment(comments: &Comments<'_>, path: &[i32]) -> String {
    let text = comments.get(path).copied().unwrap_or_default();
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned()
}

fn service_text(out: &mut String, at: &Comments<'_>, index: i32, service: &ServiceDescriptorProto) {
    let _ = write!(out, "\n## {}\n\n{}\n\n", service.name(), comment(at, &[6, index]));
    out.push_str("| call | request | answer | |\n| --- | --- | --- | --- |\n");
    for (number, method) in (0..).zip(&service.method) {
        let stream = if method.server_streaming() { "stream of " } else { "" };
        let _ = writeln!(
            out,
            "| `{}` | {} | {stream}{} | {} |",
            method.name(),
            named(method.input_type()),
            named(method.output_type()),
            cell(&comment(at, &[6, index, 2, number]))
        );
    }
}

/// A type as a link to its section.
fn named(full: &str) -> String {
    match full.strip_prefix(".berth.v1.") {
        Some(name) => format!("[{name}](#{})", anchor(name)),
        None => full.trim_start_matches('.').to_owned(),
    }
}

fn message_text(
    out: &mut String,
    at: &Comments<'_>,
    path: &[i32],
    outer: &str,
    message: &DescriptorProto,
) {
    let name = format!("{outer}{}", message.name());
    let _ = write!(out, "\n### {name}\n\n{}\n", comment(at, path));
    if !message.field.is_empty() {
        out.push_str("\n| field | | type | |\n| --- | --- | --- | --- |\n");
    }
    let below = |kind: i32, index: i32| [path, &[kind, index]].concat();
    for (index, field) in (0..).zip(&message.field) {
        let text = cell(&comment(at, &below(2, index)));
        let _ =
            writeln!(out, "| `{}` | {} | {} | {text} |", field.name(), field.number(), of(field));
    }
    for (index, item) in (0..).zip(&message.enum_type) {
        enum_text(out, at, &below(4, index), &format!("{name}."), item);
    }
    for (index, nested) in (0..).zip(&message.nested_type) {
        message_text(out, at, &below(3, index), &format!("{name}."), nested);
    }
}

fn of(field: &FieldDescriptorProto) -> String {
    let kind = if field.type_name().is_empty() {
        format!("{:?}", field.r#type()).to_lowercase()
    } else {
        named(field.type_name())
    };
    match (field.label(), field.proto3_optional()) {
        (Label::Repeated, _) => format!("list of {kind}"),
        (_, true) => format!("optional {kind}"),
        _ => kind,
    }
}

fn enum_text(
    out: &mut String,
    at: &Comments<'_>,
    path: &[i32],
    outer: &str,
    item: &EnumDescriptorProto,
) {
    let _ = write!(out, "\n### {outer}{}\n\n{}\n", item.name(), comment(at, path));
    out.push_str("\n| value | | |\n| --- | --- | --- |\n");
    for (index, value) in (0..).zip(&item.value) {
        let text = cell(&comment(at, &[path, &[2, index]].concat()));
        let _ = writeln!(out, "| `{}` | {} | {text} |", value.name(), value.number());
    }
}
