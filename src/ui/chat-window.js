/**
 * The part of a long list that has elements, around what is in view. Whatever changes, a reader at the end stays at
 * the end, and one elsewhere keeps what is being read where it is. Knows no messages.
 *
 * An item has `order`, `shown` (its element, made when it is asked for), `element` and `leave()`.
 */

/** How far from the bottom a reader still counts as reading the newest. */
const NEAR_PX = 64;

/** How far above and below the view there are elements at least, and at most. */
const AHEAD_PX = 1500;
const FAR_PX = 4000;

/** How many items get elements at a time, and how many of those that come in one go. */
const STEP = 12;
const BURST_MAX = 48;

/** However low the items are. */
const ITEMS_MAX = 300;

export class LogWindow {
  /** all items, in order */
  items = [];
  #first = 0;
  #last = 0;
  #following = true;
  /** where the end was when it was last gone to */
  #end = 0;
  #held = null;
  #changing = false;
  #stale = false;
  #reached;

  /** @param {() => void} reached called when there is nothing above what the reader comes near to */
  constructor({ log, scroller, newest }, reached) {
    this.log = log;
    this.scroller = scroller;
    this.newest = newest;
    this.#reached = reached;
    scroller.addEventListener('scroll', () => this.#scrolled(), { passive: true });
    newest.addEventListener('click', () => this.toBottom());
    new ResizeObserver(() => this.change(() => {})).observe(scroller);
  }

  /** Makes a change; the place of the reader is kept once for all changes of a task, before anything is painted. */
  change(action) {
    if (!this.#changing) {
      this.#changing = true;
      if (this.#left) this.#following = false;
      this.#held = this.#hold();
      queueMicrotask(() => this.#settle());
    }
    action();
  }

  clear() {
    for (const item of this.items) item.leave();
    this.items = [];
    this.#first = 0;
    this.#last = 0;
    this.#following = true;
    this.log.replaceChildren();
    this.newest.hidden = true;
  }

  /** Puts an item where its order says. */
  place(item, order) {
    if (item.order) this.remove(item, true);
    item.order = order;
    const at = this.#after(order);
    const end = this.#last === this.items.length;
    this.items.splice(at, 0, item);
    this.#stale = true;
    if (at < this.#first || (at === this.#first && at < this.#last)) {
      this.#first += 1;
      this.#last += 1;
    } else if (at < this.#last || end) {
      this.#last += 1;
    }
  }

  /** Where an order belongs: behind everything that does not stand after it. */
  #after(order) {
    let [low, high] = [0, this.items.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (later(this.items[middle].order, order)) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  remove(item, moves = false) {
    const at = this.items.indexOf(item);
    if (at < 0) return;
    this.items.splice(at, 1);
    if (at < this.#first) this.#first -= 1;
    if (at < this.#last) this.#last -= 1;
    this.#stale = true;
    if (moves) return;
    item.element?.remove();
    item.leave();
  }

  /** Goes to the newest, and stays there. At once: a smooth scroll never arrives while text streams. */
  toBottom() {
    this.#following = true;
    this.#held = null;
    this.newest.hidden = true;
    if (this.#last < this.items.length) this.#show(Math.max(0, this.items.length - STEP), this.items.length);
    this.#keep(null);
    this.#fit();
  }

  /** Goes to the first item. */
  toTop() {
    this.#following = false;
    this.#held = null;
    this.#show(0, Math.min(STEP, this.items.length));
    this.scroller.scrollTop = 0;
    this.#fit();
  }

  #settle() {
    this.#changing = false;
    const stale = this.#stale;
    if (stale && this.#following) this.#show(Math.max(this.#first, this.#last - BURST_MAX), this.#last);
    else if (stale) this.#show(this.#first, Math.min(this.#last, this.#first + ITEMS_MAX));
    const held = this.#held;
    this.#held = null;
    this.#keep(held);
    if (stale) this.#fit(held);
  }

  /** Makes the elements of the log those of the window. */
  #reconcile() {
    this.#stale = false;
    let next = this.log.firstElementChild;
    const wanted = this.items.slice(this.#first, this.#last);
    const kept = new Set(wanted.map((item) => item.shown));
    for (const { element } of wanted) {
      while (next && next !== element && !kept.has(next)) {
        const gone = next;
        next = next.nextElementSibling;
        gone.remove();
      }
      if (next === element) next = next.nextElementSibling;
      else this.log.insertBefore(element, next);
    }
    while (next) {
      const gone = next;
      next = next.nextElementSibling;
      gone.remove();
    }
    for (const [index, { element }] of wanted.entries()) {
      element.toggleAttribute('data-last', this.#first + index === this.items.length - 1);
    }
  }

  #show(first, last) {
    for (const item of this.items.slice(this.#first, Math.min(first, this.#last))) item.leave();
    for (const item of this.items.slice(Math.max(last, this.#first), this.#last)) item.leave();
    this.#first = first;
    this.#last = last;
    this.#reconcile();
  }

  /** Whether the reader has left the end, and the event that tells it is still to come. */
  get #left() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    return scrollTop < this.#end - NEAR_PX && scrollHeight - scrollTop - clientHeight > NEAR_PX;
  }

  /**
   * Where the item is that is read, a third down the view; `null` while the reader follows the newest. What comes may
   * belong between the first two items in view, where a reply was held and its neighbours were not.
   */
  #hold() {
    if (this.#following) return null;
    const { top, height } = this.scroller.getBoundingClientRect();
    let held = null;
    for (const element of this.log.children) {
      const box = element.getBoundingClientRect();
      held = { element, top: box.top };
      if (box.bottom > top + height / 3) break;
    }
    return held;
  }

  #keep(held) {
    if (this.#following) {
      this.scroller.scrollTop = this.scroller.scrollHeight;
      this.#end = this.scroller.scrollTop;
    } else if (held?.element.isConnected) {
      const moved = held.element.getBoundingClientRect().top - held.top;
      if (Math.abs(moved) >= 0.5) this.scroller.scrollTop += moved;
    }
  }

  /** Gives elements to what comes near, takes them from what is far; `held` is to be where it was. */
  #fit(held = this.#hold()) {
    const size = this.scroller.clientHeight;
    // Within a frame that is not displayed nothing has a height.
    if (size === 0) return;
    const origin = () => this.scroller.getBoundingClientRect().top;
    const box = (at) => this.items[at].shown.getBoundingClientRect();
    const change = (first, last) => {
      this.#show(first, last);
      this.#keep(held);
    };
    while (this.#first > 0 && box(this.#first).top - origin() > -AHEAD_PX) change(Math.max(0, this.#first - STEP), this.#last);
    while (this.#last < this.items.length && box(this.#last - 1).bottom - origin() < size + AHEAD_PX) {
      change(this.#first, Math.min(this.items.length, this.#last + STEP));
    }
    let [first, last] = [this.#first, this.#last];
    while (first < last - 1 && box(first).bottom - origin() < -FAR_PX && !this.#focused(first)) first += 1;
    while (first < last - 1 && box(last - 1).top - origin() > size + FAR_PX && !this.#focused(last - 1)) last -= 1;
    if (first !== this.#first || last !== this.#last) change(first, last);
    this.#tell();
    if (this.#first === 0 && (this.items.length === 0 || box(0).top - origin() > -AHEAD_PX)) this.#reached();
  }

  #focused(at) {
    return this.items[at].element.contains(document.activeElement);
  }

  #scrolled() {
    this.#tell();
    if (!this.#changing) this.#fit();
  }

  #tell() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.#following = this.#last === this.items.length && scrollHeight - scrollTop - clientHeight < NEAR_PX;
    this.newest.hidden = this.#following;
  }
}

/** Whether an item stands after another one. What has no place in the log yet stands last, in the order it came. */
function later(one, other) {
  if (one.anchor !== other.anchor) return one.anchor > other.anchor;
  if (one.rank !== other.rank && one.anchor !== Infinity) return one.rank > other.rank;
  return one.made > other.made;
}
