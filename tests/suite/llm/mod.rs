//! Providers against a scripted server that speaks the vendor's real format.

mod anthropic; // Anthropic's messages
mod demo; // answers without a model
mod dify; // applications of Dify
mod moderation; // the hook that is asked whether a text is allowed
mod openai; // OpenAI's chat completions
mod probe; // whether a provider can be used, without a token of its
mod tls; // vendors behind TLS and HTTP/2
mod transcription; // what makes text of recordings
mod vendors; // what holds for each of the three

use std::time::Duration;

use chatbox::{
    chat::{ErrorCode, Usage, UserId},
    config::secret::Secret,
    llm::{
        self, Answer, Chunk, Config, Error, Failure, Message, Models, Prompt, Role, VendorModel,
        anthropic::Anthropic,
        dify::{Application, Dify},
        http::Settings,
        openai::OpenAi,
    },
};
use futures_util::StreamExt;

use crate::harness::provider::{self, Provider, Script};

fn settings(provider: &Provider) -> Settings {
    Settings {
        provider: "fast".into(),
        endpoint: provider.endpoint().parse().unwrap(),
        api_key: Some(Secret::new("sk-secret")),
        timeout: Duration::from_secs(20),
        connect_timeout: Duration::from_secs(5),
        first_byte_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(10),
    }
}

/// Settings that wait two seconds for text, in which the machine may stand still before there is any, and 200 ms for
/// what follows it.
fn impatient(provider: &Provider) -> Settings {
    let (first_byte_timeout, idle_timeout) = (Duration::from_secs(2), Duration::from_millis(200));
    Settings { first_byte_timeout, idle_timeout, ..settings(provider) }
}

fn vendor_model() -> VendorModel {
    VendorModel { name: "vendor-1".to_owned(), max_tokens: None, images: false }
}

fn prompt(text: &str) -> Prompt {
    let messages = vec![Message::text(Role::User, text)];
    Prompt { system: None, messages: messages.into(), user_id: UserId::parse("alice").unwrap(), thread: None }
}

/// An endpoint at which nobody listens.
fn nowhere() -> String {
    format!("http://{}/v1", crate::harness::ports::reserve())
}

/// Who is spoken to, in their own words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Vendor {
    OpenAi,
    Anthropic,
    Dify,
}

impl Vendor {
    const ALL: [Self; 3] = [Self::OpenAi, Self::Anthropic, Self::Dify];

    fn provider(self, settings: Settings) -> Box<dyn llm::Provider> {
        match self {
            Self::OpenAi => Box::new(OpenAi::new(settings, vendor_model())),
            Self::Anthropic => Box::new(Anthropic::new(settings, vendor_model())),
            Self::Dify => Box::new(Dify::new(settings, Application { images: false })),
        }
    }

    /// A whole answer as the vendor streams it, with its usage.
    fn answer<'a>(self, pieces: impl IntoIterator<Item = &'a str>) -> Script {
        match self {
            Self::OpenAi => Script::answer(pieces).usage(12, 7),
            Self::Anthropic => provider::anthropic::answer(pieces),
            Self::Dify => provider::dify::answer(pieces),
        }
    }

    fn piece(self, text: &str) -> Vec<u8> {
        match self {
            Self::OpenAi => provider::delta(text),
            Self::Anthropic => provider::anthropic::delta(text),
            Self::Dify => provider::dify::message(text),
        }
    }

    fn usage(self) -> Usage {
        let prompt_tokens = if self == Self::Anthropic { 25 } else { 12 };
        Usage { prompt_tokens, completion_tokens: 7, estimated: false }
    }

    fn read(self, pieces: &[&[u8]]) -> Vec<Result<Chunk, Failure>> {
        let pieces = pieces.iter().copied();
        match self {
            Self::OpenAi => llm::openai::read(pieces),
            Self::Anthropic => llm::anthropic::read(pieces),
            Self::Dify => llm::dify::read(pieces),
        }
    }
}

/// Everything that came before the error or the end, and which of the two it was.
async fn collect(answer: Result<Answer, Error>) -> (String, Option<Usage>, Result<(), Error>) {
    let (mut text, mut usage) = (String::new(), None);
    let mut answer = match answer {
        Ok(answer) => answer,
        Err(err) => return (text, usage, Err(err)),
    };
    while let Some(chunk) = answer.next().await {
        match chunk {
            Ok(Chunk::Text(piece)) => {
                assert_ne!(piece, "");
                text.push_str(&piece);
            }
            Ok(Chunk::Usage(report)) => usage = Some(report),
            Ok(Chunk::Thread(thread)) => assert_eq!(thread, provider::dify::CONVERSATION),
            Ok(Chunk::Done) => {
                assert!(answer.next().await.is_none(), "nothing comes after the end");
                return (text, usage, Ok(()));
            }
            Err(err) => {
                assert!(answer.next().await.is_none(), "nothing comes after an error");
                return (text, usage, Err(err));
            }
        }
    }
    unreachable!("an answer ends with `Done` or an error")
}

fn reason(result: Result<(), Error>) -> (ErrorCode, String) {
    let err = result.unwrap_err();
    (err.failure.code(), err.to_string())
}

fn configured(toml: &str) -> Models {
    Models::new(&toml::from_str::<Config>(toml).unwrap()).unwrap()
}

#[tokio::test]
async fn models_answer_by_their_configured_names() {
    let provider = Provider::start(Script::answer(["from the network"])).await;
    let models = configured(&format!(
        "default = \"net\"\nsystem_prompt = \"Be brief.\"\n\
         [providers.try]\ntype = \"demo\"\npace = \"0s\"\nlabel = \"Try me\"\n\
         [providers.net]\ntype = \"openai\"\nendpoint = \"{}\"\nmodel = \"m\"\nmax_tokens = 9\ntimeout = \"7s\"\n",
        provider.endpoint()
    ));
    let list: Vec<_> = models.iter().map(|model| (&*model.id, &*model.label)).collect();
    assert_eq!(list, [("try", "Try me"), ("net", "net")]);
    assert_eq!(
        (&**models.default_id(), models.get("net").unwrap().system_prompt.as_deref()),
        ("net", Some("Be brief."))
    );
    assert!(models.get("other").is_none());
    let net = models.get("net").unwrap();
    assert_eq!((net.max_tokens, net.timeout), (Some(9), Duration::from_secs(7)));
    assert_eq!(collect(net.provider.stream(&prompt("Hi")).await).await.0, "from the network");
    assert_eq!(provider.request(0).await.body["max_tokens"], 9);
}

#[tokio::test]
async fn no_configuration_means_the_demo() {
    let models = Models::new(&Config::default()).unwrap();
    let list: Vec<_> = models.iter().map(|model| (&*model.id, &*model.label)).collect();
    assert_eq!((list, &**models.default_id()), (vec![("demo", "Demo")], "demo"));
}

#[test]
fn a_faulty_configuration_makes_no_models() {
    let config: Config = toml::from_str("default = \"x\"\n[providers.a]\ntype = \"openai\"").unwrap();
    assert_eq!(Models::new(&config).unwrap_err().len(), 3);
}
