//! TLS of a listener: clients show a certificate, whose URI says who they are.
//!
//! The files are looked at again before a handshake, so that a certificate that was renewed counts
//! from the next connection on. Files that can't be used leave the last ones in place.

use std::{
    fs, io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
    server::TlsStream,
};

use crate::config::{Serve, Tls};

/// How often the files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Which file is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsPart {
    Cert,
    Key,
    ClientCa,
}

/// The files of a listener can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}; {way_out}")]
pub(crate) struct TlsError {
    pub(crate) part: TlsPart,
    pub(crate) message: String,
    pub(crate) way_out: &'static str,
}

/// Whether TLS can be spoken with these files.
///
/// # Errors
/// The first file that is wrong, why, and the way out.
pub(crate) fn check(files: &Tls) -> Result<(), TlsError> {
    load(files, b"").map(drop)
}

/// The TLS of one listener.
#[derive(Debug)]
pub(super) struct TlsDoor {
    files: Tls,
    /// What is spoken inside, in ALPN's word.
    alpn: &'static [u8],
    current: ArcSwap<ServerConfig>,
    seen: Mutex<(Instant, Stamps)>,
}

/// When each file was changed, and how long it is; a file that is missing has none.
type Stamps = [Option<(SystemTime, u64)>; 3];

impl TlsDoor {
    pub(super) fn open(files: &Tls, serve: Serve) -> Result<Self, TlsError> {
        let alpn: &[u8] = if serve == Serve::Grpc { b"h2" } else { b"http/1.1" };
        let seen = Mutex::new((Instant::now(), stamps(files)));
        let current = ArcSwap::new(load(files, alpn)?);
        Ok(Self { files: files.clone(), alpn, current, seen })
    }

    /// Lets a client show who it is: the stream, and the URI of its certificate.
    ///
    /// # Errors
    /// Why the handshake failed: no certificate, one of somebody else's, one that ran out.
    pub(super) async fn handshake(
        self: &Arc<Self>,
        stream: TcpStream,
        patience: Duration,
    ) -> io::Result<(TlsStream<TcpStream>, Result<String, &'static str>)> {
        if self.is_due() {
            let door = Arc::clone(self);
            // It reads files; if that ended early, the last ones stay.
            let _ = tokio::task::spawn_blocking(move || door.look()).await;
        }
        let acceptor = TlsAcceptor::from(self.current.load_full());
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long");
        let stream = timeout(patience, acceptor.accept(stream)).await.map_err(late)??;
        let uri = uri_of(stream.get_ref().1.peer_certificates().unwrap_or_default());
        Ok((stream, uri))
    }

    fn is_due(&self) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let due = seen.0.elapsed() >= LOOK_EVERY;
        if due {
            seen.0 = Instant::now();
        }
        due
    }

    /// Takes the files over if they changed and can be used.
    fn look(&self) {
        let now = stamps(&self.files);
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.1 == now {
                return;
            }
            seen.1 = now;
        }
        let cert = self.files.cert.display();
        match load(&self.files, self.alpn) {
            Ok(config) => {
                self.current.store(config);
                tracing::info!(%cert, "certificates were renewed");
            }
            Err(error) => tracing::warn!(%cert, %error, "the last certificates stay in use"),
        }
    }
}

fn stamps(files: &Tls) -> Stamps {
    [&files.cert, &files.key, &files.client_ca].map(|file| {
        let found = fs::metadata(file).ok()?;
        Some((found.modified().ok()?, found.len()))
    })
}

/// The one URI of a client's certificate.
fn uri_of(chain: &[CertificateDer<'_>]) -> Result<String, &'static str> {
    let first = chain.first().ok_or("there is no client certificate")?;
    let parsed = webpki::EndEntityCert::try_from(first)
        .map_err(|_| "the client certificate can't be read")?;
    let mut uris = parsed.valid_uri_names();
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Ok(uri.to_owned()),
        (None, _) => Err("the client certificate has no URI among its subject alternative names"),
        (Some(_), Some(_)) => {
            Err("the client certificate has several URIs: whose it is isn't clear")
        }
    }
}

fn load(files: &Tls, alpn: &[u8]) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(&files.cert, TlsPart::Cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| TlsError {
        part: TlsPart::Key,
        message: format!("read a private key from {}: {error}", files.key.display()),
        way_out: "name a PEM file with a private key that berthd's user may read",
    })?;
    let mut roots = RootCertStore::empty();
    for root in certificates(&files.client_ca, TlsPart::ClientCa)? {
        roots.add(root).map_err(|error| TlsError {
            part: TlsPart::ClientCa,
            message: format!("{} holds no root: {error}", files.client_ca.display()),
            way_out: "name a PEM file with the certificates of your CA",
        })?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| TlsError {
                part: TlsPart::ClientCa,
                message: format!("{} can't be used: {error}", files.client_ca.display()),
                way_out: "name a PEM file with the certificates of your CA",
            })?;
    let unfit = |error: rustls::Error| TlsError {
        part: TlsPart::Key,
        message: format!("the key does not fit {}: {error}", files.cert.display()),
        way_out: "name the key that the certificate was made for",
    };
    let versions: &[_] = if files.tls12 {
        &[&rustls::version::TLS13, &rustls::version::TLS12]
    } else {
        &[&rustls::version::TLS13]
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(unfit)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(unfit)?;
    // A session that was resumed would outlive a certificate, and a CA that was taken out.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config))
}

fn certificates(file: &Path, part: TlsPart) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |cause: String| TlsError {
        part,
        message: format!("read certificates from {}: {cause}", file.display()),
        way_out: "name a PEM file with certificates that berthd's user may read",
    };
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(file).map_err(|error| failed(error.to_string()))?.collect();
    let found = found.map_err(|error| failed(error.to_string()))?;
    if found.is_empty() { Err(failed("there is none".to_owned())) } else { Ok(found) }
}
