//! The webhook, against a receiver on a real socket.

use super::{
    settings::{Secret, Settings},
    webhook::Webhook,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use parking_lot::Mutex;
use ring::hmac;
use std::{collections::HashMap, net::SocketAddr, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
};

pub(crate) const SECRET: &str = "a secret of more than 24 characters";

/// What a receiver was told once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

/// Takes requests and answers as it is told to; over TLS where it has a certificate.
pub(crate) struct Receiver {
    pub(crate) addr: SocketAddr,
    pub(crate) told: Arc<Mutex<Vec<Told>>>,
    /// The whole answer.
    pub(crate) answer: Arc<Mutex<String>>,
}

pub(crate) const TAKEN: &str = "HTTP/1.1 204 No Content\r\n\r\n";

impl Receiver {
    pub(crate) async fn start(tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let (told, answer) = (Arc::<Mutex<Vec<Told>>>::default(), Arc::new(Mutex::new(TAKEN.to_owned())));
        let (hears, says) = (told.clone(), answer.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (hears, says, tls) = (hears.clone(), says.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(socket, &hears, &says).await,
                        Some(tls) => {
                            if let Ok(socket) = tls.accept(socket).await {
                                serve(socket, &hears, &says).await;
                            }
                        }
                    }
                });
            }
        });
        Self { addr, told, answer }
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings {
            webhook_url: Some(format!("http://{}/hook?of=calls", self.addr)),
            webhook_secret: Secret::new(SECRET),
            webhook_private: true,
            ..Settings::default()
        }
    }
}

async fn serve(mut socket: impl AsyncRead + AsyncWrite + Unpin, told: &Mutex<Vec<Told>>, answer: &Mutex<String>) {
    let mut text = vec![];
    let mut wanted = usize::MAX;
    while text.len() < wanted {
        match socket.read_buf(&mut text).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let said = String::from_utf8_lossy(&text);
        if let Some((head, _)) = said.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
            wanted = head.len() + 4 + length.and_then(|n| n.parse::<usize>().ok()).unwrap_or(0);
        }
    }
    let said = String::from_utf8(text).expect("JSON is text");
    let (head, body) = said.split_once("\r\n\r\n").expect("looked for before");
    let mut lines = head.lines();
    let path = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
    let headers = lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    told.lock().push(Told { path, headers, body: body.to_owned() });
    let answer = answer.lock().clone();
    let _ = socket.write_all(answer.as_bytes()).await; // whoever asked may have gone
    let _ = socket.shutdown().await;
}

#[track_caller]
fn signed_by(told: &Told, secret: &str) -> bool {
    let signed = format!("{}.{}.{}", told.headers["webhook-id"], told.headers["webhook-timestamp"], told.body);
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    told.headers["webhook-signature"].split(' ').any(|one| {
        let tag = STANDARD.decode(one.strip_prefix("v1,").expect("its version")).expect("base64");
        hmac::verify(&key, signed.as_bytes(), &tag).is_ok()
    })
}

#[tokio::test]
async fn what_is_told_is_signed_by_both_living_secrets() {
    let receiver = Receiver::start(None).await;
    let old = "the secret before it, also long enough";
    let settings = Settings { webhook_old_secret: Secret::new(old), ..receiver.settings() };
    let webhook = Webhook::new(&settings).expect("as it should be").expect("there is one");
    webhook.tell("evt_1", r#"{"id":"evt_1"}"#.into(), 1_700_000_000).await.expect("it is taken");
    let told = receiver.told.lock().remove(0);
    assert_eq!((told.path.as_str(), told.body.as_str()), ("/hook?of=calls", r#"{"id":"evt_1"}"#));
    assert_eq!((told.headers["webhook-id"].as_str(), told.headers["webhook-timestamp"].as_str()), ("evt_1", "1700000000"));
    assert!(signed_by(&told, SECRET) && signed_by(&told, old) && !signed_by(&told, "somebody else's secret, long enough"));
    assert!(!signed_by(&Told { body: "{}".into(), ..told }, SECRET), "another body has another signature");
}

#[tokio::test]
async fn whoever_does_not_take_it_was_not_told() {
    let elsewhere = Receiver::start(None).await;
    let receiver = Receiver::start(None).await;
    let webhook = Webhook::new(&receiver.settings()).expect("as it should be").expect("there is one");
    let long = format!("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{}", "x".repeat(100_000));
    for (answer, says) in [
        ("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n".to_owned(), "500"),
        (format!("HTTP/1.1 302 Found\r\nlocation: http://{}/\r\ncontent-length: 0\r\n\r\n", elsewhere.addr), "302"),
        (long, "longer than 65536"),
        ("rubbish\r\n\r\n".to_owned(), ""),
    ] {
        *receiver.answer.lock() = answer;
        let failed = webhook.tell("evt_1", "{}".into(), 1).await.expect_err("it was not taken");
        assert!(format!("{failed:#}").contains(says), "{failed:#}");
    }
    assert!(elsewhere.told.lock().is_empty(), "a redirect is not followed");
    let nobody = Settings { webhook_url: Some("http://127.0.0.1:1/".into()), ..receiver.settings() };
    let failed = Webhook::new(&nobody).expect("as it should be").expect("there is one").tell("evt_1", "{}".into(), 1).await;
    assert!(format!("{:#}", failed.expect_err("nobody is there")).contains("127.0.0.1:1 cannot be reached"));
}

#[tokio::test]
async fn a_name_that_leads_into_a_private_network_is_not_called() {
    let receiver = Receiver::start(None).await;
    let url = format!("https://localhost:{}/", receiver.addr.port());
    let settings = Settings { webhook_url: Some(url), webhook_private: false, ..receiver.settings() };
    settings.check().expect("a name alone cannot be judged");
    let failed = Webhook::new(&settings).expect("as it should be").expect("there is one").tell("evt_1", "{}".into(), 1).await;
    let said = format!("{:#}", failed.expect_err("it must not be called"));
    assert!(said.contains("is no address of the public internet"), "{said}");
    assert!(receiver.told.lock().is_empty());
}

#[tokio::test]
async fn over_tls_only_whom_an_authority_vouches_for() {
    let _ = rustls::crypto::ring::default_provider().install_default(); // somebody else's may be there already
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
    let tls = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key).expect("it fits");
    let receiver = Receiver::start(Some(tokio_rustls::TlsAcceptor::from(Arc::new(tls)))).await;
    let settings = Settings { webhook_url: Some(format!("https://localhost:{}/hook", receiver.addr.port())), ..receiver.settings() };
    let tell = async |settings: &Settings| {
        Webhook::new(settings).expect("as it should be").expect("there is one").tell("evt_1", "{}".into(), 1).await
    };
    let said = format!("{:#}", tell(&settings).await.expect_err("nobody vouches for it"));
    assert!(said.contains("no TLS with it"), "{said}");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, own.cert.pem()).expect("written");
    tell(&Settings { webhook_ca: Some(file), ..settings }).await.expect("this authority does");
    assert_eq!(receiver.told.lock().len(), 1);
}

#[test]
fn settings_that_cannot_work_are_named() {
    let with =
        |url: &str, secret: &str| Settings { webhook_url: Some(url.into()), webhook_secret: Secret::new(secret), ..Settings::default() };
    with("https://example.com/hook", SECRET).check().expect("as it should be");
    for (settings, says) in [
        (with("http://example.com/", SECRET), "api.finalize.webhook_url: its scheme is http"),
        (with("https://10.0.0.1/", SECRET), "api.finalize.webhook_url: 10.0.0.1"),
        (with("https://example.com/", "short"), "api.finalize.webhook_secret has 5 characters"),
        (Settings { keep_days: 40_000, ..Settings::default() }, "api.finalize.keep_days is 40000"),
    ] {
        let said = settings.check().expect_err(says);
        assert!(said.contains(says), "{said}");
    }
    let shown = serde_json::to_string(&with("https://example.com/hook", SECRET)).expect("plain data");
    assert!(shown.contains("****") && !shown.contains(SECRET), "{shown}");
}
