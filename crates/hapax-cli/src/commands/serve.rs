//! `serve` and `proxy`: hapax over HTTP, from a configuration file of their own.
//!
//! SIGTERM and SIGINT stop it: it accepts no more, finishes what is under way
//! up to the limit, and ends with 0; a second one ends it at once. SIGHUP reads the configuration again.

use std::path::Path;

use hapax_http::telemetry::{self, LogFormat};
use hapax_http::{ApiServer, EncryptionConfig, ProxyConfig, ProxyServer, ServeConfig, ServeError, TlsConfig};
use rustix::process::Signal;
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{LogArgs, Proxy, Serve};
use crate::failure::{Failure, UNAVAILABLE};
use crate::settings::{Setting, Settings, Source, beside, path_beside, read_at_most};
use crate::terminal;

/// The largest configuration of a server that is read, in MiB: it has room for ten thousand tokens.
const MAX_MIB: u64 = 16;

/// Serves the API.
pub fn serve(args: &Serve, settings: &Settings) -> Result<u8, Failure> {
    let config = serve_config(args, settings)?;
    run(&args.log, async {
        let server = ApiServer::bind(config).await.map_err(failed)?;
        let reloader = server.reloader();
        let stop = stopped(async || reloaded(serve_config(args, settings), |c| reloader.reload(c)).await)?;
        // Whoever waits for this line may send a signal at once.
        say(server.address(), config_scheme(args, settings)?)?;
        server.run(stop).await.map_err(failed)
    })
}

/// Serves an upstream, each key once.
pub fn proxy(args: &Proxy, settings: &Settings) -> Result<u8, Failure> {
    let config = proxy_config(args, settings)?;
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    run(&args.log, async {
        let server = ProxyServer::bind(config).await.map_err(failed)?;
        let reloader = server.reloader();
        let stop = stopped(async || reloaded(proxy_config(args, settings), |c| reloader.reload(c)).await)?;
        say(server.address(), scheme)?;
        if let Some(address) = server.admin_address() {
            terminal::print(&format!("metrics and health on {scheme}://{address}"))?;
        }
        server.run(stop).await.map_err(failed)
    })
}

/// What the server's file names of what flags, the environment and the command's own configuration name too.
#[derive(Deserialize, Default)]
struct Named {
    store: Option<String>,
    namespace: Option<String>,
}

impl Named {
    fn in_file(text: &str) -> Result<Self, Failure> {
        toml::from_str(text).map_err(|e| Failure::usage(format!("the configuration cannot be read: {e}")))
    }

    /// The store: that of a flag or the environment, of the server's file, or of the command's own configuration.
    /// Beside a server's file no default of the commands counts: `fallback` is the server's.
    fn store(self, file: &Path, settings: &Settings, fallback: &str) -> Result<String, Failure> {
        match &settings.store {
            Some(store) if store.is_said() => settings.server_store(),
            of_commands => match (self.store, of_commands) {
                (Some(store), _) => Settings::served(&beside(file, &store)),
                (None, Some(Setting { source: Source::File, .. })) => settings.server_store(),
                (None, _) => Ok(fallback.into()),
            },
        }
    }
}

/// Takes relative paths from the directory of the file that they stand in.
fn files(file: &Path, encryption: Option<&mut EncryptionConfig>, tls: Option<&mut TlsConfig>) -> Result<(), Failure> {
    let keys = encryption.into_iter().flat_map(|e| e.keys.iter_mut()).map(|key| &mut key.file);
    let certificate = tls.into_iter().flat_map(|tls| [&mut tls.cert, &mut tls.key]);
    for path in keys.chain(certificate) {
        *path = path_beside(file, path)?;
    }
    Ok(())
}

fn proxy_config(args: &Proxy, settings: &Settings) -> Result<ProxyConfig, Failure> {
    let mut config = match &args.server_config {
        Some(path) => {
            let text = read(path)?;
            let mut config = ProxyConfig::from_toml(&text)?;
            config.store = Named::in_file(&text)?.store(path, settings, &config.store)?;
            files(path, config.encryption.as_mut(), config.tls.as_mut())?;
            config
        }
        None => {
            let mut config = ProxyConfig::default();
            config.store = settings.server_store()?;
            config
        }
    };
    if config.encryption.is_none() {
        config.encryption.clone_from(&settings.encryption.value);
    }
    // That of the commands by default is not a proxy's.
    if settings.namespace.is_said() {
        config.namespace.clone_from(&settings.namespace.value);
    }
    if let Some(upstream) = &args.upstream {
        config.upstream.clone_from(upstream);
    }
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    config.admin = args.admin.or(config.admin);
    if args.require_key {
        config.require = vec!["POST".into(), "PATCH".into()];
    }
    if let Some(wait) = args.wait {
        config.wait = hapax_http::units::Span(wait.0);
    }
    if config.upstream.is_empty() {
        return Err(Failure::usage("which upstream? Give --upstream http://HOST:PORT"));
    }
    Ok(config)
}

fn serve_config(args: &Serve, settings: &Settings) -> Result<ServeConfig, Failure> {
    let mut config = match &args.server_config {
        Some(path) => {
            let text = read(path)?;
            let mut config = ServeConfig::from_toml(&text)?;
            let named = Named::in_file(&text)?;
            if settings.namespace.is_said() || named.namespace.is_none() {
                config.namespace.clone_from(&settings.namespace.value);
            }
            config.store = named.store(path, settings, &config.store)?;
            files(path, config.encryption.as_mut(), config.tls.as_mut())?;
            config
        }
        None => {
            let mut config = ServeConfig::default();
            config.store = settings.server_store()?;
            config.namespace.clone_from(&settings.namespace.value);
            config
        }
    };
    if config.encryption.is_none() {
        config.encryption.clone_from(&settings.encryption.value);
    }
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    config.validate()?;
    Ok(config)
}

fn config_scheme(args: &Serve, settings: &Settings) -> Result<&'static str, Failure> {
    Ok(if serve_config(args, settings)?.tls.is_some() { "https" } else { "http" })
}

fn read(path: &Path) -> Result<String, Failure> {
    read_at_most(path, MAX_MIB).map_err(|e| unreadable(path, &e))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(format!("the configuration {} cannot be read: {error}", path.display()))
}

/// The first line on standard output: scripts wait for it.
fn say(address: std::net::SocketAddr, scheme: &str) -> Result<(), Failure> {
    terminal::print(&format!("listening on {scheme}://{address}"))
}

fn run(log: &LogArgs, serving: impl Future<Output = Result<(), Failure>>) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(1, "failed", format!("the runtime cannot be started: {e}")))?;
    let format = if log.log_json { LogFormat::Json } else { LogFormat::Text };
    let answer = runtime.block_on(async {
        let _telemetry = telemetry::start(format, &log.log, log.otlp.as_deref()).map_err(Failure::usage)?;
        serving.await
    });
    runtime.shutdown_background();
    answer.map(|()| 0)
}

/// Ends at SIGTERM or SIGINT; does `hup` at every SIGHUP until then.
fn stopped(hup: impl AsyncFn()) -> Result<impl Future<Output = ()>, Failure> {
    let listen = |kind| signal(kind).map_err(|e| Failure::new(1, "failed", format!("no signals: {e}")));
    let mut term = listen(SignalKind::terminate())?;
    let mut int = listen(SignalKind::interrupt())?;
    let mut again = listen(SignalKind::hangup())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = term.recv() => break,
                _ = int.recv() => break,
                _ = again.recv() => hup().await,
            }
        }
        // Who asks twice does not want to wait for what is under way. Nothing is lost: what was begun and not
        // ended reads as in doubt.
        tokio::spawn(async move {
            let code = tokio::select! {
                _ = term.recv() => 128 + Signal::TERM.as_raw(),
                _ = int.recv() => 128 + Signal::INT.as_raw(),
            };
            tracing::warn!("a second signal: it ends at once");
            std::process::exit(code);
        });
    })
}

/// Takes up a configuration that was read again, or says why not.
async fn reloaded<C, F>(config: Result<C, Failure>, reload: impl FnOnce(C) -> F)
where
    F: Future<Output = Result<(), ServeError>>,
{
    let outcome = match config {
        Ok(config) => reload(config).await.map_err(|e| e.to_string()),
        Err(failure) => Err(failure.message),
    };
    if let Err(error) = outcome {
        tracing::error!(error, "the configuration was not reloaded; the one before holds");
    }
}

fn failed(error: ServeError) -> Failure {
    match error {
        ServeError::Hapax(error) => error.into(),
        error => Failure::new(UNAVAILABLE, "unavailable", error.to_string()),
    }
}
