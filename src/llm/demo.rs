//! The demo provider.
