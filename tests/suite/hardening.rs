//! Lines of the hardening checklist that no other module proves, over both transports where they are about frames.
//!
//! Each proof names its lines in a comment, here and in the other modules: `// checklist 42`.

mod churn;
mod floods;
mod logs;
mod ownership;
mod panics;
mod storage;

use std::{fmt, time::Instant};

/// Waits until a value is as it must become; what it was last is told where it never is.
async fn settles<T: fmt::Debug>(what: &str, mut value: impl FnMut() -> T, is: impl Fn(&T) -> bool) {
    let began = Instant::now();
    loop {
        let seen = value();
        if is(&seen) {
            return;
        }
        assert!(began.elapsed() < crate::harness::client::PATIENCE, "{what}: {seen:?}");
        tokio::task::yield_now().await;
    }
}
