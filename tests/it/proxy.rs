//! A bad network for one test: a TCP proxy on loopback that is slow, has small buffers, adds latency, falls silent or cuts the
//! connection. It knows bytes and nothing of what they mean.
//!
//! All threads look at the proxy's state every few milliseconds; they end when it is dropped.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

/// How often a thread that waits looks whether it should go on.
const LOOK: Duration = Duration::from_millis(10);

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// What a proxy does to connections.
#[derive(Debug, Clone, Copy, Default)]
struct Shape {
    rate: Option<u64>,
    buffers: Option<usize>,
    latency: Duration,
    silent_after: [Option<u64>; 2],
    cut_after: [Option<u64>; 2],
}

/// Puts a proxy together.
pub struct Builder {
    server: u16,
    shape: Shape,
}

impl Builder {
    /// At most this many bytes a second, each way.
    pub fn rate(mut self, bytes: u64) -> Self {
        self.shape.rate = Some(bytes);
        self
    }

    /// Socket buffers of this size on the proxy's side, so that those of client and server stay small and fill.
    pub fn buffers(mut self, bytes: usize) -> Self {
        self.shape.buffers = Some(bytes);
        self
    }

    /// Every byte arrives this much later.
    pub fn latency(mut self, time: Duration) -> Self {
        self.shape.latency = time;
        self
    }

    /// Nothing more is forwarded either way after so many bytes one way; connections stay open.
    pub fn silent_after(mut self, direction: Direction, bytes: u64) -> Self {
        self.shape.silent_after[direction as usize] = Some(bytes);
        self
    }

    /// Both sides get a reset after so many bytes one way.
    pub fn cut_after(mut self, direction: Direction, bytes: u64) -> Self {
        self.shape.cut_after[direction as usize] = Some(bytes);
        self
    }

    /// Listens.
    pub fn start(self) -> Proxy {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        if let Some(bytes) = self.shape.buffers {
            // before the connection exists, so that the window is never offered larger
            shrink(&listener, bytes);
        }
        let loopback = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        listener.bind(&loopback(0).into()).unwrap();
        listener.listen(64).unwrap();
        let listener = TcpListener::from(listener);
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let (shape, server, shared) = (self.shape, loopback(self.server), state.clone());
        std::thread::spawn(move || {
            while !shared.closing.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((client, _)) => connect(client, server, shape, &shared),
                    Err(_) => sleep(LOOK),
                }
            }
        });
        Proxy { port, state }
    }
}

#[derive(Default)]
struct State {
    closing: AtomicBool,
    silent: AtomicBool,
    cuts: AtomicUsize,
    carried: [AtomicU64; 2],
}

/// A running proxy.
pub struct Proxy {
    port: u16,
    state: Arc<State>,
}

impl Proxy {
    /// A proxy in front of a port of this machine; does nothing to the bytes unless told to.
    pub fn to(port: u16) -> Builder {
        Builder { server: port, shape: Shape::default() }
    }

    /// Where clients connect.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on nothing is forwarded; connections stay open.
    pub fn fall_silent(&self) {
        self.state.silent.store(true, Ordering::Relaxed);
    }

    /// Forwards again, unless a limit of bytes was reached.
    pub fn speak(&self) {
        self.state.silent.store(false, Ordering::Relaxed);
    }

    /// Resets all connections there are.
    pub fn cut(&self) {
        self.state.cuts.fetch_add(1, Ordering::Relaxed);
    }

    /// How many bytes it has forwarded one way.
    pub fn carried(&self, direction: Direction) -> u64 {
        self.state.carried[direction as usize].load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.closing.store(true, Ordering::Relaxed);
    }
}

/// Small buffers on this side; and since the kernel sizes a sender's buffer by its segments, which on loopback are huge, the
/// segments of a real network.
fn shrink(socket: &Socket, bytes: usize) {
    socket.set_recv_buffer_size(bytes).unwrap();
    socket.set_send_buffer_size(bytes).unwrap();
    socket.set_tcp_mss(1_400).unwrap();
}

/// One connection and its two sockets. They are closed when the last thread lets go of them.
struct Link {
    sockets: [TcpStream; 2],
    shape: Shape,
    state: Arc<State>,
    /// How many cuts there had been when it was made.
    cuts: usize,
    cut: AtomicBool,
    silent: AtomicBool,
    /// When the next byte may go, each way.
    next: [Mutex<Instant>; 2],
}

fn connect(client: TcpStream, server: SocketAddr, shape: Shape, state: &Arc<State>) {
    let onward = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    if let Some(bytes) = shape.buffers {
        shrink(&onward, bytes);
    }
    if onward.connect(&server.into()).is_err() {
        return;
    }
    let onward = TcpStream::from(onward);
    for socket in [&client, &onward] {
        socket.set_nonblocking(false).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(LOOK)).unwrap();
        socket.set_write_timeout(Some(LOOK)).unwrap();
    }
    let cuts = state.cuts.load(Ordering::Relaxed);
    let now = || Mutex::new(Instant::now());
    let link = Arc::new(Link {
        sockets: [client, onward],
        shape,
        state: state.clone(),
        cuts,
        cut: AtomicBool::new(false),
        silent: AtomicBool::new(false),
        next: [now(), now()],
    });
    for direction in [Direction::Up, Direction::Down] {
        // what is under way: a moment's worth of a fast line if there is latency, next to nothing if not
        let (push, pull) = sync_channel(if shape.latency.is_zero() { 1 } else { 512 });
        let (reader, writer) = (link.clone(), link.clone());
        std::thread::spawn(move || reader.take_in(direction, push));
        std::thread::spawn(move || writer.give_out(direction, pull));
    }
}

/// Bytes and when they are due; no bytes: the sender has ended.
type Parcel = (Instant, Vec<u8>);

impl Link {
    /// Waits while the line is silent; false if the connection is over.
    fn may_go_on(&self) -> bool {
        loop {
            if self.state.cuts.load(Ordering::Relaxed) > self.cuts {
                self.reset();
            }
            if self.cut.load(Ordering::Relaxed) || self.state.closing.load(Ordering::Relaxed) {
                return false;
            }
            if !self.silent.load(Ordering::Relaxed) && !self.state.silent.load(Ordering::Relaxed) {
                return true;
            }
            sleep(LOOK);
        }
    }

    /// Makes the last close of both sockets a reset.
    fn reset(&self) {
        for socket in &self.sockets {
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
        self.cut.store(true, Ordering::Relaxed);
    }

    fn take_in(&self, direction: Direction, push: SyncSender<Parcel>) {
        let mut from = &self.sockets[direction as usize];
        let mut buffer = vec![0; self.shape.buffers.unwrap_or(16 * 1024).min(16 * 1024)];
        while self.may_go_on() {
            let got = match from.read(&mut buffer) {
                Ok(got) => got,
                Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => continue,
                Err(_) => {
                    // one side is gone the hard way: so is the other
                    self.reset();
                    return;
                }
            };
            let mut parcel = (Instant::now() + self.shape.latency, buffer[..got].to_vec());
            while let Err(full) = push.try_send(parcel) {
                match full {
                    TrySendError::Full(back) if self.may_go_on() => parcel = back,
                    _ => return,
                }
                sleep(Duration::from_millis(1));
            }
            if got == 0 {
                return;
            }
        }
    }

    fn give_out(&self, direction: Direction, pull: Receiver<Parcel>) {
        let to = &self.sockets[1 - direction as usize];
        while self.may_go_on() {
            let (due, bytes) = match pull.recv_timeout(LOOK) {
                Ok(parcel) => parcel,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            sleep(due.saturating_duration_since(Instant::now()));
            if bytes.is_empty() {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            if !self.forward(direction, to, &bytes) {
                return;
            }
        }
    }

    /// Writes bytes at the line's rate, up to a limit; false if the connection is over.
    fn forward(&self, direction: Direction, mut to: &TcpStream, mut bytes: &[u8]) -> bool {
        let way = direction as usize;
        while !bytes.is_empty() {
            if !self.may_go_on() {
                return false;
            }
            let carried = self.state.carried[way].load(Ordering::Relaxed);
            let left = |limit: Option<u64>| limit.map_or(u64::MAX, |limit| limit.saturating_sub(carried));
            let (silent, cut) = (left(self.shape.silent_after[way]), left(self.shape.cut_after[way]));
            if cut == 0 {
                self.reset();
                continue;
            }
            if silent == 0 {
                self.silent.store(true, Ordering::Relaxed);
                continue;
            }
            let most = silent.min(cut).min(bytes.len() as u64) as usize;
            match to.write(&bytes[..most]) {
                Ok(written) => {
                    self.state.carried[way].fetch_add(written as u64, Ordering::Relaxed);
                    bytes = &bytes[written..];
                    self.pace(way, written);
                }
                Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {}
                Err(_) => {
                    self.reset();
                    return false;
                }
            }
        }
        true
    }

    fn pace(&self, way: usize, written: usize) {
        let Some(rate) = self.shape.rate else { return };
        let mut next = self.next[way].lock().unwrap();
        let now = Instant::now();
        *next = next.max(now) + Duration::from_secs_f64(written as f64 / rate as f64);
        let wait = next.saturating_duration_since(now);
        drop(next);
        sleep(wait);
    }
}

#[cfg(test)]
mod itself {
    use super::*;

    /// A server that says what it hears, for one connection.
    fn echo() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut back = stream.try_clone().unwrap();
            let _ = std::io::copy(&mut stream, &mut back);
            let _ = back.shutdown(Shutdown::Write);
        });
        port
    }

    fn connect(proxy: &Proxy) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    #[test]
    fn bytes_arrive_late_and_slowly_but_whole() {
        let proxy = Proxy::to(echo()).rate(2_000_000).latency(Duration::from_millis(50)).buffers(8 * 1024).start();
        let mut stream = connect(&proxy);
        let data: Vec<u8> = (0..400_000u32).map(|n| n as u8 ^ (n >> 8) as u8).collect();
        let begun = Instant::now();
        let (mut writer, sent) = (stream.try_clone().unwrap(), data.clone());
        let writing = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        writing.join().unwrap();
        assert!(got == data);
        assert!(begun.elapsed() >= Duration::from_millis(250), "{:?}", begun.elapsed());
        assert_eq!((proxy.carried(Direction::Up), proxy.carried(Direction::Down)), (400_000, 400_000));
    }

    #[test]
    fn silence_holds_bytes_back_and_a_cut_is_a_reset() {
        let proxy = Proxy::to(echo()).silent_after(Direction::Down, 3).start();
        let mut stream = connect(&proxy);
        stream.write_all(b"12345").unwrap();
        let mut three = [0; 3];
        stream.read_exact(&mut three).unwrap();
        assert_eq!(&three, b"123");
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert_eq!(stream.read(&mut three).unwrap_err().kind(), ErrorKind::WouldBlock);
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        proxy.cut();
        assert_eq!(stream.read(&mut three).unwrap_err().kind(), ErrorKind::ConnectionReset);

        let proxy = Proxy::to(echo()).cut_after(Direction::Up, 3).start();
        let mut stream = connect(&proxy);
        stream.write_all(b"12345").unwrap();
        let mut got = Vec::new();
        assert_eq!(stream.read_to_end(&mut got).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}
