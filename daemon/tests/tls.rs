//! TLS listeners: who gets in with which certificate, as whom, and who doesn't.

mod front_support;

use std::{path::Path, sync::Arc};

use berth_proto::v1;
use front_support::Running;
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, SupportedProtocolVersion, crypto,
        pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
        version::{TLS12, TLS13},
    },
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

const ORCHESTRATOR: &str = "spiffe://site/ns/orchestrator";
const VIEWER: &str = "spiffe://site/ns/viewers/eve";

/// A CA of a site.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

/// A certificate and its key.
struct Leaf {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    cert_pem: String,
    key_pem: String,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let cert = params.self_signed(&key).expect("a root");
        Self { pem: cert.pem(), der: cert.der().clone(), issuer: Issuer::new(params, key) }
    }

    fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("signed");
        Leaf {
            chain: vec![cert.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            cert_pem: cert.pem(),
            key_pem: key.serialize_pem(),
        }
    }

    fn server(&self) -> Leaf {
        self.leaf(|params| {
            params.subject_alt_names =
                vec![SanType::DnsName("localhost".try_into().expect("ascii"))];
        })
    }

    fn client(&self, uris: &[&str]) -> Leaf {
        self.leaf(|params| as_client(params, uris))
    }
}

fn as_client(params: &mut CertificateParams, uris: &[&str]) {
    let uri = |uri: &&str| SanType::URI((*uri).try_into().expect("ascii"));
    params.subject_alt_names = uris.iter().map(uri).collect();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
}

/// A daemon with one TLS listener of a kind, and its CA.
struct Site {
    running: Running,
    ca: Ca,
    files: tempfile::TempDir,
}

fn write_server(files: &Path, ca: &Ca) {
    let server = ca.server();
    for (name, text) in
        [("ca.pem", &ca.pem), ("cert.pem", &server.cert_pem), ("key.pem", &server.key_pem)]
    {
        std::fs::write(files.join(name), text).expect("written");
    }
}

impl Site {
    async fn with(serve: &str, more: &str) -> Self {
        let (ca, files) = (Ca::new(), tempfile::tempdir().expect("a directory"));
        write_server(files.path(), &ca);
        let path = |name: &str| files.path().join(name).display().to_string();
        let other = if serve == "grpc" { "http" } else { "grpc" };
        let settings = format!(
            "[[listen]]\nserve = \"{other}\"\npath = \"{}\"\n\
             [[listen]]\nserve = \"handover\"\npath = \"{}\"\n\
             [[listen]]\nserve = \"{serve}\"\naddress = \"127.0.0.1:0\"\n\
             tls = {{ cert = \"{}\", key = \"{}\", client_ca = \"{}\"{more} }}\n\
             [[listen.rule]]\nuri = \"{ORCHESTRATOR}\"\nrole = \"orchestrator\"\n\
             [[listen.rule]]\nuri = \"spiffe://site/ns/viewers/*\"\nrole = \"viewer\"\n\
             [[listen.rule]]\nuri = \"spiffe://site/ns/viewers/mallory\"\nrole = \"none\"\n",
            path("other.sock"),
            path("handover.sock"),
            path("cert.pem"),
            path("key.pem"),
            path("ca.pem"),
        );
        Self { running: Running::with(&settings).await, ca, files }
    }

    async fn connect(
        &self,
        leaf: Option<Leaf>,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[u8],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der.clone()).expect("a root");
        let provider = Arc::new(crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match leaf {
            Some(leaf) => builder.with_client_auth_cert(leaf.chain, leaf.key).expect("a key"),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(self.running.tcp()).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    async fn channel(&self, leaf: Option<Leaf>) -> Result<Channel, tonic::transport::Error> {
        let stream = self.connect(leaf, &[&TLS13], b"h2").await;
        let mut stream = Some(stream.map(TokioIo::new));
        Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(move |_: http::Uri| {
                let stream = stream.take();
                async move { stream.unwrap_or_else(|| Err(std::io::Error::other("used"))) }
            }))
            .await
    }

    async fn list(&self, leaf: Leaf) -> Result<usize, Status> {
        let channel = self.channel(Some(leaf)).await.expect("a handshake");
        let mut groups = v1::groups_client::GroupsClient::new(channel);
        let answer = groups.list_groups(v1::ListGroupsRequest {}).await?;
        Ok(answer.into_inner().groups.len())
    }

    /// Whether anything at all was answered. With TLS 1.3 a client learns after its own handshake
    /// that it was refused.
    async fn is_let_in(&self, leaf: Option<Leaf>) -> bool {
        let Ok(channel) = self.channel(leaf).await else { return false };
        let mut groups = v1::groups_client::GroupsClient::new(channel);
        match groups.list_groups(v1::ListGroupsRequest {}).await {
            Ok(_) => true,
            Err(status) => {
                let broken = [Code::Unavailable, Code::Unknown, Code::Cancelled];
                assert!(broken.contains(&status.code()), "{status:?}");
                false
            }
        }
    }
}

fn reserve() -> v1::ReserveRequest {
    v1::ReserveRequest {
        holder: "vm".to_owned(),
        groups: vec!["2".to_owned()],
        policy: v1::Policy::Exclusive.into(),
        for_identity: "uid:60001".to_owned(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_stalls_is_given_up() {
    let site = Site::with("grpc", "").await;
    let mut short = **site.running.daemon.dials().timeouts().get();
    short.handshake_ms = 300;
    site.running.daemon.dials().timeouts().set(short);
    let mut stalled = TcpStream::connect(site.running.tcp()).await.expect("connected");
    // The beginning of a ClientHello.
    stalled.write_all(&[0x16, 3, 1, 2, 0, 1]).await.expect("written");
    assert!(site.list(site.ca.client(&[VIEWER])).await.is_ok(), "others are served meanwhile");
    let mut rest = Vec::new();
    let ends = tokio::time::timeout(front_support::PATIENCE, stalled.read_to_end(&mut rest));
    // Whether it ends or is reset is the kernel's affair.
    let _ended = ends.await.expect("it is closed in time");
    site.running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificates_uri_gives_the_role() {
    let site = Site::with("grpc", "").await;
    let channel = site.channel(Some(site.ca.client(&[ORCHESTRATOR]))).await.expect("let in");
    let mut reservations = v1::reservations_client::ReservationsClient::new(channel);
    let made = reservations.reserve(reserve()).await.expect("an orchestrator may").into_inner();
    assert_eq!(made.holder.expect("a holder").requester, ORCHESTRATOR);

    assert!(site.list(site.ca.client(&[VIEWER])).await.expect("a viewer reads") > 0);
    let channel = site.channel(Some(site.ca.client(&[VIEWER]))).await.expect("let in");
    let mut reservations = v1::reservations_client::ReservationsClient::new(channel);
    let refused = reservations.reserve(reserve()).await.expect_err("a viewer reads only");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains(VIEWER), "{refused:?}");
    site.running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_no_rule_names_is_refused() {
    let site = Site::with("grpc", "").await;
    for uris in [
        &["spiffe://site/ns/other"][..],
        &["spiffe://site/ns/orchestrator/x"],
        &["spiffe://site/ns/viewers/"],
        &["spiffe://site/ns/viewers/mallory"],
        &["spiffe://evil/ns/orchestrator"],
        &[],
        &[VIEWER, ORCHESTRATOR],
    ] {
        let refused = site.list(site.ca.client(uris)).await.expect_err("no rule names it");
        assert_eq!(refused.code(), Code::PermissionDenied, "{uris:?}");
    }
    site.running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_good_certificate_nobody_gets_in() {
    let site = Site::with("grpc", "").await;
    assert!(
        site.is_let_in(Some(site.ca.client(&[VIEWER]))).await,
        "the others differ in one thing"
    );
    assert!(!site.is_let_in(None).await, "no certificate");
    assert!(!site.is_let_in(Some(Ca::new().client(&[ORCHESTRATOR]))).await, "a foreign CA");
    let expired = site.ca.leaf(|params| {
        as_client(params, &[ORCHESTRATOR]);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    assert!(!site.is_let_in(Some(expired)).await, "an expired certificate");
    let of_a_server = site.ca.leaf(|params| {
        as_client(params, &[ORCHESTRATOR]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    assert!(!site.is_let_in(Some(of_a_server)).await, "a certificate for servers");
    site.running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_1_2_is_spoken_when_asked_for_only() {
    for (more, spoken) in [("", false), (", min_version = \"1.2\"", true)] {
        let site = Site::with("grpc", more).await;
        let leaf = site.ca.client(&[VIEWER]);
        let stream = site.connect(Some(leaf), &[&TLS12], b"h2").await;
        assert_eq!(stream.is_ok(), spoken, "{more}");
        site.running.daemon.stop().await;
    }
}

/// One HTTP request; the answer's first line.
async fn post(site: &Site, uri: &str, headers: &str) -> String {
    let leaf = site.ca.client(&[uri]);
    let mut stream = site.connect(Some(leaf), &[&TLS13], b"http/1.1").await.expect("a handshake");
    let body = r#"{"holder":"vm","groups":["2"],"policy":"EXCLUSIVE","dryRun":true}"#;
    let request = format!(
        "POST /api/v1/reservations HTTP/1.1\r\nhost: localhost:1\r\nconnection: close\r\n{headers}\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    // How the daemon closes is not what this is about.
    let _ = stream.read_to_end(&mut answer).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    text.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_over_http_need_a_certificate_and_no_foreign_page() {
    let site = Site::with("http", "").await;
    let ok = "HTTP/1.1 200 OK";
    assert_eq!(post(&site, ORCHESTRATOR, "").await, ok);
    assert_eq!(post(&site, ORCHESTRATOR, "origin: https://localhost:1\r\n").await, ok);
    assert_eq!(post(&site, VIEWER, "").await, "HTTP/1.1 403 Forbidden");
    let foreign = post(&site, ORCHESTRATOR, "origin: https://evil.example\r\n").await;
    assert_eq!(foreign, "HTTP/1.1 403 Forbidden");
    site.running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_files_count_from_the_next_connection_on() {
    let mut site = Site::with("grpc", "").await;
    assert!(site.is_let_in(Some(site.ca.client(&[VIEWER]))).await);
    // Files that can't be used leave the last ones in place.
    std::fs::write(site.files.path().join("cert.pem"), "no certificate").expect("written");
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert!(site.is_let_in(Some(site.ca.client(&[VIEWER]))).await);
    let before = std::mem::replace(&mut site.ca, Ca::new());
    write_server(site.files.path(), &site.ca);
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert!(site.is_let_in(Some(site.ca.client(&[VIEWER]))).await, "of the new CA");
    assert!(!site.is_let_in(Some(before.client(&[VIEWER]))).await, "of the old CA");
    site.running.daemon.stop().await;
}
