//! Frames, the greeting before them, and one stream over several: damaged bytes are noticed, and nothing waits for ever.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use mysql_refreshd::mutate::{self, Rng};
use mysql_refreshd::wire::frame::{self, Frame, FrameKind, MAGIC, MAX_PAYLOAD, PROTOCOL, WireError};
use mysql_refreshd::wire::stripe::{Part, join};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use crate::{alone, block_on, measured, samples};

/// Gives a few bytes at a time, as networks do; then ends, or stays silent.
struct Dribble {
    bytes: Vec<u8>,
    at: usize,
    step: usize,
    ends: bool,
}

impl AsyncRead for Dribble {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let n = self.step.min(into.remaining()).min(self.bytes.len() - self.at);
        if n == 0 && !self.ends {
            return Poll::Pending;
        }
        into.put_slice(&self.bytes[self.at..self.at + n]);
        self.at += n;
        Poll::Ready(Ok(()))
    }
}

fn dribble(rng: &mut Rng, bytes: Vec<u8>) -> Dribble {
    Dribble { bytes, at: 0, step: [1, 7, 4096, usize::MAX][rng.usize(..4)], ends: true }
}

fn frames() -> Vec<Frame> {
    let kinds = [FrameKind::Message, FrameKind::Chunk, FrameKind::Ping, FrameKind::Pong];
    let payloads = samples::encoded().into_iter().map(Bytes::from).chain([Bytes::new()]);
    let largest = Frame { kind: FrameKind::Chunk, payload: vec![5; MAX_PAYLOAD].into() };
    payloads.enumerate().map(|(n, payload)| Frame { kind: kinds[n % 4], payload }).chain([largest]).collect()
}

fn written(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    block_on(async {
        for frame in frames {
            frame::write(&mut bytes, frame).await.unwrap();
        }
    });
    bytes
}

#[test]
fn damaged_frames() {
    let _alone = alone();
    let all = frames();
    let streams: Vec<Vec<u8>> = all.chunks(3).map(written).collect();
    mutate::run("frames", move |rng| {
        let bytes = mutate::bytes(rng, &streams);
        let mut stream = dribble(rng, bytes);
        block_on(async {
            loop {
                let (frame, most) = {
                    let mut frame = None;
                    let ((), most) = measured(|| frame = Some(futures_ready(frame::read(&mut stream))));
                    (frame.unwrap(), most)
                };
                assert!(most <= MAX_PAYLOAD + 4096, "{most} bytes for a frame");
                match frame {
                    // the checksum lets nothing through that was not sent
                    Ok(frame) => assert!(all.contains(&frame), "{:?} of {} bytes", frame.kind, frame.payload.len()),
                    Err(_) => break,
                }
            }
        });
    });
}

/// A future that never has to wait.
fn futures_ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits for bytes that are there"),
    }
}

#[test]
fn a_frame_that_announces_more_than_may_be_is_refused_before_room_is_made() {
    let _alone = alone();
    for len in [MAX_PAYLOAD as u32 + 1, u32::MAX, 1 << 31] {
        let mut bytes = len.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
        let (result, most) = measured(|| block_on(frame::read(&mut bytes.as_slice())));
        assert!(matches!(result, Err(WireError::Damaged(_))) && most < 100_000, "{most}");
    }
}

#[test]
fn greetings_behind_anything() {
    let _alone = alone();
    let greeting = [&MAGIC[..], &PROTOCOL.to_le_bytes()].concat();
    let corpus: Vec<Vec<u8>> = [&b""[..], b"Welcome to db1!\n", &[0; 30], &MAGIC[..7], b"\xff\xfe", &[b'x'; 66_000]]
        .into_iter()
        .map(|before| [before, &greeting, b"and more"].concat())
        .collect();
    mutate::run("greetings", move |rng| {
        let bytes = mutate::bytes(rng, &corpus);
        let mut stream = dribble(rng, bytes.clone());
        let (said, most) = measured(|| futures_ready(frame::expect(&mut stream)));
        assert!(most < 400_000, "{most}");
        let at = bytes.windows(MAGIC.len()).position(|window| window == MAGIC).filter(|at| *at <= 64 * 1024);
        let version = at.and_then(|at| Some(*bytes.get(at + MAGIC.len()..)?.first_chunk::<2>()?));
        match said {
            Ok(banner) => {
                assert_eq!(version, Some(PROTOCOL.to_le_bytes()));
                assert!(banner.chars().count() <= 400 && !banner.chars().any(char::is_control), "{banner:?}");
                // nothing of what follows was taken
                assert_eq!(stream.at, at.unwrap() + MAGIC.len() + 2);
            }
            Err(WireError::Version { theirs }) => assert_eq!(version, Some(theirs.to_le_bytes())),
            Err(_) => assert_eq!(version, None),
        }
    });
}

/// Segments as they travel: number, length, content.
fn segment(number: u64, content: &[u8]) -> Vec<u8> {
    [&number.to_le_bytes()[..], &(content.len() as u32).to_le_bytes(), content].concat()
}

fn joined(lanes: Vec<Dribble>) -> Option<Vec<u8>> {
    block_on(async {
        let parts = lanes
            .into_iter()
            .map(|lane| Part { reader: Box::new(lane), writer: Box::new(tokio::io::sink()) })
            .collect();
        let (mut reader, _writer) = join(parts);
        let mut got = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(3), reader.read_to_end(&mut got)).await;
        ended.ok().map(|_| got)
    })
}

#[test]
fn damaged_segments() {
    let _alone = alone();
    mutate::run("segments", move |rng| {
        let content: Vec<u8> = (0..rng.usize(..200_000)).map(|_| rng.u8(..)).collect();
        let step = [1000, 17_000, 64 * 1024][rng.usize(..3)];
        let mut sent: Vec<(u64, Vec<u8>)> =
            content.chunks(step).enumerate().map(|(n, piece)| (n as u64, piece.to_vec())).collect();
        let harm = rng.u8(..8);
        let at = rng.usize(..sent.len().max(1));
        let lanes = rng.usize(1..5);
        let mut streams = vec![Vec::new(); lanes];
        // in another order, twice, left out, under another number
        match harm {
            0 if sent.len() > 1 => sent.swap(at, 0),
            1 if !sent.is_empty() => sent.insert(rng.usize(..=sent.len()), sent[at].clone()),
            2 if !sent.is_empty() => drop(sent.remove(at)),
            3 if !sent.is_empty() => sent[at].0 = [0, 1, u64::MAX, 1 << 40][rng.usize(..4)],
            _ => {}
        }
        for (number, piece) in &sent {
            streams[rng.usize(..lanes)].push(segment(*number, piece));
        }
        let mut streams: Vec<Vec<u8>> = streams.into_iter().map(|stream| stream.concat()).collect();
        // frames have checksums, segments do not: under another's number a content is taken for that one's
        let mut bytes_changed = harm == 3;
        if harm == 4 {
            let n = rng.usize(..lanes);
            let other = streams.clone();
            mutate::damage(rng, &mut streams[n], &other);
            bytes_changed = true;
        }
        if harm == 5 {
            let n = rng.usize(..lanes);
            let cut = rng.usize(..=streams[n].len());
            streams[n].truncate(cut);
        }
        let lanes = streams.into_iter().map(|stream| dribble(rng, stream)).collect();
        let got = joined(lanes).expect("it waits for what cannot come any more");
        if harm > 5 {
            assert!(got == content, "what was sent whole has not come whole");
        } else if !bytes_changed {
            assert!(content.starts_with(&got), "out of order");
        }
    });
}

#[test]
fn a_segment_that_comes_twice_ends_the_stream_at_once() {
    let _alone = alone();
    for doubled in [0, 1] {
        // another lane stays open: what cannot come from it any more is not to be waited for
        let [first, second] = [segment(0, b"a"), segment(1, b"b")];
        let twice = if doubled == 0 { &first } else { &second };
        let one = [&first[..], &second, twice, &segment(2, b"c")].concat();
        let lanes = vec![
            Dribble { bytes: one, at: 0, step: usize::MAX, ends: true },
            Dribble { bytes: Vec::new(), at: 0, step: 1, ends: false },
        ];
        let got = joined(lanes).expect("it waits for ever");
        assert!(b"ab".starts_with(&got[..]), "{got:?}");
    }
}
