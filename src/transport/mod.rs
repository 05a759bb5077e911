//! Connections and bodies: any stream in, a service out. Knows nothing of what is served.

pub mod body;
pub mod connection;
pub mod drain;
pub mod listen;
pub mod threads;
