//! Keys of a database that nodes share, and their rotation while several of them write.

use futures_util::{TryStreamExt, future::join_all};
use mongodb::{
    Client, Database,
    bson::{Binary, Bson, Document, doc, spec::BinarySubtype},
};

use super::*;
use crate::harness::mongo::Mongo;

/// Names of sealed fields. What has another type under these names is not sealed.
const FIELDS: [&str; 8] = ["name", "content", "files", "metadata", "sha256", "rating_why", "text", "reference"];

/// A database that is opened with one list of keys after another.
struct Base {
    url: String,
    raw: Database,
}

impl Base {
    /// `None` where no server is installed.
    async fn new() -> Option<Self> {
        let name = format!("sealing-{}", RequestId::new_v4().simple());
        let url = Mongo::shared().await?.url(&name);
        let raw = Client::with_uri_str(&url).await.unwrap().database(&name);
        Some(Self { url, raw })
    }

    fn config(&self, keys: &[Key]) -> store::Config {
        store::Config { url: self.url.clone(), encryption_keys: keys.to_vec(), ..store::Config::default() }
    }

    async fn try_open(&self, keys: &[Key]) -> Result<Arc<dyn Store>, OpenError> {
        store::open(&self.config(keys), Path::new("data"), Metrics::new()).await
    }

    async fn open(&self, keys: &[Key]) -> Arc<dyn Store> {
        self.try_open(keys).await.unwrap()
    }

    /// Why it does not open; a mere look says the same.
    async fn refused(&self, keys: &[Key]) -> String {
        let told = self.try_open(keys).await.unwrap_err().to_string();
        let looked = store::inspect(&self.config(keys), Path::new("data")).await.unwrap_err();
        assert_eq!(looked.to_string(), told);
        told
    }

    /// Sealed values of all documents, whatever they are in, by the key that their first bytes name.
    async fn values(&self) -> BTreeMap<u32, u64> {
        let mut values = BTreeMap::new();
        for name in self.raw.list_collection_names().await.unwrap() {
            let all = self.raw.collection::<Document>(&name).find(doc! {}).await.unwrap();
            for document in all.try_collect::<Vec<_>>().await.unwrap() {
                count("", &Bson::Document(document), &mut values);
            }
        }
        values
    }

    /// The content of the first message.
    async fn content(&self) -> Vec<u8> {
        let entry = self.raw.collection::<Document>("entries").find_one(doc! { "seq": 1 }).await.unwrap().unwrap();
        entry.get_binary_generic("content").unwrap().clone()
    }

    async fn set_content(&self, bytes: Vec<u8>) {
        let content = Binary { subtype: BinarySubtype::Generic, bytes };
        let set = doc! { "$set": { "content": content } };
        let changed = self.raw.collection::<Document>("entries").update_one(doc! { "seq": 1 }, set).await.unwrap();
        assert_eq!(changed.matched_count, 1);
    }
}

fn count(name: &str, value: &Bson, values: &mut BTreeMap<u32, u64>) {
    match value {
        Bson::Document(document) => document.iter().for_each(|(name, value)| count(name, value, values)),
        Bson::Array(array) => array.iter().for_each(|value| count(name, value, values)),
        Bson::Binary(stored) if FIELDS.contains(&name) => {
            *values.entry(u32::from_be_bytes(stored.bytes[..4].try_into().unwrap())).or_default() += 1;
        }
        _ => {}
    }
}

fn keys_of(values: &BTreeMap<u32, u64>) -> Vec<u32> {
    values.keys().copied().collect()
}

// checklist 78, 83
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotated_database_opens_with_the_new_key_alone_and_holds_nothing_of_others() {
    let Some(base) = Base::new().await else { return };
    let (old, new) = (key(1, "A"), key(2, "E"));
    let store = base.open(&[]).await;
    let plain = talk(&*store, "ada", "plain").await;
    store.close().await;
    let store = base.open(slice::from_ref(&old)).await;
    let sealed = talk(&*store, "bob", "sealed").await;
    let turn = running(&*store, sealed.session, "bob").await;
    store.close().await;
    // The two pieces of the log lie in the document of its session, and the message too, until it is known that its row
    // is written.
    let values = base.values().await;
    let twice = values[&1] - 12;
    assert!(twice <= 1, "{values:?}");
    assert_eq!(values, [(PLAIN, 9), (1, 12 + twice)].into());
    let told = "the store holds values of encryption key 1, and `store.encryption_keys` has 2: add what is missing";
    assert_eq!(base.refused(slice::from_ref(&new)).await, told);
    let told = "the store holds values of encryption key 1, and `store.encryption_keys` has none: add what is missing";
    assert_eq!(base.refused(&[]).await, told);
    let told = "encryption key 1 is not the one that the store's values were sealed with: the id is, its bytes are not";
    assert_eq!(base.refused(&[new.clone(), key(1, "I")]).await, told);

    let store = base.open(&[new.clone(), old.clone()]).await;
    let with = store.sealed_with().await.unwrap();
    assert_eq!((with.current, with.keys, with.rows), (2, vec![PLAIN, 1, 2], 2 + 5));
    let progress = rotate(&*store).await;
    assert_eq!(
        (progress.state, progress.key, progress.renewed, progress.failed),
        (State::Done, 2, 21 + 2 + twice, 0),
        "what the document carries is written, and then renewed"
    );
    assert_eq!((progress.pass, progress.values), (2, [(2, 21)].into()), "the second pass finds nothing");
    assert_eq!(rotate(&*store).await.pass, 0, "once more costs no look");
    assert_eq!(store.turn_text(turn, 0).await.unwrap().text, "half of it");
    store.close().await;
    assert_eq!(base.values().await, [(2, 21)].into());
    let told = "the store holds values of encryption key 2, and `store.encryption_keys` has 1: add what is missing";
    assert_eq!(base.refused(&[old]).await, told);

    let store = base.open(&[new]).await;
    assert_eq!(log(&*store, plain.session).await, plain.log);
    assert_eq!(log(&*store, sealed.session).await[..2], sealed.log);
    let session = store.session(plain.session).await.unwrap().unwrap();
    assert_eq!(session.name.as_deref(), Some("plain name"));
    let thread = store.thread(sealed.session, MODEL).await.unwrap().unwrap();
    assert_eq!(thread.reference, "sealed thread");
    let share = store.shares_of(&[sealed.session]).await.unwrap().remove(0);
    assert_eq!(share.name.as_deref(), Some("sealed name"));
    assert_eq!(store.sealed_with().await.unwrap().keys, [2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_go_on_writing_during_a_rotation_and_nothing_of_theirs_is_lost() {
    let Some(base) = Base::new().await else { return };
    let (old, new) = (key(1, "A"), key(2, "E"));
    let both = [new.clone(), old.clone()];
    // A node that seals with the old key, and knows the new one already.
    let before = base.open(&[old.clone(), new.clone()]).await;
    let session = talk(&*before, "ada", "first").await.session;
    let user = UserId::parse("ada").unwrap();
    let append = async |store: &dyn Store, text: String| {
        store.append(message(session, &user, &text)).await.unwrap();
    };
    join_all((0..400).map(|nth| append(&*before, format!("old {nth}")))).await;
    let one = base.open(&both).await;
    let mut place = None;
    for _batch in 0..4 {
        place = one.reseal(place, 50).await.unwrap().next;
        assert!(place.is_some());
    }
    // It writes behind the place that the pass has come to, and is then replaced, as by a rolling restart.
    join_all((0..40).map(|nth| append(&*before, format!("late {nth}")))).await;
    let late = talk(&*before, "bob", "late").await;
    before.close().await;
    let two = base.open(&both).await;
    let writes = async |store: &dyn Store, name: &str| {
        for nth in 0..60 {
            append(store, format!("{name} {nth}")).await;
            let rate = Rate { session_id: session, seq: 2, owner: user.clone(), rating: Rating::Down, why: None };
            store.rate(Rate { why: Some(format!("{name} {nth}")), ..rate }).await.unwrap();
        }
    };
    let (progress, (), ()) = tokio::join!(rotate(&*one), writes(&*one, "one"), writes(&*two, "two"));
    assert_eq!((progress.state, progress.failed), (State::Done, 0));
    let texts = log(&*two, session).await;
    for (prefix, number) in [("old ", 400), ("late ", 40), ("one ", 60), ("two ", 60)] {
        assert_eq!(texts.iter().filter(|entry| entry.content.starts_with(prefix)).count(), number, "{prefix}");
    }
    assert_eq!(texts.len(), 562);
    join_all([one.close(), two.close()]).await;
    assert_eq!(keys_of(&base.values().await), [2]);
    let told = "the store holds values of encryption key 2, and `store.encryption_keys` has 1: add what is missing";
    assert_eq!(base.refused(&[old]).await, told);
    let store = base.open(&[new]).await;
    assert_eq!(log(&*store, session).await, texts);
    assert_eq!(log(&*store, late.session).await, late.log);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_that_comes_during_a_rotation_is_not_forgotten_by_it() {
    let Some(base) = Base::new().await else { return };
    let keys = [key(3, "I"), key(2, "E"), key(1, "A")];
    let first = base.open(&keys[2..]).await;
    talk(&*first, "ada", "first").await;
    first.close().await;
    let second = base.open(&keys[1..]).await;
    let mut place = second.reseal(None, 1).await.unwrap().next;
    let third = base.open(&keys).await;
    while place.is_some() {
        place = second.reseal(place, 1).await.unwrap().next;
    }
    second.retire_keys().await.unwrap();
    assert_eq!(third.sealed_with().await.unwrap().keys, [2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_start_at_once_with_different_keys_do_not_both_start() {
    let Some(base) = Base::new().await else { return };
    let (old, new) = ([key(1, "A")], [key(2, "E")]);
    let (one, two) = tokio::join!(base.try_open(&old), base.try_open(&new));
    assert!(one.is_err() || two.is_err());
    let Some(base) = Base::new().await else { return };
    let (one, two) = tokio::join!(base.try_open(&old), base.try_open(&old));
    assert_eq!(one.unwrap().sealed_with().await.unwrap(), two.unwrap().sealed_with().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_moved_or_plain_ciphertext_is_an_error_and_keeps_its_key_needed() {
    let Some(base) = Base::new().await else { return };
    let keys = [key(2, "E"), key(1, "A")];
    let store = base.open(&keys[1..]).await;
    let Talk { session, log: before } = talk(&*store, "ada", "first").await;
    let content = base.content().await;
    let reply = base.raw.collection::<Document>("entries").find_one(doc! { "seq": 2 }).await.unwrap().unwrap();
    let moved = reply.get_binary_generic("content").unwrap().clone();
    let changed = "it is not what encryption key 1, which is configured, sealed there";
    for (bytes, why) in [
        (moved, changed),
        (content[..content.len() - 1].to_vec(), changed),
        ([&[0, 0, 0, 255], &content[4..]].concat(), "its encryption key 255 is not configured"),
        (b"\0\0\0\0forged".to_vec(), "it is plain text, which this store holds no more"),
        (b"A".to_vec(), "it is shorter than a sealed value"),
    ] {
        base.set_content(bytes).await;
        let error = store.entries(session, Range::Last(9)).await.unwrap_err().to_string();
        let what = format!("stored entries.content of row {} does not open: {why}", before[0].id.0.simple());
        assert_eq!(error, what);
    }
    store.close().await;
    base.set_content(content[..content.len() - 1].to_vec()).await;
    let store = base.open(&keys).await;
    let progress = rotate(&*store).await;
    assert_eq!((progress.state, progress.renewed, progress.failed), (State::Incomplete, 8, 1));
    assert_eq!(progress.values, [(1, 1), (2, 8)].into());
    store.close().await;
    assert!(base.refused(&keys[..1]).await.contains("values of encryption key 1,"), "it must be kept");
    base.set_content(content).await;
    let store = base.open(&keys).await;
    assert_eq!(rotate(&*store).await.state, State::Done);
    assert_eq!(log(&*store, session).await, before);
}
