/** The box that messages are typed in: grows with its text, counts near the limit, sends on Enter. */

/** From this share of the limit on, the count is shown. */
const COUNT_FROM = 0.9;

const LINES_PX_MAX = 220;

/** Where what is not sent yet outlasts a reload: in this tab, for whom it was typed by. */
const DRAFT = 'chatbox.draft';

export class Composer {
  #limit = 10_000;
  #user = null;

  /**
   * `submit` says whether it has taken the text: else it stays.
   * @param {{form: HTMLFormElement, text: HTMLTextAreaElement, send: HTMLButtonElement, counter: HTMLElement}} elements
   * @param {{submit: (content: string) => boolean, typed: (empty: boolean) => void}} owner
   */
  constructor({ form, text, send, counter }, owner) {
    this.text = text;
    this.send = send;
    this.counter = counter;
    this.owner = owner;
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.#submit();
    });
    text.addEventListener('input', () => {
      this.#changed();
      owner.typed(text.value === '');
    });
    text.addEventListener('keydown', (event) => {
      // While an input method composes, Enter picks a word.
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing || event.keyCode === 229) return;
      event.preventDefault();
      this.#submit();
    });
    this.#changed();
  }

  /** @param {number} characters */
  set limit(characters) {
    this.#limit = characters;
    this.#changed();
  }

  /** Whose text it is, once that is known: theirs of before a reload comes back. @param {string} user_id */
  set user(user_id) {
    if (this.#user === user_id) return;
    this.#user = user_id;
    const draft = kept();
    if (this.text.value === '' && draft?.user_id === user_id) this.text.value = draft.text;
    this.#changed();
  }

  /** Where there is a keyboard, typing may begin at once; on a phone it would cover half the page. */
  focus() {
    if (!matchMedia('(pointer: coarse)').matches) this.text.focus();
  }

  #submit() {
    if (!this.#valid() || !this.owner.submit(this.text.value)) return;
    this.text.value = '';
    this.#changed();
  }

  #valid() {
    return this.text.value.trim() !== '' && this.#count() <= this.#limit;
  }

  /** In characters as the server counts them, not in UTF-16 units. */
  #count() {
    const { value } = this.text;
    return value.length < this.#limit * COUNT_FROM ? value.length : [...value].length;
  }

  #changed() {
    const { text } = this;
    text.style.height = 'auto';
    text.style.height = `${Math.min(text.scrollHeight, LINES_PX_MAX)}px`;
    const count = this.#count();
    const over = count > this.#limit;
    this.counter.hidden = count < this.#limit * COUNT_FROM;
    this.counter.textContent = over
      ? `${(count - this.#limit).toLocaleString()} characters too many`
      : `${(this.#limit - count).toLocaleString()} characters left`;
    this.counter.classList.toggle('over', over);
    text.setAttribute('aria-invalid', String(over));
    this.send.disabled = !this.#valid();
    if (this.#user) keep({ user_id: this.#user, text: text.value });
  }
}

function kept() {
  try {
    return JSON.parse(sessionStorage.getItem(DRAFT));
  } catch {
    return null;
  }
}

function keep(draft) {
  try {
    sessionStorage.setItem(DRAFT, JSON.stringify(draft));
  } catch {
    // The browser blocks storage for this page, or there is no room.
  }
}
