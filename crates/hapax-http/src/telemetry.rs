//! What the server says of itself while it runs: logs as text or JSON, and
//! traces by OTLP (feature `otlp`).
//!
//! Invariant: events carry keys, attempts and counts, never params, results,
//! bodies or tokens.

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// How logs are written, to standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// Keeps telemetry going; what is left is sent when it is dropped.
#[derive(Debug)]
#[must_use = "traces end with it"]
pub struct Telemetry {
    #[cfg(feature = "otlp")]
    traces: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

/// Starts logging; `filter` is as `RUST_LOG` has it (`info`, `hapax=debug`).
/// With `otlp`, traces go to that endpoint by OTLP over HTTP.
///
/// # Errors
/// When the filter is none, something logs already, or this was built without
/// the feature `otlp`.
pub fn start(format: LogFormat, filter: &str, otlp: Option<&str>) -> Result<Telemetry, String> {
    let filter = EnvFilter::try_new(filter).map_err(|e| format!("log filter {filter:?}: {e}"))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(false).with_filter(filter).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
    };
    let registry = tracing_subscriber::registry().with(lines);
    #[cfg(feature = "otlp")]
    {
        let traces = otlp.map(exporter).transpose()?;
        let spans = traces.as_ref().map(|traces| {
            use opentelemetry::trace::TracerProvider as _;
            // Whatever is logged: traces are the requests and the steps of each.
            let spans = tracing_subscriber::filter::filter_fn(|of| of.is_span() && of.target().starts_with("hapax"));
            tracing_opentelemetry::layer().with_tracer(traces.tracer("hapax")).with_filter(spans)
        });
        registry.with(spans).try_init().map_err(|e| e.to_string())?;
        Ok(Telemetry { traces })
    }
    #[cfg(not(feature = "otlp"))]
    {
        if otlp.is_some() {
            return Err("this hapax was built without traces: build it with the feature otlp".into());
        }
        registry.try_init().map_err(|e| e.to_string())?;
        Ok(Telemetry {})
    }
}

#[cfg(feature = "otlp")]
fn exporter(endpoint: &str) -> Result<opentelemetry_sdk::trace::SdkTracerProvider, String> {
    use opentelemetry_otlp::WithExportConfig as _;
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(endpoint)
        .build()
        .map_err(|e| format!("otlp {endpoint}: {e}"))?;
    let resource = opentelemetry_sdk::Resource::builder().with_service_name("hapax").build();
    Ok(opentelemetry_sdk::trace::SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        #[cfg(feature = "otlp")]
        if let Some(traces) = self.traces.take() {
            let _ = traces.shutdown();
        }
    }
}
