//! The HTTP API described as OpenAPI 3.1, made of the calls and of the messages with their comments: it cannot say anything else
//! than what is served.

use std::collections::BTreeSet;

use prost_reflect::{Cardinality, DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::access::Role;
use super::calls::{CALLS, Call, SERVICE};

pub(super) fn description(pool: &DescriptorPool) -> Value {
    let mut paths: Map<String, Value> = Map::new();
    let mut messages = BTreeSet::new();
    for call in CALLS {
        let path = paths.entry(call.path).or_insert_with(|| json!({}));
        path[call.method.as_str().to_ascii_lowercase()] = operation(pool, call, &mut messages);
    }
    let mut schemas = Map::new();
    while let Some(name) = messages.pop_first() {
        if let Some(message) = pool.get_message_by_name(&name).filter(|_| !schemas.contains_key(short(&name))) {
            schemas.insert(short(&name).to_owned(), schema(&message, &mut messages));
        }
    }
    schemas
        .insert("Error".to_owned(), json!({"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "weir admin API",
            "version": "v1",
            "description": "What operators change while weir runs, and look at. The same calls are served over gRPC as weir.admin.v1.AdminService.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    })
}

fn operation(pool: &DescriptorPool, call: &Call, messages: &mut BTreeSet<String>) -> Value {
    let service = pool.get_service_by_name(SERVICE).expect("the service is compiled in");
    let method = service.methods().find(|method| method.name() == call.name).expect("every call is one of the service");
    let request = match call.within {
        Some(field) => match method.input().get_field_by_name(field).map(|field| field.kind()) {
            Some(Kind::Message(message)) => message,
            _ => method.input(),
        },
        None => method.input(),
    };
    let in_path = |field: &FieldDescriptor| call.path.contains(&format!("{{{}}}", field.name()));
    let has_body = !matches!(call.method, http::Method::GET | http::Method::DELETE);
    let parameters: Vec<Value> = request
        .fields()
        .filter(|field| in_path(field) || !has_body)
        .map(|field| {
            let place = if in_path(&field) { "path" } else { "query" };
            let mut parameter =
                json!({"name": field.name(), "in": place, "required": in_path(&field), "schema": value(&field, messages)});
            if let Some(comment) = comment(field.path(), &field.parent_file()) {
                parameter["description"] = comment.into();
            }
            parameter
        })
        .collect();
    let role = match call.role {
        Role::Read => "Needs a token that may look.",
        Role::Change => "Needs a token that may change.",
    };
    let summary = comment(method.path(), &method.parent_file()).unwrap_or_default();
    messages.insert(method.output().full_name().to_owned());
    let error = |description: &str| json!({"description": description, "content": content("Error")});
    let mut operation = json!({
        "operationId": call.name,
        "summary": summary,
        "description": role,
        "parameters": parameters,
        "responses": {
            "200": {"description": "Done.", "content": content(short(method.output().full_name()))},
            "400": error("The request makes no sense."),
            "401": error("A token is missing or not known."),
            "403": error("The caller may not, or is a web page of another origin."),
            "404": error("The rules have no such domain, rule or tier."),
            "503": error("The store does not answer, or too many calls are under way. A change may have been made: the error says so."),
        },
    });
    if call.role == Role::Change {
        operation["responses"]["409"] = error("Others changed the same meanwhile; nothing was changed.");
        operation["responses"]["507"] =
            error("There are as many records as are kept, or there is no room for an import to wait in; nothing was changed.");
    }
    if call.name == "GetHistory" {
        operation["responses"]["200"]["content"]["text/csv"] = json!({"schema": {"type": "string"}});
    }
    if has_body {
        operation["responses"]["415"] = error("The body is not said to be JSON.");
        operation["responses"]["413"] = error("The body is longer than it may be: 64 KiB, an import 1 GiB.");
        operation["responses"]["408"] = error("The body did not come whole in time.");
        let properties: Map<String, Value> = request
            .fields()
            .filter(|field| !in_path(field))
            .map(|field| (field.name().to_owned(), property(&field, messages)))
            .collect();
        let schema = json!({"type": "object", "properties": properties, "additionalProperties": false});
        operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    operation
}

fn content(schema: &str) -> Value {
    json!({"application/json": {"schema": {"$ref": format!("#/components/schemas/{schema}")}}})
}

fn short(full_name: &str) -> &str {
    full_name.rsplit('.').next().unwrap_or(full_name)
}

fn schema(message: &MessageDescriptor, messages: &mut BTreeSet<String>) -> Value {
    let properties: Map<String, Value> =
        message.fields().map(|field| (field.name().to_owned(), property(&field, messages))).collect();
    let mut schema = json!({"type": "object", "properties": properties});
    if let Some(comment) = comment(message.path(), &message.parent_file()) {
        schema["description"] = comment.into();
    }
    schema
}

fn property(field: &FieldDescriptor, messages: &mut BTreeSet<String>) -> Value {
    let mut property = value(field, messages);
    if let Some(comment) = comment(field.path(), &field.parent_file()) {
        property["description"] = comment.into();
    }
    property
}

fn value(field: &FieldDescriptor, messages: &mut BTreeSet<String>) -> Value {
    let one = match field.kind() {
        Kind::Message(message) if message.full_name() == "google.protobuf.Timestamp" => {
            json!({"type": "string", "format": "date-time"})
        }
        Kind::Message(message) => {
            messages.insert(message.full_name().to_owned());
            json!({"$ref": format!("#/components/schemas/{}", short(message.full_name()))})
        }
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Double | Kind::Float => json!({"type": "number"}),
        Kind::String | Kind::Bytes | Kind::Enum(_) => json!({"type": "string"}),
        // Where -1 means unlimited.
        Kind::Int64 => json!({"type": "integer", "minimum": -1}),
        _ => json!({"type": "integer", "minimum": 0}),
    };
    match field.cardinality() {
        Cardinality::Repeated => json!({"type": "array", "items": one}),
        _ => one,
    }
}

/// What stands above it in the .proto file.
fn comment(path: &[i32], file: &prost_reflect::FileDescriptor) -> Option<String> {
    let info = file.file_descriptor_proto().source_code_info.as_ref()?;
    let location = info.location.iter().find(|location| location.path == path)?;
    let text = location.leading_comments().lines().map(str::trim).collect::<Vec<_>>().join(" ");
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}
