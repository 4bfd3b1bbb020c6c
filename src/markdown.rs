//! Markdown of finished replies as safe HTML.
