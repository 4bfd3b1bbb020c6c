//! Makes text of recordings, in OpenAI's interface: <https://platform.openai.com/docs/api-reference/audio/createTranscription>.
//!
//! Other servers speak it too (faster-whisper, whisper.cpp, LocalAI, Groq).

use std::{sync::Arc, time::Duration};

use reqwest::{
    Body, Method,
    multipart::{Form, Part},
};
use serde::Deserialize;
use tokio::time::Instant;

use super::{
    Error, Failure, File, Usable, config,
    http::{Auth, Http, Settings},
    openai,
};

/// Largest recording that is sent, in bytes: what OpenAI takes.
pub const RECORDING_BYTES_MAX: usize = 25 << 20;

/// Largest answer that is read, in bytes: a recording of that size at 16 kbit/s has some 200 KiB of words.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Makes text of recordings. Repeats nothing.
#[derive(Debug)]
pub struct Transcriber {
    http: Http,
    model: String,
}

#[derive(Deserialize)]
struct Transcript {
    text: String,
}

impl Transcriber {
    /// Opens no connection. A connection may take `connect_timeout` to open, within the recording's own deadline.
    #[must_use]
    pub fn new(config: &config::Transcription, connect_timeout: Duration) -> Self {
        let settings = Settings {
            provider: Arc::from("transcription"),
            endpoint: config.endpoint.clone(),
            api_key: config.api_key.clone(),
            timeout: config.timeout,
            connect_timeout: connect_timeout.min(config.timeout),
            first_byte_timeout: config.timeout,
            idle_timeout: config.timeout,
        };
        Self { http: Http::new(settings, Auth::Bearer), model: config.model.clone() }
    }

    /// The words of a recording, without space around them; empty if there are none. Vendors tell the format by the
    /// file's name, so it must have the extension of its type. Dropping the future cuts the request.
    ///
    /// # Errors
    /// `Refused` for a recording above [`RECORDING_BYTES_MAX`], without a request; else what became of the request.
    pub async fn transcribe(&self, recording: &File) -> Result<String, Error> {
        let http = &self.http;
        let until = Instant::now() + http.settings.timeout;
        let length = recording.bytes.len();
        if length > RECORDING_BYTES_MAX {
            let reason = format!("takes no recording above {RECORDING_BYTES_MAX} bytes; this one has {length}");
            return Err(http.error(Failure::Refused, reason));
        }
        let body = Body::from(recording.bytes.clone());
        let part = Part::stream_with_length(body, u64::try_from(length).unwrap_or(u64::MAX));
        let part = part.file_name(recording.name.to_string()).mime_str(&recording.media_type);
        let part = part.map_err(|_err| http.error(Failure::Refused, "a recording has no media type"))?;
        let form = Form::new().text("model", self.model.clone()).text("response_format", "json").part("file", part);
        let request = http.request(Method::POST, http.url(&["audio", "transcriptions"]))?.multipart(form);
        let response = http.accepted(http.send(request, until).await?).await?;
        let body = http.body(response, ANSWER_BYTES_MAX, until).await?;
        let transcript: Transcript = serde_json::from_slice(&body)
            .map_err(|_err| http.error(Failure::Broken, "sent an answer that is no transcript"))?;
        Ok(transcript.text.trim().to_owned())
    }

    /// Asks whether it can be used; see [`super::Provider::probe`].
    pub(super) async fn probe(&self) -> Result<Usable, Error> {
        openai::find(&self.http, &self.model).await
    }
}
