//! Attacks on a real weir, each with its bound: what weir's memory grows by, that its other callers are answered all the while,
//! and that everything is as before when the attack is over. SECURITY.md lists them.

#[path = "../support/mod.rs"]
mod support;

mod backlog;
mod beside;
mod files;
mod floods;
mod http2;
mod imports;
mod messages;
mod redis;
mod slots;
mod streams;
mod table;
