//! A network between two processes that can be made worse while they talk: late, uneven, or dead in one direction or both.
//!
//! Bytes keep their order, as TCP keeps it. A dead direction takes bytes and passes none on, so neither end learns of it by itself.

use std::time::Duration;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::Instant,
};

#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Every piece is this late, and up to `uneven` more.
    pub late: Duration,
    pub uneven: Duration,
    /// One piece in a hundred is late by this too, as after a lost packet.
    pub lost: Duration,
    /// What the connecting side says does not arrive.
    pub deaf: bool,
    /// What it is answered does not.
    pub mute: bool,
}

pub struct Wire {
    /// `127.0.0.1:PORT`, in front of the other end.
    pub address: String,
    weather: watch::Sender<Weather>,
    task: tokio::task::JoinHandle<()>,
}

impl Wire {
    /// To `far`, `HOST:PORT` with or without a scheme.
    pub async fn to(far: &str) -> Self {
        let far = far.rsplit('/').next().expect("an address is not empty").to_owned();
        let near = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = near.local_addr().unwrap().to_string();
        let (weather, seen) = watch::channel(Weather::default());
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = near.accept().await {
                // Whoever is gone is missed by the one who connects, as without a wire.
                let Ok(far) = TcpStream::connect(&far).await else { continue };
                let _ = (near.set_nodelay(true), far.set_nodelay(true));
                let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
                carry(from_near, to_far, seen.clone(), |weather| weather.deaf);
                carry(from_far, to_near, seen.clone(), |weather| weather.mute);
            }
        });
        Self { address, weather, task }
    }

    pub fn http(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn becomes(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One direction, until either end is gone.
fn carry(
    mut from: impl AsyncRead + Unpin + Send + 'static,
    mut to: impl AsyncWrite + Unpin + Send + 'static,
    mut weather: watch::Receiver<Weather>,
    is_dead: fn(&Weather) -> bool,
) {
    let (pieces, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    let seen = weather.clone();
    tokio::spawn(async move {
        let mut bytes = vec![0; 16 * 1024];
        let mut due = Instant::now();
        while let Ok(n @ 1..) = from.read(&mut bytes).await {
            let Weather { late, uneven, lost, .. } = *seen.borrow();
            let lost = if rand::random_ratio(1, 100) { lost } else { Duration::ZERO };
            let more = uneven.mul_f64(rand::random()) + lost;
            due = due.max(Instant::now() + late + more);
            if pieces.send((due, bytes[..n].to_vec())).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((due, piece)) = under_way.recv().await {
            tokio::time::sleep_until(due).await;
            // Dead: it stays in the wire until that lives again.
            if weather.wait_for(|weather| !is_dead(weather)).await.is_err() || to.write_all(&piece).await.is_err() {
                return;
            }
        }
    });
}
