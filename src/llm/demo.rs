//! The demo: answers about chatbox with no network and no model, and says so.
//!
//! It shows what a deployment does with text that streams. What it says depends on the prompt alone, so load tests
//! and end-to-end tests can state it. `count to N` anywhere in a message gives N numbered lines, at most
//! [`COUNT_MAX`].

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};

use super::{Answer, Chunk, Error, Prompt, Provider, Role, Usable, estimate_tokens};
use crate::chat::Usage;

/// The pause before each piece when the configuration names none: fast reading, as hosted models stream.
pub const PACE: Duration = Duration::from_millis(35);

/// Most lines that `count to N` gives.
pub const COUNT_MAX: u32 = 1000;

/// The demo provider.
#[derive(Clone, Debug)]
pub struct Demo {
    pace: Duration,
    fixed: Option<Arc<str>>,
}

impl Demo {
    /// Pauses `pace` before each piece; zero streams as fast as it is read. With `fixed` it says that to everything,
    /// in one piece: what a load test needs to know the number of frames.
    #[must_use]
    pub fn new(pace: Duration, fixed: Option<&str>) -> Self {
        Self { pace, fixed: fixed.map(Arc::from) }
    }
}

#[async_trait]
impl Provider for Demo {
    async fn stream(&self, prompt: &Prompt) -> Result<Answer, Error> {
        let (pace, whole) = (self.pace, self.fixed.is_some());
        let text = self.fixed.as_deref().map_or_else(|| answer(prompt), str::to_owned);
        let sent = prompt.messages.iter().map(|message| estimate_tokens(&message.content)).sum::<u64>();
        let usage = Usage {
            prompt_tokens: sent + prompt.system.as_deref().map_or(0, estimate_tokens),
            completion_tokens: estimate_tokens(&text),
            estimated: true,
        };
        let pieces: Vec<_> = match &self.fixed {
            Some(_) => vec![Chunk::Text(text)],
            None => text.split_inclusive([' ', '\n']).map(|piece| Chunk::Text(piece.to_owned())).collect(),
        };
        let chunks = pieces.into_iter().chain([Chunk::Usage(usage), Chunk::Done]);
        Ok(stream::iter(chunks)
            .then(move |chunk| async move {
                match chunk {
                    Chunk::Text(_) if !pace.is_zero() => tokio::time::sleep(pace).await,
                    // One piece keeps nobody waiting.
                    Chunk::Text(_) if whole => {}
                    // So that a reader that is always ready does not keep others waiting.
                    Chunk::Text(_) => tokio::task::yield_now().await,
                    Chunk::Usage(_) | Chunk::Thread(_) | Chunk::Done => {}
                }
                Ok(chunk)
            })
            .boxed())
    }

    async fn probe(&self) -> Result<Usable, Error> {
        std::future::ready(Ok(Usable::default())).await
    }
}

/// The whole answer to a prompt, in Markdown. The same prompt gives the same text.
#[must_use]
pub fn answer(prompt: &Prompt) -> String {
    let mut asked =
        prompt.messages.iter().filter(|message| message.role == Role::User).map(|message| &*message.content);
    let last = asked.next_back().unwrap_or_default();
    if let Some(count) = count(last) {
        return (1..=count).map(|line| format!("{line}. line\n")).collect();
    }
    let earlier: Vec<_> = asked.map(|text| topic(text).map_or("something else", |topic| topic.title)).collect();
    let body = topic(last).map_or(GENERAL, |topic| topic.text);
    format!("{}{body}\n\n{NOTICE}", recall(&earlier))
}

/// Says which messages came before, by topic and never by their words, so that one sees that history arrives.
fn recall(earlier: &[&str]) -> String {
    let Some((last, before)) = earlier.split_last() else { return String::new() };
    let number = earlier.len() + 1;
    let before = match before.last() {
        Some(topic) if topic != last => format!(", and before that about **{topic}**"),
        _ => String::new(),
    };
    format!("Earlier you asked about **{last}**{before}; this is message {number} of our conversation.\n\n")
}

fn count(text: &str) -> Option<u32> {
    let text = text.to_ascii_lowercase();
    let (_, rest) = text.split_once("count to ")?;
    let digits = rest.trim_start().split(|c: char| !c.is_ascii_digit()).next().filter(|digits| !digits.is_empty())?;
    Some(digits.parse::<u32>().unwrap_or(u32::MAX).clamp(1, COUNT_MAX))
}

struct Topic {
    title: &'static str,
    /// words of questions about it; the topic with the most of them is meant, of equal ones the first
    words: &'static [&'static str],
    text: &'static str,
}

fn topic(text: &str) -> Option<&'static Topic> {
    let text = text.to_lowercase();
    let words: Vec<_> = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let score = |topic: &Topic| topic.words.iter().filter(|word| words.contains(word)).count();
    TOPICS
        .iter()
        .rev()
        .map(|topic| (score(topic), topic))
        .filter(|(score, _)| *score > 0)
        .max_by_key(|(score, _)| *score)
        .map(|(_, topic)| topic)
}

const NOTICE: &str = "*This is the demo provider: there is no model behind these words. They are picked by keyword, \
                      and no network was asked.*\n";

const GENERAL: &str = "## Hello from chatbox\n\n\
I have ready answers about this server. Ask me, for example:\n\n\
- What is **chatbox**?\n\
- Why **WebTransport** and QUIC?\n\
- What happens when I **lose the network** in the middle of an answer?\n\
- How do I run it in **production**, with a real model?\n\
- Where are conversations **stored**, and who can read them?\n\
- Which **limits** are there?\n\n\
Or try `count to 200` for a long answer: press stop in the middle, or reload the page and watch it go on.";

/// The most general one is last, so that it loses every tie.
const TOPICS: &[Topic] = &[
    Topic {
        title: "WebTransport and QUIC",
        words: &[
            "webtransport",
            "quic",
            "http3",
            "http",
            "h3",
            "websocket",
            "transport",
            "udp",
            "stream",
            "streams",
            "protocol",
        ],
        text: "## WebTransport first, WebSocket beside it\n\n\
Both carry the same frames: one JSON object each.\n\n\
| | WebTransport | WebSocket |\n\
| --- | --- | --- |\n\
| Runs over | HTTP/3 on QUIC (UDP) | TCP |\n\
| One request and its answers | a bidirectional stream of its own | share the one socket |\n\
| A lost packet holds up | that stream | everything behind it |\n\
| Cap on parallel requests | QUIC stream credit | counted by the server, 16 more wait |\n\
| Moving to another network | the connection can migrate | reconnect and resume |\n\n\
On a WebTransport stream each frame is one line:\n\n\
```json\n\
{\"type\":\"attach\",\"token\":\"…\",\"after_seq\":12}\n\
{\"type\":\"user_message\",\"id\":\"0198…\",\"content\":\"Hello\"}\n\
```\n\n\
The first stream begins with `attach`, which authenticates the connection. Tokens are never part of a URL.",
    },
    Topic {
        title: "losing the network",
        words: &[
            "network",
            "lose",
            "losing",
            "lost",
            "resume",
            "reconnect",
            "disconnect",
            "offline",
            "reload",
            "refresh",
            "crash",
            "connection",
            "tunnel",
            "drop",
            "drops",
        ],
        text: "## When the network goes away\n\n\
The answer belongs to the **session**, not to your connection. It goes on while you are gone.\n\n\
1. Each stored entry has a number `seq`, without gaps. Each running answer has a byte `offset`.\n\
2. On return the client sends `attach` with `after_seq`, and with `turn_id` and `offset` of the answer it was reading.\n\
3. The server sends the entries that are missing, then the text from that byte on, then what comes live.\n\
4. The last frame carries `length` and `sha256`, so the client knows that it has every byte.\n\n\
A message is acknowledged with `accepted` only after it is stored. If that word never arrived, the client sends it \
again with the same `id`, and it is applied **once**.\n\n\
> Try it: ask me to count to 300, and reload the page.",
    },
    Topic {
        title: "running in production",
        words: &[
            "production",
            "deploy",
            "deployment",
            "configure",
            "configuration",
            "config",
            "model",
            "models",
            "openai",
            "provider",
            "providers",
            "install",
            "run",
            "setup",
            "key",
            "endpoint",
            "cluster",
            "kubernetes",
            "toml",
        ],
        text: "## Running it with a real model\n\n\
Name a provider in the TOML file that you pass with `--config`:\n\n\
```toml\n\
[llm]\n\
default = \"fast\"\n\
system_prompt = \"You help customers of Example Ltd.\"\n\n\
[llm.providers.fast]\n\
type = \"openai\"\n\
endpoint = \"https://api.openai.com/v1\"\n\
model = \"your-model\"\n\
label = \"Fast\"\n\
```\n\n\
and give the key through the environment as `CHATBOX_LLM__PROVIDERS__FAST__API_KEY`. Any server that speaks chat \
completions will do. Then:\n\n\
- [ ] `auth.jwt_secret`, 32 random characters or more: outside loopback the server does not start without it\n\
- [ ] `listen.http` and `listen.quic` on addresses that clients reach, **UDP** included\n\
- [ ] `tls.cert_file` and `tls.key_file`\n\
- [ ] `auth.allowed_origins`: the sites that embed the chat\n\
- [ ] `cluster_secret`, the same on all nodes\n\n\
`chatbox check-config` reads it all and starts nothing.",
    },
    Topic {
        title: "privacy and storage",
        words: &[
            "privacy",
            "private",
            "store",
            "stored",
            "storage",
            "database",
            "sqlite",
            "encrypt",
            "encrypted",
            "encryption",
            "data",
            "delete",
            "gdpr",
            "secure",
            "security",
            "read",
        ],
        text: "## Where conversations live\n\n\
- **Stored** in an embedded SQLite file unless configured otherwise, with full synchronisation: `accepted` means it is \
on disk.\n\
- **Encrypted at rest** with AES-256-GCM when `store.encryption_keys` are set. Keys rotate; old ones stay readable.\n\
- **Yours alone**: someone else's session looks exactly like one that does not exist.\n\
- **Out of the logs**: content, prompts, tokens and keys are never written there.\n\
- **To the model** go the system prompt and the conversation, and nothing that says who you are.\n\n\
This demo sends nothing anywhere.",
    },
    Topic {
        title: "limits",
        words: &["limit", "limits", "maximum", "max", "size", "rate", "quota", "many"],
        text: "## Limits\n\n\
Everything has one, and most can be configured:\n\n\
| What | Default |\n\
| --- | ---: |\n\
| Characters of a message | 10,000 |\n\
| Bytes of a frame | 1,048,576 |\n\
| Requests at a time, per connection | 4 |\n\
| The same for staff | 64 |\n\
| Connections of one user | 10 |\n\
| Connections of one server | 10,000 |\n\
| Messages of one user in a minute | 100 |\n\
| Time for a whole answer | 120 s |\n\
| Silence of a provider | 30 s |\n\
| Active sessions of one user | 1 |\n\n\
On WebTransport the cap on parallel requests is QUIC stream credit: the surplus waits in the client, and nothing is \
dropped.",
    },
    Topic {
        title: "what chatbox is",
        words: &["chatbox", "demo", "features", "product", "yourself", "you", "this"],
        text: "## What chatbox is\n\n\
A real-time chat server that a host application embeds; its users talk to a language model.\n\n\
1. **Nothing is lost, doubled or reordered.** An answer that was streaming goes on where it was, byte for byte, and \
the client can check it by length and SHA-256.\n\
2. **No stall across messages.** Each exchange has its own QUIC stream.\n\
3. **Stop means stop.** The request to the provider is cut, and the text so far is kept.\n\
4. **The transport is the limiter.** The cap on parallel requests is QUIC stream credit; nothing is dropped.\n\n\
One binary holds the server, the pages and an embedded database. It runs with no configuration, no account and no key, \
which is why you are reading a demo.",
    },
];
