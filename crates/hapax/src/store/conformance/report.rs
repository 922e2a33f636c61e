//! Running the cases: each with its own subject, its own runtime and a limit on its time.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use super::{Case, Subject, Verdict, cases};

/// After this long a case counts as hanging.
const CASE_LIMIT: Duration = Duration::from_secs(60);

/// How the cases ended.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// The names of the cases that hold.
    pub passed: Vec<&'static str>,
    /// The names of the cases that the store cannot be tried on, and why.
    pub skipped: Vec<(&'static str, String)>,
    /// The names of the cases that do not hold, and what was seen.
    pub failed: Vec<(&'static str, String)>,
}

impl Report {
    /// Whether nothing failed.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.failed.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} passed, {} skipped, {} failed", self.passed.len(), self.skipped.len(), self.failed.len())?;
        for (case, why) in &self.skipped {
            writeln!(f, "skipped {case}: {why}")?;
        }
        for (case, seen) in &self.failed {
            writeln!(f, "FAILED  {case}: {seen}")?;
        }
        Ok(())
    }
}

/// Runs every case, whatever fails, and reports them by name. Not from within
/// an async runtime: each case brings its own.
pub fn run_all<F, Fut>(open: F) -> Report
where
    F: Fn() -> Fut,
    Fut: Future<Output = Subject> + Send + 'static,
{
    let mut report = Report::default();
    for case in cases() {
        match run(case, open()) {
            Ok(Ok(())) => report.passed.push(case.name),
            Ok(Err(skip)) => report.skipped.push((case.name, skip.to_string())),
            Err(seen) => report.failed.push((case.name, seen)),
        }
    }
    report
}

/// Runs the case of that name; panics if it does not hold. A skipped case says so on stderr.
///
/// # Panics
/// When the case fails, takes longer than a minute, or when there is none of that name.
pub fn check<F, Fut>(name: &str, open: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Subject> + Send + 'static,
{
    let case = cases().iter().find(|case| case.name == name);
    let case = case.unwrap_or_else(|| panic!("there is no case {name:?}"));
    match run(case, open()) {
        Ok(Ok(())) => {}
        Ok(Err(skip)) => eprintln!("skipped {name}: {skip}"),
        Err(seen) => panic!("{name}: {seen}"),
    }
}

fn run(case: &Case, open: impl Future<Output = Subject> + Send + 'static) -> Result<Verdict, String> {
    // Two workers, so that races are races.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| format!("no runtime: {e}"))?;
    let (run, name) = (case.run, case.name);
    let ended = runtime.block_on(async {
        let task = tokio::spawn(async move {
            let subject = open.await;
            match subject.skip_of(name) {
                Some(skip) => Err(skip),
                None => run(subject).await,
            }
        });
        tokio::time::timeout(CASE_LIMIT, task).await
    });
    // A case that hangs must not take the others with it.
    runtime.shutdown_timeout(Duration::from_secs(5));
    match ended {
        Ok(Ok(verdict)) => Ok(verdict),
        Ok(Err(join)) => Err(join.try_into_panic().map_or_else(|e| e.to_string(), |panic| text_of(&*panic))),
        Err(_) => Err(format!("still running after {CASE_LIMIT:?}")),
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_string(),
        (_, Some(text)) => text.clone(),
        _ => "a panic without a text".into(),
    }
}
