//! Reading bodies with their limits, writing answers, and the action that a
//! request names.

use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::response::Response;
use bytes::Bytes;
use hapax::{Action, Identity, Json, Key, PolicyPatch, parse_params};
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::app::App;
use crate::problem::{Kind, Problem};
use crate::schema::Chosen;

/// A JSON body, within the limits on its size and on the time it takes.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let limits = app.limits();
        let bytes = collect(request.into_body(), limits.body_bytes, limits.body_time).await?;
        // No body means nothing chosen, which most requests allow.
        let bytes = if bytes.is_empty() { Bytes::from_static(b"{}") } else { bytes };
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|e| Problem::new(Kind::BadRequest, format!("the body is not what this call reads: {e}")))
    }
}

/// The whole body, if it keeps to the limits.
pub(crate) async fn collect<B>(body: B, limit: usize, time: Duration) -> Result<Bytes, Problem>
where
    B: http_body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut read = pin!(Limited::new(body, limit).collect());
    // Most bodies are there with their heads, and need no timer.
    let first = poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await;
    let read = match first {
        Poll::Ready(read) => Ok(read),
        Poll::Pending => tokio::time::timeout(time, read).await,
    };
    match read {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Problem::new(
            Kind::BodyTooLarge,
            format!("the body is larger than {limit} bytes: send less, or raise the limit"),
        )),
        Ok(Err(error)) => Err(Problem::new(Kind::BadRequest, format!("the body broke off: {error}"))),
        Err(_) => {
            let detail = format!("the body did not arrive within {time:?}: send it faster, with the same key");
            Err(Problem::new(Kind::RequestTimeout, detail))
        }
    }
}

pub(crate) fn json_response<T: Serialize>(status: StatusCode, value: &T) -> Response {
    // Most answers fit, and then need no larger place.
    let mut body = Vec::with_capacity(512);
    if serde_json::to_writer(&mut body, value).is_err() {
        // Every answer is made of types that have a JSON form.
        use axum::response::IntoResponse;
        return Problem::new(Kind::Internal, "the answer has no JSON form").into_response();
    }
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A JSON text as it came; `null` when there is none.
pub(crate) fn json_of(raw: Option<&RawValue>) -> Result<Json, Problem> {
    Json::parse(raw.map_or("null", RawValue::get))
        .map_err(|e| Problem::new(Kind::BadRequest, format!("the result is not JSON: {e}")))
}

/// The action that a request names, and which of its params identify it.
pub(crate) fn action_of(
    key: Option<Key>,
    signal_id: Option<String>,
    action_type: Option<String>,
    target: Option<String>,
    params: Option<&RawValue>,
    identity: Option<Chosen>,
) -> Result<(Action, PolicyPatch), Problem> {
    // A key of the caller's own may say nothing of its action.
    let parts = key.as_ref().and_then(|key| key.parts().ok());
    let of_key = |given: Option<String>, part: Option<&String>, what: &str| match (given, part, &key) {
        (Some(given), _, _) => Ok(given),
        (None, Some(part), _) => Ok(part.clone()),
        (None, None, Some(_)) => Ok("unknown".to_string()),
        (None, None, None) => {
            Err(Problem::new(Kind::BadRequest, format!("{what} is missing: an action needs it unless there is a key")))
        }
    };
    let action_type = of_key(action_type, parts.as_ref().map(|p| &p.action_type), "actionType")?;
    let target = of_key(target, parts.as_ref().map(|p| &p.target), "target")?;
    let signal_id = signal_id.or_else(|| parts.and_then(|p| p.signal_id));
    for (what, text) in [("actionType", &action_type), ("target", &target)] {
        if text.is_empty() {
            return Err(Problem::new(Kind::BadRequest, format!("{what} is empty: every action needs one")));
        }
    }
    for (what, text) in
        [("actionType", Some(&action_type)), ("target", Some(&target)), ("signalId", signal_id.as_ref())]
    {
        if text.is_some_and(|t| t.len() > Key::MAX_BYTES) {
            return Err(Problem::new(Kind::BadRequest, format!("{what} is longer than {} bytes", Key::MAX_BYTES)));
        }
    }
    let mut action = Action::new(action_type, target);
    if let Some(signal) = signal_id {
        action = action.signal(signal);
    }
    if let Some(params) = params {
        action = action.params(parse_params(params.get()).map_err(hapax::Error::from)?);
    }
    if let Some(key) = key {
        action = action.key(key);
    }
    let mut policy = PolicyPatch::new();
    if let Some(chosen) = identity {
        let identity = match chosen {
            Chosen::Include(pointers) => Identity::include(pointers),
            Chosen::Exclude(pointers) => Identity::exclude(pointers),
        };
        policy = policy.identity(identity.map_err(hapax::Error::from)?);
    }
    Ok((action, policy))
}

/// Whether a content type is JSON.
pub(crate) fn is_json(content_type: &str) -> bool {
    if content_type == "application/json" {
        return true;
    }
    let essence: Cow<'_, str> = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase().into();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}
