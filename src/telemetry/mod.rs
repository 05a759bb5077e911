//! What operators see of a running server: logs.

pub mod logs;
