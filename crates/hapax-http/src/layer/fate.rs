//! What becomes of a key, by the answer's status.
//!
//! The defaults: what the handler answered with 2xx, 3xx or 4xx is kept, for it
//! is the answer. 401, 408, 425 and 429 say by their definition that the
//! request was turned away before anything happened, and 502, 503 and 504 that
//! the handler could not be asked: these release the key. Every other 5xx says
//! that the handler failed somewhere on its way: nobody knows how far it got.

use http::StatusCode;
use serde::Deserialize;

/// What becomes of a key.
///
/// A handler that knows better puts one into its response's extensions; that
/// counts before any status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// The answer is recorded: every retry gets it.
    Keep,
    /// The key is free: a retry runs anew.
    Release,
    /// Nobody knows whether the effect happened: retries are refused until the key is settled.
    Doubt,
}

/// The fate of each status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fates {
    /// Of single statuses; these count first.
    exact: Vec<(u16, Fate)>,
    /// Of 2xx, 3xx, 4xx, 5xx.
    classes: [Fate; 4],
}

impl Default for Fates {
    fn default() -> Self {
        let release = [401, 408, 425, 429, 502, 503, 504];
        Self {
            exact: release.map(|status| (status, Fate::Release)).to_vec(),
            classes: [Fate::Keep, Fate::Keep, Fate::Keep, Fate::Doubt],
        }
    }
}

impl Fates {
    /// With another fate for a status (`"504"`) or a class of them (`"5xx"`).
    ///
    /// # Errors
    /// When it is neither, or not an answer's last status (200 to 599).
    pub fn with(mut self, statuses: &str, fate: Fate) -> Result<Self, String> {
        let bad = || format!("{statuses:?} is no status: write it like 504 or 5xx");
        if let Some(class) = statuses.strip_suffix("xx") {
            let class: usize = class.parse().map_err(|_| bad())?;
            let place = class.checked_sub(2).and_then(|i| self.classes.get_mut(i)).ok_or_else(bad)?;
            *place = fate;
            return Ok(self);
        }
        let status: u16 = statuses.parse().map_err(|_| bad())?;
        if !(200..=599).contains(&status) {
            return Err(bad());
        }
        self.exact.retain(|(s, _)| *s != status);
        self.exact.push((status, fate));
        Ok(self)
    }

    /// The fate of a status.
    #[must_use]
    pub fn of(&self, status: StatusCode) -> Fate {
        let status = status.as_u16();
        let exact = self.exact.iter().find(|(s, _)| *s == status).map(|(_, fate)| *fate);
        // A status of no known class is none that the handler could mean.
        let class = usize::from(status / 100).checked_sub(2).and_then(|i| self.classes.get(i)).copied();
        exact.or(class).unwrap_or(Fate::Doubt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_kept_a_refusal_releases_a_failure_is_in_doubt() {
        let fates = Fates::default();
        let of = |status: u16| fates.of(StatusCode::from_u16(status).unwrap());
        for (status, fate) in [
            (200, Fate::Keep),
            (201, Fate::Keep),
            (303, Fate::Keep),
            (404, Fate::Keep),
            (422, Fate::Keep),
            (401, Fate::Release),
            (429, Fate::Release),
            (502, Fate::Release),
            (503, Fate::Release),
            (504, Fate::Release),
            (500, Fate::Doubt),
            (501, Fate::Doubt),
            (799, Fate::Doubt),
        ] {
            assert_eq!(of(status), fate, "{status}");
        }
    }

    #[test]
    fn single_statuses_count_before_their_class() {
        let fates = Fates::default().with("5xx", Fate::Keep).unwrap().with("504", Fate::Doubt).unwrap();
        assert_eq!(fates.of(StatusCode::INTERNAL_SERVER_ERROR), Fate::Keep);
        assert_eq!(fates.of(StatusCode::GATEWAY_TIMEOUT), Fate::Doubt);
        for bad in ["6xx", "1xx", "xx", "99", "600", "ok"] {
            assert!(Fates::default().with(bad, Fate::Keep).is_err(), "{bad}");
        }
    }
}
