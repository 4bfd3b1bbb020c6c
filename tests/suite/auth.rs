//! Which tokens are accepted, and which are not.

use std::time::Duration;

use chatbox::{
    auth::{Algorithm, Config, Denied, Role, TOKEN_BYTES_MAX, Verifier, hmac, issuer::Issuer},
    chat::UserId,
    config::secret::Secret,
};
use jsonwebtoken::{EncodingKey, Header, encode};
use proptest::prelude::*;
use serde_json::{Value, json};

const SECRET: &str = "9b1c7f60a4d2e8835d0f6ab7c2e49d11";

fn verifier() -> Verifier {
    Verifier::new(&Config::default(), &Secret::new(SECRET))
}

/// A moment far ahead: 2100.
const LATER: u64 = 4_102_444_800;

fn signed(claims: &Value) -> String {
    signed_with(jsonwebtoken::Algorithm::HS256, SECRET, claims)
}

fn signed_with(algorithm: jsonwebtoken::Algorithm, secret: &str, claims: &Value) -> String {
    hmac::install();
    encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

/// A token with any header, signed with the secret as HS256 does it.
fn with_header(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| base64url(value.to_string().as_bytes());
    let message = format!("{}.{}", part(header), part(claims));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
    format!("{message}.{}", base64url(ring::hmac::sign(&key, message.as_bytes()).as_ref()))
}

fn base64url(bytes: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    URL_SAFE_NO_PAD.encode(bytes)
}

#[test]
fn claims_become_a_principal() {
    let token = signed(&json!({
        "user_id": "ada", "name": "Ada Lovelace", "roles": ["chat_admin"], "exp": LATER, "extra": { "ignored": true },
    }));
    let principal = verifier().verify(&token).unwrap();
    assert_eq!(principal.user_id.as_str(), "ada");
    assert_eq!(principal.name, "Ada Lovelace");
    assert_eq!(principal.role, Role::Staff);
    assert_eq!(principal.expires_at.to_string(), "2100-01-01T00:00:00.000Z");
}

#[test]
fn roles_other_than_those_of_staff_are_a_users() {
    for (roles, role) in [
        (json!(["admin"]), Role::Staff),
        (json!(["reader", "chat_admin"]), Role::Staff),
        (json!(["ADMIN", "administrator", "chat_admin "]), Role::User),
        (json!([]), Role::User),
        (json!(null), Role::User),
    ] {
        let token = signed(&json!({ "user_id": "ada", "roles": roles, "exp": LATER }));
        assert_eq!(verifier().verify(&token).unwrap().role, role, "{roles}");
    }
    let token = signed(&json!({ "user_id": "ada", "exp": LATER }));
    assert_eq!(verifier().verify(&token).unwrap().role, Role::User);
}

#[test]
fn sub_stands_in_for_an_absent_user_id_only() {
    let user = |claims: Value| verifier().verify(&signed(&claims)).map(|principal| principal.user_id.to_string());
    assert_eq!(user(json!({ "sub": "bob", "exp": LATER })), Ok("bob".to_owned()));
    assert_eq!(user(json!({ "user_id": "ada", "sub": "bob", "exp": LATER })), Ok("ada".to_owned()));
    assert_eq!(user(json!({ "user_id": "", "sub": "bob", "exp": LATER })), Err(Denied::Invalid));
    assert_eq!(user(json!({ "user_id": "x".repeat(255), "exp": LATER })), Ok("x".repeat(255)));
    assert_eq!(user(json!({ "user_id": "x".repeat(256), "exp": LATER })), Err(Denied::Invalid));
}

// checklist 30, W27
#[test]
fn names_are_capped_on_a_character_boundary_and_cleaned() {
    let name = |name: Value| {
        let token = signed(&json!({ "user_id": "ada", "name": name, "exp": LATER }));
        verifier().verify(&token).unwrap().name
    };
    assert_eq!(name(json!("ü🦀".repeat(500))), "ü🦀".repeat(50));
    assert_eq!(name(json!("A\u{0}d\na\u{202e}")), "Ada");
    assert_eq!(name(json!("\u{feff}A\u{200b}da")), "Ada");
    assert_eq!(name(json!("\u{3164}\u{200b}")), name(json!("")), "what shows nothing is no name");
    assert_eq!(name(json!(" \u{7} ")), "ada");
    assert_eq!(name(json!(null)), "ada");
}

// checklist W25
#[test]
fn wrong_types_and_missing_claims_are_invalid() {
    for claims in [
        json!({ "exp": LATER }),
        json!({ "user_id": "ada" }),
        json!({ "user_id": null, "exp": LATER }),
        json!({ "user_id": 7, "exp": LATER }),
        json!({ "user_id": ["ada"], "exp": LATER }),
        json!({ "user_id": "ada", "exp": LATER.to_string() }),
        json!({ "user_id": "ada", "exp": null }),
        json!({ "user_id": "ada", "exp": true }),
        json!({ "user_id": "ada", "exp": -1 }),
        json!({ "user_id": "ada", "exp": u64::MAX }),
        json!({ "user_id": "ada", "exp": 1e300 }),
        json!({ "user_id": "ada", "exp": LATER * 1000 }),
        json!({ "user_id": "ada", "exp": LATER, "nbf": "soon" }),
        json!({ "user_id": "ada", "exp": LATER, "nbf": LATER }),
        json!({ "user_id": "ada", "exp": LATER, "roles": "admin" }),
        json!({ "user_id": "ada", "exp": LATER, "roles": { "admin": true } }),
        json!({ "user_id": "ada", "exp": LATER, "roles": ["admin", 1] }),
        json!({ "user_id": "ada", "exp": LATER, "name": 7 }),
        json!(["ada", LATER]),
        json!("ada"),
    ] {
        assert_eq!(verifier().verify(&signed(&claims)), Err(Denied::Invalid), "{claims}");
    }
}

#[test]
fn only_a_token_that_was_right_has_expired() {
    let old = json!({ "user_id": "ada", "exp": 1_000_000_000 });
    assert_eq!(verifier().verify(&signed(&old)), Err(Denied::Expired));
    let forged = signed_with(jsonwebtoken::Algorithm::HS256, "another secret of thirty-two letters", &old);
    assert_eq!(verifier().verify(&forged), Err(Denied::Invalid));
    let nobody = json!({ "exp": 1_000_000_000 });
    assert_eq!(verifier().verify(&signed(&nobody)), Err(Denied::Invalid));
}

#[test]
fn the_algorithm_is_the_configurations_not_the_tokens() {
    use jsonwebtoken::Algorithm::{HS256, HS384, HS512};
    let claims = json!({ "user_id": "ada", "exp": LATER });
    for algorithm in [HS256, HS384, HS512] {
        let principal = verifier().verify(&signed_with(algorithm, SECRET, &claims)).unwrap();
        assert_eq!(principal.user_id.as_str(), "ada", "{algorithm:?}");
    }
    let config = Config { algorithms: Some(vec![Algorithm::Hs512]), ..Config::default() };
    let strict = Verifier::new(&config, &Secret::new(SECRET));
    assert_eq!(strict.verify(&signed_with(HS256, SECRET, &claims)), Err(Denied::Invalid));
    assert_eq!(strict.verify(&signed_with(HS512, SECRET, &claims)).unwrap().user_id.as_str(), "ada");

    for algorithm in ["none", "None", "RS256", "ES256", "EdDSA", "PS256", "hs256", "HS384", ""] {
        let forged = with_header(&json!({ "alg": algorithm, "typ": "JWT" }), &claims);
        assert_eq!(verifier().verify(&forged), Err(Denied::Invalid), "alg {algorithm}");
        let (message, _) = forged.rsplit_once('.').unwrap();
        assert_eq!(verifier().verify(&format!("{message}.")), Err(Denied::Invalid), "alg {algorithm}, unsigned");
    }
    let honest = with_header(&json!({ "alg": "HS256" }), &claims);
    assert_eq!(verifier().verify(&honest).unwrap().user_id.as_str(), "ada");
    let critical = with_header(&json!({ "alg": "HS256", "crit": ["b64"], "b64": true }), &claims);
    assert_eq!(verifier().verify(&critical), Err(Denied::Invalid));
}

#[test]
fn every_cut_and_every_changed_byte_is_invalid() {
    let token = signed(&json!({ "user_id": "ada", "exp": LATER }));
    for length in 0..token.len() {
        let cut = token.get(..length).unwrap();
        assert_eq!(verifier().verify(cut), Err(Denied::Invalid), "cut to {length} bytes");
    }
    for at in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(bytes).unwrap();
        assert_eq!(verifier().verify(&forged), Err(Denied::Invalid), "byte {at}");
    }
}

#[test]
fn a_huge_token_is_refused_unread() {
    let token = |filler: usize| signed(&json!({ "user_id": "ada", "exp": LATER, "filler": "x".repeat(filler) }));
    let accepted = token(TOKEN_BYTES_MAX / 4 * 3 - 200);
    assert!(accepted.len() <= TOKEN_BYTES_MAX, "{} bytes", accepted.len());
    assert_eq!(verifier().verify(&accepted).unwrap().user_id.as_str(), "ada");
    assert_eq!(verifier().verify(&token(TOKEN_BYTES_MAX)), Err(Denied::Invalid));
}

#[test]
fn issuer_and_audience_are_required_once_configured() {
    let config = Config { issuer: Some("shop".to_owned()), audience: Some("chat".to_owned()), ..Config::default() };
    let verifier = Verifier::new(&config, &Secret::new(SECRET));
    let verify = |iss: Value, aud: Value| {
        let mut claims = json!({ "user_id": "ada", "exp": LATER });
        for (key, value) in [("iss", iss), ("aud", aud)] {
            if !value.is_null() {
                claims[key] = value;
            }
        }
        verifier.verify(&signed(&claims)).map(|principal| principal.user_id.to_string())
    };
    assert_eq!(verify(json!("shop"), json!("chat")), Ok("ada".to_owned()));
    assert_eq!(verify(json!("shop"), json!(["mail", "chat"])), Ok("ada".to_owned()));
    for (iss, aud) in [
        (json!("other"), json!("chat")),
        (json!("shop"), json!("mail")),
        (json!("shop"), json!([])),
        (json!(null), json!("chat")),
        (json!("shop"), json!(null)),
        (json!(7), json!("chat")),
    ] {
        assert_eq!(verify(iss.clone(), aud.clone()), Err(Denied::Invalid), "iss {iss}, aud {aud}");
    }
    let unasked = signed(&json!({ "user_id": "ada", "exp": LATER, "aud": "anything", "iss": "anyone" }));
    assert_eq!(self::verifier().verify(&unasked).unwrap().user_id.as_str(), "ada");
}

#[test]
fn an_issued_token_is_refused_under_another_secret() {
    let ada = UserId::parse("ada").unwrap();
    let issuer = Issuer::new(&Config::default(), &Secret::new("another secret of thirty-two letters"));
    let token = issuer.issue(&ada, Role::Staff, None, Duration::from_secs(60)).unwrap();
    assert_eq!(verifier().verify(&token), Err(Denied::Invalid));
}

#[test]
fn the_verifier_does_not_show_its_secret() {
    let shown = format!("{:?} {:?}", verifier(), Issuer::new(&Config::default(), &Secret::new(SECRET)));
    assert!(!shown.contains(SECRET), "{shown}");
}

proptest! {
    #[test]
    fn arbitrary_text_is_invalid(text in ".{0,300}") {
        prop_assert_eq!(verifier().verify(&text), Err(Denied::Invalid));
    }

    #[test]
    fn arbitrary_parts_are_invalid(parts in prop::collection::vec("[A-Za-z0-9_-]{0,80}", 0..6)) {
        prop_assert_eq!(verifier().verify(&parts.join(".")), Err(Denied::Invalid));
    }

    #[test]
    fn signed_nonsense_is_refused_without_a_panic(claims in any::<Vec<u8>>(), exp in any::<f64>(), nbf in any::<f64>()) {
        let message = format!("{}.{}", base64url(br#"{"alg":"HS256"}"#), base64url(&claims));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
        let token = format!("{message}.{}", base64url(ring::hmac::sign(&key, message.as_bytes()).as_ref()));
        prop_assert_eq!(verifier().verify(&token), Err(Denied::Invalid));
        // Any number is a time, or is refused: it never wraps or panics.
        let principal = verifier().verify(&signed(&json!({ "user_id": "ada", "exp": exp, "nbf": nbf })));
        prop_assert!(principal.is_err() || exp > 1.7e9, "exp {} was accepted", exp);
    }
}
