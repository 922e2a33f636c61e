//! Removing: what is recorded goes when it is asked to; what is live or in doubt never.

use super::handle::complete;
use super::{Handle, Subject, Verdict};
use crate::State;
use crate::store::{Begun, Ended, Removed};

/// A live attempt, a doubt, a lapsed-to-be and, around them, recorded ones.
async fn mixed(h: &Handle) {
    h.completed("c1").await;
    h.start("live").await;
    h.failed("f1").await;
    h.doubted("doubt").await;
    h.completed("c2").await;
}

pub(super) async fn a_recorded_result_is_removed(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.completed("c").await;
    h.failed("f").await;
    h.mark("m", "v").await;
    for text in ["c", "f", "m"] {
        let removed = h.remove(text).await;
        assert!(matches!(removed, Removed::Removed), "{text}: {removed:?}");
        let again = h.remove(text).await;
        assert!(matches!(again, Removed::Absent), "{text}: {again:?}");
        assert_eq!(h.get(text).await, None);
        let begun = h.begin(h.ask(text)).await;
        assert!(matches!(begun, Begun::Started { attempts: 1, .. }), "{begun:?}");
    }
    assert_eq!(h.end("c", attempt, complete("old")).await, Ended::Lost(Some(State::InProgress)));
    Ok(())
}

pub(super) async fn a_removal_keeps_what_is_live_or_in_doubt(s: Subject) -> Verdict {
    let h = s.handle();
    mixed(&h).await;
    for (text, state) in [("live", State::InProgress), ("doubt", State::InDoubt)] {
        let before = h.record(text).await;
        let Removed::Kept(record) = h.remove(text).await else { panic!("{text} must stay") };
        assert_eq!((record.state, &*record), (state, &before));
        assert_eq!(h.record(text).await, before);
    }
    Ok(())
}

pub(super) async fn clearing_takes_what_is_recorded_and_nothing_else(s: Subject) -> Verdict {
    let h = s.handle();
    assert_eq!(h.clear().await, 0);
    mixed(&h).await;
    assert_eq!(h.clear().await, 3);
    assert_eq!(h.all_keys().await, ["live", "doubt"]);
    assert_eq!((h.tally().await, h.clear().await), ((1, 1, 0, 0), 0));
    h.start("c1").await;
    Ok(())
}

pub(super) async fn evicting_takes_the_oldest_recorded_and_nothing_else(s: Subject) -> Verdict {
    let h = s.handle();
    mixed(&h).await;
    assert_eq!(h.evict(0).await, 0);
    assert_eq!(h.evict(2).await, 2);
    assert_eq!(h.all_keys().await, ["live", "doubt", "c2"]);
    assert_eq!(h.tally().await, (1, 1, 1, 0));
    Ok(())
}

pub(super) async fn evicting_more_than_there_is_takes_all(s: Subject) -> Verdict {
    let h = s.handle();
    mixed(&h).await;
    assert_eq!(h.evict(u64::MAX).await, 3);
    assert_eq!(h.all_keys().await, ["live", "doubt"]);
    assert_eq!(h.within("never-heard-of").evict(5).await, 0);
    Ok(())
}

pub(super) async fn sweeping_keeps_what_is_live_or_in_doubt(s: Subject) -> Verdict {
    let h = s.handle();
    mixed(&h).await;
    h.start_briefly("lapsed").await;
    s.pass_tick().await;
    assert_eq!(h.sweep(usize::MAX).await, 0);
    assert_eq!(h.tally().await, (1, 2, 2, 1));
    Ok(())
}
