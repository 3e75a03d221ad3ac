//! The self-signed certificate: made once, kept in the state directory.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};

use crate::volume::store::write_synced;

/// The certificate, ready to serve.
#[derive(Debug)]
pub(super) struct Tls {
    pub(super) config: Arc<ServerConfig>,
    /// SHA-256 of the certificate, in hexadecimal digits.
    pub(super) fingerprint: String,
}

/// Reads certificate and key from the folder, or makes them. A new certificate is for `localhost` and the
/// address.
pub(super) fn load(dir: &Path, address: SocketAddr) -> io::Result<Tls> {
    let (certificate_path, key_path) = (dir.join("cert.pem"), dir.join("key.pem"));
    // The key is written first: with a certificate there is always the key.
    if !certificate_path.exists() {
        let (certificate, key) = generate(address).map_err(io::Error::other)?;
        write_synced(&key_path, key.as_bytes()).map_err(io::Error::other)?;
        write_synced(&certificate_path, certificate.as_bytes()).map_err(io::Error::other)?;
    }
    let wrong = |path: &Path, error: &dyn std::fmt::Display| {
        let text = format!("{} cannot be used: {error}", path.display());
        io::Error::new(io::ErrorKind::InvalidData, text)
    };
    let certificate = CertificateDer::from_pem_slice(&fs::read(&certificate_path)?)
        .map_err(|error| wrong(&certificate_path, &error))?;
    let key = PrivateKeyDer::from_pem_slice(&fs::read(&key_path)?)
        .map_err(|error| wrong(&key_path, &error))?;
    let digest = Sha256::digest(&certificate);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .map_err(|error| wrong(&certificate_path, &error))?;
    Ok(Tls {
        config: Arc::new(config),
        fingerprint: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}

/// Certificate and key in PEM.
fn generate(address: SocketAddr) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
    if !address.ip().is_unspecified() {
        params
            .subject_alt_names
            .push(SanType::IpAddress(address.ip()));
    }
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "berth simulated fabric");
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_certificate_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let address = "127.0.0.1:0".parse().unwrap();
        let first = load(dir.path(), address).unwrap();
        let again = load(dir.path(), address).unwrap();
        assert_eq!(first.fingerprint, again.fingerprint);
        assert_eq!(first.fingerprint.len(), 64);
        let key = fs::metadata(dir.path().join("key.pem")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        fs::write(dir.path().join("cert.pem"), "nonsense").unwrap();
        assert!(load(dir.path(), address).is_err());
    }
}
