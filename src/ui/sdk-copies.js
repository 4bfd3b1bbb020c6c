/**
 * Which copies of frames are taken. Where packets get lost the server sends small frames once more, beside their
 * stream; of these only what comes next is taken: the stream has brought the rest, or will. What the stream brings
 * after its copy is dropped like everything that is held already. Knows frames, no connection.
 */

const encoder = new TextEncoder();

/**
 * @param {object} frame
 * @param {object} held what the client holds
 * @param {import('./sdk-log.js').Position} held.position
 * @param {import('./sdk-replies.js').Replies} held.replies
 * @param {(id: string) => boolean} held.awaits whether a message is on its way
 * @returns {boolean} whether the frame is to be taken as if its stream had brought it
 */
export function comesNext(frame, { position, replies, awaits }) {
  const next = () => frame.seq === position.next((seq) => replies.placed(seq));
  switch (frame.type) {
    case 'accepted':
      return awaits(frame.re);
    case 'loading': {
      const turn = replies.find(frame.turn_id);
      return turn ? turn.seq === null : !replies.over(frame.turn_id) && next();
    }
    case 'ai_response':
      return frame.metadata?.streaming === 'false' ? next() : continues(frame, replies.find(frame.turn_id));
    case 'user_message':
      return next();
    default:
      return false;
  }
}

/** Whether a piece, or the last frame, goes on where the text ends. */
function continues({ metadata, offset, content, length }, turn) {
  if (!turn || turn.ended) return false;
  if (metadata?.done === 'true') return turn.length === length;
  return offset <= turn.length && turn.length < offset + encoder.encode(content).length;
}
