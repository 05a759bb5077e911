//! CPU per decision, beside a handler that does nothing.

mod empty;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    empty::serve(1)
}
