//! Making keys and taking them apart, without touching the store.

use axum::response::Response;
use hapax::{Fingerprint, Identity};
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::body::{Body, action_of, json_response};
use crate::access::Reader;
use crate::app::App;
use crate::openapi::{Common, Sent};
use crate::problem::{Kind, Problem};
use crate::schema::{ActionRequest, KeyAnswer, ParseRequest, Parts};

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(generate)).routes(routes!(parse))
}

/// Generate the key of an action
///
/// `signalId:actionType:target:paramsHash`, where the hash covers the canonical params (RFC 8785).
#[utoipa::path(
    post, path = "/v1/keys", tag = "keys", request_body = ActionRequest, operation_id = "generateKey",
    responses((status = 200, description = "The key", body = KeyAnswer), Common, Sent)
)]
async fn generate(Reader(tenant): Reader, Body(request): Body<ActionRequest>) -> Result<Response, Problem> {
    let ActionRequest { key, signal_id, action_type, target, params, identity } = request;
    let (action, policy) = action_of(key, signal_id, action_type, target, params.as_deref(), identity)?;
    let value = params.as_deref().map_or(Ok(serde_json::Value::Null), |p| hapax::parse_params(p.get()));
    let value = value.map_err(hapax::Error::from)?;
    let identity = match &policy.identity {
        Some(identity) => identity.clone(),
        None => action_identity(&tenant.hapax, &action),
    };
    let fingerprint = Fingerprint::of(&identity.select(&value)).map_err(hapax::Error::from)?;
    let key = action.policy(policy.identity(identity)).generate_key()?;
    Ok(json_response(StatusCode::OK, &KeyAnswer { key, fingerprint }))
}

fn action_identity(hapax: &hapax::Hapax, action: &hapax::Action) -> Identity {
    hapax.config().policy_for(action.action_type(), action.target()).identity
}

/// Take a generated key apart
#[utoipa::path(
    post, path = "/v1/keys/parse", tag = "keys", request_body = ParseRequest, operation_id = "parseKey",
    responses((status = 200, description = "What it was made from", body = Parts), Common, Sent)
)]
async fn parse(_reader: Reader, Body(request): Body<ParseRequest>) -> Result<Response, Problem> {
    let parts = request.key.parts().map_err(|e| Problem::new(Kind::InvalidKey, e.to_string()).key(&request.key))?;
    Ok(json_response(StatusCode::OK, &parts))
}
