//! The text of a running turn: its chunks, and those that a commit implies and nobody has written yet.

use std::{collections::BTreeMap, ops::Range};

use mongodb::bson::doc;
use tokio::time::Instant;

use super::{
    super::{Error, Result, TurnText},
    lane::Shared,
    link::{Find, Table},
    rows::{self, ChunkRow, Row},
    values,
};
use crate::chat::TurnId;

/// What the chunks of a turn hold in a range of offsets. A beginning inside a character moves back to its beginning.
///
/// # Errors
/// `Database` when a chunk is missing.
pub(super) async fn text(
    shared: &Shared,
    turn: TurnId,
    range: Range<u64>,
    redo: &[Row],
    deadline: Instant,
) -> Result<TurnText> {
    let name = |offset| values::binary(&values::chunk_row(turn, offset));
    let mut carried = rows::of_table::<ChunkRow>(redo, Table::TurnChunks)?;
    carried.retain(|chunk| chunk.id == name(chunk.offset));
    let mut found = Vec::new();
    // A document carries the end of a log.
    if carried.iter().all(|chunk| chunk.offset > range.start) {
        let mut find = Find::of(doc! { "_id": { "$gte": name(0), "$lte": name(range.start) } });
        (find.sort, find.limit) = (Some(doc! { "_id": -1 }), 1);
        let mut stored = shared.link.find(Table::TurnChunks, &find, deadline).await?;
        let mut find = Find::of(doc! { "_id": { "$gt": name(range.start), "$lt": name(range.end) } });
        find.sort = Some(doc! { "_id": 1 });
        stored.extend(shared.link.find(Table::TurnChunks, &find, deadline).await?);
        found = stored.iter().map(values::row::<ChunkRow>).collect::<Result<_>>()?;
    }
    let found = found.into_iter().chain(carried).filter(|chunk| chunk.offset < range.end);
    let chunks: BTreeMap<_, _> = found.map(|chunk| (chunk.offset, chunk.text)).collect();
    // The one that the range begins in may be an older one of the redo.
    let first = chunks.range(..=range.start).next_back().map_or(range.start, |(offset, _text)| *offset);
    let mut found: Option<TurnText> = None;
    for (offset, sealed) in chunks.range(first..) {
        let place = values::chunk_row(turn, *offset);
        let text = shared.seal.open_text(values::chunk_place(&place), &sealed.bytes)?;
        match &mut found {
            Some(found) if found.offset + length(&found.text) == *offset => found.text.push_str(&text),
            Some(_) => return Err(gap(turn)),
            None => {
                let into = usize::try_from(range.start.saturating_sub(*offset)).unwrap_or(usize::MAX);
                let skip = text.floor_char_boundary(into);
                let rest = text.get(skip..).unwrap_or_default().to_owned();
                found = Some(TurnText { offset: offset + u64::try_from(skip).unwrap_or_default(), text: rest });
            }
        }
    }
    let found = found.unwrap_or(TurnText { offset: range.start, text: String::new() });
    if found.offset > range.start || found.offset + length(&found.text) < range.end {
        return Err(gap(turn));
    }
    Ok(found)
}

fn length(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

fn gap(turn: TurnId) -> Error {
    Error::Database(format!("the log of turn {turn} has a gap").into())
}
