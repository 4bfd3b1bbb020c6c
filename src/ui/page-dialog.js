/** Dialogs: one at a time, closed by Escape, with the focus back where it was. */

import { icon, make } from './page-dom.js';

let made = 0;

/**
 * Opens a dialog.
 * @param {string} title
 * @param {(close: (value?: string) => void) => Node[]} content what is below the title
 * @returns {Promise<string>} what it was closed with; empty when it was dismissed
 */
export function openDialog(title, content) {
  return new Promise((resolve) => {
    made += 1;
    const id = `dialog-title-${made}`;
    const dialog = make('dialog', { 'aria-labelledby': id });
    const close = (value = '') => dialog.close(value);
    const leave = make('button', { type: 'button', className: 'icon close', 'aria-label': 'Close', onclick: () => close() }, icon('close'));
    const form = make('form', {}, leave, make('h2', { id }, title), ...content(close));
    form.addEventListener('submit', (event) => event.preventDefault());
    dialog.append(form);
    // A click beside the dialog is one on its backdrop.
    dialog.addEventListener('click', (event) => event.target === dialog && close());
    dialog.addEventListener('close', () => {
      dialog.remove();
      resolve(dialog.returnValue);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Asks before something that cannot be undone. @returns {Promise<boolean>} */
export async function confirmed(title, words, action) {
  const answer = await openDialog(title, (close) => [
    make('p', { className: 'muted' }, words),
    make(
      'div',
      { className: 'buttons' },
      make('button', { type: 'button', className: 'outline', autofocus: true, onclick: () => close() }, 'Cancel'),
      make('button', { type: 'button', className: 'solid danger', onclick: () => close('yes') }, action),
    ),
  ]);
  return answer === 'yes';
}
