//! The OpenAPI document against the daemon that serves it.

mod front_support;

use front_support::Running;
use serde_json::{Value, json};

/// Checks a value against a schema of the document: the keywords that the document uses.
fn check(document: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
        return match target {
            Some(target) => check(document, target, value, at),
            None => vec![format!("{at}: {reference} leads nowhere")],
        };
    }
    let mut wrong = Vec::new();
    let fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        _ => true,
    };
    if !fits {
        wrong.push(format!("{at}: {value} is not a {}", schema["type"]));
    }
    if let Some(names) = schema["enum"].as_array()
        && !names.contains(value)
    {
        wrong.push(format!("{at}: {value} is not one of {names:?}"));
    }
    if let (Some(items), Value::Array(values)) = (schema.get("items"), value) {
        for (index, value) in values.iter().enumerate() {
            wrong.extend(check(document, items, value, &format!("{at}/{index}")));
        }
    }
    if let (Some(properties), Value::Object(fields)) = (schema["properties"].as_object(), value) {
        for (name, value) in fields {
            match properties.get(name) {
                Some(schema) => {
                    wrong.extend(check(document, schema, value, &format!("{at}/{name}")));
                }
                None => wrong.push(format!("{at}: {name} is not in the document")),
            }
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            if name.as_str().is_some_and(|name| !fields.contains_key(name)) {
                wrong.push(format!("{at}: {name} is missing"));
            }
        }
    }
    wrong
}

async fn document(running: &Running) -> Value {
    let answer = running.unix("GET", "/api/v1/openapi.json", None).await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    answer.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_operation_is_served() {
    let running = Running::start().await;
    let document = document(&running).await;
    assert_eq!(document["openapi"], "3.1.0");
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let real = path
            .replace("{group}", "g-000000000000")
            .replace("{address}", "00:1f.7")
            .replace("{id}", "r-000000000000");
        let methods = methods.as_object().expect("methods");
        for method in methods.keys() {
            let verb = method.to_ascii_uppercase();
            let body = (verb == "POST").then(|| json!({ "action": "query" }));
            let body = body.filter(|_| path.ends_with("kernel-dma"));
            let headers = "accept: application/json\r\n";
            let body = body.map(|body| body.to_string());
            let answer = running.unix_raw(&verb, &real, body.as_deref(), headers).await;
            assert_ne!(answer.status, 405, "{verb} {path}");
            assert_ne!(answer.status / 100, 5, "{verb} {path}: {answer:?}");
            if answer.status >= 400 {
                let problem = answer.problem();
                assert_ne!(problem["detail"], format!("there is no {real}"), "{verb} {path}");
                let schema = &document["components"]["schemas"]["Problem"];
                assert_eq!(check(&document, schema, &problem, path), Vec::<String>::new());
            }
        }
        for verb in ["GET", "POST", "DELETE", "PUT", "PATCH"] {
            if !methods.contains_key(&verb.to_ascii_lowercase()) {
                let answer = running.unix(verb, &real, None).await;
                assert_eq!(answer.status, 405, "{verb} {path} is served and not documented");
            }
        }
    }
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_have_the_documented_shape() {
    let running = Running::start().await;
    let document = document(&running).await;
    let body = json!({ "holder": "vm", "groups": ["2"], "policy": "EXCLUSIVE", "ttlMs": "60000" });
    let made = running.unix("POST", "/api/v1/reservations", Some(&body)).await;
    assert_eq!(made.status, 201, "{made:?}");
    let id = made.json()["id"].as_str().expect("an id").to_owned();
    let mut checked = 0;
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let Some(get) = methods.get("get") else { continue };
        let real = path
            .replace("{group}", "7")
            .replace("{address}", "0000:03:00.0")
            .replace("/reservations/{id}", &format!("/reservations/{id}"));
        if real.contains('{') {
            continue;
        }
        let answer = running.unix_raw("GET", &real, None, "accept: application/json\r\n").await;
        assert_eq!(answer.status, 200, "{real}: {answer:?}");
        let schema = &get["responses"]["200"]["content"]["application/json"]["schema"];
        let wrong = check(&document, schema, &answer.json(), &real);
        assert!(wrong.is_empty(), "{wrong:#?}");
        checked += 1;
    }
    assert!(checked >= 12, "only {checked} answers were checked");
    running.daemon.stop().await;
}

#[test]
fn the_checker_notices() {
    let document = json!({ "components": { "schemas": { "A": {
        "type": "object",
        "required": ["n"],
        "properties": { "n": { "type": "integer" }, "e": { "type": "string", "enum": ["X"] } },
    } } } });
    let schema = json!({ "type": "array", "items": { "$ref": "#/components/schemas/A" } });
    let faults = |value: Value| check(&document, &schema, &value, "").len();
    assert_eq!(faults(json!([{ "n": 1, "e": "X" }])), 0);
    assert_eq!(faults(json!([{ "n": "1" }])), 1);
    assert_eq!(faults(json!([{ "e": "Y" }])), 2);
    assert_eq!(faults(json!([{ "n": 1, "z": 0 }])), 1);
    assert_eq!(faults(json!({})), 1);
}
