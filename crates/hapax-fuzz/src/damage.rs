//! A store's file, damaged: opening it and asking for all it held gives right
//! answers or clear errors, soon; a sealed result is never another one.
//!
//! The input is a list of damages, five bytes each: what, where (two bytes), how
//! much, and with what. The store is made once per process; the layout of its pages is
//! always the same, its times and nonces are not.
//!
//! Not held, since SQLite has no checksums: a flipped bit inside a text that is not
//! sealed is read as written, and one in a time to live or in an index can make a
//! record absent.

use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use hapax::store::sealed::{KeyRing, SealedStore};
use hapax::store::sqlite::{Durability, SqliteOptions, SqliteStore};
use hapax::store::{Filter, Mark, Store, StoreError};
use hapax::{AttemptId, Fingerprint, Json, Key, ManualClock, Owner, State, Ttl};

use crate::block_on;

const RECORDS: u8 = 40;
/// The most damages of one input.
const MOST: usize = 16;
/// How long one answer may take.
const LIMIT: Duration = Duration::from_secs(10);

/// The file as it is after a good end, and file and log as they are after a `kill -9`.
struct Images {
    closed: Vec<u8>,
    killed: (Vec<u8>, Vec<u8>),
}

static IMAGES: LazyLock<Images> = LazyLock::new(|| block_on(images()));

fn directory() -> tempfile::TempDir {
    // Of memory, where there is such a place: the device is not what is tested.
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).or_else(|_| tempfile::tempdir()) } else { tempfile::tempdir() }.unwrap()
}

fn open(path: &Path) -> Result<Arc<SqliteStore>, StoreError> {
    let clock = ManualClock::new();
    SqliteStore::open(SqliteOptions::new(path).durability(Durability::Buffered).clock(Arc::new(clock))).map(Arc::new)
}

fn seal(store: Arc<SqliteStore>) -> SealedStore {
    SealedStore::new(store, KeyRing::new("k", [9; 32]).unwrap())
}

fn space() -> Arc<str> {
    "default".into()
}

fn key(number: u8) -> Key {
    Key::given(&format!("signal-{number}:charge:stripe:00112233445566{number:02x}")).unwrap()
}

fn result(number: u8) -> Json {
    // Some need pages of their own.
    Json::of(&format!("result {number} {}", "x".repeat(usize::from(number % 4) * 2000))).unwrap()
}

async fn images() -> Images {
    let directory = directory();
    let path = directory.path().join("hapax.db");
    let store = open(&path).unwrap();
    let sealed = seal(store.clone());
    for number in 0..RECORDS {
        let mark = Mark {
            namespace: space(),
            key: key(number),
            signal_id: Some(format!("signal-{number}")),
            action_type: "charge".into(),
            target: "stripe".into(),
            params: Some(Json::of(&number).unwrap()),
            fingerprint: Fingerprint::from_bytes([number; 32]),
            attempt: AttemptId::from_bytes([number; 16]),
            owner: Arc::new(Owner { host: "host".into(), pid: 1, label: None }),
            result: result(number),
            ttl: Ttl::Never,
            capacity: None,
        };
        sealed.mark(mark).await.unwrap();
    }
    let wal = path.with_file_name("hapax.db-wal");
    let killed = (fs::read(&path).unwrap(), fs::read(wal).unwrap());
    store.close().await.unwrap();
    Images { closed: fs::read(&path).unwrap(), killed }
}

/// Does what the bytes say, within the file's size.
fn damage(file: &mut Vec<u8>, ops: &[u8]) {
    for op in ops.chunks_exact(5).take(MOST) {
        let (what, amount, with) = (op[0] % 6, usize::from(op[3]), op[4]);
        // Pages have 4 KiB; the low bits find the heads of pages, where most of the structure is.
        let place = usize::from(u16::from_be_bytes([op[1], op[2]]));
        let at = (place >> 8) * 4096 + (place & 0xff) * if what == 1 { 16 } else { 1 };
        let at = if file.is_empty() { return } else { at % file.len() };
        let end = (at + amount + 1).min(file.len());
        match what {
            0 => file[at] ^= 1 << (with % 8),
            1 => file[at..end].fill(with),
            2 => file.truncate(at),
            3 => {
                let page = at / 4096 * 4096;
                let last = (page + 4096).min(file.len());
                file[page..last].fill(with);
            }
            4 => {
                let (from, to) = (at / 4096 * 4096, usize::from(with) * 4096 % file.len() / 4096 * 4096);
                if from.max(to) + 4096 <= file.len() {
                    file.copy_within(from..from + 4096, to);
                }
            }
            _ => file.extend(std::iter::repeat_n(with, amount)),
        }
    }
}

pub fn fuzz(data: &[u8]) {
    let Some((which, ops)) = data.split_first() else { return };
    let directory = directory();
    let path = directory.path().join("hapax.db");
    let images = &*IMAGES;
    let (mut file, mut log) = match which % 3 {
        0 => (images.closed.clone(), None),
        _ => (images.killed.0.clone(), Some(images.killed.1.clone())),
    };
    match (which % 3, &mut log) {
        (2, Some(log)) => damage(log, ops),
        _ => damage(&mut file, ops),
    }
    let whole = file == images.closed || (file == images.killed.0 && log.as_ref() == Some(&images.killed.1));
    fs::write(&path, &file).unwrap();
    if let Some(log) = log {
        fs::write(path.with_file_name("hapax.db-wal"), log).unwrap();
    }
    let since = Instant::now();
    let opened = open(&path);
    assert!(since.elapsed() < LIMIT, "opening took {:?}", since.elapsed());
    match opened {
        Ok(store) => block_on(ask(store, whole)),
        Err(error) => refused(&error, whole),
    }
}

/// An error names what is wrong with this file; it is never told of a whole one.
fn refused(error: &StoreError, whole: bool) {
    assert!(!whole, "nothing is damaged: {error}");
    let known = match error {
        // `Newer`: the version is a number in the file. `BadRequest`: a key in another's place.
        StoreError::Damaged { .. } | StoreError::Newer { .. } | StoreError::BadRequest { .. } => true,
        // Found at a commit: what it wrote before is not known.
        StoreError::AnswerLost { message, .. } => message.starts_with("the file is damaged"),
        _ => false,
    };
    assert!(known && error.to_string().len() > 20, "{error:?}");
}

async fn ask(store: Arc<SqliteStore>, whole: bool) {
    let sealed = seal(store.clone());
    let soon = |what: &'static str, since: Instant| {
        assert!(since.elapsed() < LIMIT, "{what} took {:?}", since.elapsed());
    };
    for number in 0..RECORDS {
        let since = Instant::now();
        let got = tokio::time::timeout(LIMIT, sealed.get(space(), key(number))).await.expect("get hangs");
        soon("get", since);
        match got {
            Ok(Some(record)) => {
                assert_eq!(record.key, key(number));
                if record.state == State::Completed {
                    let seen = record.result.unwrap();
                    // Only the whole seal is recognised: without its mark a text is taken for one that never was sealed.
                    let damaged_mark = !whole && !seen.as_str().starts_with("\"result ");
                    assert!(seen == result(number) || damaged_mark, "{number} replays {seen:?}");
                }
            }
            Ok(None) => assert!(!whole, "{number} is absent"),
            Err(error) => refused(&error, whole),
        }
    }
    let answers = [
        timed(sealed.query(space(), Filter::default(), None, 100)).await.map(drop),
        timed(store.census(space())).await.map(drop),
        timed(store.counters(space())).await.map(drop),
        timed(store.remove(space(), key(1))).await.map(drop),
        timed(store.sweep(10)).await.map(drop),
        timed(store.clear(space())).await.map(drop),
    ];
    for answer in answers {
        if let Err(error) = answer {
            refused(&error, whole);
        }
    }
    if let Err(error) = timed(store.close()).await {
        refused(&error, whole);
    }
}

async fn timed<T>(answer: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, answer).await.expect("the store hangs")
}
