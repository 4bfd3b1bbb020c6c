//! How many connections there are, here and on other nodes.

use std::collections::HashMap;

use crate::chat::word::Key;

/// Connections by user and by address. A key exists only while it counts one, so the numbers of connections, here and
/// elsewhere, bound the maps.
#[derive(Debug, Default)]
pub(super) struct Connections {
    total: u32,
    here: HashMap<Key, u32>,
    elsewhere: HashMap<Key, u32>,
}

impl Connections {
    /// Connections on this node; each is counted once for its address, and once for its user when that is known.
    pub(super) const fn total(&self) -> u32 {
        self.total
    }

    /// Counts one more, unless `most` are counted here and elsewhere.
    pub(super) fn raise(&mut self, key: &Key, most: u32) -> bool {
        let elsewhere = self.elsewhere.get(key).copied().unwrap_or_default();
        if self.of(key).saturating_add(elsewhere) >= most {
            return false;
        }
        self.total += u32::from(matches!(key, Key::Address(_)));
        *self.here.entry(key.clone()).or_default() += 1;
        true
    }

    /// Counts one less.
    pub(super) fn lower(&mut self, key: &Key) {
        self.total = self.total.saturating_sub(u32::from(matches!(key, Key::Address(_))));
        match self.here.get_mut(key) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.here.remove(key)),
        }
    }

    /// How many of them are here.
    pub(super) fn of(&self, key: &Key) -> u32 {
        self.here.get(key).copied().unwrap_or_default()
    }

    /// All that are here.
    pub(super) fn all(&self) -> Vec<(Key, u32)> {
        self.here.iter().map(|(key, count)| (key.clone(), *count)).collect()
    }

    /// Keys of other nodes' connections.
    #[cfg(test)]
    pub(super) fn told(&self) -> usize {
        self.elsewhere.len()
    }

    /// Notes what another node has come to.
    pub(super) fn elsewhere(&mut self, key: Key, before: u32, count: u32) {
        let now = self.elsewhere.get(&key).copied().unwrap_or_default().saturating_sub(before).saturating_add(count);
        match now {
            0 => drop(self.elsewhere.remove(&key)),
            now => drop(self.elsewhere.insert(key, now)),
        }
    }
}
