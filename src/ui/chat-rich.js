/**
 * Finished replies as the server renders them: its sanitised HTML, parsed where nothing runs or loads, and given
 * what only a page can give: copy buttons, and boxes in which wide things scroll.
 */

import { clone, copies, make } from './page-dom.js';

const UNWANTED = 'script, style, iframe, object, embed, link, meta, base, form, svg, math, img, video, audio';

/** An address in a text: to the next space, without what ends a sentence, and with brackets that it opens itself. */
const ADDRESS = /(\bhttps?:\/\/(?:[^\s<>"“”()]|\([^\s<>"“”()]*\))*(?:\([^\s<>"“”()]*\)|[^\s<>"“”.,:;!?'’*_~()[\]{}]))/i;

/**
 * @param {string} html
 * @returns {DocumentFragment}
 */
export function rich(html) {
  const parsed = new DOMParser().parseFromString(html, 'text/html').body;
  // The server lets none of these through; a second wall costs little.
  for (const element of parsed.querySelectorAll(UNWANTED)) element.remove();
  for (const element of parsed.querySelectorAll('*')) {
    for (const { name } of [...element.attributes]) {
      if (name.startsWith('on') || name === 'style') element.removeAttribute(name);
    }
  }
  for (const link of parsed.querySelectorAll('a')) {
    if (/^(https?|mailto):/i.test(link.getAttribute('href') ?? '')) outward(link);
    else link.replaceWith(...link.childNodes);
  }
  linkAddresses(parsed);
  for (const list of parsed.querySelectorAll('ul, ol')) list.dir = 'auto';
  for (const table of parsed.querySelectorAll('table')) scrollable(table, 'Table', 'wide-box');
  for (const block of parsed.querySelectorAll('pre')) code(block);
  for (const box of parsed.querySelectorAll('input[type=checkbox]')) box.disabled = true;
  const fragment = document.createDocumentFragment();
  fragment.append(...parsed.childNodes);
  return fragment;
}

function outward(link) {
  link.target = '_blank';
  link.rel = 'noopener noreferrer nofollow';
}

/** Makes links of addresses that stand in the text as such. */
function linkAddresses(parsed) {
  const texts = document.createTreeWalker(parsed, NodeFilter.SHOW_TEXT);
  const found = [];
  while (texts.nextNode()) {
    if (texts.currentNode.data.includes('://') && !texts.currentNode.parentElement.closest('a, code, pre')) found.push(texts.currentNode);
  }
  for (const text of found) {
    const parts = text.data.split(ADDRESS).map((part, index) => {
      if (index % 2 === 0) return part;
      const link = make('a', { href: part }, part);
      outward(link);
      return link;
    });
    text.replaceWith(...parts);
  }
}

/** What scrolls sideways can be reached and scrolled with the keyboard. */
function scrollable(element, label, className) {
  const box = document.createElement('div');
  box.className = className;
  box.tabIndex = 0;
  box.setAttribute('role', 'group');
  box.setAttribute('aria-label', label);
  element.replaceWith(box);
  box.append(element);
}

function code(block) {
  const figure = clone('code-template');
  const language = /language-([\w+#.-]+)/.exec(block.querySelector('code')?.className ?? '')?.[1];
  figure.querySelector('.language').textContent = language ?? 'code';
  const button = figure.querySelector('.copy');
  const text = block.textContent;
  button.setAttribute('aria-label', 'Copy code');
  copies(button, () => text);
  block.tabIndex = 0;
  block.setAttribute('role', 'group');
  block.setAttribute('aria-label', language ? `Code, ${language}` : 'Code');
  block.replaceWith(figure);
  figure.append(block);
}

