/** The menu of a conversation: one for all rows, opened beside the button that asked for it. */

const GAP_PX = 4;

export class Menu {
  #row = null;
  #button = null;

  /** @param {HTMLElement} menu @param {(action: string, row: object) => void} choose */
  constructor(menu, choose) {
    this.menu = menu;
    menu.addEventListener('click', (event) => {
      const action = event.target.closest('[data-action]')?.dataset.action;
      if (!action) return;
      const row = this.#row;
      menu.hidePopover();
      choose(action, row);
    });
    menu.addEventListener('keydown', (event) => this.#pressed(event));
    menu.addEventListener('toggle', ({ newState }) => {
      this.#button?.setAttribute('aria-expanded', String(newState === 'open'));
    });
  }

  /** The actions that can be chosen. */
  get #choices() {
    return [...this.menu.querySelectorAll('[data-action]:not([hidden])')];
  }

  open(row, button) {
    this.#row = row;
    this.#button = button;
    this.menu.querySelector('[data-action=end]').hidden = row.meta.state === 'ended';
    this.menu.showPopover();
    const at = button.getBoundingClientRect();
    const { offsetWidth, offsetHeight } = this.menu;
    const below = at.bottom + GAP_PX + offsetHeight <= innerHeight;
    this.menu.style.left = `${Math.max(GAP_PX, at.right - offsetWidth)}px`;
    this.menu.style.top = `${Math.max(GAP_PX, below ? at.bottom + GAP_PX : at.top - GAP_PX - offsetHeight)}px`;
    this.#choices[0].focus();
  }

  /** Closes the menu of a row that goes. @returns {boolean} whether it was open */
  leave(row) {
    const open = this.#row === row && this.menu.matches(':popover-open');
    if (open) this.menu.hidePopover();
    return open;
  }

  #pressed(event) {
    const choices = this.#choices;
    const at = choices.indexOf(document.activeElement);
    const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
    if (event.key === 'Tab') this.menu.hidePopover();
    if (next === undefined) return;
    event.preventDefault();
    choices.at(next % choices.length).focus();
  }
}
