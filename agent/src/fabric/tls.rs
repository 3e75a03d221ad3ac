//! Whom we take for the fabric: a pinned certificate, authorities from a file, or those of the system.
//!
//! A fabric signs its own certificate, so most set-ups pin it. Verification is never off.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
};
use sha2::{Digest as _, Sha256};

use crate::config::{self, Fingerprint};

/// Longest file of authorities, in bytes.
const CA_FILE_MAX: u64 = 4 << 20;

/// The TLS side of a client, as the configuration says.
///
/// # Errors
/// What is wrong with the configuration.
pub fn client_config(settings: &config::Fabric) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    if let Some(fingerprint) = settings.fingerprint {
        let verifier = Arc::new(Pinned {
            fingerprint,
            provider,
        });
        return Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth());
    }
    if let Some(path) = &settings.ca_file {
        let mut roots = RootCertStore::empty();
        for certificate in authorities(path)? {
            roots
                .add(certificate)
                .map_err(|error| format!("{} cannot be used: {error}", path.display()))?;
        }
        return Ok(builder.with_root_certificates(roots).with_no_client_auth());
    }
    let verifier =
        rustls_platform_verifier::Verifier::new(provider).map_err(|error| error.to_string())?;
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// The certificates of a PEM file.
///
/// # Errors
/// What is wrong with the file.
pub fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let cannot = |error: &dyn std::fmt::Display| format!("cannot read {}: {error}", path.display());
    let length = std::fs::metadata(path)
        .map_err(|error| cannot(&error))?
        .len();
    if length > CA_FILE_MAX {
        return Err(format!(
            "{} has more than {CA_FILE_MAX} bytes",
            path.display()
        ));
    }
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|error| cannot(&error))?
        .collect();
    let certificates = certificates.map_err(|error| cannot(&error))?;
    if certificates.is_empty() {
        return Err(format!(
            "{} holds no certificate; expected PEM, `-----BEGIN CERTIFICATE-----`",
            path.display()
        ));
    }
    Ok(certificates)
}

/// Trusts one certificate, by its fingerprint. Names and dates in it do not matter: it is that one, and who speaks
/// has proved to hold its key.
#[derive(Debug)]
struct Pinned {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

/// The certificate is another one than was pinned.
#[derive(Debug, thiserror::Error)]
#[error(
    "its SHA-256 fingerprint is {found}, and {wanted} is expected (fabric.fingerprint); if the fabric got a new \
     certificate, compare it on the fabric itself before it is entered here"
)]
struct OtherCertificate {
    found: Fingerprint,
    wanted: Fingerprint,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = Fingerprint(Sha256::digest(end_entity.as_ref()).into());
        if found == self.fingerprint {
            return Ok(ServerCertVerified::assertion());
        }
        let error = OtherCertificate {
            found,
            wanted: self.fingerprint,
        };
        let other = CertificateError::Other(OtherError(Arc::new(error)));
        Err(rustls::Error::InvalidCertificate(other))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// What is wrong with a certificate, if that is why a connection failed.
pub(super) fn certificate_problem(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        // An I/O error passes its contents over when it is asked for its source, and may hold another one.
        let mut held = error;
        while let Some(inner) = held
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
        {
            held = inner;
        }
        match held.downcast_ref::<rustls::Error>() {
            Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) => {
                return Some(other.0.to_string());
            }
            Some(rustls::Error::InvalidCertificate(why)) => {
                return Some(format!(
                    "{why}; see fabric.fingerprint (its own certificate) or fabric.ca_file (its authority)"
                ));
            }
            _ => next = error.source(),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_certificate_is_found_however_deep_it_lies() {
        let expired = || rustls::Error::InvalidCertificate(CertificateError::Expired);
        let once = std::io::Error::other(expired());
        let twice = std::io::Error::other(std::io::Error::other(expired()));
        for error in [once, twice] {
            let found = certificate_problem(&error).unwrap_or_default();
            assert!(found.contains("fabric.ca_file"), "{found}");
        }
        assert!(certificate_problem(&expired()).is_some());
        let other = std::io::Error::other(rustls::Error::DecryptError);
        assert_eq!(certificate_problem(&other), None);
    }
}
