//! Medians and ratios of interleaved runs.
//!
//! Invariant: a ratio is made of two runs of the same round, which met the same
//! machine; the median of the ratios is shown, not the ratio of the medians.

use anyhow::{Result, ensure};
use serde::Serialize;

/// The middle of the values, or the mean of the two in the middle; `None` when there are none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(*upper);
    }
    let lower = sorted.get(sorted.len() / 2 - 1)?;
    Some((lower + upper) / 2.0)
}

/// The ratios of all rounds: their median, least and greatest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

/// How many times as fast as `theirs` `ours` was, round by round; both in seconds per operation.
pub fn speed_ratio(ours: &[f64], theirs: &[f64]) -> Option<Ratio> {
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| theirs / ours).collect();
    Some(Ratio {
        median: median(&ratios)?,
        min: ratios.iter().copied().min_by(f64::total_cmp)?,
        max: ratios.iter().copied().max_by(f64::total_cmp)?,
    })
}

/// One thing that is measured again and again: a run returns seconds per operation.
pub struct Contestant<'a> {
    pub name: String,
    run: Box<dyn FnMut() -> Result<f64> + 'a>,
}

impl<'a> Contestant<'a> {
    pub fn new(name: impl Into<String>, run: impl FnMut() -> Result<f64> + 'a) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// Seconds per operation of one contestant, a value per round.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Series {
    pub name: String,
    pub seconds: Vec<f64>,
}

/// Lets the contestants run in turn, `rounds` times. Every round begins with another one, so that none
/// always runs in the same one's wake. A first round, for caches and files to warm up, is not counted.
pub fn interleave(contestants: &mut [Contestant<'_>], rounds: usize) -> Result<Vec<Series>> {
    let mut all: Vec<Series> =
        contestants.iter().map(|c| Series { name: c.name.clone(), seconds: Vec::with_capacity(rounds) }).collect();
    for round in 0..=rounds {
        let count = contestants.len();
        for turn in 0..count {
            let at = (round + turn) % count;
            let (Some(contestant), Some(series)) = (contestants.get_mut(at), all.get_mut(at)) else { continue };
            let seconds = (contestant.run)()?;
            ensure!(seconds > 0.0 && seconds.is_finite(), "{}: a run took no time", contestant.name);
            if round > 0 {
                series.seconds.push(seconds);
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn ratios_pair_runs_of_the_same_round() {
        // The machine was half as fast in the second round: the ratio does not notice.
        let ratio = speed_ratio(&[1.0, 2.0, 1.0], &[2.0, 4.0, 3.0]).unwrap();
        assert_eq!(ratio, Ratio { median: 2.0, min: 2.0, max: 3.0 });
    }

    #[test]
    fn every_round_begins_with_another_contestant_and_the_first_round_is_not_counted() {
        let order = RefCell::new(Vec::new());
        let mut contestants: Vec<Contestant<'_>> = ["a", "b"]
            .into_iter()
            .map(|name| {
                let order = &order;
                Contestant::new(name, move || {
                    order.borrow_mut().push(name);
                    Ok(1.0)
                })
            })
            .collect();
        let series = interleave(&mut contestants, 2).unwrap();
        drop(contestants);
        assert_eq!(order.into_inner(), ["a", "b", "b", "a", "a", "b"]);
        assert!(series.iter().all(|s| s.seconds.len() == 2));
    }

    #[test]
    fn a_run_that_takes_no_time_is_an_error() {
        assert!(interleave(&mut [Contestant::new("a", || Ok(0.0))], 1).is_err());
    }
}
