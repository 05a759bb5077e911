//! Arguments in, exit code out.

use std::process::ExitCode;

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("weir: another TLS provider is installed already");
        return ExitCode::FAILURE;
    }
    match weir::cli::run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weir: {}", weir::shown::escaped_lines(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}
