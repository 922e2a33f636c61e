use hapax::{Clock as _, Stats, SystemClock};
use hapax_http::Told;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::*;
use crate::terminal::acts;
use crate::top::model::Wish;
use crate::top::source::Snapshot;

/// A record as it is in JSON.
fn record(key: &str, state: &str, text: &str) -> Record {
    let now = SystemClock.now();
    let json = serde_json::json!({
        "key": key, "namespace": "n", "actionType": text, "target": text, "fingerprint": "0".repeat(64),
        "state": state, "attemptId": hapax::AttemptId::new(), "attempts": 1, "attemptCount": 3,
        "startedAt": now, "durationMs": 1200, "leaseUntil": now, "error": text,
        "owner": {"host": text, "pid": 7}, "params": "hidden", "result": "hidden",
    });
    serde_json::from_value(json).unwrap()
}

fn model(text: &str) -> Model {
    Model::new(Snapshot {
        store: format!("sqlite:{text}"),
        namespace: "n".into(),
        now: SystemClock.now(),
        taken: std::time::Instant::now(),
        up: Some(std::time::Duration::from_secs(7_500)),
        stats: Stats { executions: 3, in_doubt: 1, ..Stats::default() },
        in_doubt: vec![record("doubtful", "in_doubt", text)],
        in_progress: vec![record("running", "in_progress", text)],
        newest: (0..20).map(|n| record(&format!("done-{n}"), "completed", text)).collect(),
    })
}

fn drawn(model: &mut Model, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw_with(frame, model, true)).unwrap();
    terminal.backend().to_string()
}

fn press(model: &mut Model, code: KeyCode) -> Wish {
    model.press(KeyEvent::new(code, KeyModifiers::NONE))
}

#[test]
fn doubts_come_first_and_the_selection_stays_in_sight() {
    let mut model = model("charge");
    let screen = drawn(&mut model, 80, 24);
    let at = |text: &str| screen.find(text).unwrap_or_else(|| panic!("{text} in {screen}"));
    assert!(
        at("In doubt: look") < at("doubtful") && at("doubtful") < at("In progress") && at("running") < at("done-0")
    );
    assert!(at("in doubt 1") < at("In doubt: look"), "{screen}");
    for _ in 0..30 {
        press(&mut model, KeyCode::Char('j'));
    }
    let chosen = model.chosen().unwrap().key.to_string();
    assert!(drawn(&mut model, 80, 12).contains(&chosen));
    press(&mut model, KeyCode::Char('g'));
    assert!(drawn(&mut model, 40, 8).contains("doubtful"));
}

#[test]
fn what_a_server_tells_goes_where_it_belongs() {
    let mut model = model("charge");
    let keys = |records: &[Record]| records.iter().map(|r| r.key.to_string()).collect::<Vec<_>>();
    let changed = |key: &str, state: &str| Told::Changed(Box::new(record(key, state, "charge")));
    press(&mut model, KeyCode::Char('j'));
    assert_eq!(model.chosen().unwrap().key.as_str(), "running");
    model.hear([changed("doubtful-2", "in_doubt"), changed("running-2", "in_progress"), changed("new", "failed")]);
    assert_eq!(model.chosen().unwrap().key.as_str(), "running", "the selection stays with its key");
    let now = &model.snapshot;
    assert_eq!(
        (keys(&now.in_doubt), keys(&now.in_progress)),
        (vec!["doubtful".into(), "doubtful-2".into()], vec!["running".into(), "running-2".into()])
    );
    assert_eq!((now.newest.len(), keys(&now.newest)[0].as_str()), (21, "new"));
    assert!(now.newest[0].params.is_none() && now.newest[0].result.is_none());
    // From one list to another, and away.
    let stats = Stats { in_doubt: 9, ..Stats::default() };
    let gone = Told::Gone(hapax::Key::given("doubtful").unwrap());
    model.hear([changed("running", "in_doubt"), changed("running-2", "completed"), gone, Told::Stats(Box::new(stats))]);
    let now = &model.snapshot;
    assert_eq!((keys(&now.in_doubt), now.in_progress.len()), (vec!["doubtful-2".into(), "running".into()], 0));
    assert_eq!((keys(&now.newest)[0].as_str(), now.stats.in_doubt), ("running-2", 9));
    // However much is told, the lists keep their bounds.
    for n in 0..1_000 {
        model.hear([changed(&format!("r-{n}"), "in_progress"), changed(&format!("c-{n}"), "completed")]);
    }
    assert_eq!((model.snapshot.in_progress.len(), model.snapshot.newest.len()), (200, 500));
    model.is_told = Some(true);
    assert!(drawn(&mut model, 100, 24).contains("up 2h 5m  live"));
}

#[test]
fn it_fits_every_size() {
    let mut model = model("charge");
    for (width, height) in [(1, 1), (3, 2), (40, 10), (40, 24), (80, 24), (300, 100)] {
        for code in ['?', 'x', 's', 'x', '/'] {
            press(&mut model, KeyCode::Char(code));
            drawn(&mut model, width, height);
        }
        press(&mut model, KeyCode::Esc);
        model.open(record("k", "in_doubt", "charge"));
        drawn(&mut model, width, height);
        press(&mut model, KeyCode::Esc);
    }
    let narrow = drawn(&mut model, 40, 24);
    assert!(narrow.contains("doubtful") && narrow.contains("running"), "{narrow}");
}

#[test]
fn no_recorded_text_reaches_the_terminal_raw() {
    let evil = "\u{1b}[2J\u{9b}31m\u{202e}\u{7}x\ny";
    let mut model = model(evil);
    let check = |model: &mut Model| {
        let mut terminal = Terminal::new(TestBackend::new(120, 40)).unwrap();
        terminal.draw(|frame| draw_with(frame, model, true)).unwrap();
        for cell in terminal.backend().buffer().content() {
            assert!(!cell.symbol().chars().any(acts), "{:?}", cell.symbol());
        }
        assert!(terminal.backend().to_string().contains("\\u{1b}"), "it is made visible");
    };
    check(&mut model);
    model.open(record("k", "in_doubt", evil));
    check(&mut model);
    press(&mut model, KeyCode::Char('v'));
    check(&mut model);
    assert!(!plain(&model).chars().any(|c| c != '\n' && acts(c)));
}

#[test]
fn params_and_results_are_hidden_until_they_are_asked_for() {
    let mut model = model("charge");
    model.open(record("k", "completed", "charge"));
    assert!(!drawn(&mut model, 80, 40).contains("hidden"));
    press(&mut model, KeyCode::Char('v'));
    assert!(drawn(&mut model, 80, 40).contains("hidden"));
}

#[test]
fn a_settlement_names_the_attempt_and_needs_a_plain_answer() {
    let mut model = model("charge");
    let attempt = model.chosen().unwrap().attempt_id;
    press(&mut model, KeyCode::Char('s'));
    assert!(drawn(&mut model, 110, 40).contains(&attempt.to_string()));
    assert_eq!(press(&mut model, KeyCode::Enter), Wish::Nothing);
    assert_eq!(press(&mut model, KeyCode::Char('n')), Wish::Nothing);
    press(&mut model, KeyCode::Char('s'));
    let key = hapax::Key::given("doubtful").unwrap();
    assert_eq!(press(&mut model, KeyCode::Char('n')), Wish::Settle { key, attempt, happened: false });
    press(&mut model, KeyCode::Down);
    press(&mut model, KeyCode::Char('s'));
    assert!(model.message.as_deref().is_some_and(|m| m.contains("only a key in doubt")));
}

#[test]
fn a_filter_narrows_and_the_selection_stays_with_its_key() {
    let mut model = model("charge");
    press(&mut model, KeyCode::Char('/'));
    for c in "done-17".chars() {
        press(&mut model, KeyCode::Char(c));
    }
    press(&mut model, KeyCode::Enter);
    assert_eq!(model.chosen().unwrap().key.as_str(), "done-17");
    assert_eq!(press(&mut model, KeyCode::Esc), Wish::Nothing);
    assert_eq!(press(&mut model, KeyCode::Esc), Wish::Quit);
    model.selected = 1;
    let mut snapshot = model.snapshot.clone();
    snapshot.in_doubt.insert(0, record("another", "in_doubt", "x"));
    model.take(snapshot);
    assert_eq!(model.chosen().unwrap().key.as_str(), "running");
    assert_eq!(model.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Wish::Quit);
}
