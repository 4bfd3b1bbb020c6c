//! The pages and the JavaScript client, as they are embedded in the binary.

use std::sync::{Arc, LazyLock};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::Parts;

struct Asset {
    path: &'static str,
    content_type: &'static str,
    body: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! asset {
    ($path:literal, $file:literal, $content_type:expr) => {
        Asset { path: $path, content_type: $content_type, body: include_str!(concat!("../ui/", $file)) }
    };
}

static ASSETS: &[Asset] = &[
    asset!("/", "chat.html", HTML),
    asset!("/chat-composer.js", "chat-composer.js", SCRIPT),
    asset!("/chat-items.js", "chat-items.js", SCRIPT),
    asset!("/chat-log.css", "chat-log.css", STYLE),
    asset!("/chat-log.js", "chat-log.js", SCRIPT),
    asset!("/chat-rich.js", "chat-rich.js", SCRIPT),
    asset!("/chat-shared.js", "chat-shared.js", SCRIPT),
    asset!("/chat-stream.js", "chat-stream.js", SCRIPT),
    asset!("/chat-typing.js", "chat-typing.js", SCRIPT),
    asset!("/chat-window.js", "chat-window.js", SCRIPT),
    asset!("/chat.css", "chat.css", STYLE),
    asset!("/chat.html", "chat.html", HTML),
    asset!("/chat.js", "chat.js", SCRIPT),
    asset!("/icon.svg", "icon.svg", SVG),
    asset!("/page-dialog.js", "page-dialog.js", SCRIPT),
    asset!("/page-dom.js", "page-dom.js", SCRIPT),
    asset!("/page-host.js", "page-host.js", SCRIPT),
    asset!("/page-icons.svg", "page-icons.svg", SVG),
    asset!("/page-share.js", "page-share.js", SCRIPT),
    asset!("/page-signin.js", "page-signin.js", SCRIPT),
    asset!("/page-status.js", "page-status.js", SCRIPT),
    asset!("/page-time.js", "page-time.js", SCRIPT),
    asset!("/page.css", "page.css", STYLE),
    asset!("/sdk-connection.js", "sdk-connection.js", SCRIPT),
    asset!("/sdk-copies.js", "sdk-copies.js", SCRIPT),
    asset!("/sdk-delivery.js", "sdk-delivery.js", SCRIPT),
    asset!("/sdk-dial.js", "sdk-dial.js", SCRIPT),
    asset!("/sdk-http.js", "sdk-http.js", SCRIPT),
    asset!("/sdk-log.js", "sdk-log.js", SCRIPT),
    asset!("/sdk-outbox-store.js", "sdk-outbox-store.js", SCRIPT),
    asset!("/sdk-outbox.js", "sdk-outbox.js", SCRIPT),
    asset!("/sdk-replies.js", "sdk-replies.js", SCRIPT),
    asset!("/sdk-sessions.js", "sdk-sessions.js", SCRIPT),
    asset!("/sdk-token.js", "sdk-token.js", SCRIPT),
    asset!("/sdk-typing.js", "sdk-typing.js", SCRIPT),
    asset!("/sdk-watchdog.js", "sdk-watchdog.js", SCRIPT),
    asset!("/sdk-websocket.js", "sdk-websocket.js", SCRIPT),
    asset!("/sdk-webtransport.js", "sdk-webtransport.js", SCRIPT),
    asset!("/sdk-wire.js", "sdk-wire.js", SCRIPT),
    asset!("/sdk.d.ts", "sdk.d.ts", "text/plain; charset=utf-8"),
    asset!("/sdk.js", "sdk.js", SCRIPT),
    asset!("/sessions-menu.js", "sessions-menu.js", SCRIPT),
    asset!("/sessions-row.js", "sessions-row.js", SCRIPT),
    asset!("/sessions.css", "sessions.css", STYLE),
    asset!("/sessions.html", "sessions.html", HTML),
    asset!("/sessions.js", "sessions.js", SCRIPT),
];

/// One tag for all: they change together, with the binary.
static TAG: LazyLock<String> = LazyLock::new(|| {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    ASSETS.iter().for_each(|asset| digest.update(asset.body.as_bytes()));
    let digest = hex::encode(digest.finish());
    format!("\"{}\"", digest.get(..16).unwrap_or(&digest))
});

/// A route for each file, under the prefix.
pub(super) fn routes(prefix: &str) -> Router<Arc<Parts>> {
    ASSETS.iter().fold(Router::new(), |router, asset| {
        router.route(
            &format!("{prefix}{}", asset.path),
            get(move |state: State<Arc<Parts>>, headers: HeaderMap| async move { serve(asset, &state, &headers) }),
        )
    })
}

fn serve(asset: &Asset, parts: &Parts, request: &HeaderMap) -> Response {
    let mut response = if request.get(header::IF_NONE_MATCH).is_some_and(|tag| tag.as_bytes() == TAG.as_bytes()) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, asset.content_type)], asset.body).into_response()
    };
    let headers = response.headers_mut();
    // A new version of the server must not meet an old script.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.extend(HeaderValue::try_from(TAG.as_str()).ok().map(|tag| (header::ETAG, tag)));
    if asset.content_type == HTML {
        let policy = HeaderValue::try_from(policy(parts)).ok();
        headers.extend(policy.map(|policy| (header::CONTENT_SECURITY_POLICY, policy)));
    }
    response
}

/// Nothing inline, nothing from elsewhere, connections only to the advertised addresses.
fn policy(parts: &Parts) -> String {
    let http = parts.addresses.http.origin().ascii_serialization();
    let websocket = http.replacen("http", "ws", 1);
    let quic = parts.addresses.quic.origin().ascii_serialization();
    let secure_websocket = quic.replacen("http", "ws", 1);
    // A policy has no notation for IPv6 addresses; browsers report each one as an error.
    let ancestors: Vec<&str> = parts.origins.iter().filter(|origin| !origin.contains('[')).collect();
    format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; \
         manifest-src 'self'; connect-src 'self' {http} {websocket} {quic} {secure_websocket}; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'self' {}",
        ancestors.join(" ")
    )
}
