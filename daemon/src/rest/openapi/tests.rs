//! The document against the routes, the protocol and itself.

use std::collections::BTreeSet;

use super::*;

fn made() -> (Descriptors, Value) {
    let descriptors = Descriptors::load().expect("the embedded set decodes");
    let document = document(&descriptors).expect("the routes fit the protocol");
    (descriptors, document)
}

fn walk(value: &Value, visit: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                visit(name, value);
                walk(value, visit);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| walk(item, visit)),
        _ => {}
    }
}

#[test]
fn every_reference_resolves_and_every_schema_is_used() {
    let (_, document) = made();
    let mut used = BTreeSet::new();
    walk(&document, &mut |name, value| {
        if name != "$ref" {
            return;
        }
        let reference = value.as_str().expect("a reference is text");
        let pointer = reference.strip_prefix('#').expect("a reference within the document");
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        used.insert(pointer.rsplit('/').next().unwrap_or("").to_owned());
    });
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    for name in schemas.keys().filter(|name| *name != "Event") {
        assert!(used.contains(name), "nothing refers to {name}");
    }
}

#[test]
fn routes_and_operations_are_the_same_set() {
    let (_, document) = made();
    let mut documented = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            documented.insert((path.clone(), method.to_ascii_uppercase()));
        }
    }
    let routed: BTreeSet<(String, String)> =
        ROUTES.iter().map(|route| (route.path.to_owned(), route.method.to_string())).collect();
    assert_eq!(documented, routed);
}

#[test]
fn every_call_of_the_protocol_has_a_route() {
    let (descriptors, document) = made();
    let mut served = BTreeSet::new();
    walk(&document, &mut |name, value| {
        if name == "x-berth-rpc" {
            let rpcs = value.as_array().expect("a list of calls");
            served.extend(rpcs.iter().filter_map(Value::as_str).map(str::to_owned));
        }
    });
    for (service, info) in &descriptors.services {
        for method in &info.methods {
            let rpc = format!("{service}/{}", method.name);
            // Watch is the other half of GET /events.
            assert!(method.streaming || served.contains(&rpc), "{rpc} has no route");
        }
    }
}

#[test]
fn operations_are_complete() {
    let (_, document) = made();
    let mut ids = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let id = operation["operationId"].as_str().expect("an id");
            assert!(ids.insert(id.to_owned()), "{id} is there twice");
            let declared: BTreeSet<&str> = operation["parameters"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|parameter| parameter["in"] == "path")
                .filter_map(|parameter| parameter["name"].as_str())
                .collect();
            let in_path: BTreeSet<&str> = path
                .split('/')
                .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
                .collect();
            assert_eq!(declared, in_path, "{method} {path}");
            assert_eq!(operation.get("requestBody").is_some(), method == "post", "{method} {path}");
            let problem = &operation["responses"]["default"]["$ref"];
            assert_eq!(problem, "#/components/responses/Problem", "{method} {path}");
        }
    }
}

#[test]
fn comments_of_the_protocol_are_its_descriptions() {
    let (_, document) = made();
    let reservation = &document["components"]["schemas"]["Reservation"];
    let text = reservation["properties"]["epoch"]["description"].as_str().expect("a description");
    assert!(text.starts_with("Fencing number."), "{text}");
    let get = &document["paths"]["/api/v1/groups/{group}"]["get"];
    assert!(get["description"].as_str().expect("a description").starts_with("One group by"));
}

#[test]
fn a_field_that_the_path_names_is_not_in_the_body() {
    let (_, document) = made();
    let post = &document["paths"]["/api/v1/reservations/{id}/attach"]["post"];
    let schema = &post["requestBody"]["content"]["application/json"]["schema"];
    assert!(schema["properties"].get("id").is_none());
    assert!(schema["properties"].get("waitMs").is_some());
    let post = &document["paths"]["/api/v1/devices/{address}/kernel-dma"]["post"];
    let schema = &post["requestBody"]["content"]["application/json"]["schema"];
    let actions: Vec<&str> = schema["oneOf"]
        .as_array()
        .expect("one of several")
        .iter()
        .filter_map(|body| body["properties"]["action"]["const"].as_str())
        .collect();
    assert_eq!(actions, ["query", "set", "release"]);
}
