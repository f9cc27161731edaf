//! One stream over several: cut into numbered segments, sent over whichever part is free, put together in order. For links
//! with latency, where one SSH session carries no more than a window for each round trip.
//!
//! Knows nothing of frames. A part that breaks ends the whole.

use std::future::poll_fn;
use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::{Mutex, mpsc};

/// Largest segment's content: a few of them fill an SSH window.
const SEGMENT: usize = 64 * 1024;

/// Number and length.
const HEADER: usize = 12;

/// Segments that may wait for their turn, for each part.
const AHEAD: usize = 16;

/// What may wait between the parts and their user.
const BETWEEN: usize = 512 * 1024;

/// One of the streams.
pub struct Part {
    /// What comes.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// What goes.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
}

type Segment = (u64, Vec<u8>);

/// Joins parts; the other side must join the same parts, in any order. Gives what comes and what goes.
pub fn join(parts: Vec<Part>) -> (DuplexStream, DuplexStream) {
    let (outer_writer, outgoing) = tokio::io::duplex(BETWEEN);
    let (incoming, outer_reader) = tokio::io::duplex(BETWEEN);
    let (give, take) = mpsc::channel(parts.len());
    let take = Arc::new(Mutex::new(take));
    let mut arriving = Vec::new();
    for part in parts {
        let (tell, told) = mpsc::channel(AHEAD);
        arriving.push(told);
        tokio::spawn(carry(part.writer, take.clone()));
        tokio::spawn(async move {
            let end = listen(part.reader, &tell).await;
            if let Err(error) = end {
                let _ = tell.send(Err(error)).await;
            }
        });
    }
    tokio::spawn(split(outgoing, give));
    tokio::spawn(async move {
        // whatever ends it, the user sees the end of the stream, and the wire knows whether that was a good one
        let _ = merge(arriving, incoming).await;
    });
    (outer_reader, outer_writer)
}

/// Cuts what goes into segments.
async fn split(mut outgoing: DuplexStream, give: mpsc::Sender<Segment>) {
    let mut buffer = vec![0; SEGMENT];
    let mut number = 0;
    while let Ok(n @ 1..) = outgoing.read(&mut buffer).await {
        if give.send((number, buffer[..n].to_vec())).await.is_err() {
            return;
        }
        number += 1;
    }
}

/// Sends segments over one part, as it can take them.
async fn carry(mut writer: Box<dyn AsyncWrite + Send + Unpin>, take: Arc<Mutex<mpsc::Receiver<Segment>>>) {
    loop {
        let next = take.lock().await.recv().await;
        let Some((number, content)) = next else { break };
        let mut bytes = Vec::with_capacity(HEADER + content.len());
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&(content.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&content);
        if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
            // the other side misses the segment and gives up
            break;
        }
    }
    let _ = writer.shutdown().await;
}

/// Takes segments from one part.
async fn listen(mut reader: Box<dyn AsyncRead + Send + Unpin>, tell: &mpsc::Sender<Result<Segment>>) -> Result<()> {
    loop {
        let mut head = [0; HEADER];
        let first = reader.read(&mut head).await?;
        if first == 0 {
            return Ok(());
        }
        reader.read_exact(&mut head[first..]).await?;
        let (number, length) = head.split_at(8);
        let number = u64::from_le_bytes(number.try_into().map_err(Error::other)?);
        let length = u32::from_le_bytes(length.try_into().map_err(Error::other)?) as usize;
        if length > SEGMENT {
            return Err(Error::new(ErrorKind::InvalidData, "a segment that is too long"));
        }
        let mut content = vec![0; length];
        reader.read_exact(&mut content).await?;
        if tell.send(Ok((number, content))).await.is_err() {
            return Ok(());
        }
    }
}

/// Puts segments in order. Numbers rise within each part, so that one which none of the open parts can still bring is lost. One that
/// came already is no segment of this stream: it would stand before its part's next ones for ever.
async fn merge(mut parts: Vec<mpsc::Receiver<Result<Segment>>>, mut incoming: DuplexStream) -> Result<()> {
    let mut heads: Vec<Option<Segment>> = parts.iter().map(|_| None).collect();
    let mut open: Vec<bool> = vec![true; parts.len()];
    let mut wanted = 0;
    loop {
        poll_fn(|context| {
            let mut moved = false;
            for ((part, head), open) in parts.iter_mut().zip(&mut heads).zip(&mut open) {
                if head.is_some() || !*open {
                    continue;
                }
                match part.poll_recv(context) {
                    Poll::Ready(Some(Ok((number, _)))) if number < wanted => {
                        return Poll::Ready(Err(Error::new(ErrorKind::InvalidData, "a segment came twice")));
                    }
                    Poll::Ready(Some(Ok(segment))) => *head = Some(segment),
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                    Poll::Ready(None) => *open = false,
                    Poll::Pending => continue,
                }
                moved = true;
            }
            let here = heads.iter().flatten().any(|(number, _)| *number == wanted);
            let settled = heads.iter().zip(&open).all(|(head, open)| head.is_some() || !open);
            if moved || here || settled { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await?;
        while let Some(head) = heads.iter_mut().find(|head| head.as_ref().is_some_and(|(number, _)| *number == wanted))
        {
            if let Some((_, content)) = head.take() {
                incoming.write_all(&content).await?;
                wanted += 1;
            }
        }
        if heads.iter().flatten().any(|(number, _)| *number < wanted) {
            return Err(Error::new(ErrorKind::InvalidData, "a segment came twice"));
        }
        let waiting = heads.iter().zip(&open).any(|(head, open)| head.is_none() && *open);
        if !waiting {
            return match heads.iter().all(Option::is_none) {
                true => Ok(()),
                false => Err(Error::new(ErrorKind::UnexpectedEof, "a segment was lost")),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(n: usize) -> (Vec<Part>, Vec<Part>) {
        let pair = |_| {
            let (a, b) = tokio::io::duplex(10_000);
            let part = |stream: DuplexStream| {
                let (reader, writer) = tokio::io::split(stream);
                Part { reader: Box::new(reader), writer: Box::new(writer) }
            };
            (part(a), part(b))
        };
        (0..n).map(pair).unzip()
    }

    #[tokio::test]
    async fn everything_arrives_in_order_both_ways() {
        for n in [1, 2, 5] {
            let (left, mut right) = parts(n);
            right.reverse();
            let ((mut left_reader, mut left_writer), (mut right_reader, mut right_writer)) = (join(left), join(right));
            let mut random = fastrand::Rng::with_seed(n as u64);
            let sent: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(3_000_000).collect();
            let (a, b) = (sent.clone(), sent.clone());
            let writing = tokio::spawn(async move {
                left_writer.write_all(&a).await.unwrap();
                left_writer.shutdown().await.unwrap();
            });
            let back = tokio::spawn(async move {
                for piece in b.chunks(777) {
                    right_writer.write_all(piece).await.unwrap();
                }
                right_writer.shutdown().await.unwrap();
            });
            let (mut there, mut here) = (Vec::new(), Vec::new());
            let (x, y) = tokio::join!(right_reader.read_to_end(&mut there), left_reader.read_to_end(&mut here));
            x.unwrap();
            y.unwrap();
            writing.await.unwrap();
            back.await.unwrap();
            assert!(there == sent && here == sent, "{n}");
        }
    }

    #[tokio::test]
    async fn a_part_that_is_lost_ends_the_whole_and_nothing_is_out_of_order() {
        let (left, mut right) = parts(3);
        let (_reader, mut writer) = join(left);
        // the other side loses one part with what is in it
        right.pop();
        let (mut reader, _writer) = join(right);
        let writing = tokio::spawn(async move {
            for n in 0u32..200_000 {
                if writer.write_all(&n.to_le_bytes()).await.is_err() {
                    return;
                }
            }
        });
        let mut got = Vec::new();
        let _ = reader.read_to_end(&mut got).await;
        writing.abort();
        for (n, bytes) in got.chunks_exact(4).enumerate() {
            assert_eq!(u32::from_le_bytes(bytes.try_into().unwrap()), n as u32);
        }
        assert!(got.len() < 800_000);
    }
}
