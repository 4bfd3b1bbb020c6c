//! `chatbox token`: signs a token with the secret of this deployment.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{BadUsage, Global};
use crate::{
    auth::{self, issuer::Issuer},
    chat::UserId,
    config::generated::Secrets,
};

#[derive(Args, Debug)]
pub(super) struct Ask {
    /// Who the token is for: `user_id`, 1 to 255 bytes
    #[arg(long, value_name = "ID")]
    user: String,
    /// What its bearer may do
    #[arg(long, value_enum, default_value_t = Role::User)]
    role: Role,
    /// The name that others see; without it, the user id
    #[arg(long)]
    name: Option<String>,
    /// How long it is valid, such as 15m or 1h
    #[arg(long, value_parser = ttl, default_value = "1h")]
    ttl: Duration,
}

/// The roles as claims name them.
#[derive(Clone, Copy, ValueEnum, Debug)]
enum Role {
    User,
    #[value(name = "chat_admin", alias = "admin")]
    ChatAdmin,
}

pub(super) fn run(global: &Global, ask: &Ask) -> anyhow::Result<()> {
    let user = UserId::parse(&ask.user)
        .ok_or_else(|| BadUsage(format!("user id `{}` is empty or longer than 255 bytes", ask.user)))?;
    let role = match ask.role {
        Role::User => auth::Role::User,
        Role::ChatAdmin => auth::Role::Staff,
    };
    let config = global.load_and_warn()?;
    let secrets = Secrets::provide(&config)?;
    let token = Issuer::new(&config.auth, &secrets.jwt).issue(&user, role, ask.name.as_deref(), ask.ttl)?;
    super::print(&if global.json { serde_json::json!({ "token": token }).to_string() } else { token })
}

fn ttl(text: &str) -> Result<Duration, BadUsage> {
    let ttl = humantime::parse_duration(text)
        .map_err(|err| BadUsage(format!("`{text}` is not a duration such as `15m` or `1h`: {err}")))?;
    // Ten years: more is a mistake, and a token cannot be taken back.
    if ttl < Duration::from_secs(1) || ttl > Duration::from_secs(10 * 366 * 24 * 3600) {
        return Err(BadUsage(format!("`{text}` is not within 1s to 10years")));
    }
    Ok(ttl)
}
