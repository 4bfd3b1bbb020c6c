//! The loss lab's own parts: what its link does to packets, and that a short run on a real lossy link delivers every
//! byte over both transports.

use std::{path::Path, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::harness::ALONE;

#[path = "../lab/experiment.rs"]
mod experiment;
#[path = "../lab/link.rs"]
mod link;
#[path = "../lab/network.rs"]
mod network;
#[path = "../lab/plot.rs"]
mod plot;
#[path = "../lab/report.rs"]
mod report;
#[path = "../lab/router.rs"]
mod router;
#[path = "../lab/server.rs"]
mod server;
#[path = "../lab/source.rs"]
mod source;
#[path = "../lab/text.rs"]
mod text;
#[path = "../lab/watch.rs"]
mod watch;

use experiment::{Load, Plan, Variant};
use link::{Fate, HELD_BACK, Link, Loss, Settings};
use report::{Latencies, Report, Run};

const PACKETS: usize = 100_000;
const MILLISECOND: Duration = Duration::from_millis(1);

/// The fates of equal packets, one in each millisecond.
fn fates(settings: Settings, seed: u64) -> Vec<(Duration, Fate)> {
    let mut link = Link::new(settings, seed);
    let times = (0..).map(|number| MILLISECOND * number);
    times.take(PACKETS).map(|now| (now, link.offer(now, 1000))).collect()
}

fn share(fates: &[(Duration, Fate)], of: Fate) -> f64 {
    let count = fates.iter().filter(|(_, fate)| *fate == of).count();
    f64::from(u32::try_from(count).unwrap()) / f64::from(u32::try_from(fates.len()).unwrap())
}

/// Lengths of the runs of lost packets.
fn bursts(fates: &[(Duration, Fate)]) -> Vec<usize> {
    let runs = fates.chunk_by(|(_, a), (_, b)| (*a == Fate::Lost) == (*b == Fate::Lost));
    runs.filter(|run| run[0].1 == Fate::Lost).map(<[_]>::len).collect()
}

fn mean(lengths: &[usize]) -> f64 {
    let sum: usize = lengths.iter().sum();
    f64::from(u32::try_from(sum).unwrap()) / f64::from(u32::try_from(lengths.len()).unwrap())
}

#[test]
fn independent_losses_are_as_many_as_set_and_mostly_single() {
    for (percent, seed) in [(1.0, 1), (2.0, 2), (5.0, 3)] {
        let set = percent / 100.0;
        let fates = fates(Settings { loss: Loss::Independent(set), ..Settings::default() }, seed);
        let lost = share(&fates, Fate::Lost);
        // Five standard deviations of a binomial share of 100,000.
        let bound = 5.0 * (set * (1.0 - set) / 100_000.0_f64).sqrt();
        assert!((lost - set).abs() < bound, "{lost} lost at {set}");
        let length = mean(&bursts(&fates));
        assert!((length - 1.0 / (1.0 - set)).abs() < 0.02, "runs of {length} at {set}");
    }
}

#[test]
fn bursts_have_the_length_and_the_share_that_is_set() {
    let loss = Loss::Bursts { share: 0.02, length: 4.0 };
    let fates = fates(Settings { loss, ..Settings::default() }, 4);
    let (lost, length) = (share(&fates, Fate::Lost), mean(&bursts(&fates)));
    assert!((lost - 0.02).abs() < 0.004, "{lost} lost");
    assert!((length - 4.0).abs() < 0.5, "bursts of {length}");
}

#[test]
fn the_same_seed_gives_the_same_fates_and_another_seed_others() {
    let settings = Settings { loss: Loss::Independent(0.05), jitter: MILLISECOND * 5, ..Settings::default() };
    assert_eq!(fates(settings.clone(), 7), fates(settings.clone(), 7));
    assert_ne!(fates(settings.clone(), 7), fates(settings, 8));
}

#[test]
fn a_constant_delay_is_exact() {
    let fates = fates(Settings { delay: MILLISECOND * 40, ..Settings::default() }, 1);
    assert!(fates.iter().all(|(sent, fate)| *fate == Fate::Arrives(*sent + MILLISECOND * 40)));
}

#[test]
fn jitter_delays_within_its_bound_and_keeps_the_order() {
    let fates = fates(Settings { delay: MILLISECOND * 40, jitter: MILLISECOND * 8, ..Settings::default() }, 1);
    let arrivals: Vec<_> = fates
        .iter()
        .map(|(sent, fate)| match fate {
            Fate::Arrives(at) => (*sent, *at),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(arrivals.is_sorted_by_key(|(_, at)| *at));
    let delays: Vec<_> = arrivals.iter().map(|(sent, at)| *at - *sent).collect();
    let (least, most) = (delays.iter().min().unwrap(), delays.iter().max().unwrap());
    assert!(*least >= MILLISECOND * 40 && *most <= MILLISECOND * 48, "{least:?} to {most:?}");
    assert!(*most - *least > MILLISECOND * 6, "{least:?} to {most:?}");
}

#[test]
fn so_many_packets_are_overtaken_as_is_set() {
    let fates = fates(Settings { reorder: 0.1, ..Settings::default() }, 1);
    let held = fates.iter().filter(|(sent, fate)| *fate == Fate::Arrives(*sent + HELD_BACK)).count();
    assert!((9_500..10_500).contains(&held), "{held} of 100,000 held back");
    let passed = fates.iter().filter(|(sent, fate)| *fate == Fate::Arrives(*sent)).count();
    assert_eq!(held + passed, PACKETS);
}

#[test]
fn a_bottleneck_sends_at_its_rate_and_drops_what_finds_no_room() {
    // 1,000 bytes in each millisecond meet a rate of half of it, and a queue of ten packets.
    let settings = Settings { rate: Some(500_000.0), queue: 10_000, ..Settings::default() };
    let fates = fates(settings, 1);
    let arrivals: Vec<_> = fates
        .iter()
        .filter_map(|(sent, fate)| if let Fate::Arrives(at) = fate { Some((*sent, *at)) } else { None })
        .collect();
    let pauses = arrivals.windows(2).map(|pair| pair[1].1 - pair[0].1);
    assert!(pauses.clone().all(|pause| pause == MILLISECOND * 2), "{:?}", pauses.max());
    let longest = arrivals.iter().map(|(sent, at)| *at - *sent).max().unwrap();
    assert_eq!(longest, MILLISECOND * 20, "a queue of ten packets at 2 ms each");
    let dropped = share(&fates, Fate::Overflown);
    assert!((dropped - 0.5).abs() < 0.001, "{dropped} dropped");
}

#[test]
fn a_cut_lets_nothing_pass_and_ends() {
    let cut = MILLISECOND * 100..MILLISECOND * 200;
    let fates = fates(Settings { cut: Some(cut.clone()), ..Settings::default() }, 1);
    for (sent, fate) in fates {
        let expected = if cut.contains(&sent) { Fate::Cut } else { Fate::Arrives(sent) };
        assert_eq!(fate, expected, "at {sent:?}");
    }
}

#[test]
fn percentiles_are_the_nearest_ranks_and_late_is_above_the_bound() {
    let arrivals: Vec<_> = (1..=1000).rev().map(|number| MILLISECOND * number).collect();
    let latencies = Latencies::of(&arrivals, MILLISECOND * 40);
    let Latencies { n, p50, p90, p99, p999, most, late, .. } = latencies;
    assert_eq!((n, p50, p90, p99, p999, most, late), (1000, 500.0, 900.0, 990.0, 999.0, 1000.0, 0.94));
}

const LOAD: Load = Load {
    seconds: Duration::from_secs(6),
    answers: 2,
    piece_rate: 50,
    piece_bytes: 100,
    message_rate: 20,
    message_bytes: 200,
};

/// Runs both transports on a link that loses packets each way.
fn lossy() -> Option<experiment::Outcome> {
    let way = Settings { loss: Loss::Independent(0.02), delay: MILLISECOND * 40, ..Settings::default() };
    let plan = Plan {
        ways: [way.clone(), way],
        seed: 1,
        load: LOAD,
        variants: vec![Variant::Bbr, Variant::Streams],
        binary: Path::new(env!("CARGO_BIN_EXE_chatbox")).to_owned(),
    };
    let network = match experiment::network(&plan) {
        Ok(network) => network,
        Err(err) => {
            println!("skipped: no network namespaces here: {err:#}");
            return None;
        }
    };
    Some(experiment::run(&plan, &network, &CancellationToken::new()).expect("everything arrives as it was sent"))
}

// The clients compare each byte, and the length and hash of each answer; a difference is an error of the run.
#[tokio::test]
async fn every_byte_arrives_over_both_transports_on_a_link_that_loses_packets() {
    let _alone = ALONE.acquire().await.unwrap();
    let Some(outcome) = tokio::task::spawn_blocking(lossy).await.unwrap() else { return };
    assert_eq!(outcome.arrivals.len(), 2);
    for (variant, arrivals) in &outcome.arrivals {
        assert_eq!((arrivals.pieces.len(), arrivals.messages.len()), (600, 120), "{variant}");
        let soonest = arrivals.pieces.iter().chain(&arrivals.messages).min().unwrap();
        assert!(*soonest >= MILLISECOND * 40, "{variant}: {soonest:?} on a link of 40 ms");
    }
    for way in outcome.tallies {
        for tally in [way.tcp, way.udp] {
            let lost = report::ratio(usize::try_from(tally.lost).unwrap(), usize::try_from(tally.carried()).unwrap());
            assert!((0.002..0.06).contains(&lost), "{lost} of {} packets lost", tally.carried());
        }
        assert!(way.largest <= 1500, "a packet of {} bytes", way.largest);
    }
    told(outcome);
}

/// What the bench makes of a run.
fn told(outcome: experiment::Outcome) {
    let run = Run::of("a link".to_owned(), 0.02, outcome, &LOAD, MILLISECOND * 40);
    assert_eq!(run.congestion, ["bbr"], "TCP's congestion control as the kernel tells");
    let table = run.to_string();
    let (command, kernel) = ("a command".to_owned(), String::new());
    let report = Report { command, kernel, load: LOAD, absent: "", runs: vec![run] };
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json.pointer("/runs/0/rows/1/messages/n"), Some(&serde_json::json!(120)), "{json}");
    let page = plot::page(&report).unwrap();
    assert_eq!(page.matches("<svg").count(), 2);
    assert!(page.contains(&table), "the page shows the table");
    for outside in ["src=", "href=", "url(", "<script"] {
        assert!(!page.contains(outside), "the page fetches: {outside}");
    }
}
