//! What `hapax top` looks like, on a terminal of any size and as plain text.
//!
//! Invariant: every text of a record goes through `safe`, so that none of it
//! can draw; `NO_COLOR` leaves bold and reverse alone.

use std::time::Duration;

use hapax::{Record, State};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Block, Clear, Paragraph, Wrap};

use super::model::{Mode, Model, Row};
use crate::failure::settlements;
use crate::terminal::{elided, safe};
use crate::units::glance;

/// Columns of the plain text.
const PLAIN: usize = 120;
/// Columns below which the owner and the action are left out.
const NARROW: usize = 70;
/// Characters of a text in an opened record.
const SHOWN: usize = 4_000;

const HELP: &str = "\
↑ ↓ j k    move (PgUp PgDn g G)
Enter      open the record
v          in a record: show params and result
s          settle a doubt, after a question
/          show only what contains a text
Esc        back, clear the filter, quit
q Ctrl-C   quit";

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, model: &mut Model) {
    let colour = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    draw_with(frame, model, colour);
}

fn draw_with(frame: &mut Frame<'_>, model: &mut Model, colour: bool) {
    let width = usize::from(frame.area().width);
    let head = header(model, width);
    let tall = u16::try_from(head.len()).unwrap_or(u16::MAX);
    let [top, list, foot] =
        Layout::vertical([Constraint::Length(tall), Constraint::Min(0), Constraint::Length(1)]).areas(frame.area());
    let head: Vec<Line<'_>> = head.into_iter().map(|text| Line::styled(text, Modifier::BOLD)).collect();
    frame.render_widget(Paragraph::new(head), top);
    let lines = lines(model, width, colour);
    // The selected line stays in sight, with its heading where there is room.
    let height = usize::from(list.height);
    let at = lines.iter().position(|line| line.selected).unwrap_or(0);
    model.scroll = model.scroll.min(at.saturating_sub(1)).max((at + 1).saturating_sub(height));
    let seen: Vec<Line<'_>> = lines.into_iter().skip(model.scroll).take(height).map(|line| line.text).collect();
    frame.render_widget(Paragraph::new(seen), list);
    frame.render_widget(Line::styled(footer(model), Modifier::DIM), foot);
    match &model.mode {
        Mode::Browse | Mode::Filter => {}
        Mode::Help => popup(frame, " help ", HELP.into()),
        Mode::Record { record, revealed } => popup(frame, " record ", opened(record, *revealed)),
        Mode::Settle { key, attempt } => popup(
            frame,
            " settle ",
            format!(
                "Did the effect of attempt {attempt} of key {} happen?\n\n\
                 y  it happened; recorded with the result null\n\
                 n  it did not: the next run runs it\n\
                 any other key: leave it in doubt\n\n\
                 With a result: {}",
                safe(key.as_str()),
                settlements(key, Some(*attempt), "").map(|command| safe(&command)).first().map_or("", String::as_str)
            ),
        ),
    }
}

/// The same, once, as text.
pub fn plain(model: &Model) -> String {
    let lines = lines(model, PLAIN, false).into_iter().map(|line| line.text.to_string().trim_end().to_string());
    header(model, PLAIN).into_iter().chain(lines).collect::<Vec<_>>().join("\n")
}

fn header(model: &Model, width: usize) -> Vec<String> {
    let s = &model.snapshot;
    let stats = &s.stats;
    let mut place = format!("hapax  {}  namespace {}", safe(&s.store), safe(&s.namespace));
    if let Some(up) = s.uptime() {
        place.push_str(&format!("  up {}", glance(up)));
    }
    if let Some(is_told) = model.is_told {
        place.push_str(if is_told { "  live" } else { "  polling" });
    }
    let facts = [
        format!("running {}", stats.in_progress),
        format!("in doubt {}", stats.in_doubt),
        format!("records {}", stats.total_cached),
        format!("hit rate {:.1} %", stats.hit_rate * 100.0),
        format!("duplicates prevented {}", stats.duplicates_prevented),
        format!("executions {}", stats.executions),
        format!("failures {}", stats.failures),
    ];
    // As many in a line as fit.
    let mut lines = vec![place];
    let mut line = String::new();
    for fact in facts {
        if !line.is_empty() && line.chars().count() + 2 + fact.len() > width {
            lines.push(std::mem::take(&mut line));
        }
        line.push_str(if line.is_empty() { "" } else { "  " });
        line.push_str(&fact);
    }
    lines.push(line);
    lines
}

fn footer(model: &Model) -> String {
    match (&model.mode, &model.trouble, &model.message) {
        (Mode::Filter, ..) => format!("/{}▏ Enter keeps it, Esc clears it", safe(&model.filter)),
        (_, Some(trouble), _) => format!("what is shown is old: {}", safe(trouble)),
        (_, _, Some(message)) => safe(message),
        _ if !model.filter.is_empty() => format!("only with {:?}, Esc clears  ? help  q quit", safe(&model.filter)),
        _ => "? help  Enter open  s settle  / filter  q quit".into(),
    }
}

struct Shown {
    text: Line<'static>,
    selected: bool,
}

fn lines(model: &Model, width: usize, colour: bool) -> Vec<Shown> {
    let mut number = 0;
    let rows = model.rows();
    let mut lines = Vec::with_capacity(rows.len());
    for row in rows {
        let (text, selected) = match row {
            Row::Head(title) => (Line::styled(title, Modifier::BOLD | Modifier::UNDERLINED), false),
            Row::Kind { action, target, count, mean_ms } => {
                let text = format!("  {count:>5}  {:>8}  {} on {}", time(mean_ms), safe(action), safe(target));
                (Line::raw(text), false)
            }
            Row::Record(record) => {
                let selected = number == model.selected;
                number += 1;
                let line = one(record, model, width, colour);
                (if selected { line.style(Modifier::REVERSED) } else { line }, selected)
            }
        };
        lines.push(Shown { text, selected });
    }
    lines
}

/// A record on one line. The key comes last: it is what gets cut.
fn one(record: &Record, model: &Model, width: usize, colour: bool) -> Line<'static> {
    let now = model.snapshot.clock();
    let style = if colour { Style::new().fg(hue(record.state)) } else { Style::new() };
    let ago = glance(now.since(record.executed_at.unwrap_or(record.started_at)));
    let wide = width >= NARROW;
    let facts = match record.state {
        State::InProgress => {
            let left = record.lease_until.map(|at| glance(at.since(now))).unwrap_or_default();
            let owner = if wide { format!("  {}", elided(&record.owner.to_string(), 24)) } else { String::new() };
            format!("{ago:>7}  lease {left:>6}{owner}")
        }
        State::InDoubt => match &record.error {
            Some(why) if wide => format!("{ago:>7}  {}", elided(why, 32)),
            _ => format!("{ago:>7}"),
        },
        State::Completed | State::Failed => {
            let replays = record.attempt_count.saturating_sub(record.attempts);
            format!("{ago:>7}  {:>8}  {replays:>4}×", time(record.duration_ms.unwrap_or(0)))
        }
    };
    let mark = match record.state {
        State::InDoubt => "?",
        State::InProgress => ">",
        State::Completed => " ",
        State::Failed => "!",
    };
    Line::from(vec![
        Span::styled(format!("{mark} "), style),
        Span::raw(format!("{facts}  ")),
        Span::styled(safe(record.key.as_str()), style),
    ])
}

fn hue(state: State) -> Color {
    match state {
        State::InProgress => Color::Cyan,
        State::Completed => Color::Green,
        State::Failed => Color::Red,
        State::InDoubt => Color::Yellow,
    }
}

fn time(ms: u64) -> String {
    if ms < 10_000 { format!("{ms}ms") } else { glance(Duration::from_millis(ms)) }
}

/// An opened record, a fact a line.
fn opened(record: &Record, revealed: bool) -> String {
    let mut text = format!("key      {}\nstate    {}\n", safe(record.key.as_str()), record.state);
    let mut fact = |name: &str, value: &str| text.push_str(&format!("{name:<8} {}\n", elided(value, SHOWN)));
    if let Some(signal) = &record.signal_id {
        fact("signal", signal);
    }
    fact("action", &record.action_type);
    fact("target", &record.target);
    fact("attempt", &record.attempt_id.to_string());
    fact("owner", &record.owner.to_string());
    fact("began", &record.started_at.to_string());
    if let Some(at) = record.executed_at {
        fact("recorded", &at.to_string());
    }
    fact("calls", &format!("{} ({} begun)", record.attempt_count, record.attempts));
    if let Some(error) = &record.error {
        fact(if record.state == State::InDoubt { "doubt" } else { "error" }, error);
    }
    match revealed {
        true => {
            fact("params", record.params.as_ref().map_or("not kept", |p| p.as_str()));
            fact("result", record.result.as_ref().map_or("none", |r| r.as_str()));
        }
        false => text.push_str("\nv shows params and result"),
    }
    if record.state == State::InDoubt {
        text.push_str("\ns settles it");
    }
    text
}

/// A box over the middle of everything.
fn popup(frame: &mut Frame<'_>, title: &'static str, text: String) {
    let area = frame.area();
    let width = area.width.saturating_sub(4).clamp(1, 100).min(area.width);
    let inside = usize::from(width.saturating_sub(2)).max(1);
    let tall: usize = text.lines().map(|line| line.chars().count().max(1).div_ceil(inside) + 1).sum();
    let height = u16::try_from(tall + 2).unwrap_or(u16::MAX).min(area.height);
    let place = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    let block = Block::bordered().title(title);
    frame.render_widget(Paragraph::new(Text::raw(text)).wrap(Wrap { trim: false }).block(block), place);
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
