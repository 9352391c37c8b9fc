//! What tonic alone costs: an echo with nothing of ours around it, over the same sockets and with messages of the same size.

use bytes::Bytes;
use futures::future::BoxFuture;
use std::{convert::Infallible, path::PathBuf};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream},
};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    client,
    codegen::{Service, http},
    server::{self, NamedService, StreamingService, UnaryService},
    transport::{Channel, Endpoint, Server, Uri},
};
use tonic_prost::ProstCodec;

/// What answers a frame, in bytes: about an event.
const EVENT: Bytes = Bytes::from_static(&[1; 12]);
const UNARY: &str = "/bench.Echo/Unary";
const STREAM: &str = "/bench.Echo/Stream";

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "bench.Echo";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = server::Grpc::new(ProstCodec::default());
            Ok(if request.uri().path() == UNARY { grpc.unary(Echo, request).await } else { grpc.streaming(Echo, request).await })
        })
    }
}

impl UnaryService<Bytes> for Echo {
    type Response = Bytes;
    type Future = BoxFuture<'static, Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        Box::pin(async move { Ok(Response::new(request.into_inner())) })
    }
}

impl StreamingService<Bytes> for Echo {
    type Response = Bytes;
    type ResponseStream = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(async move {
            let events = request.into_inner().map(|frame| frame.map(|_| EVENT));
            Ok(Response::new(Box::pin(events) as Self::ResponseStream))
        })
    }
}

/// A client of the echo, which serves until this process ends.
pub async fn over_tcp() -> anyhow::Result<Channel> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", listener.local_addr()?);
    let incoming = TcpListenerStream::new(listener).map(|socket| socket.and_then(|socket| socket.set_nodelay(true).map(|()| socket)));
    tokio::spawn(Server::builder().add_service(Echo).serve_with_incoming(incoming));
    Ok(Endpoint::from_shared(address)?.tcp_nodelay(true).connect().await?)
}

/// The same over a Unix socket at `path`.
pub async fn over_unix(path: PathBuf) -> anyhow::Result<Channel> {
    let incoming = UnixListenerStream::new(UnixListener::bind(&path)?);
    tokio::spawn(Server::builder().add_service(Echo).serve_with_incoming(incoming));
    let connect = move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
    };
    Ok(Endpoint::from_static("http://echo").connect_with_connector(tower::service_fn(connect)).await?)
}

pub async fn unary(channel: &Channel, message: Bytes) -> Result<Bytes, Status> {
    let mut grpc = client::Grpc::new(channel.clone());
    ready(&mut grpc).await?;
    let path = http::uri::PathAndQuery::from_static(UNARY);
    Ok(grpc.unary(Request::new(message), path, ProstCodec::default()).await?.into_inner())
}

/// An open stream: what is sent, and what comes back.
pub async fn stream(channel: &Channel) -> Result<(tokio::sync::mpsc::Sender<Bytes>, Streaming<Bytes>), Status> {
    let mut grpc = client::Grpc::new(channel.clone());
    ready(&mut grpc).await?;
    let (frames, sent) = tokio::sync::mpsc::channel(16);
    let path = http::uri::PathAndQuery::from_static(STREAM);
    let events = grpc.streaming(Request::new(ReceiverStream::new(sent)), path, ProstCodec::default()).await?.into_inner();
    Ok((frames, events))
}

async fn ready(grpc: &mut client::Grpc<Channel>) -> Result<(), Status> {
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))
}
