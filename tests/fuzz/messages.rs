//! Messages in both directions: what decodes is encoded as it was understood, and is not larger than what has arrived warrants.

use mysql_refreshd::mutate;
use mysql_refreshd::wire::frame::MAX_PAYLOAD;
use mysql_refreshd::wire::message::{DestinationRequest, Down, Entry, Lanes, SourceRequest, Up, decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{alone, measured, samples};

/// The largest value that one byte can stand for: an empty text in a list costs a byte on the wire, and its place in a growing list
/// (old and new at once) in memory.
const SWELLS: usize = 80;

/// What may be set aside for a list whose length is announced before anything of it has been read: serde's own limit.
const AHEAD: usize = 1 << 20;

/// Decodes, and holds what comes out against what went in.
fn judge<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let payload = samples::shared(bytes);
    let (decoded, most) = measured(|| decode::<T>(&payload));
    assert!(most <= SWELLS * bytes.len() + AHEAD + 4096, "{most} bytes for a message of {}", bytes.len());
    let Ok(value) = decoded else { return };
    // what was understood is what is passed on: numbers and lengths may have been written at greater length
    let once = encode(&value).unwrap().payload;
    assert!(once.len() <= bytes.len());
    let again = encode(&decode::<T>(&once).unwrap()).unwrap().payload;
    assert_eq!(once, again);
}

fn judge_all(bytes: &[u8]) {
    judge::<Up>(bytes);
    judge::<Down<SourceRequest>>(bytes);
    judge::<Down<DestinationRequest>>(bytes);
    judge::<Entry>(bytes);
    judge::<Lanes>(bytes);
}

#[test]
fn every_message_comes_back_as_it_was() {
    fn check<T: Serialize + DeserializeOwned + std::fmt::Debug>(messages: &[T]) {
        for message in messages {
            let payload = encode(message).unwrap().payload;
            let back: T = decode(&payload).unwrap();
            // secrets do not show in the one and do in the other
            assert_eq!(format!("{back:?}"), format!("{message:?}"));
            assert_eq!(encode(&back).unwrap().payload, payload);
            let longer = [&payload[..], &[0]].concat();
            assert!(decode::<T>(&longer.into()).is_err(), "bytes behind {message:?}");
            for cut in 0..payload.len() {
                assert!(decode::<T>(&payload.slice(..cut)).is_err(), "the first {cut} bytes of {message:?}");
            }
        }
    }
    let _alone = alone();
    check(&samples::ups());
    check(&samples::downs(samples::source_requests()));
    check(&samples::downs(samples::destination_requests()));
    check(&samples::entries());
}

#[test]
fn a_message_of_nothing_but_lengths_stays_small() {
    let _alone = alone();
    // as many lists, one in another, as one message can announce
    for first in 0..40u8 {
        for fill in [0u8, 1, 0x7f, 0x80, 0xff] {
            for len in [64, MAX_PAYLOAD] {
                let mut bytes = vec![fill; len];
                bytes[0] = first;
                judge_all(&bytes);
                bytes[1] = 0;
                bytes[2] = first;
                judge_all(&bytes);
            }
        }
    }
}

#[test]
fn damaged_messages() {
    let _alone = alone();
    let corpus = samples::encoded();
    mutate::run("messages", move |rng| {
        judge_all(&mutate::bytes(rng, &corpus));
    });
}
