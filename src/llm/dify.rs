//! Applications of Dify that chat: <https://docs.dify.ai/en/api-reference/chat/send-chat-message>, and chat flows:
//! <https://docs.dify.ai/en/api-reference/chatflow/send-chat-message>.
//!
//! Dify keeps the conversation itself, under an id that it gives: [`Chunk::Thread`]. It goes on working when a client
//! hangs up, so an answer that is dropped in the middle is stopped by a request of its own.

mod events;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use reqwest::{
    Method, RequestBuilder, Response, StatusCode,
    multipart::{Form, Part},
};
use serde::{Deserialize, Serialize};
use tokio::{
    runtime::Handle,
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::{
    Answer, Chunk, Error, Failure, File, Message, Prompt, Provider, Role, Usable,
    files::{self, Shown},
    http::{Auth, Http, Settings},
    stream,
};
use crate::chat::UserId;

use events::Events;

/// How long the request that stops an answer may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest answer to an upload, in bytes: it names the file.
const UPLOADED_BYTES_MAX: usize = 64 << 10;

/// What the application takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Application {
    /// it looks at images
    pub images: bool,
}

/// A provider that speaks to an application of Dify.
///
/// It is told who asks, because its conversations belong to their users. It has a system prompt of its own:
/// [`Prompt::system`] stays here.
#[derive(Debug)]
pub struct Dify {
    http: Arc<Http>,
    application: Application,
    /// requests that stop answers; each ends within [`STOP_TIMEOUT`]
    stops: TaskTracker,
}

impl Dify {
    /// Makes a provider; opens no connection.
    #[must_use]
    pub fn new(settings: Settings, application: Application) -> Self {
        Self { http: Arc::new(Http::new(settings, Auth::Bearer)), application, stops: TaskTracker::new() }
    }

    async fn ask(&self, prompt: &Prompt, thread: Option<&str>, start: Instant) -> Result<Response, Error> {
        let Some((last, earlier)) = prompt.messages.split_last() else {
            return Err(self.http.error(Failure::Refused, "was asked nothing"));
        };
        let Shown { text, images } = files::show(last, self.application.images);
        let mut files = Vec::new();
        for image in images {
            let id = self.upload(image, &prompt.user_id, start).await?;
            files.push(Attached { r#type: "image", transfer_method: "local_file", upload_file_id: id });
        }
        let query = if thread.is_none() && !earlier.is_empty() { transcript(earlier, &text) } else { text.into() };
        let body = Request {
            inputs: Inputs {},
            query,
            response_mode: "streaming",
            conversation_id: thread.unwrap_or_default(),
            user: prompt.user_id.as_str(),
            files,
            auto_generate_name: false,
        };
        let request = self.http.request(Method::POST, self.http.url(&["chat-messages"]))?.json(&body);
        self.http.send(request, self.http.first_byte(start)).await
    }

    /// `POST /files/upload`: an image, for one user; the answer to use it by
    /// (<https://docs.dify.ai/en/api-reference/files/upload-file>).
    async fn upload(&self, image: &File, user: &UserId, start: Instant) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Uploaded {
            id: String,
        }
        let until = self.http.first_byte(start);
        let bytes = reqwest::Body::from(image.bytes.clone());
        let length = u64::try_from(image.bytes.len()).unwrap_or(u64::MAX);
        let part = Part::stream_with_length(bytes, length).file_name(image.name.to_string());
        let part = part.mime_str(&image.media_type);
        let part = part.map_err(|_err| self.http.error(Failure::Refused, "an image has no media type"))?;
        let form = Form::new().text("user", user.as_str().to_owned()).part("file", part);
        let request = self.http.request(Method::POST, self.http.url(&["files", "upload"]))?.multipart(form);
        let response = self.http.accepted(self.http.send(request, until).await?).await?;
        let body = self.http.body(response, UPLOADED_BYTES_MAX, until).await?;
        let uploaded: Result<Uploaded, _> = serde_json::from_slice(&body);
        Ok(uploaded.map_err(|_err| self.http.error(Failure::Broken, "did not name an uploaded file"))?.id)
    }

    fn stopping(&self, user: &UserId) -> Stop {
        Stop {
            http: Arc::clone(&self.http),
            stops: self.stops.clone(),
            runtime: Handle::current(),
            user: user.clone(),
            task_id: None,
        }
    }
}

#[async_trait]
impl Provider for Dify {
    async fn stream(&self, prompt: &Prompt) -> Result<Answer, Error> {
        let start = Instant::now();
        let mut response = self.ask(prompt, prompt.thread.as_deref(), start).await?;
        if prompt.thread.is_some() && matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST) {
            let status = response.status();
            let refused = self.http.refusal(response).await;
            // `Conversation Not Exists`, or one that has been closed: nothing was done and billed yet.
            if status != StatusCode::NOT_FOUND && !refused.reason.ends_with("(conversation_completed)") {
                return Err(refused);
            }
            debug!(provider = %self.http.settings.provider, "the thread is gone, a new one begins");
            response = self.ask(prompt, None, start).await?;
        }
        let events = Events::new(self.stopping(&prompt.user_id));
        self.http.answer(response, start, events).await
    }

    /// Asks for the application's name, `GET /info`, and where there is no such route, `GET /parameters`, which older
    /// versions have too (<https://docs.dify.ai/en/api-reference/application/get-application-basic-information>).
    async fn probe(&self) -> Result<Usable, Error> {
        #[derive(Deserialize)]
        struct Info {
            mode: Option<String>,
        }
        let until = self.http.first_byte(Instant::now());
        for route in ["info", "parameters"] {
            let request = self.http.request(Method::GET, self.http.url(&[route]))?;
            let Some((info, usable)) = self.http.ask::<Info>(request, until).await? else { continue };
            return match info.mode.as_deref() {
                Some(mode @ ("workflow" | "completion")) => {
                    let reason = format!("is an application of the type `{mode}`, which does not chat");
                    Err(self.http.error(Failure::Refused, reason))
                }
                _ => Ok(usable),
            };
        }
        Err(self.http.error(Failure::Refused, "is no Dify: it knows neither /info nor /parameters"))
    }

    async fn close(&self) {
        self.stops.close();
        // Each has its deadline.
        self.stops.wait().await;
    }
}

/// Messages that Dify does not hold, in front of the one that is to be answered.
fn transcript(earlier: &[Message], query: &str) -> String {
    let mut text = "The conversation so far:\n\n".to_owned();
    for message in earlier {
        let role = match message.role {
            Role::User => "User",
            Role::Assistant => "Assistant",
        };
        // Their images are named: what is uploaded belongs to the message that is asked.
        text.push_str(&format!("{role}: {}\n\n", files::show(message, false).text));
    }
    text.push_str("The message to answer:\n\n");
    text.push_str(query);
    text
}

#[derive(Serialize)]
struct Request<'a> {
    inputs: Inputs,
    query: String,
    response_mode: &'static str,
    conversation_id: &'a str,
    user: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<Attached>,
    /// A name would cost a request to a model, and nobody sees it.
    auto_generate_name: bool,
}

/// Variables of the application's form; it has its defaults.
#[derive(Serialize)]
struct Inputs {}

#[derive(Serialize)]
struct Attached {
    r#type: &'static str,
    transfer_method: &'static str,
    upload_file_id: String,
}

/// Stops an answer when it is dropped, once its task is known:
/// <https://docs.dify.ai/en/api-reference/chat/stop-chat-message-generation>.
struct Stop {
    http: Arc<Http>,
    stops: TaskTracker,
    runtime: Handle,
    user: UserId,
    task_id: Option<String>,
}

impl Drop for Stop {
    fn drop(&mut self) {
        let Some(task_id) = self.task_id.take() else { return };
        let (http, user) = (Arc::clone(&self.http), self.user.clone());
        let stop = async move {
            let url = http.url(&["chat-messages", &task_id, "stop"]);
            let request = http.request(Method::POST, url).map(|request| named(request, &user));
            let stopped = async { http.accepted(http.send(request?, Instant::now() + STOP_TIMEOUT).await?).await };
            match timeout(STOP_TIMEOUT, stopped).await {
                Ok(Ok(_)) => {}
                Ok(Err(err)) => debug!(error = &err as &dyn std::error::Error, "an answer is not stopped"),
                Err(_elapsed) => debug!(provider = %http.settings.provider, "an answer is not stopped in time"),
            }
        };
        self.stops.spawn_on(stop, &self.runtime);
    }
}

/// A task is stopped by whom it answers.
fn named(request: RequestBuilder, user: &UserId) -> RequestBuilder {
    #[derive(Serialize)]
    struct By<'a> {
        user: &'a str,
    }
    request.json(&By { user: user.as_str() })
}

/// What a whole answer's bytes mean, in whatever pieces they come: for tests and fuzzing, without a socket. The last
/// one is [`Chunk::Done`] or a failure.
pub fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Result<Chunk, Failure>> {
    stream::read(Events::default(), pieces)
}
