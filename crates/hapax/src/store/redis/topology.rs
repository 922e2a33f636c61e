//! Which server answers for a slot, and getting a request done there.
//!
//! One server, whichever a Sentinel names, or the nodes of a cluster. Invariant: a request that may have been done is
//! sent again only if that does no more than the first time, and says that it was sent before; if it cannot be sent
//! again in time, its caller is told that nobody knows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::RwLock;
use redis::{AsyncConnectionConfig, Cmd, ProtocolVersion, Value};
use tokio::time::Instant;

use super::error::Failure;
use super::node::{Dial, Node, Role, Trouble, pause};
use super::op::Resend;
use super::options::{Address, Mode, RedisOptions, address};
use super::row::digits;
use crate::store::StoreError;
use crate::store::shared::{Asked, ServerClock};

/// Between two looks at how the servers are set up.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The longest nap of a request between two tries; connecting has pauses of its own.
const LONGEST_NAP: Duration = Duration::from_millis(250);
/// How often one request follows a redirection.
const MAX_REDIRECTIONS: usize = 8;

/// How a request is to be put this time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct How {
    /// With the script's text, since the server does not know it.
    pub(super) with_source: bool,
    /// It may have been done already.
    pub(super) sent_before: bool,
}

/// A request to the server of one slot.
pub(super) struct Request<'a> {
    pub(super) slot: u16,
    /// It changes what must be as durable as the options say.
    pub(super) is_write: bool,
    pub(super) resend: Resend,
    pub(super) make: &'a (dyn Fn(How) -> Cmd + Send + Sync),
}

#[derive(Debug, Default)]
struct Map {
    nodes: HashMap<Address, Arc<Node>>,
    /// The first slot after a range, and who has that range; in order. One entry when there is no cluster.
    ranges: Vec<(u32, Arc<Node>)>,
}

#[derive(Debug)]
pub(super) struct Topology {
    pub(super) location: String,
    options: RedisOptions,
    dial: Dial,
    map: RwLock<Map>,
    /// When the servers were last looked at.
    looked: tokio::sync::Mutex<Option<Instant>>,
    /// Grows when another server takes over.
    changes: AtomicU64,
    pub(super) clock: ServerClock,
}

impl Topology {
    pub(super) fn new(options: RedisOptions) -> Self {
        let role = if matches!(options.mode, Mode::Sentinel { .. }) { Role::Primary } else { Role::Any };
        let database = if matches!(options.mode, Mode::Cluster(_)) { 0 } else { options.database };
        let dial = Dial { login: options.login.clone(), database, role, options: options.clone() };
        let topology = Self {
            location: options.location(),
            dial,
            map: RwLock::default(),
            looked: tokio::sync::Mutex::new(None),
            changes: AtomicU64::new(0),
            clock: ServerClock::default(),
            options,
        };
        if let Mode::Single(address) = &topology.options.mode {
            topology.set(vec![(16384, address.clone())]);
        }
        topology
    }

    /// A number that grows whenever it may be that another server answers, or the same one after a restart.
    pub(super) fn generation(&self) -> u64 {
        let nodes: u64 = self.map.read().nodes.values().map(|n| n.generation()).sum();
        nodes.wrapping_add(self.changes.load(Ordering::Acquire))
    }

    /// The servers that hold records.
    pub(super) fn primaries(&self) -> Vec<Arc<Node>> {
        let map = self.map.read();
        let mut nodes: Vec<Arc<Node>> = Vec::new();
        for (_, node) in &map.ranges {
            if !nodes.iter().any(|n| Arc::ptr_eq(n, node)) {
                nodes.push(node.clone());
            }
        }
        nodes
    }

    pub(super) fn command_timeout(&self) -> Duration {
        self.options.command_timeout
    }

    pub(super) fn options(&self) -> &RedisOptions {
        &self.options
    }

    pub(super) fn dial(&self) -> &Dial {
        &self.dial
    }

    /// Takes the time from an answer that begins with it.
    pub(super) fn learn(&self, answer: Option<&Value>, asked: Asked) {
        let head = if let Some(Value::Array(parts)) = answer { parts.first() } else { answer };
        if let Some(Value::BulkString(bytes)) = head
            && let Some((b'X' | b'R', rest)) = bytes.split_first()
            && let Some(millis) = rest.get(..15).and_then(digits).and_then(|millis| i64::try_from(millis).ok())
        {
            self.clock.tell(millis, asked);
        }
    }

    fn set(&self, ranges: Vec<(u32, Address)>) {
        let mut map = self.map.write();
        let mut nodes = HashMap::new();
        let mut of = |address: Address| {
            nodes
                .entry(address.clone())
                .or_insert_with(|| {
                    // Known nodes keep their connections.
                    map.nodes.get(&address).cloned().unwrap_or_else(|| Arc::new(Node::new(address, self.dial.clone())))
                })
                .clone()
        };
        let ranges: Vec<(u32, Arc<Node>)> = ranges.into_iter().map(|(end, address)| (end, of(address))).collect();
        let same = ranges.len() == map.ranges.len()
            && ranges.iter().zip(&map.ranges).all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(&a.1, &b.1));
        if !same {
            // The generations of nodes that go would be missing from the sum.
            let gone: u64 = map.nodes.values().map(|n| n.generation()).sum();
            self.changes.fetch_add(1 + gone, Ordering::AcqRel);
        }
        *map = Map { nodes, ranges };
    }

    fn known(&self, slot: u16) -> Option<Arc<Node>> {
        let map = self.map.read();
        let at = map.ranges.partition_point(|(end, _)| *end <= u32::from(slot));
        map.ranges.get(at).map(|(_, node)| node.clone())
    }

    pub(super) async fn node_for(&self, slot: u16, deadline: Instant) -> Result<Arc<Node>, Failure> {
        if let Some(node) = self.known(slot) {
            return Ok(node);
        }
        self.look(deadline).await?;
        self.known(slot).ok_or_else(|| Failure::Unsent(format!("no node of the cluster serves slot {slot}")))
    }

    /// Asks the Sentinels or the cluster who is who, unless that was done a moment ago.
    async fn look(&self, deadline: Instant) -> Result<(), Failure> {
        if matches!(self.options.mode, Mode::Single(_)) {
            return Ok(());
        }
        let late = || Failure::Unsent("who is primary could not be found out in time".into());
        let mut looked = tokio::time::timeout_at(deadline, self.looked.lock()).await.map_err(|_| late())?;
        if looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return Ok(());
        }
        let asking = async {
            match &self.options.mode {
                Mode::Single(_) => Ok(()),
                Mode::Sentinel { sentinels, primary } => self.ask_sentinels(sentinels, primary).await,
                Mode::Cluster(seeds) => self.ask_cluster(seeds).await,
            }
        };
        let found = tokio::time::timeout_at(deadline, asking).await.unwrap_or_else(|_| Err(late()));
        *looked = Some(Instant::now());
        found
    }

    async fn ask(&self, dial: &Dial, to: &Address, cmd: &Cmd) -> Result<Value, Failure> {
        let limit = self.options.connect_timeout;
        let asked = async {
            let mut connection = dial.connect(to, ProtocolVersion::RESP2, AsyncConnectionConfig::new()).await?;
            let answer = connection.send_packed_command(cmd).await.and_then(Value::extract_error);
            answer.map_err(|e| super::error::connecting(&to.to_string(), &e))
        };
        tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| {
            Err(Failure::Unsent(format!("{to} does not answer within {limit:?} (connect_timeout)")))
        })
    }

    async fn ask_sentinels(&self, sentinels: &[Address], primary: &str) -> Result<(), Failure> {
        let dial =
            Dial { login: self.options.sentinel_login.clone(), database: 0, role: Role::Any, ..self.dial.clone() };
        let mut cmd = redis::cmd("SENTINEL");
        cmd.arg("get-master-addr-by-name").arg(primary);
        let mut failure = Failure::Unsent("there are no Sentinels".into());
        for sentinel in sentinels {
            match self.ask(&dial, sentinel, &cmd).await {
                Ok(Value::Array(parts)) => {
                    if let [host, port] = parts.as_slice()
                        && let (Some(host), Some(port)) = (text(host), text(port).and_then(|p| p.parse().ok()))
                    {
                        self.set(vec![(16384, Address { host, port })]);
                        return Ok(());
                    }
                }
                Ok(_) => {
                    failure = Failure::Unsent(format!(
                        "the Sentinel at {sentinel} knows no primary named {primary:?}; give the name that its `sentinel monitor` line has"
                    ));
                }
                Err(other) => failure = other,
            }
        }
        Err(failure)
    }

    async fn ask_cluster(&self, seeds: &[Address]) -> Result<(), Failure> {
        let mut cmd = redis::cmd("CLUSTER");
        cmd.arg("SLOTS");
        let known: Vec<Address> = self.map.read().nodes.keys().cloned().collect();
        let mut failure = Failure::Unsent("no node of the cluster is known".into());
        for node in known.iter().chain(seeds) {
            match self.ask(&self.dial, node, &cmd).await {
                Ok(answer) => match ranges(&answer, node) {
                    Some(ranges) if !ranges.is_empty() => {
                        self.set(ranges);
                        return Ok(());
                    }
                    _ => failure = Failure::Unsent(format!("{node} knows of no slots; is the cluster set up?")),
                },
                Err(Failure::Refused(super::error::Refusal::Other(said)))
                    if said.contains("cluster support disabled") =>
                {
                    return Err(Failure::other(format!(
                        "{node} is no node of a cluster; give redis: in place of redis+cluster:"
                    )));
                }
                Err(other) => failure = other,
            }
        }
        Err(failure)
    }

    /// Gets a request done within the command limit.
    pub(super) async fn exec(&self, request: &Request<'_>) -> Result<Value, StoreError> {
        self.exec_within(request, self.options.command_timeout).await
    }

    pub(super) async fn exec_within(&self, request: &Request<'_>, limit: Duration) -> Result<Value, StoreError> {
        let deadline = Instant::now() + limit;
        let wait = Some(self.options.wait).filter(|w| request.is_write && w.is_wanted());
        let (mut how, mut asked, mut redirections, mut failures) = (How::default(), None, 0, 0u32);
        loop {
            let is_asking = asked.is_some();
            let node = match asked.take() {
                Some(node) => Ok(node),
                None => self.node_for(request.slot, deadline).await,
            };
            let sent = match node {
                Ok(node) => node.send(&(request.make)(how), is_asking, wait, deadline).await,
                Err(failure) => Err(Trouble::Failed(failure)),
            };
            let failure = match sent {
                Ok(value) => return Ok(value),
                Err(Trouble::NoScript) if !how.with_source => {
                    how.with_source = true;
                    continue;
                }
                Err(Trouble::NoScript) => Failure::other("the server does not keep scripts"),
                Err(Trouble::Moved(_)) if matches!(self.options.mode, Mode::Single(_) | Mode::Sentinel { .. }) => {
                    Failure::other("the server is a node of a cluster; give redis+cluster: in place of redis:")
                }
                Err(Trouble::Ask(to)) if redirections < MAX_REDIRECTIONS => {
                    redirections += 1;
                    asked = address(&to, 6379).ok().map(|to| {
                        let known = self.map.read().nodes.get(&to).cloned();
                        known.unwrap_or_else(|| Arc::new(Node::new(to, self.dial.clone())))
                    });
                    continue;
                }
                Err(Trouble::Moved(to) | Trouble::Ask(to)) => Failure::Unsent(format!("the slot has moved to {to}")),
                Err(Trouble::Failed(failure)) => failure,
            };
            failures += 1;
            let give_up = match &failure {
                Failure::Refused(_) => true,
                Failure::Unsent(_) => false,
                Failure::Unknown(_) => {
                    how.sent_before = true;
                    request.resend != Resend::Safe
                }
            };
            // The first time at once: an idle connection that was closed costs one try.
            let nap = if failures == 1 { Duration::ZERO } else { pause(failures).min(LONGEST_NAP) };
            let is_down = matches!(&failure, Failure::Unsent(_)) && self.is_long_down(request.slot);
            if give_up || is_down || Instant::now() + nap >= deadline {
                return Err(failure.into_store(&self.location, how.sent_before, limit));
            }
            tokio::time::sleep(nap).await;
            if let Err(failure) = self.look(deadline).await {
                tracing::debug!(store = %self.location, ?failure, "who is primary could not be found out");
            }
        }
    }

    /// Whether the only server there can be is out of reach for long; elsewhere another may take over any moment.
    fn is_long_down(&self, slot: u16) -> bool {
        matches!(self.options.mode, Mode::Single(_)) && self.known(slot).is_some_and(|node| node.is_long_down())
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    }
}

/// The answer of `CLUSTER SLOTS`: the first slot after each range, and its primary.
fn ranges(answer: &Value, asked: &Address) -> Option<Vec<(u32, Address)>> {
    let Value::Array(entries) = answer else { return None };
    let mut ranges = Vec::new();
    for entry in entries {
        let Value::Array(parts) = entry else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = parts.as_slice() else { return None };
        let [host, Value::Int(port), ..] = primary.as_slice() else { return None };
        // No host means the one that was asked.
        let host = text(host).filter(|h| !h.is_empty() && h != "?").unwrap_or_else(|| asked.host.clone());
        let address = Address { host, port: u16::try_from(*port).ok()? };
        ranges.push((u32::try_from(*first).ok()?, u32::try_from(*last).ok()?.checked_add(1)?, address));
    }
    ranges.sort_by_key(|(first, ..)| *first);
    Some(ranges.into_iter().map(|(_, end, address)| (end, address)).collect())
}
