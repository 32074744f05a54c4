//! TLS to a receiver. The files are read for each connection, so that a renewed certificate needs
//! no restart.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::settings::Webhook;

/// The TLS handshake; fails unless each side accepts the other's certificate.
pub(super) async fn secure(stream: TcpStream, settings: &Webhook) -> Result<TlsStream<TcpStream>, String> {
    let host = settings.url.host.clone();
    let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
    let settings = settings.clone();
    // Reads files, among them the machine's root certificates.
    let config = tokio::task::spawn_blocking(move || configure(&settings)).await;
    let config = config.map_err(|error| error.to_string())??;
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.map_err(|error| error.to_string())
}

fn configure(settings: &Webhook) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match &settings.ca_file {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
            }
        }
        None => {
            // One invalid file among a machine's hundred is skipped.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err("the host has no root certificates: set ca_file".to_owned());
            }
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    match &settings.client {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let private = PrivateKeyDer::from_pem_file(key);
            let private = private.map_err(|error| format!("{}: {error}", key.display()))?;
            let shown = builder.with_client_auth_cert(certificates(certificate)?, private);
            shown.map_err(|error| format!("{}: {error}", certificate.display()))
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |error: rustls::pki_types::pem::Error| format!("{}: {error}", path.display());
    let read = CertificateDer::pem_file_iter(path).map_err(failed)?;
    let certificates: Vec<_> = read.collect::<Result<_, _>>().map_err(failed)?;
    if certificates.is_empty() {
        return Err(format!("{} contains no certificate", path.display()));
    }
    Ok(certificates)
}
