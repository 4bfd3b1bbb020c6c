//! The shared database when its primary ends or stops in the middle of writes: what was acknowledged is there, once.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chatbox::{
    metrics::Metrics,
    store::{self, Error, NewEntry, Store},
};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

use super::{Room, places};
use crate::harness::{ALONE, mongo::Mongo};

const WRITERS: usize = 8;
const MESSAGES: usize = 30;
/// Longer than any outage here lasts, on a machine that is slow, too.
const OUTAGE_MAX: Duration = Duration::from_secs(180);

async fn open(set: &Mongo) -> Arc<dyn Store> {
    let config = store::Config { url: set.url("chat"), ..store::Config::default() };
    store::open(&config, "data".as_ref(), Metrics::new()).await.unwrap()
}

/// Appends, as a client does that hears nothing: the same request again, until it is answered.
async fn until_answered(store: &dyn Store, entry: &NewEntry) -> u64 {
    loop {
        match store.append(entry.clone()).await {
            Ok(appended) => return appended.entry.seq,
            Err(Error::Overloaded) => {}
            Err(err) => panic!("{err}: {err:?}"),
        }
    }
}

/// Writers on two nodes, and `outage` once the first messages are acknowledged.
async fn nothing_is_lost_or_doubled(set: &mut Mongo, outage: impl AsyncFnOnce(&mut Mongo)) {
    let stores = [open(set).await, open(set).await];
    let room = Arc::new(Room::new(Arc::clone(&stores[0])).await.next(1).await);
    let (told, mut acknowledged) = mpsc::channel(WRITERS * MESSAGES);
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (room, store, told) = (Arc::clone(&room), Arc::clone(&stores[writer % 2]), told.clone());
        writers.spawn(async move {
            for nth in 0..MESSAGES {
                let text = format!("{writer}.{nth}");
                let seq = until_answered(&*store, &room.entry(&text)).await;
                told.send((seq, text)).await.unwrap();
            }
        });
    }
    drop(told);
    let mut all = BTreeMap::new();
    while all.len() < WRITERS * 2 {
        let one = timeout(OUTAGE_MAX, acknowledged.recv()).await.expect("messages are acknowledged");
        all.extend([one.expect("writers go on")]);
    }
    outage(set).await;
    let rest = async {
        while let Some(one) = acknowledged.recv().await {
            all.insert(one.0, one.1);
        }
    };
    timeout(OUTAGE_MAX, rest).await.expect("the set comes back");
    writers.join_all().await;
    let log = room.log().await;
    assert_eq!(places(&log), (1..=u64::try_from(WRITERS * MESSAGES).unwrap()).collect::<Vec<_>>());
    let stored: BTreeMap<_, _> = log.into_iter().map(|entry| (entry.seq, entry.content)).collect();
    assert_eq!(stored, all);
    assert_eq!(room.row().await.counters.entries, u64::try_from(all.len()).unwrap());
}

// checklist 67, 75, W6, W7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn primary_that_is_killed_or_stopped_costs_no_message_and_doubles_none() {
    let _alone = ALONE.acquire().await.unwrap();
    let Some(mut set) = Mongo::replica_set_on_disk(3).await else { return };
    nothing_is_lost_or_doubled(&mut set, async |set| {
        let primary = set.primary().await;
        set.kill(primary);
        assert_ne!(set.primary().await, primary);
        set.restart(primary).await;
    })
    .await;
    nothing_is_lost_or_doubled(&mut set, async |set| {
        let primary = set.primary().await;
        set.stop(primary);
        assert_ne!(set.other_primary(primary).await, primary);
        set.cont(primary);
    })
    .await;
}
