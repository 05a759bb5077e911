//! How a stream to Redis is opened: TCP, TLS or a unix socket. The client library can do this too, but only gives the stream to
//! itself, and its replies must be watched (`stream.rs`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use deadpool_redis::redis::aio::AsyncStream;
use deadpool_redis::redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo, RedisError};
use futures_util::future::select_ok;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_rustls::TlsConnector;

use super::connect::{RedisSettings, RedisSettingsError};
use crate::regular_file;

/// The longest file of certificates, in bytes: all authorities that browsers trust take a quarter of it.
const MAX_CA_FILE: u64 = 1 << 20;

/// Where Redis is.
pub(super) struct Address {
    place: Place,
    /// Who weir is there, and which database it uses.
    pub(super) redis: RedisConnectionInfo,
}

enum Place {
    Tcp { host: String, port: u16 },
    Tls { host: String, port: u16, name: ServerName<'static>, connector: TlsConnector },
    Socket(PathBuf),
}

/// An open stream.
pub(super) type Stream = Box<dyn AsyncStream + Send + Sync + Unpin>;

impl Address {
    pub(super) fn new(settings: &RedisSettings) -> Result<Address, RedisSettingsError> {
        let bad_url = |error: RedisError| RedisSettingsError::Url(error.to_string());
        let info: ConnectionInfo = settings.url.as_str().into_connection_info().map_err(bad_url)?;
        // RESP3 is what lets the client tell a closed connection at once rather than at the next call.
        let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        if settings.ca_file.is_some() && !settings.url.starts_with("rediss:") {
            return Err(RedisSettingsError::CaFileWithoutTls);
        }
        let place = match info.addr().clone() {
            ConnectionAddr::Tcp(host, port) => Place::Tcp { host, port },
            ConnectionAddr::Unix(path) => Place::Socket(path),
            ConnectionAddr::TcpTls { insecure: true, .. } => {
                let reason = "`#insecure` is not supported; name the server's certificate authority instead";
                return Err(RedisSettingsError::Url(reason.to_owned()));
            }
            ConnectionAddr::TcpTls { host, port, .. } => {
                let name = ServerName::try_from(host.clone());
                let name = name.map_err(|_| RedisSettingsError::Url(format!("`{host}` cannot be the name in a certificate")))?;
                let roots = roots(settings.ca_file.as_deref())?;
                let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
                Place::Tls { host, port, name, connector: TlsConnector::from(Arc::new(config)) }
            }
            _ => return Err(RedisSettingsError::Url("an unknown kind of address".to_owned())),
        };
        Ok(Address { place, redis })
    }

    /// # Errors
    /// When there is no stream. It may take as long as the system lets it.
    pub(super) async fn open(&self) -> io::Result<Stream> {
        Ok(match &self.place {
            Place::Tcp { host, port } => Box::new(tcp(host, *port).await?),
            Place::Socket(path) => Box::new(UnixStream::connect(path).await?),
            Place::Tls { host, port, name, connector } => Box::new(connector.connect(name.clone(), tcp(host, *port).await?).await?),
        })
    }
}

/// To whichever address of the host answers first.
async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let attempts: Vec<_> = lookup_host((host, port)).await?.map(|address| Box::pin(TcpStream::connect(address))).collect();
    if attempts.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the host has no address"));
    }
    let (stream, _) = select_ok(attempts).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The authorities of a file in PEM, or those that browsers trust.
fn roots(file: Option<&Path>) -> Result<RootCertStore, RedisSettingsError> {
    let Some(path) = file else {
        return Ok(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() });
    };
    let bad_file = |reason: String| RedisSettingsError::CaFile { path: path.to_owned(), reason };
    let pem = regular_file::read_in_time(path, MAX_CA_FILE).map_err(|error| bad_file(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| bad_file(error.to_string()))?;
        roots.add(certificate).map_err(|error| bad_file(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(bad_file("no certificate in it; PEM is expected".to_owned()));
    }
    Ok(roots)
}
