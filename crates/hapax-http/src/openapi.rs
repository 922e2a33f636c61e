//! The OpenAPI 3.1 document, made from the handlers and what they read and write.

use std::collections::BTreeMap;

use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Response, ResponseBuilder,
    SecurityRequirement,
};
use utoipa::{IntoResponses, PartialSchema, ToSchema};

use crate::problem::Document;
use crate::schema;

type Responses = BTreeMap<String, RefOr<Response>>;

fn problem(status: &str, description: &str) -> (String, RefOr<Response>) {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let response = ResponseBuilder::new().description(description).content("application/problem+json", content).build();
    (status.into(), response.into())
}

macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident: $($status:literal $description:literal),+;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name;
        impl IntoResponses for $name {
            fn responses() -> Responses {
                [$(problem($status, $description)),+].into()
            }
        }
    )*};
}

problems! {
    /// What any call may answer.
    Common:
        "400" "The request cannot be understood (`bad-request`, `invalid-key`)",
        "401" "There is no known bearer token (`unauthorized`)",
        "403" "The token may not do this, or the request comes from a page that may not (`forbidden`)",
        "500" "The server is at fault (`internal`)",
        "503" "Try again later with the same key (`store-unavailable`, `overloaded`, `shutting-down`); after `answer-lost` it may have happened";
    /// What a call with a body may answer.
    Sent:
        "408" "The body took too long to arrive: send it again with the same key (`request-timeout`)",
        "413" "The body is larger than the limit (`body-too-large`), or the result is (`result-too-large`)",
        "415" "The content type is not JSON (`unsupported-media-type`)";
    /// The key stands otherwise.
    Conflict:
        "409" "The key's state does not allow this (`in-doubt`, `in-flight`, `lost-claim`, `wrong-state`, `released`)";
    /// Nothing there.
    Missing:
        "404" "There is no record of the key (`not-found`)";
    /// Other content.
    Mismatch:
        "422" "The key was used with other params; nothing ran (`params-mismatch`)";
    /// No room.
    Full:
        "507" "The store is full and was told to reject more (`store-full`)";
}

/// Completes what the routes gave with what holds for all of them.
pub(crate) fn complete(paths: OpenApi) -> OpenApi {
    let mut components = paths.components.unwrap_or_default();
    // Named in answers by reference alone.
    let shapes = [
        (Document::name(), <Document<'_> as PartialSchema>::schema()),
        (schema::State::name(), <schema::State as PartialSchema>::schema()),
    ];
    for (name, schema) in shapes {
        components.schemas.insert(name.into_owned(), schema);
    }
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A token of the server's configuration. A server without tokens needs none on the loopback."))
        .build();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    let info = InfoBuilder::new()
        .title("hapax")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Actions with side effects run once, however often they are retried, and every retry gets the recorded \
             result.\n\nErrors are RFC 9457 problem documents: `type`, `state`, `retryable` and `safeToUseNewKey` say \
             what to do, `detail` says it to people.",
        ))
        .license(Some(LicenseBuilder::new().name("MIT OR Apache-2.0").identifier(Some("MIT OR Apache-2.0")).build()))
        .build();
    let mut document = OpenApiBuilder::new()
        .info(info)
        .paths(paths.paths)
        .components(Some(components))
        .security(Some([SecurityRequirement::new::<_, [&str; 0], &str>("bearer", []), SecurityRequirement::default()]))
        .build();
    document.schema = String::new();
    document
}

/// The document as JSON, as it is served and checked in.
#[must_use]
pub fn document() -> String {
    let (_, paths) = crate::router::paths();
    let mut text = serde_json::to_string_pretty(&complete(paths)).unwrap_or_default();
    text.push('\n');
    text
}
