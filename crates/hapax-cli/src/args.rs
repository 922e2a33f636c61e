//! The command line as clap sees it: every subcommand, flag and help text.
//!
//! Flags that a configuration file or the environment can also set are options
//! here without defaults: the layers are put together in `settings`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;

use crate::failure::quoted;
use crate::units::{Keep, Limit, Size, Span};

/// Run a command once, however often it is retried.
///
/// hapax remembers what a command did under a key made of its name, target and
/// params. A second run of the same action does not run it again: it gets the
/// recorded output and exit code.
#[derive(Parser, Debug)]
#[command(name = "hapax", version, arg_required_else_help = true, after_help = AFTER, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

const AFTER: &str = "\
Settings come from flags, then the environment (HAPAX_STORE, HAPAX_NAMESPACE, HAPAX_CONFIG, \
HAPAX_LABEL, HAPAX_TTL, HAPAX_WAIT, HAPAX_ON_DOUBT, HAPAX_VERIFY, HAPAX_LEASE), then the \
configuration file, then defaults. `hapax config` shows each with its source.

Warnings go to standard error; HAPAX_LOG chooses what else, as RUST_LOG would: HAPAX_LOG=hapax=debug.

Durations are written like 24h, 1h 30m, 30s or 500ms.

Exit codes of hapax itself: 1 its output could not be written, or nothing found, 64 wrong usage or configuration, 65 same key with other params, \
or a stale attempt, 69 store \
unavailable, 75 turned away while another runs it, 76 in doubt. With --json a failure is one object on \
the last line of standard error: {\"error\":{\"kind\",\"code\",\"message\",\"key\"}}.";

#[derive(Args, Debug)]
pub struct Global {
    /// Where records are kept, e.g. sqlite:/var/lib/app/hapax.db [env: HAPAX_STORE]
    #[arg(long, global = true, value_name = "URL", help_heading = "Global options")]
    pub store: Option<String>,
    /// The tenant; keys of two namespaces never meet [env: HAPAX_NAMESPACE]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options")]
    pub namespace: Option<String>,
    /// The configuration file [env: HAPAX_CONFIG]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// Print one JSON object with stable field names instead of text
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
}

impl Global {
    /// The flags that say where the records are, for a command that is shown to the user.
    pub fn flags(&self) -> String {
        let mut flags = String::new();
        let config = self.config.as_ref().map(|p| p.display().to_string());
        for (name, value) in [("config", &config), ("store", &self.store), ("namespace", &self.namespace)] {
            if let Some(value) = value {
                flags.push_str(&format!(" --{name} {}", quoted(value)));
            }
        }
        flags
    }
}

#[derive(Subcommand, Debug)]
pub enum Command {
    Run(Box<Run>),
    Key(KeyArgs),
    /// Take a generated key apart
    Parse {
        /// A key as `hapax key` prints it
        key: String,
    },
    /// Print the recorded result of a key; exit 1 when there is none
    ///
    /// The result is JSON, and there is no output when there is none. A key that
    /// is in flight or in doubt is not "none": that is exit code 75 or 76, since
    /// its effect may have happened.
    Check {
        /// The key
        key: String,
    },
    Mark(Mark),
    /// Show the record of a key
    Get {
        /// The key
        key: String,
    },
    Ls(Ls),
    /// Show what happened so far: hits, executions, doubts, time saved
    Stats {
        /// Set the counters to zero after showing them
        #[arg(long)]
        reset: bool,
    },
    /// Show what the store holds and where it is
    Info,
    Top(Top),
    Settle(Settle),
    /// Remove a recorded result, so that the action runs again
    ///
    /// A key in doubt is not removed but settled.
    Rm {
        /// The key
        key: String,
    },
    Cleanup(Cleanup),
    /// Show every setting and where its value comes from
    #[command(after_help = CONFIG_AFTER)]
    Config {
        /// Print the path of the configuration file alone
        #[arg(long)]
        path: bool,
    },
    Serve(Serve),
    Proxy(Proxy),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Watch what runs, what is in doubt and what was recorded, live in the terminal
///
/// Keys: arrows or j and k move, Enter opens a record, v shows its params and result, s settles a doubt,
/// / filters, ? helps, q quits.
#[derive(Args, Debug)]
pub struct Top {
    /// How often it looks, 250ms to 60s; a server tells what happens, and is asked only when it does not
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    pub interval: Span,
    /// Print what there is now, once, and end; works without a terminal
    #[arg(long)]
    pub once: bool,
}

fn interval(text: &str) -> Result<Span, String> {
    let span: Span = text.parse()?;
    match span.0.as_millis() {
        250..=60_000 => Ok(span),
        _ => Err("give 250ms to 60s".into()),
    }
}

/// Serve the API over HTTP
///
/// Without tokens (see the server's configuration) it answers the loopback only. SIGTERM finishes what is under way
/// and ends; SIGHUP reads the configuration again.
#[derive(Args, Debug)]
pub struct Serve {
    /// Where to listen [default: 127.0.0.1:4278]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// The server's configuration, TOML: store, tokens, TLS, limits, policy
    #[arg(long, value_name = "FILE")]
    pub server_config: Option<PathBuf>,
    #[command(flatten)]
    pub log: LogArgs,
}

/// Put Idempotency-Key in front of any HTTP API
///
/// Requests with one key reach the upstream once, and every retry gets the answer that was first sent. Its records are
/// in the namespace `proxy`, unless --namespace, HAPAX_NAMESPACE or its configuration names another: look at doubts with
/// `hapax --namespace proxy ls --state in-doubt`, and settle them so.
#[derive(Args, Debug)]
pub struct Proxy {
    /// The API behind, e.g. http://127.0.0.1:8080
    #[arg(long, value_name = "URL")]
    pub upstream: Option<String>,
    /// Where to listen [default: 127.0.0.1:4280]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where to answer /metrics, /healthz and /readyz; beyond the loopback only with tokens in the
    /// configuration [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub admin: Option<SocketAddr>,
    /// Refuse POST and PATCH without a key
    #[arg(long)]
    pub require_key: bool,
    /// How long a duplicate waits for the answer [default: it is turned away at once]
    #[arg(long, value_name = "DURATION")]
    pub wait: Option<Span>,
    /// The proxy's configuration, TOML: store, scopes, other key headers, fates of statuses, limits
    #[arg(long, value_name = "FILE")]
    pub server_config: Option<PathBuf>,
    #[command(flatten)]
    pub log: LogArgs,
}

/// What a server says of itself.
#[derive(Args, Debug)]
pub struct LogArgs {
    /// What is logged, as RUST_LOG has it
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// Log JSON, an object a line
    #[arg(long)]
    pub log_json: bool,
    /// Send traces there by OTLP over HTTP, e.g. http://127.0.0.1:4318/v1/traces; only in a build with the feature otlp
    #[arg(long, value_name = "URL")]
    pub otlp: Option<String>,
}

/// What identifies an action.
#[derive(Args, Debug, Clone, Default)]
pub struct ActionArgs {
    /// What triggered it: a mail, a webhook, a workflow run
    #[arg(long, value_name = "ID")]
    pub signal: Option<String>,
    /// What kind of action it is [default: the command's file name]
    #[arg(long, value_name = "TYPE")]
    pub action: Option<String>,
    /// What it acts on [default: local]
    #[arg(long, value_name = "TARGET")]
    pub target: Option<String>,
    /// Its params: JSON, @FILE, or - for standard input [default: {"argv": [COMMAND, ARGS…]}]
    #[arg(long, value_name = "JSON|@FILE|-", allow_hyphen_values = true)]
    pub params: Option<String>,
    /// Use this key instead of a generated one
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
}

/// Run a command once; replay its output and exit code ever after
///
/// The first run streams the command's output through while it is kept. Later
/// runs of the same action print the kept output and exit with the kept code,
/// without running anything. The working directory and the environment are not
/// part of what identifies an action: put what matters into --params or --key.
#[derive(Args, Debug)]
#[command(after_help = RUN_AFTER)]
pub struct Run {
    #[command(flatten)]
    pub action: ActionArgs,
    /// How long the result is kept, e.g. 24h, or `never` for ever [default: 24h]
    #[arg(long, value_name = "DURATION")]
    pub ttl: Option<Keep>,
    /// How long to wait while another process runs it [default: 30s]
    #[arg(long, value_name = "DURATION", conflicts_with = "no_wait")]
    pub wait: Option<Span>,
    /// Exit with 75 at once while another process runs it
    #[arg(long)]
    pub no_wait: bool,
    /// What to do when an earlier run died before its result was recorded [default: refuse]
    #[arg(long, value_name = "CHOICE")]
    pub on_doubt: Option<DoubtChoice>,
    /// Shell command that looks whether the effect happened: exit 0 = yes (its stdout is the
    /// result), 1 = no, else unknown; implies --on-doubt verify
    #[arg(long, value_name = "CMD")]
    pub verify: Option<String>,
    /// Record a nonzero exit too, and replay it, instead of freeing the key
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub remember_failures: Option<bool>,
    /// End the command after this long (TERM, 5 s later KILL); the key is in doubt then [default:
    /// none]
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<Limit>,
    /// How long hapax may be silent before its run counts as dead; in a SQLite store a dead one is
    /// seen at once [default: 60s]
    #[arg(long, value_name = "DURATION")]
    pub lease: Option<Span>,
    /// The largest output that is recorded, as JSON, at most 64MiB [default: 1MiB]
    #[arg(long, value_name = "SIZE")]
    pub max_output: Option<Size>,
    /// Say on standard error that it waits or replays, also when that is no terminal
    #[arg(long, short)]
    pub verbose: bool,
    /// The command and its arguments, best after `--`
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

const RUN_AFTER: &str = "\
The command gets HAPAX_KEY, IDEMPOTENCY_KEY (the same) and HAPAX_ATTEMPT in its environment, to pass on to \
whatever it calls. So does the --verify command, with the attempt in doubt.

A nonzero exit frees the key, so that the next run tries again. Death by a signal, of the command or of \
hapax, a timeout and an output too large to record leave the key in doubt: hapax then refuses to run it \
again (exit 76) until `hapax settle`, --verify or --on-doubt rerun says what to do.

SIGHUP, SIGINT, SIGQUIT and SIGTERM are passed on to the command, and its end is waited for, at most a minute. \
If it exits with 0 all the same, that is recorded. When hapax is killed outright (SIGKILL), the command may \
go on running; the key is in doubt at once, but in a store that is not SQLite it reads as in progress until the lease \
lapses. Signals and --timeout end the command itself, not what it has started.

Output that background processes write after the command itself has ended is kept for two seconds more. \
Standard output and standard error are each replayed whole, one after the other.

With --json, standard output is one object: key, attemptId, replayed, recorded, exitCode, stdout and stderr \
(stdoutBase64, stderrBase64 if they are not text), executedAt, expiresAt, durationMs. The command's own \
output goes to standard error as it comes; a replay's only into the object.

When our own reader goes away, the command runs on, to be recorded; once its output is too large for that, its pipe is \
closed. When our own output cannot be written otherwise (a full disk), the result is recorded and the exit code is 1.

A command that cannot be started exits with 127 (not found) or 126, as in a shell, and its key stays free.

Examples:
  hapax run -- ./send-invoice.sh 42
  hapax run --signal \"$(date +%F)\" -- ./backup.sh    (once a day, whatever cron does)
  hapax run --signal \"$ID\" --action create_task --target trello --params @task.json -- ./create.sh
  hapax run --key payroll-2026-11 --ttl never --verify './paid.sh' -- ./pay.sh";

const CONFIG_AFTER: &str = "\
The configuration file is TOML. All of it may be left out:

  # A relative path is taken from this file's directory.
  store = \"sqlite:/var/lib/app/hapax.db\"
  namespace = \"billing\"
  label = \"cron\"             # shown in records as part of their owner
  ttl = \"24h\"                # or \"never\"
  wait = \"30s\"               # or \"no\"
  on_doubt = \"refuse\"        # or \"rerun\", \"verify\"
  verify = \"./look.sh\"       # implies on_doubt = \"verify\"
  verify_limit = \"60s\"
  remember_failures = false
  timeout = \"none\"
  lease = \"60s\"
  identity = \"all\"           # or { include = [\"/id\"] }, { exclude = [\"/timestamp\"] }
  keep_params = \"full\"       # or \"fingerprint\"
  max_output = \"1MiB\"
  max_entries = 100000       # of the store; no limit by default
  on_full = \"evict\"          # or \"reject\"
  auto_cleanup = true        # `hapax run` clears expired records away

  [[rule]]                   # for an action type, or for a type on one target
  action = \"charge\"
  target = \"stripe\"
  ttl = \"never\"              # and the others from ttl to keep_params

  [encryption]               # seals results, params and errors of a store that is no server
  current = \"2026-11\"
  [[encryption.key]]
  id = \"2026-11\"
  file = \"hapax.key\"         # 64 hexadecimal digits, as `openssl rand -hex 32` prints

Of several rules that fit, the later one counts, and one with a target before one without. What is wrong \
in the file is an error: nothing runs with half a configuration.";

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DoubtChoice {
    /// Exit with 76 until someone settles the key
    Refuse,
    /// Run it again: for commands that are harmless to repeat
    Rerun,
    /// Ask the --verify command
    Verify,
}

/// Print the key of an action: the one that `hapax run` would use
#[derive(Args, Debug)]
pub struct KeyArgs {
    #[command(flatten)]
    pub action: ActionArgs,
    /// The command and its arguments, for the defaults
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Record a result by hand, for a key that is absent or in doubt
///
/// Over a recorded result it changes nothing. Checking, running and marking by
/// hand races by its nature; `hapax run` does not.
#[derive(Args, Debug)]
pub struct Mark {
    /// The key
    pub key: String,
    /// The result: JSON, @FILE, or - for standard input
    #[arg(long, value_name = "JSON|@FILE|-", allow_hyphen_values = true)]
    pub result: String,
    /// How long it is kept [default: 24h]
    #[arg(long, value_name = "DURATION")]
    pub ttl: Option<Keep>,
}

/// List records, oldest first unless told otherwise
#[derive(Args, Debug)]
pub struct Ls {
    /// Of this action type
    #[arg(long, value_name = "TYPE")]
    pub action: Option<String>,
    /// Of this target
    #[arg(long, value_name = "TARGET")]
    pub target: Option<String>,
    /// Of this signal
    #[arg(long, value_name = "ID")]
    pub signal: Option<String>,
    /// In this state: in-progress, completed, failed or in-doubt
    #[arg(long, value_name = "STATE", value_parser = state)]
    pub state: Option<hapax::State>,
    /// Whose result expires within this time
    #[arg(long, value_name = "DURATION")]
    pub expiring_within: Option<Span>,
    /// Newest first
    #[arg(long)]
    pub newest: bool,
    /// At most this many, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub limit: u16,
    /// Where to go on: what the last page, in the same order, called `next`
    #[arg(long, value_name = "CURSOR", conflicts_with = "all")]
    pub cursor: Option<String>,
    /// All of them, not a page
    #[arg(long)]
    pub all: bool,
}

/// A state, as the records write it or with a hyphen.
fn state(text: &str) -> Result<hapax::State, String> {
    text.replace('-', "_").parse::<hapax::State>().map_err(|e| e.to_string())
}

/// Say what became of a key in doubt, so that it can be replayed or run again
///
/// `hapax run` replays a JSON string as its text and any other JSON as it is. To
/// have an exit code and standard error replayed too, give an object such as
/// {"exitCode":0,"stdout":"…","stderr":"…"}.
///
/// Name the attempt that you looked into: between your look and this command the
/// key may have been run again. A stale attempt settles nothing and is exit code 65.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("what").required(true)))]
pub struct Settle {
    /// The key
    pub key: String,
    /// The effect happened; this is its result: JSON, @FILE, or - for standard input
    #[arg(long, value_name = "JSON|@FILE|-", group = "what", allow_hyphen_values = true)]
    pub happened: Option<String>,
    /// The effect did not happen: the next call runs it
    #[arg(long, group = "what")]
    pub not_happened: bool,
    /// Only if it is in doubt by this attempt, as `hapax get` shows it
    #[arg(long, value_name = "ID")]
    pub attempt: Option<hapax::AttemptId>,
    /// How long the result is kept [default: 24h]
    #[arg(long, value_name = "DURATION", conflicts_with = "not_happened")]
    pub ttl: Option<Keep>,
}

/// Remove records: the expired, the oldest, or all results
///
/// What is in progress or in doubt always stays. `hapax run` clears expired
/// records away by itself.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("which").required(true)))]
pub struct Cleanup {
    /// The expired ones, which no call sees any more
    #[arg(long, group = "which")]
    pub expired: bool,
    /// The N oldest results and errors, before their time
    #[arg(long, value_name = "N", group = "which")]
    pub oldest: Option<u64>,
    /// All results and errors of the namespace
    #[arg(long, group = "which")]
    pub all: bool,
}
