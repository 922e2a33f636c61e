//! Stores that cannot be used, and configurations that cannot be read: a clear
//! line, the right code, and nothing lost.
// A test that panics has failed, which is what it should do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use common::{Done, Home, assert_one_line, finish};

fn unavailable(home: &Home, args: &[&str]) -> Done {
    let done = home.run(args);
    assert_eq!(done.code, Some(69), "{args:?} {done:?}");
    assert_one_line(&done);
    assert_eq!(done.stdout, "");
    done
}

#[test]
fn a_file_that_is_no_database_is_left_as_it_is() {
    let home = Home::new();
    let text = "dear diary, this is not a database\n".repeat(200);
    home.write("diary", &text);
    for args in [&["run", "--", "touch", "ran"][..], &["ls"], &["check", "k"], &["mark", "k", "--result", "1"]] {
        unavailable(&home, &[&["--store", "sqlite:diary"], args].concat());
    }
    assert_eq!(fs::read_to_string(home.path("diary")).unwrap(), text);
    assert!(!home.path("ran").exists());
}

#[test]
fn another_programs_database_is_left_as_it_is() {
    let home = Home::new();
    let path = home.path("other.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (1)").unwrap();
    let before = fs::read(&path).unwrap();
    let done = unavailable(&home, &["--store", "sqlite:other.db", "run", "--", "true"]);
    assert!(done.stderr.contains("another program's"), "{done:?}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_damaged_database_is_said_to_be_damaged() {
    let home = Home::new();
    home.ok(["run", "--key", "k", "--", "true"]);
    let mut bytes = fs::read(home.database()).unwrap();
    let length = bytes.len();
    // All but the header page.
    bytes[4096..length].fill(0xa5);
    fs::write(home.database(), &bytes).unwrap();
    let done = unavailable(&home, &["run", "--key", "k", "--", "touch", "ran"]);
    assert!(done.stderr.contains("damaged") || done.stderr.contains("malformed"), "{done:?}");
    assert!(!home.path("ran").exists(), "nothing runs without a record of it");
}

#[test]
fn a_database_of_a_newer_version_is_left_as_it_is() {
    let home = Home::new();
    home.ok(["run", "--key", "k", "--", "true"]);
    let conn = rusqlite::Connection::open(home.database()).unwrap();
    conn.pragma_update(None, "user_version", 99).unwrap();
    drop(conn);
    let done = unavailable(&home, &["run", "--key", "k", "--", "touch", "ran"]);
    assert!(done.stderr.contains("version 99") && done.stderr.contains("upgrade"), "{done:?}");
    unavailable(&home, &["get", "k"]);
    let conn = rusqlite::Connection::open(home.database()).unwrap();
    conn.pragma_update(None, "user_version", 1).unwrap();
    drop(conn);
    assert_eq!(home.state("k"), "completed", "nothing is lost");
}

#[test]
fn a_directory_is_no_database() {
    let home = Home::new();
    fs::create_dir(home.path("dir")).unwrap();
    let done = unavailable(&home, &["--store", "sqlite:dir", "ls"]);
    assert!(done.stderr.contains("is a directory"), "{done:?}");
    home.write("file", "");
    unavailable(&home, &["--store", "sqlite:file/x.db", "run", "--", "true"]);
}

#[test]
fn a_database_that_may_not_be_read_is_not_available() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = Home::new();
    home.ok(["run", "--key", "k", "--", "true"]);
    fs::set_permissions(home.database(), fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(home.database()).is_ok() {
        // Who may read everything becomes somebody else for this.
        let line = format!("exec setpriv --reuid 65534 --clear-groups {} ls", env!("CARGO_BIN_EXE_hapax"));
        for dir in ["", ".local", ".local/share", ".local/share/hapax"] {
            fs::set_permissions(home.path(dir), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let done = finish(home.program("sh").args(["-c", &line]));
        if done.code != Some(69) {
            eprintln!("skipped: no way to be somebody else ({done:?})");
            return;
        }
        assert_one_line(&done);
    } else {
        unavailable(&home, &["ls"]);
    }
}

#[test]
fn when_the_disk_is_full_nothing_runs_and_nothing_is_lost() {
    let home = Home::new();
    home.ok(["run", "--key", "k", "--", "echo", "kept"]);
    // Files may not grow beyond what the store has now; the signal for it is ignored, as on a full disk.
    let limited = |blocks: u64, args: &str| {
        let line = format!("trap '' XFSZ; ulimit -f {blocks}; exec {} {args}", env!("CARGO_BIN_EXE_hapax"));
        finish(home.program("bash").args(["-c", &line]))
    };
    let done = limited(8, "run --key new -- touch ran");
    assert_eq!(done.code, Some(69), "{done:?}");
    assert_one_line(&done);
    assert!(!home.path("ran").exists());
    assert_eq!(home.run(["run", "--key", "k", "--", "echo", "kept"]).stdout, "kept\n");
}

#[test]
fn when_the_disk_fills_up_during_the_run_the_key_is_in_doubt_and_the_output_is_not_lost() {
    let home = Home::new();
    home.ok(["run", "--key", "first", "--", "true"]);
    // Room for the beginning, but not for a result of 300 KB.
    let line = format!("trap '' XFSZ; ulimit -f 200; exec {} run --key k -- seq 1 50000", env!("CARGO_BIN_EXE_hapax"));
    let done = finish(home.program("bash").args(["-c", &line]));
    assert_eq!(done.code, Some(76), "{}", done.stderr);
    assert_one_line(&done);
    assert!(done.stderr.contains("the command ran") && done.stderr.contains("not recorded"), "{}", done.stderr);
    assert_eq!(done.stdout.lines().count(), 50_000);
    assert_eq!(home.state("k"), "in_doubt");
    assert_eq!(home.state("first"), "completed");
}

#[test]
fn looking_does_not_make_a_store() {
    let home = Home::new();
    assert_eq!(home.run(["get", "k"]).code, Some(1));
    assert_eq!(home.run(["check", "k"]), Done { code: Some(1), stdout: String::new(), stderr: String::new() });
    assert_eq!(home.run(["rm", "k"]).code, Some(1));
    assert_eq!(home.run(["settle", "k", "--not-happened"]).code, Some(1));
    assert_eq!(home.json(["--json", "ls"])["records"], serde_json::json!([]));
    assert_eq!(home.json(["--json", "stats"])["hits"], 0);
    assert_eq!(home.json(["--json", "info"])["exists"], false);
    assert_eq!(home.json(["--json", "cleanup", "--all"])["removed"], 0);
    assert!(fs::read_dir(home.path("")).unwrap().next().is_none(), "the home is as empty as before");
}

#[test]
fn the_default_store_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = Home::new();
    home.ok(["run", "--", "true"]);
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(home.path(".local/share/hapax")), 0o700);
    assert_eq!(mode(home.database()), 0o600);
}

#[test]
fn without_a_home_a_store_must_be_named() {
    let home = Home::new();
    let done = finish(home.hapax(["ls"]).env_remove("HOME"));
    assert_eq!(done.code, Some(64));
    assert!(done.stderr.contains("--store"), "{done:?}");
    assert_eq!(finish(home.hapax(["ls", "--store", "sqlite:x.db"]).env_remove("HOME")).code, Some(0));
    assert_eq!(finish(home.hapax(["key", "--", "true"]).env_remove("HOME")).code, Some(0));
    let done = finish(home.hapax(["ls"]).env_remove("HOME").env("XDG_DATA_HOME", home.path("data")));
    assert_eq!(done.code, Some(0));
}

#[test]
fn a_store_that_forgets_or_does_not_exist_is_refused() {
    let home = Home::new();
    for store in ["memory:", "mysql://u:secret@h/d", "just-a-file.db", "sqlite:", "sqlite:x.db?speed=11"] {
        let done = home.run(["--store", store, "run", "--", "touch", "ran"]);
        assert_eq!(done.code, Some(64), "{store} {done:?}");
        assert_one_line(&done);
        assert!(!done.stderr.contains("secret"));
    }
    assert!(!home.path("ran").exists());
}

#[test]
fn sealed_results_are_read_with_their_keys_and_named_without() {
    let home = Home::new();
    let digits = |byte: &str| byte.repeat(32);
    home.write("keys/old", &digits("0a"));
    home.write("keys/new", &(digits("0b") + "\n"));
    let keys = |current: &str, ids: &[&str]| {
        let one = |id: &&str| format!("[[encryption.key]]\nid = '{id}'\nfile = 'keys/{id}'\n");
        format!("[encryption]\ncurrent = '{current}'\n{}", ids.iter().map(one).collect::<String>())
    };
    home.write("sealed.toml", &keys("old", &["old"]));
    let sealed = |args: &[&str]| home.run([&["--config", "sealed.toml"], args].concat());
    let line = ["run", "--key", "k", "--", "sh", "-c", "echo SECRET; echo ran >> ledger"];
    for _ in 0..2 {
        let done = sealed(&line);
        assert_eq!((done.code, done.stdout.as_str()), (Some(0), "SECRET\n"), "{done:?}");
    }
    let file = std::fs::read(home.database()).unwrap();
    assert!(!file.windows(6).any(|w| w == b"SECRET"), "the result is in the file");

    // Without keys nothing is shown or run that would be another result, and the remedy is named.
    for args in [&line[..], &["get", "k"], &["check", "k"], &["--json", "get", "k"], &["mark", "k", "--result", "1"]] {
        let done = home.run(args);
        assert_eq!((done.code, done.stdout.as_str()), (Some(64), ""), "{args:?} {done:?}");
        for part in ["key k", "old", "[encryption]", "--config"] {
            assert!(done.stderr.contains(part), "{part}: {done:?}");
        }
        assert!(!done.stderr.contains("hapax-sealed"), "{done:?}");
    }
    assert_eq!(home.ledger(), ["ran"]);
    assert!(home.ok(["ls"]).contains(" k"));
    // A sealed record does not block a list: what is sealed in it is left out and named.
    home.ok(["mark", "open", "--result", "[1]"]);
    let list = home.json(["--json", "ls"]);
    assert_eq!((&list["records"][0]["key"], &list["records"][0]["sealed"]["result"]), (&"k".into(), &"old".into()));
    assert!(list["records"][0].get("result").is_none_or(serde_json::Value::is_null), "{list}");
    assert!(list["records"][1]["result"][0] == 1 && list["records"][1].get("sealed").is_none(), "{list}");
    home.ok(["rm", "open"]);
    assert!(home.ok(["top", "--once"]).contains(" k"));
    assert_eq!(home.json(["--json", "stats"])["totalCached"], 1);

    // A key is changed, and what the old one sealed still reads; without it, its id is named.
    home.write("sealed.toml", &keys("new", &["new", "old"]));
    assert_eq!(sealed(&line).stdout, "SECRET\n");
    home.write("sealed.toml", &keys("new", &["new"]));
    let done = sealed(&["get", "k"]);
    assert!(done.code == Some(69) && done.stderr.contains("\"old\""), "{done:?}");
    // A doubt whose reason is sealed can be seen and settled.
    assert_eq!(sealed(&["run", "--key", "d", "--", "sh", "-c", "kill -9 $$"]).code, Some(76));
    assert!(home.ok(["get", "d"]).contains("sealed with the encryption key"), "its reason");
    home.ok(["settle", "d", "--not-happened"]);
    home.ok(["rm", "k"]);

    // A server that is started from this file seals too.
    let mut serve =
        home.hapax(["--config", "sealed.toml", "--store", "sqlite:served.db", "serve", "--listen", "127.0.0.1:0"]);
    let mut server = serve.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut address = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut address).unwrap();
    let store = address.trim().strip_prefix("listening on ").unwrap();
    home.ok(["--store", store, "mark", "k", "--result", "\"SECRET\""]);
    assert_eq!(home.ok(["--store", store, "check", "k"]), "\"SECRET\"\n");
    server.kill().unwrap();
    server.wait().unwrap();
    let without = home.run(["--store", "sqlite:served.db", "check", "k"]);
    assert!(without.code == Some(64) && without.stderr.contains("\"new\""), "{without:?}");
    let config = home.run(["--config", "sealed.toml", "--json", "config"]).stdout;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&config).unwrap()["settings"]["encryption"]["value"], "new");
    for (text, part) in [
        (keys("absent", &["new"]), "there is no key \"absent\""),
        (keys("gone", &["gone"]), "the file of key \"gone\" cannot be read"),
        (keys("bad", &["bad"]), "64 hexadecimal digits"),
        ("[encryption]\ncurent = 'x'".into(), "curent"),
    ] {
        home.write("keys/bad", "12");
        home.write("sealed.toml", &text);
        let done = sealed(&["ls"]);
        assert!(done.code == Some(64) && done.stderr.contains(part), "{part}: {done:?}");
    }
}
