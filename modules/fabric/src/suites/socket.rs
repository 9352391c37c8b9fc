//! Over gRPC on a real socket: TCP, TCP with certificates at both ends, or a Unix socket.

use super::elsewhere::Beyond;
use crate::{
    certs::Authority,
    connect::Network,
    hello::Introduction,
    link::{Link, Liveness},
    role::Role,
    serve::Services,
    tls::Tls,
};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio_util::sync::{CancellationToken, DropGuard};

#[derive(Default)]
pub(super) struct Socket {
    kind: Kind,
    stops: Mutex<Vec<DropGuard>>,
}

#[derive(Default)]
enum Kind {
    #[default]
    Tcp,
    /// The caller has the role api, the modules' process all three.
    Tls(Box<Certified>),
    Unix(tempfile::TempDir),
}

struct Certified {
    caller: Network,
    callee: Network,
    _folder: tempfile::TempDir,
}

pub(super) fn unix() -> Socket {
    Socket { kind: Kind::Unix(tempfile::tempdir().expect("a temporary folder")), ..Default::default() }
}

pub(super) fn tls() -> Socket {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let authority = Authority::new().expect("a key");
    let network = |name: &str, roles: &[Role]| {
        let pair = authority.issue(roles, 1).expect("a certificate");
        let files = pair.write(folder.path(), name, &authority.pair().certificate).expect("a writable folder");
        Network::new(Introduction::default(), Some(Arc::new(Tls::load(files).expect("what was just made"))))
    };
    let (caller, callee) = (network("caller", &[Role::Api]), network("callee", &Role::ALL));
    Socket { kind: Kind::Tls(Box::new(Certified { caller, callee, _folder: folder })), ..Default::default() }
}

impl Socket {
    /// Says where.
    pub(super) async fn serve(&self, services: Services) -> String {
        let (network, listen) = match &self.kind {
            Kind::Tcp => (Network::default(), "127.0.0.1:0".into()),
            Kind::Tls(certified) => (certified.callee.clone(), "https://127.0.0.1:0".into()),
            Kind::Unix(folder) => (Network::default(), format!("unix:{}/{}.sock", folder.path().display(), self.stops.lock().len())),
        };
        let server = network.serve(&listen, services).await.expect("a free address");
        let address = server.address().to_owned();
        let stop = CancellationToken::new();
        self.stops.lock().push(stop.clone().drop_guard());
        tokio::spawn(server.run(stop));
        address
    }

    fn caller(&self) -> Network {
        if let Kind::Tls(certified) = &self.kind { certified.caller.clone() } else { Network::default() }
    }
}

#[async_trait]
impl Beyond for Socket {
    async fn reach(&self, role: Role, services: Services) -> Link {
        let address = self.serve(services).await;
        self.caller().link(&address, Some(role), Liveness::default()).expect("an endpoint")
    }
}
