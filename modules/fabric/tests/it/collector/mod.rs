//! A real OTLP receiver in the test's process; of this crate's tests and, by its path, of the product's.

#![allow(dead_code)] // each test uses its part
#![allow(clippy::unwrap_used)] // a test that unwraps has failed with the reason

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use parking_lot::Mutex;
use std::sync::Arc;
use tonic::{
    Request, Response, Status,
    transport::{Identity, Server, ServerTlsConfig},
};

/// Keeps every span it is sent.
#[derive(Clone, Default)]
pub struct Collector {
    pub spans: Arc<Mutex<Vec<Span>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let sent = request.into_inner().resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans);
        self.spans.lock().extend(sent);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// With where it listens.
    pub async fn start() -> (Self, String) {
        let (collector, port) = Self::listen(Server::builder()).await;
        (collector, format!("http://127.0.0.1:{port}"))
    }

    /// Behind TLS, with a certificate for `localhost`.
    pub async fn start_tls(certificate: &str, key: &str) -> (Self, String) {
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
        let (collector, port) = Self::listen(Server::builder().tls_config(tls).unwrap()).await;
        (collector, format!("https://localhost:{port}"))
    }

    async fn listen(mut server: Server) -> (Self, u16) {
        let collector = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(server.add_service(TraceServiceServer::new(collector.clone())).serve_with_incoming(incoming));
        (collector, port)
    }
}
