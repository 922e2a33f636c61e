//! What every store must do, as a suite that anyone can run on a store of their own.
//!
//! One table of cases, generic over [`Store`](super::Store): each case opens a fresh [`Subject`],
//! puts one claim to the test and panics if it does not hold. A store says what it
//! can do beside the trait (open the same data again, have its clock moved); a case
//! that needs more than that is *skipped and reported*, never passed in silence.
//! Beside the cases there is [`model`], which plays random histories against a
//! small reference of the rules.
//!
//! In a test file of your store's crate, with hapax's feature `conformance` on:
//!
//! ```
//! use std::sync::Arc;
//! use hapax::ManualClock;
//! use hapax::store::conformance::Subject;
//! use hapax::store::memory::MemoryStore;
//!
//! async fn memory() -> Subject {
//!     let clock = ManualClock::new();
//!     let store = Arc::new(MemoryStore::with_clock(Arc::new(clock.clone())));
//!     Subject::new(store).clock(clock)
//! }
//!
//! // One `#[test]` per case:
//! mod conformance {
//!     hapax::conformance_tests!(super::memory);
//! }
//! # fn main() {}
//! ```
//!
//! Or all of it in one call, with a report:
//!
//! ```
//! # use std::sync::Arc;
//! # use hapax::ManualClock;
//! # use hapax::store::conformance::{Subject, run_all};
//! # use hapax::store::memory::MemoryStore;
//! # async fn memory() -> Subject {
//! #     let clock = ManualClock::new();
//! #     let store = Arc::new(MemoryStore::with_clock(Arc::new(clock.clone())));
//! #     Subject::new(store).clock(clock)
//! # }
//! let report = run_all(memory);
//! assert!(report.is_clean(), "{report}");
//! // A memory has no second handle: what needs one was skipped, and is named.
//! assert!(report.skipped.iter().any(|(case, _)| case.contains("another_handle")));
//! ```
//!
//! A store whose time is a server's has no clock to move: leave [`Subject::clock`]
//! out. The cases then wait in real time, a few [`tick`](Subject::tick)s each,
//! and those that look at an exact millisecond are skipped.

// Cases fail by panicking, as tests do: these lints are for code that must not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod awkward;
mod capacity;
mod closing;
mod counting;
mod expiry;
mod fields;
mod handle;
mod leases;
pub mod model;
mod namespaces;
mod notice;
mod queries;
mod races;
mod removal;
mod report;
mod settling;
mod subject;
mod transitions;

pub use report::{Report, check, run_all};
pub use subject::{Skip, Subject};

use std::future::Future;
use std::pin::Pin;

use handle::Handle;

/// How a case ended that did not fail.
pub type Verdict = Result<(), Skip>;

/// A claim about stores, and how to test it.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Case {
    /// The claim, as `module::a_sentence`.
    pub name: &'static str,
    /// Tests it on a subject nobody has used; panics if it does not hold.
    pub run: fn(Subject) -> Pin<Box<dyn Future<Output = Verdict> + Send>>,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The table of cases. One macro, since it makes both [`cases`] and the tests of [`conformance_tests`](crate::conformance_tests).
#[macro_export]
#[doc(hidden)]
macro_rules! __conformance_cases {
    ($then:tt) => {
        $crate::__conformance_expand! { $then
            transitions {
                a_key_that_is_absent_begins
                a_live_attempt_turns_every_other_begin_away
                a_recorded_result_turns_every_begin_away
                a_recorded_error_turns_every_begin_away
                a_doubt_turns_every_begin_away_that_does_not_name_its_attempt
                only_the_attempt_in_doubt_is_taken_over
                a_live_attempt_is_not_taken_over
                a_result_is_not_taken_over
                a_taken_over_key_forgets_the_doubt
                a_live_attempt_completes
                a_live_attempt_fails_for_good
                a_live_attempt_releases_its_key
                a_live_attempt_leaves_a_doubt
                a_late_answer_counts_while_nobody_took_over
                a_late_error_counts_while_nobody_took_over
                a_late_release_frees_the_key_while_nobody_took_over
                a_doubt_can_be_given_another_reason_by_its_attempt
                a_stale_attempt_cannot_complete
                a_stale_attempt_cannot_change_anything
                an_end_of_an_absent_key_is_lost
                an_end_names_the_key_it_is_for
                the_same_end_twice_is_answered_alike
                another_end_after_the_first_is_lost
                a_released_key_begins_anew
                the_reason_of_a_doubt_is_kept
            }
            settling {
                a_doubt_settled_as_happened_is_completed
                a_doubt_settled_as_not_happened_is_absent
                a_settlement_that_names_another_attempt_changes_nothing
                what_is_not_in_doubt_cannot_be_settled
                a_settlement_fences_the_late_attempt_off
                a_settlement_counts_once
                a_mark_over_nothing_is_recorded
                a_mark_over_a_doubt_is_recorded_and_fences_the_attempt_off
                a_mark_over_a_record_changes_nothing
                a_mark_under_a_live_attempt_changes_nothing
            }
            leases {
                a_heartbeat_renews_the_lease
                a_heartbeat_cannot_revive_a_lapsed_lease
                a_heartbeat_of_a_stale_attempt_is_lost
                heartbeats_are_answered_one_by_one_in_order
                a_lapsed_lease_reads_as_in_doubt_everywhere
                a_lapsed_lease_is_taken_over
                a_lapsed_lease_is_settled
                a_lapsed_lease_is_marked
                a_lapsed_lease_is_not_removed
                a_lapsed_attempts_late_answer_counts
                a_lease_lapses_at_its_very_millisecond
                a_jump_of_the_wall_clock_neither_kills_nor_revives_a_lease
                a_lease_of_any_length_is_taken
            }
            expiry {
                a_record_is_absent_from_its_expiry_on_to_every_operation
                a_record_stands_until_the_millisecond_before_its_expiry
                an_expired_key_begins_anew
                an_expired_error_begins_anew
                a_record_without_an_end_does_not_expire
                a_time_to_live_is_at_least_a_millisecond
                a_sweep_removes_only_what_has_expired
                a_sweep_keeps_to_its_limit
                a_live_attempt_and_a_doubt_never_expire
                the_longest_time_to_live_is_kept
            }
            removal {
                a_recorded_result_is_removed
                a_removal_keeps_what_is_live_or_in_doubt
                clearing_takes_what_is_recorded_and_nothing_else
                evicting_takes_the_oldest_recorded_and_nothing_else
                evicting_more_than_there_is_takes_all
                sweeping_keeps_what_is_live_or_in_doubt
            }
            fields {
                a_begun_record_holds_what_was_given
                a_completed_record_holds_its_result_and_times
                a_failed_record_holds_its_error_and_times
                a_taken_over_record_has_a_new_owner_and_start
                a_marked_record_holds_what_was_given
                a_settled_record_keeps_what_was_known
                executions_and_presentations_are_counted_apart
                optional_fields_may_be_missing
            }
            awkward {
                keys_of_any_length_are_kept_apart
                keys_that_look_generated_are_kept_as_they_are
                texts_are_kept_byte_for_byte
                json_is_kept_byte_for_byte
                a_result_of_a_mebibyte_is_kept
                huge_numbers_do_not_wrap
                ids_of_any_bytes_are_kept
            }
            namespaces {
                namespaces_never_meet
                an_attempt_of_another_namespace_is_a_stranger
                counters_and_census_belong_to_their_namespace
                clearing_a_namespace_leaves_the_others
            }
            queries {
                records_come_oldest_first
                records_come_newest_first_when_asked_so
                each_filter_narrows
                filters_narrow_together
                a_filter_finds_texts_and_not_their_likes
                records_that_expire_soon_are_found
                pages_follow_without_gaps_or_repeats
                pages_hold_through_changes_in_between
                a_page_has_no_next_when_nothing_follows
                a_limit_out_of_range_is_brought_into_it
                a_bad_cursor_is_refused
                a_taken_over_record_keeps_its_place
            }
            counting {
                counters_add_up
                counters_are_reset
                every_counter_is_kept
                presentations_are_added_to_their_records
                presentations_of_absent_keys_are_ignored
                a_census_counts_each_state
                a_census_spans_from_the_first_record_to_the_last
                an_unknown_namespace_is_empty
            }
            capacity {
                a_full_store_evicts_the_oldest_fifth
                a_full_store_removes_expired_records_first
                a_full_store_evicts_nothing_that_is_live_or_in_doubt
                a_full_store_refuses_when_told_to
                a_refused_begin_leaves_nothing_behind
                a_full_store_still_answers_for_the_keys_it_has
                a_full_store_still_takes_over
                a_mark_makes_room_as_well
                the_limit_counts_all_namespaces_together
            }
            notice {
                the_epoch_changes_when_a_result_is_removed
                the_epoch_changes_when_results_are_cleared
                the_epoch_changes_when_results_are_evicted
                the_epoch_stands_while_results_are_only_added
                another_handle_sees_the_epoch_change_within_a_second
                a_waiter_learns_of_a_completion
                a_waiter_learns_of_a_release
                a_waiter_learns_of_a_doubt
                a_waiter_learns_of_a_settlement_and_a_take_over
                a_waiter_in_another_handle_learns_of_a_completion
                a_waiter_in_another_handle_learns_of_a_lapse
                waiting_ends_after_its_time
                waiting_for_what_is_not_in_progress_ends_at_once
                many_wait_for_one
            }
            races {
                of_many_begins_one_starts
                of_many_begins_over_two_handles_one_starts
                of_many_take_overs_one_starts
                completing_settling_and_taking_over_have_one_winner
                removing_and_beginning_do_not_mix
                counters_of_many_add_up
                a_full_store_never_goes_over_its_limit
                a_dropped_future_leaves_no_half_step
            }
            closing {
                a_closed_store_says_so_to_every_call
                closing_twice_is_fine
                closing_finishes_what_was_asked_before
                closing_wakes_those_who_wait
                a_closed_store_opened_again_has_everything
                another_handle_sees_everything
            }
        }
    };
}

/// What is made of the table; see [`__conformance_cases`].
#[macro_export]
#[doc(hidden)]
macro_rules! __conformance_expand {
    ((tests $open:expr) $($module:ident { $($case:ident)* })*) => {
        // Here and not in the modules below, so that a path means what it says where it was written.
        #[cfg(test)]
        fn open_the_subject()
        -> impl ::core::future::Future<Output = $crate::store::conformance::Subject> + Send + 'static {
            ($open)()
        }

        $(
            mod $module {
                $(
                    #[test]
                    fn $case() {
                        let name = concat!(stringify!($module), "::", stringify!($case));
                        $crate::store::conformance::check(name, super::open_the_subject);
                    }
                )*
            }
        )*
    };
    ((table) $($module:ident { $($case:ident)* })*) => {
        const CASES: &[Case] = &[
            $($(
                Case {
                    name: concat!(stringify!($module), "::", stringify!($case)),
                    run: |subject| Box::pin($module::$case(subject)),
                },
            )*)*
        ];
    };
}

/// One `#[test]` per case of the suite, for the store that the given async function opens.
///
/// The function is `async fn() -> Subject` (or a closure like it), and is called for
/// each case: what it opens must be empty. Put the call into a module of its own, since
/// it makes a module for each group of cases; see [the suite](mod@crate::store::conformance)
/// for an example.
#[macro_export]
macro_rules! conformance_tests {
    ($open:expr) => {
        $crate::__conformance_cases! { (tests $open) }
    };
}

__conformance_cases! { (table) }

/// All cases, in the order of the table.
///
/// ```
/// let names: Vec<_> = hapax::store::conformance::cases().iter().map(|case| case.name).collect();
/// assert!(names.contains(&"transitions::a_stale_attempt_cannot_complete"));
/// ```
#[must_use]
pub fn cases() -> &'static [Case] {
    CASES
}
