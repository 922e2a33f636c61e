//! Every file of every corpus, through its target, on the stable compiler.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use hapax_fuzz::TARGETS;

/// More would make the tests slow.
const MOST_FILES: usize = 200;
const MOST_BYTES: u64 = 200_000;

static PANICS: AtomicUsize = AtomicUsize::new(0);

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

#[test]
fn no_input_that_was_ever_found_is_a_finding() {
    let told = std::panic::take_hook();
    // Threads of a store panic unseen otherwise.
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        told(info);
    }));
    for (name, target) in TARGETS {
        let mut files: Vec<PathBuf> = fs::read_dir(corpus(name)).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        assert!(files.len() >= 5, "the corpus of {name} is gone");
        for file in files {
            let bytes = fs::read(&file).unwrap();
            let outcome = std::panic::catch_unwind(|| target(&bytes));
            assert!(outcome.is_ok() && PANICS.load(Ordering::SeqCst) == 0, "{}", file.display());
        }
    }
}

#[test]
fn corpora_are_small() {
    for (name, _) in TARGETS {
        let sizes: Vec<u64> =
            fs::read_dir(corpus(name)).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).collect();
        assert!(sizes.len() < MOST_FILES, "{name} has {} files: leave some out", sizes.len());
        assert!(sizes.iter().sum::<u64>() < MOST_BYTES, "{name} has {} bytes", sizes.iter().sum::<u64>());
    }
}

#[test]
fn every_target_has_its_binary() {
    let manifest = fs::read_to_string(corpus("").join("../Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml lacks {name}");
        let file = corpus("").join(format!("../fuzz_targets/{name}.rs"));
        assert!(fs::read_to_string(file).unwrap().contains(&format!("\"{name}\"")), "{name}");
    }
}
