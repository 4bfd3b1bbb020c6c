//! What is wrong with a configuration, or only odd: [`Faults`] and [`Warning`]. Neither holds a secret.

use std::fmt;

/// One thing that refuses the start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// the key as the file has it, such as `limits.streams`
    pub key: String,
    /// where the value was set: the file, or the name of the variable; absent when it was not
    pub origin: Option<String>,
    /// the value and what is accepted instead
    pub problem: String,
}

impl Fault {
    pub(super) fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), origin: None, problem: problem.into() }
    }

    pub(super) fn set_by(self, origin: impl Into<String>) -> Self {
        Self { origin: Some(origin.into()), ..self }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) => write!(f, "`{}` (set by {origin}): {}", self.key, self.problem),
            None => write!(f, "`{}`: {}", self.key, self.problem),
        }
    }
}

/// Everything that refuses the start, reported together; never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} fault(s)", self.0.len())?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl std::error::Error for Faults {}

/// Something that an operator should know, and that does not refuse the start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning(pub String);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
