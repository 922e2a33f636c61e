//! What `hapax top` knows and what a key does, without terminal or store.

use std::collections::BTreeMap;

use hapax::{AttemptId, Key, Record, State};
use hapax_http::Told;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::source::Snapshot;

/// Rows of a pane; what is more is said in its heading.
const SHOWN: usize = 8;
/// The longest filter.
const FILTER: usize = 200;

/// What a key asks of the loop.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish {
    Nothing,
    Quit,
    Open(Key),
    Settle { key: Key, attempt: AttemptId, happened: bool },
}

/// What the keys mean now.
#[derive(Debug)]
pub enum Mode {
    Browse,
    Filter,
    Help,
    /// A record, its params and result shown or not.
    Record {
        record: Box<Record>,
        revealed: bool,
    },
    /// Asked whether the effect of this attempt happened.
    Settle {
        key: Key,
        attempt: AttemptId,
    },
}

/// A row of the list.
#[derive(Debug)]
pub enum Row<'a> {
    Head(String),
    Record(&'a Record),
    /// An action type, its target, how many of the newest, and their mean duration.
    Kind {
        action: &'a str,
        target: &'a str,
        count: usize,
        mean_ms: u64,
    },
}

#[derive(Debug)]
pub struct Model {
    pub snapshot: Snapshot,
    pub mode: Mode,
    pub filter: String,
    /// Which record, counted from the top.
    pub selected: usize,
    /// The last thing to be said.
    pub message: Option<String>,
    /// Set while the store cannot be read: what is shown is old.
    pub trouble: Option<String>,
    /// Rows above the first that is seen.
    pub scroll: usize,
    /// Set when the store is a server: whether it tells what happens, or is asked again and again.
    pub is_told: Option<bool>,
}

impl Model {
    pub fn new(snapshot: Snapshot) -> Self {
        let (mode, filter) = (Mode::Browse, String::new());
        Self { snapshot, mode, filter, selected: 0, message: None, trouble: None, scroll: 0, is_told: None }
    }

    /// Takes what is now; the selection stays with its key.
    pub fn take(&mut self, snapshot: Snapshot) {
        self.trouble = None;
        self.change(|now| *now = snapshot);
    }

    /// Takes up what a server tells, in the order it came.
    pub fn hear(&mut self, told: impl IntoIterator<Item = Told>) {
        self.change(|now| told.into_iter().for_each(|told| now.hear(told)));
    }

    fn change(&mut self, change: impl FnOnce(&mut Snapshot)) {
        let key = self.chosen().map(|r| (r.key.clone(), r.state));
        change(&mut self.snapshot);
        if let Some((key, _)) = key {
            let rows = self.rows();
            let at = records(&rows).position(|r| r.key == key);
            let last = records(&rows).count().saturating_sub(1);
            self.selected = at.unwrap_or(self.selected).min(last);
        }
    }

    pub fn trouble(&mut self, error: &str) {
        self.trouble = Some(error.to_string());
    }

    pub fn say(&mut self, text: String) {
        self.message = Some(text);
    }

    pub fn open(&mut self, record: Record) {
        self.mode = Mode::Record { record: Box::new(record), revealed: false };
    }

    /// The record that is selected.
    pub fn chosen(&self) -> Option<&Record> {
        records(&self.rows()).nth(self.selected)
    }

    /// Does what a key asks for.
    pub fn press(&mut self, event: KeyEvent) -> Wish {
        if event.kind == KeyEventKind::Release {
            return Wish::Nothing;
        }
        if event.modifiers.contains(KeyModifiers::CONTROL) {
            return if event.code == KeyCode::Char('c') { Wish::Quit } else { Wish::Nothing };
        }
        self.message = None;
        let code = event.code;
        match &mut self.mode {
            Mode::Browse => return self.browse(code),
            Mode::Help => self.mode = Mode::Browse,
            Mode::Filter => match code {
                KeyCode::Enter => self.mode = Mode::Browse,
                KeyCode::Esc => {
                    self.filter.clear();
                    self.mode = Mode::Browse;
                }
                KeyCode::Backspace => {
                    self.filter.pop();
                }
                KeyCode::Char(c) if self.filter.len() < FILTER => {
                    self.filter.push(c);
                    self.selected = 0;
                }
                _ => {}
            },
            Mode::Record { record, revealed } => match code {
                KeyCode::Char('v') => *revealed = !*revealed,
                KeyCode::Char('s') => self.mode = asked(record).unwrap_or(Mode::Browse),
                KeyCode::Esc | KeyCode::Enter | KeyCode::Char('q') => self.mode = Mode::Browse,
                _ => {}
            },
            Mode::Settle { key, attempt } => {
                let happened = match code {
                    KeyCode::Char('y') => true,
                    KeyCode::Char('n') => false,
                    // Only a plain answer settles.
                    _ => {
                        self.mode = Mode::Browse;
                        return Wish::Nothing;
                    }
                };
                let wish = Wish::Settle { key: key.clone(), attempt: *attempt, happened };
                self.mode = Mode::Browse;
                return wish;
            }
        }
        Wish::Nothing
    }

    fn browse(&mut self, code: KeyCode) -> Wish {
        let count = records(&self.rows()).count();
        let last = count.saturating_sub(1);
        match code {
            KeyCode::Char('q') => return Wish::Quit,
            KeyCode::Esc if self.filter.is_empty() => return Wish::Quit,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Down | KeyCode::Char('j') => self.selected = (self.selected + 1).min(last),
            KeyCode::Up | KeyCode::Char('k') => self.selected = self.selected.saturating_sub(1),
            KeyCode::PageDown => self.selected = (self.selected + SHOWN).min(last),
            KeyCode::PageUp => self.selected = self.selected.saturating_sub(SHOWN),
            KeyCode::Home | KeyCode::Char('g') => self.selected = 0,
            KeyCode::End | KeyCode::Char('G') => self.selected = last,
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Char('?') => self.mode = Mode::Help,
            KeyCode::Enter => {
                if let Some(record) = self.chosen() {
                    return Wish::Open(record.key.clone());
                }
            }
            KeyCode::Char('s') => match self.chosen().map(asked) {
                Some(Some(mode)) => self.mode = mode,
                Some(None) => self.message = Some("only a key in doubt is settled".into()),
                None => {}
            },
            _ => {}
        }
        Wish::Nothing
    }

    /// The panes, from the most urgent on.
    pub fn rows(&self) -> Vec<Row<'_>> {
        let Snapshot { in_doubt, in_progress, newest, .. } = &self.snapshot;
        let newest: Vec<&Record> = newest.iter().filter(|r| self.fits(r)).collect();
        let mut rows = Vec::new();
        let doubts: Vec<&Record> = in_doubt.iter().filter(|r| self.fits(r)).collect();
        if !doubts.is_empty() {
            pane(&mut rows, "In doubt: look, then settle", doubts);
        }
        pane(&mut rows, "In progress", in_progress.iter().filter(|r| self.fits(r)).collect());
        pane(&mut rows, "Recorded, newest first", newest.clone());
        let mut slowest: Vec<&Record> = newest.iter().copied().filter(|r| r.duration_ms.is_some()).collect();
        slowest.sort_by_key(|r| std::cmp::Reverse(r.duration_ms));
        slowest.truncate(5);
        pane(&mut rows, "Slowest of them", slowest);
        let mut kinds: BTreeMap<(&str, &str), (usize, u64)> = BTreeMap::new();
        for record in &newest {
            let (count, ms) = kinds.entry((&record.action_type, &record.target)).or_default();
            *count += 1;
            *ms = ms.saturating_add(record.duration_ms.unwrap_or(0));
        }
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        kinds.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        rows.push(Row::Head(format!("By action and target, of the newest {}", newest.len())));
        rows.extend(kinds.into_iter().take(SHOWN).map(|((action, target), (count, ms))| {
            let mean_ms = ms / u64::try_from(count).unwrap_or(1).max(1);
            Row::Kind { action, target, count, mean_ms }
        }));
        rows
    }

    fn fits(&self, record: &Record) -> bool {
        let has = |text: &str| text.contains(&self.filter);
        self.filter.is_empty()
            || has(record.key.as_str())
            || has(&record.action_type)
            || has(&record.target)
            || record.signal_id.as_deref().is_some_and(has)
            || has(&record.owner.to_string())
    }
}

/// Adds a pane.
fn pane<'a>(rows: &mut Vec<Row<'a>>, title: &str, records: Vec<&'a Record>) {
    let more = records.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(", {more} more") } else { String::new() };
    rows.push(Row::Head(format!("{title} ({}{more})", records.len().min(SHOWN))));
    rows.extend(records.into_iter().take(SHOWN).map(Row::Record));
}

fn records<'a, 'r>(rows: &'r [Row<'a>]) -> impl Iterator<Item = &'a Record> + use<'a, 'r> {
    rows.iter().filter_map(|row| match row {
        Row::Record(record) => Some(*record),
        _ => None,
    })
}

/// The question that settles it, if it is in doubt.
fn asked(record: &Record) -> Option<Mode> {
    let doubt = record.state == State::InDoubt;
    doubt.then(|| Mode::Settle { key: record.key.clone(), attempt: record.attempt_id })
}
