//! What makes text of recordings.

use std::time::Duration;

use chatbox::{
    config::secret::Secret,
    llm::{
        Config, Failure, File, Models,
        config::Transcription,
        transcription::{RECORDING_BYTES_MAX, Transcriber},
    },
};

use crate::harness::provider::{Provider, Script};

fn transcriber(provider: &Provider, timeout: Duration) -> Transcriber {
    let config = Transcription {
        endpoint: provider.endpoint().parse().unwrap(),
        api_key: Some(Secret::new("sk-secret")),
        model: "whisper-1".to_owned(),
        timeout,
    };
    Transcriber::new(&config, Duration::from_secs(10))
}

const LONG: Duration = Duration::from_secs(30);

fn recording(bytes: Vec<u8>) -> File {
    File { name: "voice.webm".into(), media_type: "audio/webm".into(), bytes: bytes.into() }
}

fn words(text: &str) -> Script {
    Script::status(200, "application/json", &serde_json::json!({ "text": text, "usage": { "seconds": 3 } }).to_string())
}

#[tokio::test]
async fn a_recording_becomes_text() {
    let provider = Provider::start(words(" What is it?\n")).await;
    let text = transcriber(&provider, LONG).transcribe(&recording(b"\x1aE\xdf\xa3".to_vec())).await;
    assert_eq!(text.unwrap(), "What is it?");
    let request = provider.request(0).await;
    assert_eq!(request.target, "POST /v1/audio/transcriptions");
    assert_eq!(request.header("authorization"), Some("Bearer sk-secret"));
    let form = String::from_utf8_lossy(&request.bytes);
    for part in [
        "name=\"model\"\r\n\r\nwhisper-1\r\n",
        "name=\"response_format\"\r\n\r\njson\r\n",
        "name=\"file\"; filename=\"voice.webm\"\r\nContent-Type: audio/webm\r\n\r\n\u{1a}E",
    ] {
        assert!(form.contains(part), "{part:?} is not in {form:?}");
    }
}

#[tokio::test]
async fn what_goes_wrong_has_its_kind() {
    let provider = Provider::start(Script::silent()).await;
    let broken = Failure::Broken;
    for (script, failure, told) in [
        (Script::silent(), Failure::Late, "sent no answer in time"),
        (words("x").stall_after(0), Failure::Late, "did not finish its answer in time"),
        (words("x").cut_after(0), broken, "broke off in the middle of its answer"),
        (Script::status(200, "application/json", "{\"words\":1}"), broken, "sent an answer that is no transcript"),
        (Script::status(200, "text/html", "<html>"), broken, "sent an answer that is no transcript"),
        (words(&"x".repeat(2 << 20)), broken, "sent an answer that is larger than 1048576 bytes"),
        (Script::status(413, "text/plain", "sk-secret"), Failure::Refused, "refused with status 413"),
        (
            Script::status(429, "text/plain", "").header("retry-after", "3"),
            Failure::Busy { retry_after: Some(Duration::from_secs(3)) },
            "refused with status 429",
        ),
    ] {
        provider.script(script);
        // One that has no end is waited for as long as it takes to begin, on any machine.
        let timeout = if failure == Failure::Late { Duration::from_secs(2) } else { LONG };
        let err = transcriber(&provider, timeout).transcribe(&recording(vec![0; 9])).await.unwrap_err();
        assert_eq!((err.failure, err.to_string()), (failure, format!("provider `transcription`: {told}")));
    }
    let before = provider.requests();
    let err = transcriber(&provider, LONG).transcribe(&recording(vec![0; RECORDING_BYTES_MAX + 1])).await.unwrap_err();
    assert_eq!((err.failure, provider.requests()), (Failure::Refused, before));
    assert_eq!(err.reason, "takes no recording above 26214400 bytes; this one has 26214401");
}

#[tokio::test]
async fn models_have_a_transcriber_where_one_is_configured() {
    let provider = Provider::start(words("ok")).await;
    assert!(Models::new(&Config::default()).unwrap().transcriber().is_none());
    let toml = format!("[transcription]\nendpoint = \"{}\"\nmodel = \"whisper-1\"\n", provider.endpoint());
    let models = Models::new(&toml::from_str(&toml).unwrap()).unwrap();
    let text = models.transcriber().unwrap().transcribe(&recording(vec![0; 9])).await;
    assert_eq!(text.unwrap(), "ok");
}
