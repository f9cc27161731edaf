//! The handshake's fixed part and the frames: length-limited, checksummed, typed.
//!
//! A frame is `length u32 | kind u8 | 0 0 0 | crc32c u32 | payload`, little-endian; the checksum covers length, kind and payload.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::delta::CHUNK;

/// Opens the conversation on both sides. Not printable, since login shells and wrappers print banners on stdout.
pub const MAGIC: [u8; 8] = [0x00, 0xff, b'M', b'R', b'F', 0x1a, 0x0d, 0x0a];

/// The protocol's version: both ends must have the same one.
pub const PROTOCOL: u16 = 7;

/// Bytes of payload at most: one chunk that did not compress, with its header and hashes.
pub const MAX_PAYLOAD: usize = CHUNK + 64 * 1024;

/// Bytes that may stand before the magic on the stream: a banner of a shell.
const MAX_BANNER: usize = 64 * 1024;

const HEADER: usize = 12;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// A message in postcard encoding.
    Message,
    /// A packed chunk of a file.
    Chunk,
    /// Are you there?
    Ping,
    /// Yes.
    Pong,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: FrameKind,
    /// At most `MAX_PAYLOAD` bytes.
    pub payload: Bytes,
}

/// Why the stream could not be read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The peer closed the stream between two frames.
    #[error("the connection was closed")]
    Closed,
    /// The operating system's word.
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    /// The peer does not speak this protocol, or bytes were damaged.
    #[error("damaged or foreign data on the connection: {0}")]
    Damaged(String),
    /// The peer speaks another version of the protocol.
    #[error("the other side speaks protocol {theirs}, this side {PROTOCOL}")]
    Version {
        /// The peer's protocol version.
        theirs: u16,
    },
}

impl Frame {
    /// A frame without payload.
    pub fn empty(kind: FrameKind) -> Self {
        Self { kind, payload: Bytes::new() }
    }

    fn header(&self) -> [u8; HEADER] {
        let mut head = [0; HEADER];
        head[..4].copy_from_slice(&(self.payload.len() as u32).to_le_bytes());
        head[4] = match self.kind {
            FrameKind::Message => 1,
            FrameKind::Chunk => 2,
            FrameKind::Ping => 3,
            FrameKind::Pong => 4,
        };
        let sum = crc32c::crc32c_append(crc32c::crc32c(&head[..8]), &self.payload);
        head[8..].copy_from_slice(&sum.to_le_bytes());
        head
    }
}

/// Writes one frame; does not flush.
pub async fn write<W: AsyncWrite + Unpin>(writer: &mut W, frame: &Frame) -> Result<(), WireError> {
    if frame.payload.len() > MAX_PAYLOAD {
        return Err(WireError::Damaged(format!("a message of {} bytes is over the limit", frame.payload.len())));
    }
    writer.write_all(&frame.header()).await?;
    writer.write_all(&frame.payload).await?;
    Ok(())
}

/// Reads one frame. Not to be cancelled in the middle: a task of its own owns the reader.
pub async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Frame, WireError> {
    let mut head = [0; HEADER];
    let first = reader.read(&mut head).await?;
    if first == 0 {
        return Err(WireError::Closed);
    }
    reader.read_exact(&mut head[first..]).await?;
    let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if len > MAX_PAYLOAD {
        return Err(WireError::Damaged(format!("frame of {len} bytes announced")));
    }
    let kind = match head[4..8] {
        [1, 0, 0, 0] => FrameKind::Message,
        [2, 0, 0, 0] => FrameKind::Chunk,
        [3, 0, 0, 0] => FrameKind::Ping,
        [4, 0, 0, 0] => FrameKind::Pong,
        _ => return Err(WireError::Damaged("unknown kind of frame".into())),
    };
    let mut payload = BytesMut::zeroed(len);
    reader.read_exact(&mut payload).await?;
    let frame = Frame { kind, payload: payload.freeze() };
    if frame.header() != head {
        return Err(WireError::Damaged("checksum of a frame".into()));
    }
    Ok(frame)
}

/// Sends magic and protocol version.
pub async fn greet<W: AsyncWrite + Unpin>(writer: &mut W) -> Result<(), WireError> {
    let mut hello = MAGIC.to_vec();
    hello.extend_from_slice(&PROTOCOL.to_le_bytes());
    writer.write_all(&hello).await?;
    writer.flush().await?;
    Ok(())
}

/// Reads up to and including magic and protocol version. Returns what stood before it: a banner, for the log.
pub async fn expect<R: AsyncRead + Unpin>(reader: &mut R) -> Result<String, WireError> {
    let mut seen: Vec<u8> = Vec::new();
    while !seen.ends_with(&MAGIC) {
        if seen.len() >= MAX_BANNER + MAGIC.len() {
            return Err(WireError::Damaged(format!("no greeting, but: {}", excerpt(&seen))));
        }
        match reader.read_u8().await {
            Ok(byte) => seen.push(byte),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof && seen.is_empty() => {
                return Err(WireError::Closed);
            }
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(WireError::Damaged(format!("no greeting, but: {}", excerpt(&seen))));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let theirs = reader.read_u16_le().await?;
    if theirs != PROTOCOL {
        return Err(WireError::Version { theirs });
    }
    seen.truncate(seen.len() - MAGIC.len());
    Ok(excerpt(&seen))
}

fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(400)]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    proptest! {
        #[test]
        fn frames_round_trip(payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..5)) {
            block_on(async {
                let mut buffer = Vec::new();
                for payload in &payloads {
                    write(&mut buffer, &Frame { kind: FrameKind::Chunk, payload: payload.clone().into() }).await.unwrap();
                }
                let mut from = buffer.as_slice();
                for payload in &payloads {
                    assert_eq!(read(&mut from).await.unwrap().payload, payload.as_slice());
                }
                assert!(matches!(read(&mut from).await, Err(WireError::Closed)));
            });
        }

        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            block_on(async {
                let mut from = bytes.as_slice();
                while read(&mut from).await.is_ok() {}
                let _ = expect(&mut bytes.as_slice()).await;
            });
        }

        #[test]
        fn a_flipped_bit_is_noticed(at in 0usize..112, bit in 0u8..8) {
            block_on(async {
                let mut buffer = Vec::new();
                write(&mut buffer, &Frame { kind: FrameKind::Message, payload: vec![7; 100].into() }).await.unwrap();
                buffer[at] ^= 1 << bit;
                assert!(read(&mut buffer.as_slice()).await.is_err());
            });
        }
    }

    #[test]
    fn a_banner_is_skipped_and_reported() {
        block_on(async {
            let mut stream = b"Welcome to db1!\n".to_vec();
            greet(&mut stream).await.unwrap();
            assert_eq!(expect(&mut stream.as_slice()).await.unwrap(), "Welcome to db1!");
            let error = expect(&mut b"bash: mysql-refreshd: command not found\n".as_slice()).await.unwrap_err();
            assert!(error.to_string().contains("command not found"), "{error}");
        });
    }

    #[test]
    fn another_protocol_is_named() {
        block_on(async {
            let mut stream = MAGIC.to_vec();
            stream.extend_from_slice(&77u16.to_le_bytes());
            assert!(matches!(expect(&mut stream.as_slice()).await, Err(WireError::Version { theirs: 77 })));
        });
    }
}
