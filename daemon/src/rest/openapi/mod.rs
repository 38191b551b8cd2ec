//! The OpenAPI 3.1 document, made from the routes and the protocol's descriptors.

mod schema;

use std::collections::BTreeMap;

use berth_ownership::Reason;
use serde_json::{Map, Value, json};

use self::schema::{Schemas, field_schema, reference};
use super::{
    descriptors::{Descriptors, Kind, MessageInfo, MethodInfo},
    problem,
    routes::{ParamKind, ROUTES, Reply, Route},
};

/// Where the document is served.
pub(crate) const PATH: &str = "/api/v1/openapi.json";

/// The document.
///
/// # Errors
/// A route names a method or message that the protocol doesn't have: the table is wrong.
pub(crate) fn document(descriptors: &Descriptors) -> Result<Value, String> {
    let mut schemas = Schemas::new(descriptors);
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    let mut at = 0;
    while let Some(first) = ROUTES.get(at) {
        let same = ROUTES[at..]
            .iter()
            .take_while(|route| route.path == first.path && route.method == first.method)
            .count();
        let operation = operation(&ROUTES[at..at + same], descriptors, &mut schemas)?;
        let verb = first.method.as_str().to_ascii_lowercase();
        paths.entry(first.path).or_default().insert(verb, operation);
        at += same;
    }
    for name in ["berth.v1.Owner", "berth.v1.Blocker"] {
        schemas.add_answer(name);
    }
    schemas.add_answer("berth.v1.Event");
    let mut components = schemas.finish();
    components.insert("Problem".to_owned(), problem_schema());
    Ok(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Berth",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Who may do DMA through every IOMMU group of this host.",
            "description": "Bodies are the messages of the protocol `berth.v1` in proto3 JSON. \
                64-bit numbers are strings. Over TCP only GET is served; changes go over the unix \
                socket.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "tags": tags(descriptors),
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {
                "Problem": {
                    "description": "The call was refused or failed.",
                    "content": {
                        problem::MEDIA_TYPE: {
                            "schema": { "$ref": "#/components/schemas/Problem" }
                        }
                    },
                },
            },
        },
    }))
}

fn tags(descriptors: &Descriptors) -> Vec<Value> {
    descriptors
        .services
        .iter()
        .map(|(name, info)| {
            let name = name.rsplit('.').next().unwrap_or(name);
            json!({ "name": name, "description": info.comment })
        })
        .collect()
}

/// One operation: one call, or several that the body's `action` chooses among.
fn operation(
    routes: &[Route],
    descriptors: &Descriptors,
    schemas: &mut Schemas<'_>,
) -> Result<Value, String> {
    let mut found = Vec::new();
    for route in routes {
        let (service, rpc) = route.rpc;
        let method = descriptors
            .method(service, rpc)
            .filter(|method| !method.streaming)
            .ok_or_else(|| format!("the protocol has no unary {service}/{rpc}"))?;
        let message = descriptors
            .messages
            .get(&method.request)
            .ok_or_else(|| format!("the protocol has no {}", method.request))?;
        schemas.add_answer(&method.response);
        found.push((route, method, message));
    }
    let Some((route, method, message)) = found.first().copied() else {
        return Err("an operation without a route".to_owned());
    };
    let mut operation = Map::new();
    operation.insert("operationId".to_owned(), json!(operation_id(routes)));
    operation.insert("tags".to_owned(), json!([route.rpc.0]));
    describe(&mut operation, &found);
    let parameters = parameters(route, message, schemas);
    if !parameters.is_empty() {
        operation.insert("parameters".to_owned(), json!(parameters));
    }
    if route.body {
        let bodies: Vec<Value> =
            found.iter().map(|(route, _, message)| body_schema(route, message, schemas)).collect();
        let schema = match <[Value; 1]>::try_from(bodies) {
            Ok([one]) => one,
            Err(several) => json!({ "oneOf": several }),
        };
        let content = json!({ "application/json": { "schema": schema } });
        // A body of defaults may be left out, unless it has to name an action or who it is for.
        let required = route.action.is_some() || route.param.is_none();
        operation
            .insert("requestBody".to_owned(), json!({ "required": required, "content": content }));
    }
    let rpcs: Vec<String> = found
        .iter()
        .map(|(route, ..)| format!("berth.v1.{}/{}", route.rpc.0, route.rpc.1))
        .collect();
    operation.insert("x-berth-rpc".to_owned(), json!(rpcs));
    operation.insert("responses".to_owned(), responses(route, method));
    Ok(Value::Object(operation))
}

/// Unique over the document: the call's name, with what sets the path apart where two share it.
fn operation_id(routes: &[Route]) -> String {
    let Some(route) = routes.first() else { return String::new() };
    if route.action.is_some() {
        return "actOnKernelDma".to_owned();
    }
    let name = route.rpc.1;
    let mut id = name[..1].to_ascii_lowercase() + &name[1..];
    if name == "Explain" {
        let of_device = route.path.starts_with("/api/v1/devices");
        id.push_str(if of_device { "Device" } else { "Group" });
    }
    id
}

fn describe(operation: &mut Map<String, Value>, found: &[(&Route, &MethodInfo, &MessageInfo)]) {
    let text: Vec<String> = found
        .iter()
        .filter(|(_, method, _)| !method.comment.is_empty())
        .map(|(route, method, _)| match route.action {
            Some(action) => format!("`{action}`: {}", method.comment),
            None => method.comment.clone(),
        })
        .collect();
    if !text.is_empty() {
        operation.insert("description".to_owned(), json!(text.join("\n\n")));
    }
}

fn parameters(route: &Route, message: &MessageInfo, schemas: &mut Schemas<'_>) -> Vec<Value> {
    let mut parameters = Vec::new();
    if let Some(param) = route.param {
        let comment = match param.kind {
            ParamKind::Address => {
                "A PCI function (`0000:65:00.0`, `65:00.0`, `pci_0000_65_00_0`), a mediated \
                 device's UUID, or a platform device's name."
            }
            ParamKind::Text => {
                message.field(param.field).map_or("", |field| field.comment.as_str())
            }
        };
        parameters.push(json!({
            "name": param.name, "in": "path", "required": true, "description": comment,
            "schema": { "type": "string" },
        }));
    }
    if route.body {
        return parameters;
    }
    let taken: Vec<&str> = route.param.iter().map(|param| param.field).collect();
    for field in &message.fields {
        // A message can't be written in a query; no call needs one there.
        if taken.contains(&field.json_name.as_str()) || matches!(field.kind, Kind::Message(_)) {
            continue;
        }
        parameters.push(json!({
            "name": field.json_name, "in": "query", "required": false,
            "schema": field_schema(field),
        }));
    }
    schemas.body(message, &taken);
    if route.answer == Reply::DocumentOrEvents {
        parameters.push(json!({
            "name": "since", "in": "query", "required": false,
            "description": "The same as `sinceSeq`.",
            "schema": { "type": "string", "pattern": "^[0-9]+$" },
        }));
        parameters.push(json!({
            "name": "Last-Event-ID", "in": "header", "required": false,
            "description": "Server-sent events go on after this sequence number. It outranks \
                `since`.",
            "schema": { "type": "string", "pattern": "^[0-9]+$" },
        }));
    }
    parameters
}

fn body_schema(route: &Route, message: &MessageInfo, schemas: &mut Schemas<'_>) -> Value {
    let taken: Vec<&str> = route.param.iter().map(|param| param.field).collect();
    let mut properties = schemas.body(message, &taken);
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("object"));
    if let Some(action) = route.action {
        properties.insert("action".to_owned(), json!({ "const": action }));
        schema.insert("required".to_owned(), json!(["action"]));
    }
    if !message.comment.is_empty() {
        schema.insert("description".to_owned(), json!(message.comment));
    }
    schema.insert("properties".to_owned(), Value::Object(properties));
    schema.insert("additionalProperties".to_owned(), json!(false));
    Value::Object(schema)
}

fn responses(route: &Route, method: &MethodInfo) -> Value {
    let mut content = Map::new();
    content.insert("application/json".to_owned(), json!({ "schema": reference(&method.response) }));
    if route.answer == Reply::DocumentOrEvents {
        content.insert(
            "text/event-stream".to_owned(),
            json!({
                "schema": {
                    "type": "string",
                    "description": "Events as they happen. `id` is the sequence number, `data` an \
                        Event. An event named `problem` carries a Problem and ends the stream.",
                },
            }),
        );
    }
    let mut responses = Map::new();
    let description = match route.status {
        201 => "Done, and something new is on record.",
        _ => "Done.",
    };
    let done = json!({ "description": description, "content": content });
    responses.insert(route.status.to_string(), done.clone());
    if route.rpc.1 == "Reserve" {
        let mut dry = done;
        dry["description"] = json!("What would be done (`dryRun`).");
        responses.insert("200".to_owned(), dry);
    }
    responses.insert("default".to_owned(), json!({ "$ref": "#/components/responses/Problem" }));
    Value::Object(responses)
}

fn problem_schema() -> Value {
    let reasons: Vec<&str> = Reason::all().iter().map(|reason| reason.name()).collect();
    json!({
        "type": "object",
        "description": "A problem of RFC 9457.",
        "required": [
            "type", "title", "status", "detail", "instance", "reason", "errno", "errnoName",
            "object", "blockers", "resolve",
        ],
        "properties": {
            "type": { "type": "string", "format": "uri" },
            "title": { "type": "string", "description": "What kind of problem it is." },
            "status": { "type": "integer" },
            "detail": { "type": "string", "description": "What was attempted and why not." },
            "instance": { "type": "string", "description": "The path that was asked for." },
            "reason": { "type": "string", "enum": reasons },
            "errno": { "type": "integer", "description": "The kernel's errno for it." },
            "errnoName": { "type": "string" },
            "object": { "type": "string", "description": "What it is about." },
            "owner": { "$ref": "#/components/schemas/Owner" },
            "blockers": {
                "type": "array",
                "items": { "$ref": "#/components/schemas/Blocker" },
                "description": "Devices that stand in the way.",
            },
            "resolve": {
                "type": "array",
                "items": { "type": "string" },
                "description": "Commands and acts that would resolve it.",
            },
        },
    })
}

#[cfg(test)]
mod tests;
