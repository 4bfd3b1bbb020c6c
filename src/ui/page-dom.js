/** What the pages build their DOM with. Values go in as text, never as markup. */

const SVG = 'http://www.w3.org/2000/svg';

/** @param {string} id @returns {HTMLElement} */
export const $ = (id) => document.getElementById(id);

/** Whether the pictures are part of the page. */
let drawn = false;

/** Without the server, a picture that is not on the page yet could not be loaded. */
async function drawPictures() {
  const response = await fetch('page-icons.svg');
  if (!response.ok) return;
  const pictures = new DOMParser().parseFromString(await response.text(), 'image/svg+xml').documentElement;
  for (const symbol of pictures.children) symbol.id = `icon-${symbol.id}`;
  pictures.setAttribute('hidden', '');
  document.body.append(pictures);
  drawn = true;
}

drawPictures().catch(() => {});

function picture(use, name) {
  use.setAttribute('href', drawn ? `#icon-${name}` : `page-icons.svg#${name}`);
}

/** The element of a template of the page. @param {string} template its id */
export function clone(template) {
  const element = $(template).content.firstElementChild.cloneNode(true);
  for (const use of element.querySelectorAll('use')) picture(use, use.getAttribute('href').split('#')[1]);
  return element;
}

/**
 * An element with properties (names with a dash are attributes) and children.
 * @param {string} tag
 * @param {Record<string, unknown>} [properties]
 * @param {...(Node | string)} children
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes('-') || name === 'for') element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** A picture of `page-icons.svg`. @param {string} name */
export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg');
  const use = document.createElementNS(SVG, 'use');
  svg.setAttribute('aria-hidden', 'true');
  picture(use, name);
  svg.append(use);
  return svg;
}

/** Words for screen readers alone. @param {string} words */
export function hidden(words) {
  return make('span', { className: 'hidden' }, words);
}

/** A copy button that says what came of it; gone where a page may not write to the clipboard. */
export function copies(button, text) {
  if (!navigator.clipboard) {
    button.remove();
    return;
  }
  const label = button.querySelector('span');
  const words = label.textContent;
  let timer;
  button.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(text());
      label.textContent = 'Copied';
    } catch {
      label.textContent = 'Not allowed';
    }
    clearTimeout(timer);
    timer = setTimeout(() => (label.textContent = words), 2000);
  });
}
