//! The way through everything, once.

use hapax::Action;
use serde_json::json;

use crate::common::{manager, url};

#[tokio::test]
async fn an_action_runs_once_and_is_replayed() {
    let url = url();
    let (one, other) = (manager(&url).await, manager(&url).await);
    let action =
        Action::new("create_task", "trello").signal("signal-1").params(json!({"name": "Täsk\u{0}"})).tag("a", "b");
    let first = one.execute(&action, |_| async { Ok("card-1".to_string()) }).await.unwrap();
    let again = other.execute(&action, |_| async { Ok("never".to_string()) }).await.unwrap();
    assert_eq!((first.value.as_str(), first.is_replay()), ("card-1", false));
    assert_eq!((again.value.as_str(), again.is_replay()), ("card-1", true));
    let record = one.record(&action.generate_key().unwrap()).await.unwrap().unwrap();
    assert_eq!(record.tags.get("a").map(String::as_str), Some("b"));
    let page = one.find_by_signal_id("signal-1").await.unwrap();
    assert_eq!(page.records.len(), 1);
    let stats = one.stats().await.unwrap();
    assert_eq!((stats.executions, stats.total_cached), (1, 1));
    assert!(one.clear_key(&record.key).await.unwrap());
    assert!(one.record(&record.key).await.unwrap().is_none());
}
