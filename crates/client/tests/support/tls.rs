//! TLS clients. Each opens a connection for every request, and notes which generation answers.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme,
    StreamOwned, client::danger, crypto,
};

use crate::server::PATIENCE;

/// Clients that run until they are stopped.
pub(crate) struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Seen>>,
}

/// The observations of the clients.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) answers: u64,
    /// Answers of a generation older than one that had answered before the connection began.
    pub(crate) stale: u64,
    pub(crate) failed: Vec<String>,
}

struct Shared {
    address: SocketAddr,
    config: Arc<ClientConfig>,
    over: AtomicBool,
    /// The newest generation that has answered.
    newest: AtomicU64,
    turn: Mutex<()>,
    answered: Condvar,
}

impl Clients {
    /// Starts `count` clients. Each trusts the first certificate of this PEM file.
    pub(crate) fn start(count: usize, address: SocketAddr, certificate: &str) -> Self {
        let certificate = CertificateDer::from_pem_file(certificate).expect("a certificate");
        let only = Only { certificate, provider: crypto::ring::default_provider() };
        let config = ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(only))
            .with_no_client_auth();
        let shared = Arc::new(Shared {
            address,
            config: Arc::new(config),
            over: AtomicBool::new(false),
            newest: AtomicU64::new(0),
            turn: Mutex::new(()),
            answered: Condvar::new(),
        });
        let client = || {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.client())
        };
        let threads = (0..count).map(|_| client()).collect();
        Self { shared, threads }
    }

    /// Waits until a client has an answer of this generation.
    pub(crate) fn heard(&self, generation: &str) -> bool {
        let generation: u64 = generation.parse().expect("a number");
        let turn = self.shared.turn.lock().expect("no panic");
        let (_turn, waited) = self
            .shared
            .answered
            .wait_timeout_while(turn, PATIENCE, |()| {
                self.shared.newest.load(Ordering::SeqCst) < generation
            })
            .expect("no panic");
        !waited.timed_out()
    }

    /// Stops the clients after their current requests.
    pub(crate) fn stop(self) -> Seen {
        self.shared.over.store(true, Ordering::SeqCst);
        let mut all = Seen::default();
        for thread in self.threads {
            let seen = thread.join().expect("no panic");
            all.answers += seen.answers;
            all.stale += seen.stale;
            all.failed.extend(seen.failed);
        }
        all
    }
}

impl Shared {
    fn client(&self) -> Seen {
        let mut seen = Seen::default();
        while !self.over.load(Ordering::SeqCst) {
            let newest = self.newest.load(Ordering::SeqCst);
            match self.ask() {
                Ok(generation) => {
                    seen.answers += 1;
                    seen.stale += u64::from(generation < newest);
                    let _turn = self.turn.lock().expect("no panic");
                    self.newest.fetch_max(generation, Ordering::SeqCst);
                    self.answered.notify_all();
                }
                Err(error) => seen.failed.push(error.to_string()),
            }
        }
        seen
    }

    /// Sends one request on a new connection, and reads to the end.
    fn ask(&self) -> Result<u64, Box<dyn Error>> {
        let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let connection = ClientConnection::new(Arc::clone(&self.config), name)?;
        let mut stream = StreamOwned::new(connection, stream);
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        // An end without TLS's close_notify is an error here.
        stream.read_to_string(&mut text)?;
        let (_, rest) = text.split_once("x-generation: ").ok_or_else(|| text.clone())?;
        let number = rest.lines().next().unwrap_or_default().parse()?;
        if !text.contains(&format!("\r\n\r\ngeneration {number}, pid ")) {
            return Err(text.into());
        }
        Ok(number)
    }
}

/// Trusts one certificate, whatever name is in it.
#[derive(Debug)]
struct Only {
    certificate: CertificateDer<'static>,
    provider: crypto::CryptoProvider,
}

type Tls = tokio_rustls::rustls::Error;

impl danger::ServerCertVerifier for Only {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: tokio_rustls::rustls::pki_types::UnixTime,
    ) -> Result<danger::ServerCertVerified, Tls> {
        if *shown != self.certificate {
            return Err(CertificateError::UnknownIssuer.into());
        }
        Ok(danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<danger::HandshakeSignatureValid, Tls> {
        let known = &self.provider.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<danger::HandshakeSignatureValid, Tls> {
        let known = &self.provider.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
