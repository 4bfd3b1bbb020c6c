//! The codec: reading what clients send, writing what they get. Run: `cargo bench --bench codec`.

use std::hint::black_box;

use chatbox::{
    chat::{
        ErrorCode, RequestId, SessionId, TurnId,
        ask::{Attach, Position, UserMessage},
    },
    protocol::{Accepted, AiResponse, ClientFrame, Encoded, Request, ServerFrame, decode, encode_request},
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn requests() -> Vec<(&'static str, Vec<u8>)> {
    let id = Some(RequestId::nil());
    let message = |content: String| {
        let message = UserMessage { session_id: Some(Ok(SessionId::new())), content, ..UserMessage::default() };
        encode_request(&Request { id, frame: ClientFrame::UserMessage(Box::new(message)) })
    };
    let attach = Attach {
        token: Some("x".repeat(300)),
        session_id: Some(Ok(SessionId::new())),
        after_seq: Some(41),
        position: Some(Position { turn_id: TurnId::new(), offset: 1234 }),
        ..Attach::default()
    };
    vec![
        ("ping", encode_request(&Request { id, frame: ClientFrame::Ping })),
        ("attach", encode_request(&Request { id, frame: ClientFrame::Attach(Box::new(attach)) })),
        ("message_200", message("a few words ".repeat(17))),
        ("message_10000", message("ä".repeat(10_000))),
        ("nonsense", b"{\"type\": \"user_message\", \"content\": 7}".to_vec()),
    ]
}

fn reading(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for (name, frame) in requests() {
        group.throughput(Throughput::Bytes(u64::try_from(frame.len()).unwrap_or_default()));
        group.bench_with_input(BenchmarkId::from_parameter(name), &frame, |bencher, frame| {
            bencher.iter(|| decode(black_box(frame)));
        });
    }
    group.finish();
}

fn piece(text: &str) -> ServerFrame {
    ServerFrame::AiResponse(Box::new(AiResponse::piece(SessionId::new(), TurnId::new(), 1234, text.to_owned())))
}

fn size(frame: &ServerFrame) -> u64 {
    u64::try_from(Encoded::new(frame).message().len()).unwrap_or_default()
}

fn writing(criterion: &mut Criterion) {
    let accepted = Accepted {
        re: Some(RequestId::nil()),
        session_id: Some(SessionId::new()),
        seq: Some(42),
        turn_id: Some(TurnId::new()),
        duplicate: false,
    };
    let frames = [
        ("pong", ServerFrame::Pong { re: Some(RequestId::nil()) }),
        ("accepted", ServerFrame::Accepted(accepted)),
        ("error", ServerFrame::error(Some(RequestId::nil()), ErrorCode::NotFound, "there is no such thing")),
        ("piece_40", piece("five words of the answer, then ")),
        ("piece_4000", piece(&"five words of the answer, then ".repeat(130))),
    ];
    let mut group = criterion.benchmark_group("encode");
    for (name, frame) in frames {
        group.throughput(Throughput::Bytes(size(&frame)));
        group.bench_with_input(BenchmarkId::from_parameter(name), &frame, |bencher, frame| {
            bencher.iter(|| Encoded::new(black_box(frame)));
        });
    }
    group.finish();
}

criterion_group!(benches, reading, writing);
criterion_main!(benches);
