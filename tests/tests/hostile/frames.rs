//! Frames: a hundred thousand unrequested ones a second, and lengths that no frame has.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use coroner_tests::report::print;
use protobuf::Message as _;
use tokio::io::AsyncWriteExt as _;
use ttrpc::proto::Response;

use super::fixture::Fixture;
use super::link::frame;
use super::{STREAM, answer, exit};

#[tokio::test(flavor = "multi_thread")]
async fn unrequested_frames_cost_little_at_any_rate() {
    const FLOODERS: usize = 3;
    let mut fixture = Fixture::start("a flood of frames", "").await;
    // Answers that would be an exit of the good guest's container, and every type of frame there
    // is, for calls that were never made: ours have odd numbers.
    let payload = answer(vec![exit(1, "good-1")]).write_to_bytes().unwrap();
    let body = Response { payload, ..Response::default() }.write_to_bytes().unwrap();
    let mut burst = Vec::new();
    for at in 0..1000_u32 {
        let kind = if at % 2 == 0 { 2 } else { u8::try_from(at % 256).unwrap() };
        burst.extend(frame(at * 2, kind, if at % 3 == 0 { &[] } else { &body }));
    }
    let (burst, sent) = (Arc::new(burst), Arc::new(AtomicU64::new(0)));
    let begun = Instant::now();
    let mut flooders = Vec::new();
    for at in 0..FLOODERS {
        let (burst, sent) = (Arc::clone(&burst), Arc::clone(&sent));
        flooders.push(fixture.bad(&format!("bad-{at}"), move |mut link| {
            let (burst, sent) = (Arc::clone(&burst), Arc::clone(&sent));
            async move {
                link.up(STREAM).await?;
                loop {
                    link.0.write_all(&burst).await?;
                    sent.fetch_add(1000, Ordering::Relaxed);
                }
            }
        }));
    }
    fixture.beside(Duration::from_secs(4)).await;
    let rate = sent.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
    print(format_args!(
        "of all they could send, the router took {rate:.0} frames a second from {FLOODERS} guests"
    ));
    assert!(rate < 100_000.0, "it reads them as fast as they come");
    for (at, flooder) in flooders.iter().enumerate() {
        let seen = fixture.guest(&format!("bad-{at}"));
        assert_eq!((&seen["state"], &seen["signals"]), (&"up".into(), &0.into()), "{seen:#}");
        assert_eq!(flooder.links(), 1);
    }
    assert!(fixture.published.of("good-1").exits.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn frame_length_out_of_range_ends_the_link_unbuffered() {
    let mut fixture = Fixture::start("lengths of 4 GB", "").await;
    let lengths = [u32::MAX, 0x7fff_ffff, (4 << 20) - 1, (64 << 10) + 1];
    let mut guests = Vec::new();
    for length in lengths {
        guests.push(fixture.bad(&format!("bad-{length}"), move |mut link| async move {
            // The first before its hello, the others as an answer.
            let call = if length == u32::MAX { link.call().await? } else { link.up(STREAM).await? };
            let mut bytes = frame(call.stream, 2, &[]);
            bytes[..4].copy_from_slice(&length.to_be_bytes());
            link.0.write_all(&bytes).await?;
            loop {
                link.0.write_all(&[0; 4096]).await?;
            }
        }));
    }
    fixture.beside(Duration::from_secs(4)).await;
    for (length, guest) in lengths.iter().zip(guests) {
        let seen = fixture.guest(&format!("bad-{length}"));
        assert_eq!(seen["problem"], "a frame over the limit was refused", "{seen:#}");
        assert!((2..=6).contains(&guest.links()), "{} links in four seconds", guest.links());
    }
}
