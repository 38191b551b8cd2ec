//! Makes one JSON request out of a path, a query and a body.

use std::sync::Arc;

use berth_host::PciAddress;
use http::Uri;
use serde_json::{Map, Value};

use super::{
    descriptors::{Kind, MessageInfo},
    routes::{Param, ParamKind, Route},
};
use crate::model::ApiError;

/// The body as a JSON object; an empty one asks for all defaults.
pub(super) fn object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    let way_out = "send one JSON object";
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(ApiError::invalid_argument("body", "the body is not a JSON object", way_out)),
        Err(error) => {
            let message = format!("the body is not JSON: {error}");
            Err(ApiError::invalid_argument("body", message, way_out))
        }
    }
}

/// Chooses among the calls that share a method and a path, by the body's `action`.
pub(super) fn choose<'a>(
    calls: &'a [(&'static Route, Arc<MessageInfo>)],
    fields: &mut Map<String, Value>,
) -> Result<(&'static Route, &'a MessageInfo), ApiError> {
    let Some((first, message)) = calls.first() else {
        return Err(ApiError::internal("route", "a path without a call"));
    };
    if first.action.is_none() {
        return Ok((first, message));
    }
    let actions: Vec<&str> = calls.iter().filter_map(|(route, _)| route.action).collect();
    let way_out = format!("give \"action\": one of {}", actions.join(", "));
    let Some(given) = fields.remove("action") else {
        return Err(ApiError::invalid_argument("action", "the body has no action", way_out));
    };
    let found = calls.iter().find(|(route, _)| given.as_str() == route.action);
    found
        .map(|(route, message)| (*route, message.as_ref()))
        .ok_or_else(|| ApiError::invalid_argument("action", format!("no action {given}"), way_out))
}

/// Puts the path's parameter where it goes. A body that names something else is refused.
pub(super) fn put_param(
    fields: &mut Map<String, Value>,
    param: Param,
    text: &str,
) -> Result<(), ApiError> {
    let value = match param.kind {
        ParamKind::Text => Value::String(text.to_owned()),
        ParamKind::Address => address(text),
    };
    match fields.insert(param.field.to_owned(), value) {
        Some(other) if fields.get(param.field) != Some(&other) => Err(ApiError::invalid_argument(
            param.field,
            format!("the path says {text}, the body {other}"),
            format!("leave {} out of the body", param.field),
        )),
        _ => Ok(()),
    }
}

/// A device's address as proto3 JSON. What is neither a PCI function nor a UUID is a platform
/// device's name, if it can be one; what is nothing at all is refused as no PCI function.
fn address(text: &str) -> Value {
    let (kind, value) = if let Ok(pci) = text.parse::<PciAddress>() {
        ("pci", pci.to_string())
    } else if uuid::Uuid::try_parse(text).is_ok() {
        ("mdev", text.to_lowercase())
    } else if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        ("platform", text.to_owned())
    } else {
        ("pci", text.to_owned())
    };
    Value::Object(Map::from_iter([(kind.to_owned(), Value::String(value))]))
}

/// Adds the query's parameters, typed as the request's fields are.
pub(super) fn put_query(
    fields: &mut Map<String, Value>,
    uri: &Uri,
    message: &MessageInfo,
) -> Result<(), ApiError> {
    if uri.query().is_none() {
        return Ok(());
    }
    for (name, text) in pairs(uri)? {
        // The word that the stream takes.
        let name = if name == "since" { "sinceSeq".to_owned() } else { name };
        let Some(field) = message.field(&name) else {
            let known: Vec<&str> =
                message.fields.iter().map(|field| field.json_name.as_str()).collect();
            let way_out = if known.is_empty() {
                "the call has no parameters".to_owned()
            } else {
                format!("use {}", known.join(", "))
            };
            let message = format!("unknown parameter {name:?}");
            return Err(ApiError::invalid_argument(name, message, way_out));
        };
        let value = match &field.kind {
            Kind::Bool => Value::Bool(flag(&name, &text)?),
            _ => Value::String(text),
        };
        if fields.insert(field.json_name.clone(), value).is_some() {
            let message = format!("parameter {name:?} is given twice");
            return Err(ApiError::invalid_argument(name, message, "give it once"));
        }
    }
    Ok(())
}

/// The query's names and values, decoded.
pub(super) fn pairs(uri: &Uri) -> Result<Vec<(String, String)>, ApiError> {
    axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri).map(|query| query.0).map_err(
        |error| {
            ApiError::invalid_argument("query", error.to_string(), "write name=value&name=value")
        },
    )
}

fn flag(name: &str, text: &str) -> Result<bool, ApiError> {
    match text {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        other => Err(ApiError::invalid_argument(
            name,
            format!("{other:?} is neither true nor false"),
            format!("write {name}=true or {name}=false"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::rest::{descriptors::Descriptors, routes::ROUTES};

    fn fields(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(fields) => fields,
            other => panic!("{other} is not an object"),
        }
    }

    #[test]
    fn addresses_are_told_apart() {
        assert_eq!(address("65:00.0"), json!({ "pci": "0000:65:00.0" }));
        assert_eq!(address("pci_0000_65_00_0"), json!({ "pci": "0000:65:00.0" }));
        let uuid = "83B8F4F2-509F-382F-3C1E-E6BFE0FA1001";
        assert_eq!(address(uuid), json!({ "mdev": uuid.to_lowercase() }));
        assert_eq!(address("fe400000.dma"), json!({ "platform": "fe400000.dma" }));
    }

    #[test]
    fn a_body_that_contradicts_the_path_is_refused() {
        let param = Param { name: "id", field: "id", kind: ParamKind::Text };
        let mut same = fields(json!({ "id": "r-1" }));
        put_param(&mut same, param, "r-1").expect("the same id");
        let mut other = fields(json!({ "id": "r-2" }));
        let error = put_param(&mut other, param, "r-1").expect_err("another id");
        assert!(error.refusal().message.contains("r-2"), "{error}");
    }

    #[test]
    fn a_query_is_typed_by_the_request_and_unknown_names_are_named() {
        let all = Descriptors::load().expect("descriptors");
        let release = &all.messages["berth.v1.ReleaseRequest"];
        let mut request = Map::new();
        let uri: Uri = "/x?force=true&epoch=18446744073709551615".parse().expect("a URI");
        put_query(&mut request, &uri, release).expect("known parameters");
        assert_eq!(
            Value::Object(request),
            json!({ "force": true, "epoch": "18446744073709551615" })
        );

        let uri: Uri = "/x?farce=true".parse().expect("a URI");
        let error = put_query(&mut Map::new(), &uri, release).expect_err("no such parameter");
        assert_eq!(error.refusal().object, "farce");
        assert!(error.refusal().resolve[0].contains("force"), "{error:?}");

        let uri: Uri = "/x?force=maybe".parse().expect("a URI");
        put_query(&mut Map::new(), &uri, release).expect_err("not a flag");
    }

    #[test]
    fn the_action_chooses_the_call() {
        let all = Descriptors::load().expect("descriptors");
        let calls: Vec<(&'static Route, Arc<MessageInfo>)> = ROUTES
            .iter()
            .filter(|route| route.path.ends_with("/kernel-dma") && route.action.is_some())
            .map(|route| {
                let method = all.method(route.rpc.0, route.rpc.1).expect("a call");
                let fields = Vec::new();
                (route, Arc::new(MessageInfo { comment: method.request.clone(), fields }))
            })
            .collect();
        let mut request = fields(json!({ "action": "set", "driver": "nvme" }));
        let (route, message) = choose(&calls, &mut request).expect("an action that exists");
        assert_eq!(message.comment, "berth.v1.SetKernelDmaRequest");
        assert_eq!(route.rpc.1, "SetKernelDma");
        assert!(!request.contains_key("action"));
        let error = choose(&calls, &mut fields(json!({}))).expect_err("no action");
        assert!(error.refusal().resolve[0].contains("release"), "{error:?}");
    }
}
