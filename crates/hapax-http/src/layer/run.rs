//! One request's way through the layer.
//!
//! The handler runs in a task of its own: a client that goes away while it
//! runs finds its answer when it comes back. Before the handler has begun,
//! going away ends the wait, and nothing has run.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use hapax::{
    Action, ActionError, Context, Error, Fingerprint, InFlight, Outcome, PolicyPatch, canonical_json,
    numbers_are_exact, parse_params,
};
use http::{HeaderName, HeaderValue, Method, Request, Response, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tower_service::Service;

use super::config::BodyIdentity;
use super::count::Count;
use super::kept::Kept;
use super::key::{self, IDEMPOTENCY_KEY, KeySource};
use super::{Attempt, Body, BoxError, Fate, Shared, full};
use crate::api::{collect, is_json};
use crate::problem::{Kind, Problem, REPLAYED};

/// Says on a first answer that retries will not get it: `released` or `in_doubt`.
pub const STATE: HeaderName = HeaderName::from_static("hapax-state");

/// The action's target on the record is a path; longer ones are cut there.
const MAX_TARGET: usize = 256;

pub(super) async fn handle<S, ReqBody, ResBody>(
    shared: Arc<Shared>,
    mut inner: S,
    request: Request<ReqBody>,
) -> Result<Response<Body>, S::Error>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    ReqBody: http_body::Body<Data = Bytes> + From<Bytes> + Send + 'static,
    ReqBody::Error: Into<BoxError>,
    ResBody: http_body::Body<Data = Bytes> + Send + 'static,
    ResBody::Error: Into<BoxError>,
{
    let taken = match take_in(&shared, request).await {
        Ok(Taken::Guarded(taken)) => taken,
        Ok(Taken::Through(request)) => return inner.call(request).await.map(streamed),
        Err(problem) => return Ok(problem_response(problem)),
    };
    let count = Count::begin(shared.metrics.as_ref());
    if let Some(answer) = shared.hapax.recent::<Kept>(&taken.action) {
        count.answered(&answer);
        return Ok(answer.map_or_else(|e| problem_response(Problem::from(e)), |kept| answered(&kept, "true", &taken)));
    }
    let stage = Arc::new(Stage::default());
    let about = About { cors: taken.cors };
    let (first, mut answer) = oneshot::channel();
    let run = run(shared.clone(), inner, taken, stage.clone(), count, first);
    let task = LeftAlone { task: tokio::spawn(run), stage };
    let ended = task.ended().await;
    match (ended, answer.try_recv()) {
        (Ended::Outcome(Ok(outcome)), Ok(First::Recorded(cookies))) if !outcome.is_replay() => {
            Ok(first_answer(&outcome.value, cookies, about.cors))
        }
        (Ended::Outcome(Ok(outcome)), _) => {
            Ok(answered_as(&outcome.value, if outcome.is_replay() { "true" } else { "false" }, about.cors))
        }
        // The handler's own answer or error, which is not on record.
        (Ended::Outcome(Err(error)), Ok(First::Answer(response))) => Ok(unrecorded(response, &error, about.cors)),
        (Ended::Outcome(Err(_)), Ok(First::Error(error))) => Err(error),
        (Ended::Outcome(Err(error)), Ok(First::Recorded(cookies))) => Ok(refused(error, cookies, about.cors)),
        (Ended::Outcome(Err(error)), Err(_)) => Ok(refused(error, Vec::new(), about.cors)),
        (Ended::Panicked, _) => {
            Ok(problem_response(Problem::new(Kind::Internal, "the handler panicked; the key is in doubt")))
        }
    }
}

/// What stays of a request for its answer.
#[derive(Clone, Copy)]
struct About {
    cors: bool,
}

/// A request that was taken in whole.
struct Whole<B> {
    parts: http::request::Parts,
    body: Bytes,
    text: String,
    action: Action,
    cors: bool,
    _body: std::marker::PhantomData<fn() -> B>,
}

#[allow(clippy::large_enum_variant)] // matched at once
enum Taken<B> {
    /// It has a key.
    Guarded(Box<Whole<B>>),
    /// It has none and needs none.
    Through(Request<B>),
}

async fn take_in<B>(shared: &Shared, request: Request<B>) -> Result<Taken<B>, Problem>
where
    B: http_body::Body<Data = Bytes> + From<Bytes>,
    B::Error: Into<BoxError>,
{
    let options = &shared.options;
    let method = request.method();
    // A change of protocol is a GET or, over HTTP/2, a CONNECT. `Upgrade` alone says nothing: curl offers h2c unasked.
    if method.is_safe() || *method == Method::CONNECT {
        return Ok(Taken::Through(request));
    }
    let mut text = None;
    let mut in_body = Vec::new();
    for source in &options.sources {
        match source {
            KeySource::Header(name) if text.is_none() => text = key::from_headers(request.headers(), name)?,
            KeySource::Body(pointer) => in_body.push(pointer.as_str()),
            KeySource::Header(_) => {}
        }
    }
    let required = options.required.contains(method);
    let missing = || {
        Problem::new(
            Kind::MissingKey,
            "this request needs an Idempotency-Key header: a UUID or another text that no other request has",
        )
    };
    if text.is_none() && in_body.is_empty() {
        return if required { Err(missing()) } else { Ok(Taken::Through(request)) };
    }
    let (mut parts, body) = request.into_parts();
    let body = collect(body, options.max_request_bytes, options.request_time).await?;
    if text.is_none() {
        for pointer in in_body {
            text = key::from_body(&body, pointer)?;
            if text.is_some() {
                break;
            }
        }
    }
    let Some(text) = text else {
        return if required { Err(missing()) } else { Ok(Taken::Through(Request::from_parts(parts, body.into()))) };
    };
    let action = action_of(shared, &parts, &body, &text)?;
    let cors = parts.headers.contains_key(header::ORIGIN);
    if !parts.headers.contains_key(IDEMPOTENCY_KEY)
        && let Ok(value) = HeaderValue::from_str(&quoted(&text))
    {
        // It travels on, wherever it came from.
        parts.headers.insert(IDEMPOTENCY_KEY, value);
    }
    let whole = Whole { parts, body, text, action, cors, _body: std::marker::PhantomData };
    Ok(Taken::Guarded(Box::new(whole)))
}

/// The key as the draft writes it.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn action_of(shared: &Shared, parts: &http::request::Parts, body: &Bytes, text: &str) -> Result<Action, Problem> {
    let options = &shared.options;
    let key = key::record_key(text, &parts.headers, &parts.uri, &options.scopes)?;
    let (method, path) = (parts.method.as_str(), parts.uri.path());
    let target: String = path.chars().take(MAX_TARGET).collect();
    let params = json!({
        "method": method,
        "path": path,
        "query": parts.uri.query(),
        "body": body_print(options.body_identity, &parts.headers, body),
    });
    let wait = options.wait.max(preferred_wait(&parts.headers).min(options.max_wait));
    let in_flight = if wait.is_zero() { InFlight::Reject } else { InFlight::Wait(wait) };
    let mut policy = PolicyPatch::new().in_flight(in_flight);
    if options.time_limit.is_some() {
        policy = policy.time_limit(options.time_limit);
    }
    Ok(Action::new(method, target).key(key).params(params).policy(policy))
}

/// What tells one body from another.
fn body_print(identity: BodyIdentity, headers: &http::HeaderMap, body: &Bytes) -> String {
    let json = || {
        let content_type = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        let text = std::str::from_utf8(body).ok().filter(|_| is_json(content_type))?;
        // Where RFC 8785 would round a number, bodies are compared byte by byte.
        let params = parse_params(text).ok()?;
        if numbers_are_exact(text) { canonical_json(&params).ok() } else { None }
    };
    let print = |bytes: &[u8]| Fingerprint::from_bytes(Sha256::digest(bytes).into());
    match (identity == BodyIdentity::Json).then(json).flatten() {
        Some(canonical) => format!("json:{}", print(canonical.as_bytes())),
        None => format!("bytes:{}", print(body)),
    }
}

/// RFC 7240: how long the client would rather wait than be turned away.
fn preferred_wait(headers: &http::HeaderMap) -> Duration {
    let preferences =
        headers.get_all("prefer").iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split([',', ';']));
    let seconds = preferences
        .filter_map(|p| p.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"))
        .and_then(|(_, value)| value.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

/// Whether the handler has begun, agreed upon by the task and its client.
#[derive(Default)]
struct Stage(AtomicU8);

impl Stage {
    const BEGUN: u8 = 1;
    const LEFT: u8 = 2;

    /// The handler begins, unless the client has left.
    fn begin(&self) -> bool {
        self.0.compare_exchange(0, Self::BEGUN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Neither the one nor the other.
    fn is_waiting(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }

    /// The client leaves, unless the handler has begun.
    fn leave(&self) -> bool {
        self.0.compare_exchange(0, Self::LEFT, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// A task that goes on when it is dropped, once the handler has begun.
struct LeftAlone<T> {
    task: tokio::task::JoinHandle<T>,
    stage: Arc<Stage>,
}

enum Ended {
    Outcome(Result<Outcome<Kept>, Error>),
    Panicked,
}

impl LeftAlone<Result<Outcome<Kept>, Error>> {
    async fn ended(mut self) -> Ended {
        match (&mut self.task).await {
            Ok(outcome) => Ended::Outcome(outcome),
            Err(_) => Ended::Panicked,
        }
    }
}

impl<T> Drop for LeftAlone<T> {
    fn drop(&mut self) {
        if self.stage.leave() {
            self.task.abort();
        }
    }
}

/// What the handler answered, where the record does not say it.
enum First<E> {
    Answer(Response<Body>),
    Error(E),
    /// It is to be recorded, without these cookies: they are the first caller's alone.
    Recorded(Vec<HeaderValue>),
}

async fn run<S, ReqBody, ResBody>(
    shared: Arc<Shared>,
    mut inner: S,
    taken: Box<Whole<ReqBody>>,
    stage: Arc<Stage>,
    count: Count,
    first: oneshot::Sender<First<S::Error>>,
) -> Result<Outcome<Kept>, Error>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Send + 'static,
    ReqBody: From<Bytes>,
    ResBody: http_body::Body<Data = Bytes> + Send + 'static,
    ResBody::Error: Into<BoxError>,
{
    let Whole { parts, body, text, action, .. } = *taken;
    let options = &shared.options;
    let (begins, count) = (stage.clone(), &count);
    let run = |context: Context| async move {
        if !begins.begin() {
            return Err(ActionError::retryable("the client left before the handler began"));
        }
        let timed = count.claimed();
        let mut request = Request::from_parts(parts, ReqBody::from(body));
        let attempt = Attempt { key: text, attempt: context.attempt(), attempts: context.attempts() };
        request.extensions_mut().insert(attempt);
        // Caught, so that the doubt is on record before the client hears of it.
        match AssertUnwindSafe(async { inner.call(request).await }).catch_unwind().await {
            Ok(Ok(response)) => {
                let decided = decide(options, response, first).await;
                if decided.is_ok() {
                    timed.done();
                }
                decided
            }
            Err(_) => {
                let problem = Problem::new(Kind::Internal, "the handler panicked; the key is in doubt");
                let _ = first.send(First::Answer(problem_response(problem)));
                Err(ActionError::unknown("the handler panicked"))
            }
            Ok(Err(error)) => {
                // Whether it came before or after the effect, it does not say.
                let _ = first.send(First::Error(error));
                Err(ActionError::unknown("the handler failed without an answer"))
            }
        }
    };
    let outcome = shared.hapax.execute(&action, run).await;
    if stage.is_waiting() {
        count.answered(&outcome);
    }
    outcome
}

/// Reads the answer and says what becomes of the key.
async fn decide<B, E>(
    options: &super::Idempotency,
    response: Response<B>,
    first: oneshot::Sender<First<E>>,
) -> Result<Kept, ActionError>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (parts, body) = response.into_parts();
    let fate = parts.extensions.get::<Fate>().copied().unwrap_or_else(|| options.fates.of(parts.status));
    let status = parts.status;
    let tell = |told| {
        // A client that has left needs it no more.
        let _ = first.send(told);
    };
    match fate {
        Fate::Release => {
            tell(First::Answer(Response::from_parts(parts, body.map_err(Into::into).boxed_unsync())));
            return Err(ActionError::retryable(format!("the handler answered {status}")));
        }
        Fate::Doubt => {
            tell(First::Answer(Response::from_parts(parts, body.map_err(Into::into).boxed_unsync())));
            return Err(ActionError::unknown(format!("the handler answered {status}")));
        }
        Fate::Keep => {}
    }
    match read(body, options.max_response_bytes, options.response_silence, is_endless(&parts)).await {
        Read::Whole(bytes) => {
            tell(First::Recorded(parts.headers.get_all(header::SET_COOKIE).iter().cloned().collect()));
            Ok(Kept::new(parts.status, &parts.headers, bytes))
        }
        Read::TooLong(body) => {
            let limit = options.max_response_bytes;
            tracing::warn!(%status, limit, "an answer is too large to be recorded, or endless; its key is in doubt");
            tell(First::Answer(Response::from_parts(parts, body)));
            Err(ActionError::unknown(format!("the answer ({status}) is endless, or larger than {limit} bytes")))
        }
        Read::Broken(error) => {
            tracing::warn!(%status, %error, "an answer broke off; its key is in doubt");
            let problem = Problem::new(Kind::UpstreamLost, "the handler's answer broke off; the key is in doubt");
            let (parts, bytes) = problem.into_parts();
            tell(First::Answer(Response::from_parts(parts, full(bytes.into()))));
            Err(ActionError::unknown(format!("the answer ({status}) broke off: {error}")))
        }
    }
}

/// A stream of events has no end to wait for.
fn is_endless(parts: &http::response::Parts) -> bool {
    let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    content_type.starts_with("text/event-stream")
}

enum Read {
    Whole(Bytes),
    /// What was read and what is to come.
    TooLong(Body),
    Broken(BoxError),
}

/// `silence`: how long it may be until the next piece. Without a limit an answer that stalls would hold its key, whose
/// lease is renewed as long as it runs.
async fn read<B>(body: B, limit: usize, silence: Duration, endless: bool) -> Read
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let mut body = Box::pin(body);
    let most = u64::try_from(limit).unwrap_or(u64::MAX);
    if endless || body.size_hint().lower() > most {
        return Read::TooLong(body.map_err(Into::into).boxed_unsync());
    }
    let mut read = BytesMut::new();
    loop {
        let frame = match tokio::time::timeout(silence, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Read::Broken(error.into()),
            Ok(None) => break,
            Err(_) => return Read::Broken(format!("nothing came for {silence:?}").into()),
        };
        // Trailers are not recorded.
        let Ok(data) = frame.into_data() else { continue };
        read.extend_from_slice(&data);
        if read.len() > limit {
            let rest = body.map_err(Into::into).boxed_unsync();
            return Read::TooLong(Chained { before: Some(read.freeze()), rest }.boxed_unsync());
        }
    }
    Read::Whole(read.freeze())
}

/// What was read already, then the rest.
struct Chained {
    before: Option<Bytes>,
    rest: Body,
}

impl http_body::Body for Chained {
    type Data = Bytes;
    type Error = BoxError;
    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
        match self.before.take() {
            Some(bytes) => std::task::Poll::Ready(Some(Ok(http_body::Frame::data(bytes)))),
            None => std::pin::Pin::new(&mut self.rest).poll_frame(cx),
        }
    }
}

fn streamed<B>(response: Response<B>) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    response.map(|body| body.map_err(Into::into).boxed_unsync())
}

fn answered<B>(kept: &Kept, replayed: &'static str, taken: &Whole<B>) -> Response<Body> {
    answered_as(kept, replayed, taken.cors)
}

fn answered_as(kept: &Kept, replayed: &'static str, cors: bool) -> Response<Body> {
    let mut response = kept.response().map(full);
    mark(&mut response, replayed, cors);
    response
}

/// The answer to the caller whose handler ran.
fn first_answer(kept: &Kept, cookies: Vec<HeaderValue>, cors: bool) -> Response<Body> {
    let mut response = answered_as(kept, "false", cors);
    for cookie in cookies {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

fn mark(response: &mut Response<Body>, replayed: &'static str, cors: bool) {
    let headers = response.headers_mut();
    headers.insert(REPLAYED, HeaderValue::from_static(replayed));
    if cors {
        let exposed = HeaderValue::from_static("Idempotency-Replayed, Hapax-State");
        headers.append(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

fn unrecorded(mut response: Response<Body>, error: &Error, cors: bool) -> Response<Body> {
    let state = match error {
        Error::Action { state: None, .. } => "released",
        _ => "in_doubt",
    };
    response.headers_mut().insert(STATE, HeaderValue::from_static(state));
    mark(&mut response, "false", cors);
    response
}

/// The answer to a request whose handler did not run, or whose answer could not be recorded.
fn refused(error: Error, cookies: Vec<HeaderValue>, cors: bool) -> Response<Body> {
    match error {
        // It ran and this is its answer, though retries will not get it.
        Error::NotRecorded { value, key, reason } => match value.into_value::<Kept>() {
            Ok(kept) => {
                tracing::warn!(%key, reason, "an answer was not recorded; its key is in doubt");
                let mut response = first_answer(&kept, cookies, cors);
                response.headers_mut().insert(STATE, HeaderValue::from_static("in_doubt"));
                response
            }
            Err(_) => problem_response(Problem::new(Kind::Internal, reason).key(&key)),
        },
        Error::LostClaim { value: Some(value), key, attempt } => match value.into_value::<Kept>() {
            Ok(kept) => first_answer(&kept, cookies, cors),
            Err(_) => problem_response(Problem::new(Kind::LostClaim, "the claim was lost").key(&key).attempt(attempt)),
        },
        error => problem_response(error.into()),
    }
}

pub(crate) fn problem_response(problem: Problem) -> Response<Body> {
    let (parts, body) = problem.into_parts();
    Response::from_parts(parts, full(body.into()))
}

#[cfg(test)]
mod tests {
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    const PIECE: Duration = Duration::from_secs(40);

    /// A body of three pieces, each after a while, and of nothing more after that if it stalls.
    fn slow(stalls: bool) -> impl http_body::Body<Data = Bytes, Error = BoxError> + Send + 'static {
        StreamBody::new(futures_util::stream::unfold(0, move |n| async move {
            tokio::time::sleep(PIECE).await;
            match n {
                0..3 => Some((Ok(Frame::data(Bytes::from_static(b"x"))), n + 1)),
                _ if stalls => std::future::pending().await,
                _ => None,
            }
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_be_slow_and_not_silent() {
        let silence = PIECE * 3 / 2;
        match read(slow(false), 10, silence, false).await {
            Read::Whole(bytes) => assert_eq!(bytes, "xxx"),
            Read::TooLong(_) | Read::Broken(_) => panic!("its pieces came in time"),
        }
        let began = tokio::time::Instant::now();
        assert!(matches!(read(slow(true), 10, silence, false).await, Read::Broken(_)));
        let passed = began.elapsed();
        assert!((PIECE * 4..PIECE * 5).contains(&passed), "{passed:?}");
    }
}
