//! The hook that is asked whether a text is allowed.

use std::time::Duration;

use chatbox::{
    chat::{SessionId, UserId},
    config::secret::Secret,
    llm::{
        config::{Moderation, Verdict},
        moderation::{Kind, Moderator},
    },
};
use serde_json::json;

use crate::harness::provider::{Provider, Script};

fn config(provider: &Provider) -> Moderation {
    let hook = |path: &str| Some(format!("{}/{path}", provider.endpoint()).parse().unwrap());
    Moderation {
        before: hook("before"),
        after: hook("after"),
        api_key: Some(Secret::new("sk-secret")),
        timeout: Duration::from_secs(30),
        on_failure: Verdict::Refuse,
    }
}

fn moderator(config: &Moderation) -> Moderator {
    Moderator::new(config, Duration::from_secs(10))
}

fn alice() -> UserId {
    UserId::parse("alice").unwrap()
}

fn verdict(allowed: bool) -> Script {
    Script::status(200, "application/json", &json!({ "allowed": allowed, "category": "none" }).to_string())
}

#[tokio::test]
async fn each_hook_is_asked_about_its_texts_and_decides() {
    let provider = Provider::start(verdict(true)).await;
    let moderator = moderator(&config(&provider));
    let session = SessionId::new();
    assert_eq!(moderator.ask(Kind::Message, &alice(), session, "Hi").await, Verdict::Allow);
    provider.script(verdict(false));
    assert_eq!(moderator.ask(Kind::Reply, &alice(), session, "Ho").await, Verdict::Refuse);
    for (index, target, kind, content) in
        [(0, "POST /v1/before", "message", "Hi"), (1, "POST /v1/after", "reply", "Ho")]
    {
        let request = provider.request(index).await;
        assert_eq!(request.target, target);
        assert_eq!(request.header("authorization"), Some("Bearer sk-secret"));
        let asked = json!({ "kind": kind, "user_id": "alice", "session_id": session, "content": content });
        assert_eq!(request.body, asked);
    }
}

#[tokio::test]
async fn a_hook_that_fails_leaves_the_decision_to_the_configuration() {
    let provider = Provider::start(verdict(true)).await;
    let giant = format!("{{\"allowed\":true,\"why\":\"{}\"}}", "x".repeat(1 << 20));
    for (script, told) in [
        (Script::silent(), "sent no answer in time"),
        (verdict(true).stall_after(0), "did not finish its answer in time"),
        (verdict(true).cut_after(0), "broke off in the middle of its answer"),
        (Script::status(500, "text/html", "<html>"), "refused with status 500"),
        (Script::status(302, "application/json", "{\"allowed\":true}"), "refused with status 302"),
        (Script::status(200, "application/json", "{\"allowed\":\"yes\"}"), "sent an answer that is no verdict"),
        (Script::status(200, "text/html", "<html>sign in</html>"), "sent an answer that is no verdict"),
        (Script::status(200, "application/json", &giant), "sent an answer that is larger than 16384 bytes"),
    ] {
        provider.script(script);
        // One that has no end is waited for as long as it takes to begin, on any machine.
        let timeout = Duration::from_secs(if told.ends_with("in time") { 2 } else { 30 });
        let (alice, session) = (alice(), SessionId::new());
        let of = |on_failure| moderator(&Moderation { on_failure, timeout, ..config(&provider) });
        let (lenient, strict) = (of(Verdict::Allow), of(Verdict::Refuse));
        let (failed, allowed, refused) = tokio::join!(
            strict.verdict(Kind::Message, &alice, session, "Hi"),
            lenient.ask(Kind::Message, &alice, session, "Hi"),
            strict.ask(Kind::Message, &alice, session, "Hi"),
        );
        assert_eq!(failed.unwrap_err().to_string(), format!("provider `moderation.before`: {told}"));
        assert_eq!((allowed, refused), (Verdict::Allow, Verdict::Refuse), "{told}");
    }
}

#[tokio::test]
async fn without_a_hook_everything_is_allowed_and_nobody_asked() {
    let provider = Provider::start(verdict(false)).await;
    let moderator = moderator(&Moderation { before: None, ..config(&provider) });
    assert_eq!((moderator.asks(Kind::Message), moderator.asks(Kind::Reply)), (false, true));
    assert_eq!(moderator.ask(Kind::Message, &alice(), SessionId::new(), "Hi").await, Verdict::Allow);
    assert_eq!(provider.requests(), 0);
}
