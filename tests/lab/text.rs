//! Text that says when it was sent, which piece it is, and whether it is whole.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

/// One clock for both ends: they are threads of one process.
static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Digits of the time in microseconds, a space, digits of the index, a space.
const HEAD: usize = 12 + 1 + 7 + 1;

/// Since the lab began.
pub(crate) fn now() -> Duration {
    BEGAN.elapsed()
}

/// What fills record `index`: it differs between neighbours, so that a piece out of place is seen.
fn filling(index: usize) -> char {
    char::from(b'a' + u8::try_from(index % 26).unwrap_or_default())
}

/// Record `index` of so many bytes, all of them ASCII, stamped with this moment.
pub(crate) fn record(index: usize, bytes: usize) -> String {
    let micros = now().as_micros();
    let filled = filling(index).to_string().repeat(bytes.saturating_sub(HEAD));
    format!("{micros:012} {index:07} {filled}")
}

/// When a record was stamped.
///
/// # Errors
/// When it is not exactly what [`record`] made for that index and length.
pub(crate) fn read(text: &str, index: usize, bytes: usize) -> anyhow::Result<Duration> {
    let broken = || anyhow::anyhow!("record {index} arrived as {text:?}");
    let (micros, rest) = text.split_at_checked(12).ok_or_else(broken)?;
    let filled = filling(index).to_string().repeat(bytes.saturating_sub(HEAD));
    if rest != format!(" {index:07} {filled}") {
        return Err(broken());
    }
    Ok(Duration::from_micros(micros.parse().map_err(|_not_a_number| broken())?))
}
