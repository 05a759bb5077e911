//! The admin API against the real binary: by whom it may be used, what a change does, and where it is in effect.

#[path = "../support/mod.rs"]
mod support;

mod access;
mod addresses;
mod browsers;
mod changes;
mod client;
mod commands;
mod description;
mod everywhere;
mod explain;
mod hung;
mod metrics;
mod mistakes;
mod page;
mod refused;
mod unknown;
mod unlimited;
mod usage;
