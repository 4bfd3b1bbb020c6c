//! What kind of failure a vendor's refusal is: by status, by the code in its body, by the code of an error event.
//!
//! Statuses are those of RFC 9110, section 15, and Anthropic's 529; the codes are from
//! <https://platform.openai.com/docs/guides/error-codes>, <https://docs.anthropic.com/en/api/errors> and Dify's API
//! reference. The text of a refusal is neither kept nor told: it may quote the key or the prompt.

use std::time::{Duration, SystemTime};

use reqwest::{
    Response,
    header::{DATE, HeaderMap, RETRY_AFTER},
};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::Failure;
use crate::clock;

/// How much of a refusal is read.
const BYTES_MAX: usize = 64 << 10;

/// Reads a refusal until `until`, and says what it is, as a sentence without the provider's name.
pub(super) async fn read(mut response: Response, until: Instant) -> (Failure, String) {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let mut body = Vec::new();
    while let Ok(Ok(Some(bytes))) = timeout_at(until, response.chunk()).await {
        let room = BYTES_MAX.saturating_sub(body.len()).min(bytes.len());
        body.extend_from_slice(bytes.get(..room).unwrap_or_default());
        if body.len() >= BYTES_MAX {
            break;
        }
    }
    let word = serde_json::from_slice(&body).ok().and_then(|body: Value| word(body.get("error").unwrap_or(&body)));
    let failure = match &word {
        // What the code says about a request holds whatever the status is.
        Some(word) if status.is_success() => by_word(word),
        Some(word) if matches!(by_word(word), Failure::Withheld) || word == QUOTA || word == BEHIND => by_word(word),
        _ if status.is_success() => Failure::Broken,
        _ => by_status(status.as_u16(), retry_after),
    };
    let word = word.map(|word| format!(" ({word})")).unwrap_or_default();
    (failure, format!("refused with status {}{word}", status.as_u16()))
}

/// OpenAI's code, with status 429, for an account without money: asking again does not help.
const QUOTA: &str = "insufficient_quota";

/// Dify's code, with status 400, for a failure of the model behind it: nothing is wrong with the request.
const BEHIND: &str = "completion_request_error";

fn by_status(status: u16, retry_after: Option<Duration>) -> Failure {
    match status {
        401..=403 => Failure::Denied,
        408 | 504 => Failure::Late,
        429 | 500 | 502 | 503 | 529 => Failure::Busy { retry_after },
        _ => Failure::Refused,
    }
}

/// What an error object in the middle of a stream means, by the word that [`word`] finds in it.
pub(super) fn by_word(word: &str) -> Failure {
    match word {
        "overloaded_error"
        | "rate_limit_error"
        | "rate_limit_exceeded"
        | "api_error"
        | "server_error"
        | "internal_server_error" => Failure::Busy { retry_after: None },
        "timeout_error" | "timeout" => Failure::Late,
        "content_filter" | "content_policy_violation" => Failure::Withheld,
        QUOTA
        | "authentication_error"
        | "billing_error"
        | "invalid_api_key"
        | "model_currently_not_support"
        | "model_not_found"
        | "permission_error"
        | "provider_not_initialize"
        | "provider_quota_exceeded" => Failure::Denied,
        "context_length_exceeded"
        | "conversation_completed"
        | "invalid_param"
        | "invalid_request_error"
        | "not_found_error"
        | "request_too_large" => Failure::Refused,
        // OpenRouter, vLLM and others have the status there.
        _ => match word.parse() {
            Ok(status @ 400..=599) => by_status(status, None),
            _ => Failure::Broken,
        },
    }
}

/// The code or type of a vendor's error object, if it is a plain word: free text may quote the key or the prompt.
pub(super) fn word(error: &Value) -> Option<String> {
    let plain = |word: &&str| {
        (1..=64).contains(&word.len())
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
    };
    ["code", "type"].iter().find_map(|key| match error.get(key)? {
        Value::String(word) => Some(word.as_str()).filter(plain).map(ToOwned::to_owned),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    })
}

/// How long a vendor wants to be left alone: `Retry-After` (RFC 9110, section 10.2.3), in seconds or as a date by the
/// vendor's own clock where it shows it, or OpenAI's `retry-after-ms`.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let precise = text("retry-after-ms").and_then(|ms| ms.parse::<f64>().ok());
    if let Some(wait) = precise.and_then(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok()) {
        return Some(wait);
    }
    let value = text(RETRY_AFTER.as_str())?;
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    Some(until.duration_since(date(headers).unwrap_or_else(present)).unwrap_or_default())
}

/// What the vendor's clock showed when it answered (RFC 9110, section 6.6.1).
pub(super) fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()
}

fn present() -> SystemTime {
    let ms = u64::try_from(clock::now().0).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_time_to_wait_is_read_in_each_of_its_forms() {
        let date = ("date", "Sun, 06 Nov 1994 08:49:00 GMT");
        for (pairs, wait) in [
            (vec![("retry-after", "7")], Some(7_000)),
            (vec![("retry-after", "7"), ("retry-after-ms", "1500.5")], Some(1_500)),
            (vec![("retry-after-ms", "-3"), ("retry-after", "2")], Some(2_000)),
            (vec![date, ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")], Some(37_000)),
            // The obsolete forms (RFC 9110, section 5.6.7).
            (vec![date, ("retry-after", "Sunday, 06-Nov-94 08:49:37 GMT")], Some(37_000)),
            (vec![date, ("retry-after", "Sun Nov  6 08:49:37 1994")], Some(37_000)),
            // A date that is over, by their clock or by ours.
            (vec![date, ("retry-after", "Sun, 06 Nov 1994 08:48:00 GMT")], Some(0)),
            (vec![("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")], Some(0)),
            (vec![("retry-after", "soon")], None),
            (vec![("retry-after", "-1")], None),
            (vec![], None),
        ] {
            let read = retry_after(&headers(&pairs)).map(|wait| wait.as_millis());
            assert_eq!(read, wait, "{pairs:?}");
        }
    }
}
