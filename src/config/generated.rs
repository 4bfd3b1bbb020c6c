//! [`Secrets`]: the secrets of this deployment, configured or generated once and kept in `data_dir`.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use anyhow::{Context, bail, ensure};

use super::{Config, secret::Secret};

/// What tokens, links and QUIC keys are made from.
#[derive(Clone, Debug)]
pub struct Secrets {
    /// signs tokens
    pub jwt: Secret,
    /// whether `jwt` was generated here: only then is there a local sign-in
    pub jwt_generated: bool,
    /// signs links, and makes the keys of QUIC
    pub cluster: Secret,
}

impl Secrets {
    /// Whether there is a secret that signs tokens, so that [`Self::provide`] would not make one that no server knows.
    #[must_use]
    pub fn can_sign(config: &Config) -> bool {
        config.auth.jwt_secret.is_some() || config.data_dir.join(JWT).exists()
    }

    /// Takes the configured secrets. On loopback those that are missing come from `data_dir` (made with mode 0700),
    /// in files of mode 0600 that are written at the first start: whole or not at all, once for all processes.
    /// Blocks on files.
    ///
    /// # Errors
    /// When one is missing and a listener can be reached from other machines, or when a file cannot be read or
    /// written, is readable by others, or holds a weak secret.
    pub fn provide(config: &Config) -> anyhow::Result<Self> {
        let provide = |key: &str, configured: &Option<Secret>, name: &str| match configured {
            Some(secret) => Ok(secret.clone()),
            None if config.loopback() => kept(&config.data_dir, name),
            None => bail!("`{key}` is required as soon as a listener can be reached from other machines"),
        };
        Ok(Self {
            jwt: provide("auth.jwt_secret", &config.auth.jwt_secret, JWT)?,
            jwt_generated: config.auth.jwt_secret.is_none(),
            cluster: provide("cluster_secret", &config.cluster_secret, "cluster_secret")?,
        })
    }
}

/// Name of the file of the secret that signs tokens.
const JWT: &str = "jwt_secret";

/// Longest secret file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4096;

fn kept(dir: &Path, name: &str) -> anyhow::Result<Secret> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("create the data directory `{}`", dir.display()))?;
    let path = dir.join(name);
    if let Some(secret) = read(&path)? {
        return Ok(secret);
    }
    // Of two first starts one writes, and the other one waits here and then reads.
    let lock = owned(&dir.join("secrets.lock"), OpenOptions::new().create(true).truncate(false))?;
    lock.lock().with_context(|| format!("lock `{}`", dir.display()))?;
    if let Some(secret) = read(&path)? {
        return Ok(secret);
    }
    let secret = Secret::random();
    write(dir, &path, &secret).with_context(|| format!("write the generated secret `{}`", path.display()))?;
    tracing::info!(path = %path.display(), "secret generated");
    Ok(secret)
}

fn read(path: &Path) -> anyhow::Result<Option<Secret>> {
    let shown = path.display();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(err).with_context(|| format!("open the generated secret `{shown}`")),
    };
    let mode = file.metadata().with_context(|| format!("look at `{shown}`"))?.permissions().mode();
    ensure!(mode & 0o077 == 0, "`{shown}` can be read by others (mode {:o}): chmod 600 it", mode & 0o777);
    let mut text = String::new();
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .with_context(|| format!("read the generated secret `{shown}`"))?;
    let secret = Secret::new(text.trim_end());
    match secret.weakness() {
        Some(weakness) => bail!("the generated secret `{shown}` {weakness}: remove the file to make another"),
        None => Ok(Some(secret)),
    }
}

fn write(dir: &Path, path: &Path, secret: &Secret) -> anyhow::Result<()> {
    let part = path.with_extension("part");
    let mut file = owned(&part, OpenOptions::new().create(true).truncate(true))?;
    file.write_all(secret.expose().as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    std::fs::rename(&part, path)?;
    File::open(dir)?.sync_all()?;
    Ok(())
}

fn owned(path: &Path, options: &mut OpenOptions) -> anyhow::Result<File> {
    options.write(true).mode(0o600).open(path).with_context(|| format!("open `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_secret_is_kept_and_private() {
        let home = tempfile::tempdir().unwrap();
        let config = Config { data_dir: home.path().join("a/data"), ..Config::default() };
        let first = Secrets::provide(&config).unwrap();
        assert!(first.jwt_generated);
        assert_ne!(first.jwt, first.cluster);
        assert_eq!(Secrets::provide(&config).unwrap().jwt, first.jwt);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&config.data_dir), 0o700);
        assert_eq!(mode(&config.data_dir.join("jwt_secret")), 0o600);
    }

    #[test]
    fn starts_at_the_same_time_agree_on_one_secret() {
        let home = tempfile::tempdir().unwrap();
        let config = Config { data_dir: home.path().join("data"), ..Config::default() };
        let secrets: Vec<Secret> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..16).map(|_| scope.spawn(|| Secrets::provide(&config).unwrap().jwt)).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert_eq!(secrets.iter().filter(|secret| **secret == secrets[0]).count(), 16);
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let config = Config { data_dir: home.path().to_owned(), ..Config::default() };
        Secrets::provide(&config).unwrap();
        let path = home.path().join("jwt_secret");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let err = Secrets::provide(&config).unwrap_err().to_string();
        assert!(err.ends_with("can be read by others (mode 644): chmod 600 it"), "got: {err}");
    }

    // checklist 9
    #[test]
    fn nothing_is_generated_for_an_open_listener() {
        let home = tempfile::tempdir().unwrap();
        let mut config = Config { data_dir: home.path().join("data"), ..Config::default() };
        config.listen.http = super::super::Address::Socket("0.0.0.0:8080".parse().unwrap());
        let err = Secrets::provide(&config).unwrap_err().to_string();
        assert_eq!(err, "`auth.jwt_secret` is required as soon as a listener can be reached from other machines");
        assert!(!config.data_dir.exists());
    }
}
