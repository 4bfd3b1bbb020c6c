//! A look at a database that changes nothing: no table, no version, and no lock that outlasts it.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::Path,
};

use super::{
    super::seal::{Seal, check},
    Lock, OpenError, keys, lock_name,
    migrations::MIGRATIONS,
    schema,
};

/// What was found where the database belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inspected {
    /// nothing: the first start makes it
    Absent,
    /// a database of this version; the start brings it to the newest one
    Present {
        /// version of the file
        version: usize,
        /// version that this chatbox writes
        newest: usize,
    },
    /// another process has it open: its id, where the system tells
    Held(Option<u32>),
}

/// Looks at a database.
///
/// # Errors
/// It would not open: it is from a newer version or another program, it is sealed with other keys, or the file system
/// refuses.
pub(in crate::store) fn inspect(path: &Path, seal: &Seal) -> Result<Inspected, OpenError> {
    match path.try_exists() {
        Ok(true) => {}
        Ok(false) => return Ok(Inspected::Absent),
        Err(err) => return Err(OpenError::Io(err)),
    }
    // Held while the file is looked at, so that a start at the same time waits for nobody's locks but fails clearly.
    let _lock = match OpenOptions::new().write(true).open(lock_name(path)) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Some(Lock(file)),
            Err(TryLockError::WouldBlock) => return Ok(Inspected::Held(holder(&file))),
            Err(TryLockError::Error(err)) => return Err(OpenError::Io(err)),
        },
        Err(err) if err.kind() == ErrorKind::NotFound => None,
        Err(err) => return Err(OpenError::Io(err)),
    };
    let reader = schema::reader(path)?;
    let version = schema::version(&reader, MIGRATIONS)?;
    // An older one says nothing of its keys; the start that makes it a newer one looks.
    if version >= keys::SINCE_VERSION {
        check::examine(seal, &keys::held(&reader)?)?;
    }
    Ok(Inspected::Present { version, newest: MIGRATIONS.len() })
}

/// Who has locked a file (proc(5), `/proc/locks`); `None` where the system does not tell, or not us.
fn holder(file: &File) -> Option<u32> {
    let inode = file.metadata().ok()?.ino().to_string();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let held = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut held = held.filter(|words| words.get(5).and_then(|place| place.rsplit(':').next()) == Some(&inode));
    held.find_map(|words| words.get(4)?.parse().ok()).filter(|pid| *pid > 0)
}
