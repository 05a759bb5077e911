//! Which HTTP requests are gRPC calls, for both ports that take them.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, StatusCode};

/// What gRPC's content types begin with.
const KIND: &[u8] = b"application/grpc";

/// Why a request to a gRPC path is not a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotACall {
    /// Every call is a POST.
    Method,
    ContentType,
}

impl NotACall {
    pub fn status(self) -> StatusCode {
        match self {
            NotACall::Method => StatusCode::METHOD_NOT_ALLOWED,
            NotACall::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        }
    }

    /// What the caller should do, as the end of a sentence.
    pub fn hint(self) -> &'static str {
        match self {
            NotACall::Method => "every call is a POST",
            NotACall::ContentType => "send `content-type: application/grpc`",
        }
    }
}

/// # Errors
/// For another method than POST; else for another content type than gRPC's.
pub fn check(method: &Method, headers: &HeaderMap) -> Result<(), NotACall> {
    if *method != Method::POST {
        return Err(NotACall::Method);
    }
    if is_grpc(headers) { Ok(()) } else { Err(NotACall::ContentType) }
}

/// Whether the content type is `application/grpc`, alone or before a `+` or a `;`, in any case.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let Some((kind, rest)) = headers.get(CONTENT_TYPE).and_then(|value| value.as_bytes().split_at_checked(KIND.len())) else {
        return false;
    };
    (kind == KIND || kind.eq_ignore_ascii_case(KIND)) && matches!(rest, [] | [b'+' | b';', ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_of_grpc_are_told_from_others() {
        let cases = [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("Application/GRPC+json", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/grpcx", false),
            ("application/grp", false),
            ("application/json", false),
            ("text/plain; application/grpc", false),
            ("", false),
        ];
        for (kind, expected) in cases {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, kind.parse().unwrap())]);
            let expected = if expected { Ok(()) } else { Err(NotACall::ContentType) };
            assert_eq!(check(&Method::POST, &headers), expected, "{kind}");
            assert_eq!(check(&Method::GET, &headers), Err(NotACall::Method), "{kind}");
        }
        assert_eq!(check(&Method::POST, &HeaderMap::new()), Err(NotACall::ContentType));
    }
}
