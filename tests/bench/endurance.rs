//! Memory over 10,000 reconnects of one user, 100,000 exchanges and 5,000 messages on a connection, of the real binary.
//! Run: `cargo bench --bench endurance`. Linux only: it reads `/proc`. It fails when the server has grown by more
//! than its bound.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    dead_code,
    unused_imports,
    unused_macros,
    reason = "it shares the tests' harness, prints, and fails loudly"
)]

#[path = "../suite/endurance.rs"]
mod endurance;
#[path = "../suite/harness/mod.rs"]
mod harness;

/// What the allocator keeps for later, and connections that linger.
const GROWTH_MAX: u64 = 16 * 1024 * 1024;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let weights = runtime.block_on(async {
        let [exchanges, messages] = endurance::exchanges(100_000, 5000).await;
        [endurance::reconnects(10_000).await, exchanges, messages]
    });
    for weight in weights {
        println!("{weight}");
        assert!(weight.growth() < GROWTH_MAX, "it has grown");
    }
}
