/** How the pages write times: short, in the reader's language. */

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: 'short' });
const calendar = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'short' });
const day = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium' });
const relative = new Intl.RelativeTimeFormat(undefined, { numeric: 'auto', style: 'short' });

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;

/** From this age on a date says more than a count of days. */
const RELATIVE_DAYS_MAX = 7;

/** Fills a `<time>`: the time of today, date and time before; hides it without one. */
export function time(element, timestamp) {
  element.hidden = !timestamp;
  if (!timestamp) return;
  const date = new Date(timestamp);
  const today = date.toDateString() === new Date().toDateString();
  element.dateTime = date.toISOString();
  element.textContent = today ? clock.format(date) : calendar.format(date);
}

/** Fills a `<time>` with how long ago it was. Said again, it counts on. */
export function ago(element, timestamp) {
  const date = new Date(timestamp);
  const words = since(date, Date.now());
  if (element.textContent !== words) element.textContent = words;
  element.dateTime = date.toISOString();
  element.title = calendar.format(date);
}

function since(date, now) {
  // A server's clock may be ahead a little.
  const age = Math.max(0, now - date);
  if (age < MINUTE_MS) return 'just now';
  if (age < HOUR_MS) return relative.format(-Math.floor(age / MINUTE_MS), 'minute');
  if (age < DAY_MS) return relative.format(-Math.floor(age / HOUR_MS), 'hour');
  const days = Math.floor(age / DAY_MS);
  return days < RELATIVE_DAYS_MAX ? relative.format(-days, 'day') : day.format(date);
}

/** Date and time in full. @param {string} timestamp */
export function written(timestamp) {
  return calendar.format(new Date(timestamp));
}
