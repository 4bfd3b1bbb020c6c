//! HTTP: pages, API, health.
