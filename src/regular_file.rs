//! Reads files that people name, in bounded memory. Opening a FIFO waits for a writer, a device may never end, and opening some
//! devices has effects: so a path is looked at first, and only a regular file is opened.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, IsTerminal as _, Read};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// Reads a regular file of at most `most` bytes.
///
/// # Errors
/// For a path that is no regular file (`is a FIFO, not a regular file`), a file that is larger, and whatever the system refuses.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    check(std::fs::metadata(path)?.file_type())?;
    // The path may be another file by now: opening a FIFO without blocking succeeds, and the file itself tells what it is.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    check(metadata.file_type())?;
    if metadata.len() > most {
        return Err(too_large(most));
    }
    bounded(file, most)
}

/// As [`read`], for a path on a command line: a FIFO is what `<(command)` of a shell is, and `/dev/stdin` is a pipe or a terminal.
/// Waits for whoever writes to it.
///
/// # Errors
/// For a path that is a directory, a socket or a device, a file that is larger, and whatever the system refuses.
pub fn read_typed(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let kind = std::fs::metadata(path)?.file_type();
    if kind.is_fifo() {
        return bounded(File::open(path)?, most);
    }
    let is_standard_input = kind.is_char_device() && io::stdin().is_terminal() && path == Path::new("/dev/stdin");
    if is_standard_input { read_stdin(most) } else { read(path, most) }
}

/// Reads the standard input.
///
/// # Errors
/// For more bytes than that, and whatever the system refuses.
pub fn read_stdin(most: u64) -> io::Result<Vec<u8>> {
    bounded(io::stdin().lock(), most)
}

/// The longest that a start waits for one file.
const TIME: Duration = Duration::from_secs(10);

/// As [`read`], within ten seconds: a network mount that hangs is an error, and its thread is left behind.
///
/// # Errors
/// As [`read`], and for a file that takes longer.
pub fn read_in_time(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let owned = path.to_owned();
    within(TIME, move || read(&owned, most)).unwrap_or_else(|| {
        let message = format!("reading it takes longer than {} s: does its file system answer?", TIME.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, message))
    })
}

/// Does it on a thread of its own. `None` if it takes longer than `time`, or there is no thread to be had; it then goes on by itself.
pub fn within<T: Send + 'static>(time: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = sync_channel(1);
    let thread = std::thread::Builder::new().name("file".to_owned()).spawn(move || done.send(work()));
    thread.ok().and_then(|_| result.recv_timeout(time).ok())
}

/// As [`read_typed`], for text in UTF-8.
///
/// # Errors
/// As [`read_typed`], and for anything else than UTF-8.
pub fn read_typed_text(path: &Path, most: u64) -> io::Result<String> {
    text(read_typed(path, most)?)
}

/// Bytes as text.
///
/// # Errors
/// For anything else than UTF-8.
pub fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

fn bounded(file: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(too_large(most)) } else { Ok(bytes) }
}

fn too_large(most: u64) -> io::Error {
    let most = if most >= 1 << 20 { format!("{} MiB", most >> 20) } else { format!("{} KiB", most >> 10) };
    io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {most}"))
}

fn check(kind: FileType) -> io::Result<()> {
    let what = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_char_device() => "a character device",
        kind if kind.is_block_device() => "a block device",
        _ => "something else",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, not a regular file")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(result: io::Result<Vec<u8>>) -> String {
        result.expect_err("it is refused").to_string()
    }

    #[test]
    fn only_regular_files_are_opened() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&fifo, &link).unwrap();
        let socket = directory.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, what) in [
            (&*fifo, "a FIFO"),
            (&link, "a FIFO"),
            (&socket, "a socket"),
            (directory.path(), "a directory"),
            (Path::new("/dev/zero"), "a character device"),
        ] {
            assert_eq!(message(read(path, 10)), format!("it is {what}, not a regular file"), "{}", path.display());
        }
        let endless = directory.path().join("loop");
        std::os::unix::fs::symlink(&endless, &endless).unwrap();
        assert!(read(&endless, 10).is_err());
    }

    #[test]
    fn what_hangs_is_left_behind() {
        let (release, held) = sync_channel::<()>(0);
        assert_eq!(within(Duration::from_millis(1), move || held.recv()), None);
        drop(release);
        assert_eq!(within(TIME, || 1), Some(1));
    }

    #[test]
    fn a_file_is_read_up_to_its_bound() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, [b'x'; 1024]).unwrap();
        assert_eq!(read(&path, 1024).unwrap().len(), 1024);
        std::fs::write(&path, [b'x'; 1025]).unwrap();
        assert_eq!(message(read(&path, 1024)), "it is larger than 1 KiB");
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(message(read(&path, 32 << 20)), "it is larger than 32 MiB");
    }

    #[test]
    fn a_command_line_may_name_a_fifo_and_no_device() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let writer = {
            let fifo = fifo.clone();
            std::thread::spawn(move || std::fs::write(fifo, "domain: d"))
        };
        assert_eq!(read_typed(&fifo, 100).unwrap(), b"domain: d");
        writer.join().unwrap().unwrap();
        assert!(message(read_typed(Path::new("/dev/zero"), 100)).contains("a character device"));
    }
}
