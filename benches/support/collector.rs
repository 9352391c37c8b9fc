//! Where spans go while a bench runs: a process of its own that takes them and keeps nothing, so that taking them costs the measured one
//! what a collector on another machine would.

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
};
use tonic::{Request, Response, Status};

/// Set in the process that is the collector.
const ROLE: &str = "QUICKCOMM_BENCH_COLLECTS";

struct Sink;

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(&self, _: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// To be called first in `main`: where this process was started to collect, it does so until its parent is gone.
pub async fn collect_if_asked() -> bool {
    if std::env::var_os(ROLE).is_none() {
        return false;
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    println!("http://{}", listener.local_addr().expect("it is bound"));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let serving = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Sink)).serve_with_incoming(incoming);
    let parent = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut vec![]));
    tokio::select! { _ = serving => {}, _ = parent => {} }
    true
}

/// The collector, seen from the bench. Ends with it.
pub struct Collector {
    child: Child,
    pub endpoint: String,
}

impl Collector {
    pub fn start() -> Self {
        let own = std::env::current_exe().expect("a bench is a file");
        let mut child =
            Command::new(own).env(ROLE, "1").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a bench can be started again");
        let mut endpoint = String::new();
        BufReader::new(child.stdout.take().expect("stdout is piped")).read_line(&mut endpoint).expect("it says where it listens");
        Self { child, endpoint: endpoint.trim().to_owned() }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
