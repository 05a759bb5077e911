//! The calls of the admin API: what each needs and where it stands over HTTP; and what happens around every one, whichever
//! protocol it came by: who calls is asked first, and who changed what is written to the audit log.

use std::any::Any;
use std::time::Duration;

use http::{HeaderMap, Method, Uri};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use tokio::time::timeout;
use tonic::async_trait;
use tracing::field::display;

use super::access::{Access, Caller, Peer, Refusal, Role};
use super::bounds::{self, Turns};
use super::operations::{Operations, OperatorStore};
use super::problem::Problem;
use super::proto::weir::admin::v1 as proto;
use super::proto::weir::admin::v1::admin_service_server::AdminService;

/// The service's full name.
pub const SERVICE: &str = "weir.admin.v1.AdminService";
/// The one call whose request may be long.
pub(super) const IMPORT: &str = "ImportRecords";
/// The longest reason in a refusal over gRPC, in bytes: it is a header, of which clients read 8 KiB and escapes triple it.
const MAX_REASON: usize = 2_400;
/// The most of a request that the audit log repeats, in bytes.
const MAX_AUDITED: usize = 1_024;

/// Every message of the API, with its comments.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/weir_admin_descriptors.bin"));

/// A call, and how it is made over HTTP: its path's parameters, its query and its body are the fields of its request.
pub(super) struct Call {
    pub(super) name: &'static str,
    pub(super) role: Role,
    pub(super) method: Method,
    pub(super) path: &'static str,
    /// The field that path and body fill, where it is not the request itself.
    pub(super) within: Option<&'static str>,
}

const fn call(name: &'static str, role: Role, method: Method, path: &'static str) -> Call {
    Call { name, role, method, path, within: None }
}

const fn call_within(name: &'static str, role: Role, method: Method, path: &'static str, field: &'static str) -> Call {
    Call { name, role, method, path, within: Some(field) }
}

/// How long a call may take, from when its request is read. A step of it that waits for Redis takes at most two seconds, so that only
/// a call of many steps comes near.
const CALL_TIME: Duration = Duration::from_secs(5);
/// The same for an import: of many thousand records.
const IMPORT_TIME: Duration = Duration::from_secs(30);

fn time_for(name: &str) -> Duration {
    if name == IMPORT { IMPORT_TIME } else { CALL_TIME }
}

const SUBJECT: &str = "/v1/domains/{domain}/subjects/{subject}";
const TIER: &str = "/v1/domains/{domain}/tiers/{name}";

pub(super) static CALLS: &[Call] = &[
    call("GetSubject", Role::Read, Method::GET, SUBJECT),
    call("ListSubjects", Role::Read, Method::GET, "/v1/domains/{domain}/subjects"),
    call("AssignTier", Role::Change, Method::PUT, "/v1/domains/{domain}/subjects/{subject}/tier"),
    call("UnassignTier", Role::Change, Method::DELETE, "/v1/domains/{domain}/subjects/{subject}/tier"),
    call("OverrideSubject", Role::Change, Method::PATCH, SUBJECT),
    call("RemoveSubject", Role::Change, Method::DELETE, SUBJECT),
    call("ListTiers", Role::Read, Method::GET, "/v1/domains/{domain}/tiers"),
    call_within("DefineTier", Role::Change, Method::PUT, TIER, "tier"),
    call("RemoveTier", Role::Change, Method::DELETE, TIER),
    call("GetSwitch", Role::Read, Method::GET, "/v1/switch"),
    call("SetSwitch", Role::Change, Method::PUT, "/v1/switch"),
    call("GetUsage", Role::Read, Method::GET, "/v1/domains/{domain}/subjects/{subject}/usage"),
    call("ResetUsage", Role::Change, Method::POST, "/v1/domains/{domain}/subjects/{subject}/reset"),
    call("GetHistory", Role::Read, Method::GET, "/v1/domains/{domain}/subjects/{subject}/history"),
    call("Explain", Role::Read, Method::POST, "/v1/domains/{domain}/explain"),
    call("ExportRecords", Role::Read, Method::GET, "/v1/records"),
    call(IMPORT, Role::Change, Method::POST, "/v1/records"),
];

/// The call of a path over gRPC.
pub(super) fn by_path(path: &str) -> Option<&'static Call> {
    let name = path.strip_prefix('/')?.strip_prefix(SERVICE)?.strip_prefix('/')?;
    CALLS.iter().find(|call| call.name == name)
}

/// A call that is not listed needs the most.
fn role(name: &str) -> Role {
    CALLS.iter().find(|call| call.name == name).map_or(Role::Change, |call| call.role)
}

/// The API, by whichever protocol.
pub struct AdminApi<S> {
    pub(super) operations: Operations<S>,
    access: Access,
    pub(super) pool: DescriptorPool,
    pub(super) turns: Turns,
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CallError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Problem(#[from] Problem),
}

/// What is known of a call besides its request.
pub(super) struct Head<'a> {
    pub(super) headers: &'a HeaderMap,
    pub(super) uri: &'a Uri,
    pub(super) peer: Option<Peer>,
}

impl<S: OperatorStore> AdminApi<S> {
    pub fn new(operations: Operations<S>, access: Access) -> AdminApi<S> {
        let pool = DescriptorPool::decode(DESCRIPTOR_SET).expect("the descriptor set is compiled in");
        AdminApi { operations, access, pool, turns: Turns::new() }
    }

    /// Who calls, if they may. What is `known` of the request already goes to the audit of a refused change.
    pub(super) fn admit(&self, name: &str, head: &Head<'_>, known: impl FnOnce() -> String) -> Result<Caller, CallError> {
        self.look(name, head).map_err(|refusal| self.refuse(name, head, refusal, known))
    }

    /// Who calls, if they may; the audit hears nothing of it.
    pub(super) fn look(&self, name: &str, head: &Head<'_>) -> Result<Caller, Refusal> {
        self.access.admit(role(name), head.headers, head.uri, head.peer)
    }

    /// Who calls, if they may look at what is not one of these calls, such as the rules.
    pub(super) fn admit_reader(&self, head: &Head<'_>) -> Result<Caller, Refusal> {
        self.access.admit(Role::Read, head.headers, head.uri, head.peer)
    }

    pub(super) fn refuse(&self, name: &str, head: &Head<'_>, refusal: Refusal, known: impl FnOnce() -> String) -> CallError {
        if role(name) == Role::Change {
            let (by, from) = (refusal.by(), head.peer.map(|Peer(address)| display(address)));
            tracing::warn!(target: "audit", by, from, call = name, request = cut(known()), outcome = %refusal, "audit: refused");
        }
        refusal.into()
    }

    /// A change whose request cannot be read, of which only this much is `known`.
    pub(super) fn audit_unread(&self, name: &str, caller: &Caller, known: String, reason: &str) {
        if role(name) == Role::Change {
            let (by, from, outcome) = (caller.name.as_str(), caller.from.map(display), cut(reason.to_owned()));
            tracing::warn!(target: "audit", by, from, call = name, request = cut(known), outcome, "audit: not changed");
        }
    }

    async fn run<Q: Message + 'static, A>(
        &self,
        name: &str,
        caller: &Caller,
        request: Q,
        operation: impl AsyncFnOnce(&Operations<S>, Q) -> Result<A, Problem>,
    ) -> Result<A, CallError> {
        let (is_change, time) = (role(name) == Role::Change, time_for(name));
        let shown = if is_change { self.audited(name, &request) } else { String::new() };
        let is_dry_run = is_dry_run(&request);
        let answer = timeout(time, operation(&self.operations, request)).await;
        let answer = answer.unwrap_or_else(|_| Err(Problem::out_of_time(time.as_secs(), is_change)));
        if !is_change {
            return Ok(answer?);
        }
        let answer = answer.map_err(Problem::unchanged);
        self.audit(name, caller, shown, is_dry_run, &answer);
        Ok(answer?)
    }

    /// Writes what came of a change to the audit, with as much of its request as is shown.
    pub(super) fn audit<A>(&self, name: &str, caller: &Caller, shown: String, is_dry_run: bool, answer: &Result<A, Problem>) {
        let (by, from, shown) = (caller.name.as_str(), caller.from.map(display), cut(shown));
        match answer {
            Ok(_) if is_dry_run => {
                let outcome = "checked by a dry run";
                tracing::info!(target: "audit", by, from, call = name, request = shown, outcome, "audit: not changed");
            }
            Ok(_) => tracing::info!(target: "audit", by, from, call = name, request = shown, outcome = "done", "audit: changed"),
            Err(problem @ Problem::Uncertain(_)) => {
                tracing::warn!(target: "audit", by, from, call = name, request = shown, outcome = %problem, "audit: may have changed");
            }
            Err(problem) => {
                tracing::warn!(target: "audit", by, from, call = name, request = shown, outcome = %problem, "audit: not changed")
            }
        }
    }

    fn audited(&self, name: &str, request: &impl Message) -> String {
        let Some(descriptor) = self.method(name).map(|method| method.input()) else { return String::new() };
        // Of a long import no more is put into JSON than is shown.
        let request = request.encode_to_vec();
        let beginning = bounds::beginning(&request, MAX_AUDITED);
        let Ok(message) = DynamicMessage::decode(descriptor, beginning) else { return String::new() };
        cut(serde_json::to_string(&message).unwrap_or_default())
    }

    pub(super) fn method(&self, name: &str) -> Option<prost_reflect::MethodDescriptor> {
        self.pool.get_service_by_name(SERVICE)?.methods().find(|method| method.name() == name)
    }
}

/// Whether a request is an import that is only checked.
fn is_dry_run(request: &dyn Any) -> bool {
    request.downcast_ref::<proto::Records>().is_some_and(|records| records.dry_run == Some(true))
}

/// As much of a request as the audit log repeats.
fn cut(shown: String) -> String {
    bounds::cut(shown, MAX_AUDITED)
}

/// A message as JSON: fields by their names in the .proto file, numbers as numbers.
pub(super) fn json(descriptor: MessageDescriptor, bytes: &[u8]) -> Vec<u8> {
    let options = SerializeOptions::new().stringify_64_bit_integers(false).use_proto_field_name(true).skip_default_fields(false);
    let message = DynamicMessage::decode(descriptor, bytes).expect("it is of this type");
    let mut json = serde_json::Serializer::new(Vec::new());
    message.serialize_with_options(&mut json, &options).expect("a message has a JSON form");
    without_empty_warnings(json.into_inner())
}

/// Warnings are there only where there are some. What stands between quotes cannot look like this: quotes in it are escaped.
fn without_empty_warnings(json: Vec<u8>) -> Vec<u8> {
    let json = String::from_utf8(json).expect("JSON is UTF-8");
    json.replace(",\"warnings\":[]", "").into_bytes()
}

/// The calls twice: as the gRPC service, and by name with encoded messages, for HTTP.
macro_rules! calls {
    ($($name:literal $operation:ident $Request:ident -> $Answer:ident;)*) => {
        #[async_trait]
        impl<S: OperatorStore + 'static> AdminService for AdminApi<S> {
            $(async fn $operation(
                &self,
                request: tonic::Request<proto::$Request>,
            ) -> Result<tonic::Response<proto::$Answer>, tonic::Status> {
                let peer = request.extensions().get::<Peer>().copied();
                let (metadata, _, request) = request.into_parts();
                let (headers, uri) = (metadata.into_headers(), Uri::default());
                let head = Head { headers: &headers, uri: &uri, peer };
                let caller = self.admit($name, &head, || self.audited($name, &request)).map_err(status)?;
                let answer = self.run($name, &caller, request, async |operations, request| operations.$operation(request).await).await;
                answer.map(tonic::Response::new).map_err(status)
            })*
        }

        impl<S: OperatorStore> AdminApi<S> {
            /// A call by its name, with its request and its answer encoded.
            pub(super) async fn dispatch(&self, name: &str, caller: &Caller, request: &[u8]) -> Result<Vec<u8>, CallError> {
                match name {
                    $($name => {
                        let request = proto::$Request::decode(request).map_err(|error| Problem::Invalid(error.to_string()))?;
                        let answer = self.run($name, caller, request, async |operations, request| operations.$operation(request).await).await;
                        answer.map(|answer| answer.encode_to_vec())
                    })*
                    _ => Err(Problem::Invalid(format!("no call {name}")).into()),
                }
            }
        }
    };
}

calls! {
    "GetSubject" get_subject GetSubjectRequest -> Subject;
    "ListSubjects" list_subjects ListSubjectsRequest -> ListSubjectsResponse;
    "AssignTier" assign_tier AssignTierRequest -> Subject;
    "UnassignTier" unassign_tier UnassignTierRequest -> Subject;
    "OverrideSubject" override_subject OverrideSubjectRequest -> Subject;
    "RemoveSubject" remove_subject RemoveSubjectRequest -> RemoveSubjectResponse;
    "ListTiers" list_tiers ListTiersRequest -> ListTiersResponse;
    "DefineTier" define_tier DefineTierRequest -> Tier;
    "RemoveTier" remove_tier RemoveTierRequest -> RemoveTierResponse;
    "GetSwitch" get_switch GetSwitchRequest -> Switch;
    "SetSwitch" set_switch SetSwitchRequest -> Switch;
    "GetUsage" get_usage GetUsageRequest -> Usage;
    "ResetUsage" reset_usage ResetUsageRequest -> ResetUsageResponse;
    "GetHistory" get_history GetHistoryRequest -> History;
    "Explain" explain ExplainRequest -> Explanation;
    "ExportRecords" export_records ExportRecordsRequest -> Records;
    "ImportRecords" import_records Records -> ImportRecordsResponse;
}

pub(super) fn status(error: CallError) -> tonic::Status {
    let message = bounds::cut(error.to_string(), MAX_REASON);
    match error {
        CallError::Refused(Refusal::Unauthenticated(_)) => tonic::Status::unauthenticated(message),
        CallError::Refused(Refusal::Forbidden { .. }) => tonic::Status::permission_denied(message),
        CallError::Problem(Problem::Invalid(_)) => tonic::Status::invalid_argument(message),
        CallError::Problem(Problem::Unknown(_)) => tonic::Status::not_found(message),
        CallError::Problem(Problem::Conflict) => tonic::Status::aborted(message),
        CallError::Problem(Problem::Full(_)) => tonic::Status::resource_exhausted(message),
        CallError::Problem(Problem::Unavailable(_) | Problem::Uncertain(_)) => tonic::Status::unavailable(message),
    }
}
