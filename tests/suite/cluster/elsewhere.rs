//! What one node began, seen and ended on another one.

use serde_json::json;
use tokio::task::JoinSet;

use super::world::World;
use crate::{
    harness::{ALONE, Client, Via, api::Api, client::Lines, id},
    schedules::plan::{Answer, Rng},
};

/// First messages of one user at the same moment.
const FIRST: usize = 50;

// checklist 67; W2, W3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_on_one_node_is_seen_and_stopped_on_another() {
    let _alone = ALONE.acquire().await.unwrap();
    let Some(world) = World::start(3, 1, |_node| Vec::new()).await else { return };
    for via in [Via::WebTransport, Via::WebSocket] {
        check_that_first_messages_over_three_nodes_make_one_session(&world, via).await;
        check_that_a_running_answer_goes_on_elsewhere(&world, via).await;
        check_that_an_answer_is_stopped_elsewhere(&world, via).await;
    }
}

fn user(does: &str, via: Via) -> String {
    format!("{does}-{via:?}")
}

async fn check_that_first_messages_over_three_nodes_make_one_session(world: &World, via: Via) {
    let user = user("first", via);
    let mut saying = JoinSet::new();
    for number in 0..FIRST {
        let (user, target) = (user.clone(), (*world.node(number % 3)).clone());
        saying.spawn(async move {
            let (mut client, _watch, _status) = Client::attached(&target, via, &user, json!({})).await;
            let answer = Answer::quick(&mut Rng::new(u64::try_from(number).unwrap()));
            client.say(&answer.content()).await.until("accepted").await
        });
    }
    let accepted = saying.join_all().await;
    let session = &accepted[0]["session_id"];
    assert!(accepted.iter().all(|accepted| accepted["session_id"] == *session), "over {via:?}: {accepted:?}");
    let mut places: Vec<_> = accepted.iter().map(|accepted| accepted["seq"].as_u64().unwrap()).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), FIRST, "each has a place of its own");
    for node in 0..3 {
        let sessions = Api::new(world.node(node), &user).get("/sessions").await.body;
        assert_eq!(sessions["sessions"].as_array().map(Vec::len), Some(1), "on node {node}: {sessions}");
    }
}

/// Says something on a node, and reads so many pieces of the answer.
async fn ask(
    world: &World,
    node: usize,
    via: Via,
    user: &str,
    pieces: usize,
) -> (Client, Lines, Answer, serde_json::Value, String) {
    let answer = Answer::slow(&mut Rng::new(7));
    let (mut client, _watch, _status) = Client::attached(world.node(node), via, user, json!({})).await;
    let mut exchange = client.say(&answer.content()).await;
    let accepted = exchange.until("accepted").await;
    let mut text = String::new();
    for _ in 0..pieces {
        text.push_str(exchange.until("ai_response").await["content"].as_str().unwrap());
    }
    (client, exchange, answer, accepted, text)
}

async fn check_that_a_running_answer_goes_on_elsewhere(world: &World, via: Via) {
    let user = user("resume", via);
    let (client, exchange, answer, accepted, text) = ask(world, 0, via, &user, 3).await;
    drop((exchange, client));
    let attach = json!({"session_id": accepted["session_id"], "after_seq": accepted["seq"],
        "turn_id": accepted["turn_id"], "offset": text.len()});
    let (_client, mut watch, _status) = Client::attached(world.node(1), via, &user, attach).await;
    let (whole, last) = watch.reply_from(text).await;
    assert_eq!((whole, &last["state"]), (answer.text(), &json!("complete")), "over {via:?}");
}

async fn check_that_an_answer_is_stopped_elsewhere(world: &World, via: Via) {
    let user = user("stop", via);
    let cut = world.provider.hang_ups();
    let (_client, mut exchange, answer, accepted, text) = ask(world, 1, via, &user, 2).await;
    let attach = json!({"session_id": accepted["session_id"], "after_seq": accepted["seq"]});
    let (mut other, mut watch, _status) = Client::attached(world.node(2), via, &user, attach).await;
    let mut stop = other.exchange(json!({"type": "stop", "id": id(), "turn_id": accepted["turn_id"]})).await;
    stop.until("accepted").await;
    let ((here, ended), (there, end)) = (exchange.reply_from(text).await, watch.reply().await);
    assert_eq!((&ended["state"], &end["state"]), (&json!("stopped"), &json!("stopped")), "over {via:?}");
    assert_eq!((here.as_str(), &ended["length"], &ended["sha256"]), (there.as_str(), &end["length"], &end["sha256"]));
    assert!(answer.text().starts_with(&here) && here.len() < answer.text().len(), "{here:?} is a part");
    world.provider.hung_up(cut + 1).await;
}
