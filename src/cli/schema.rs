//! `weir schema`.

use crate::config::schema::schema;

pub(super) fn run() -> anyhow::Result<()> {
    super::print(&(serde_json::to_string_pretty(&schema())? + "\n"))
}
