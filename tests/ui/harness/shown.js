/** What the page shows. Each function runs in the page, so none may use anything from outside itself. */

export const connectedOver = (transport) => {
  const { state, transport: used } = document.getElementById('status').dataset;
  return state === 'connected' && used === transport;
};

export const status = () => document.getElementById('status').textContent.trim();

export const announced = () => document.getElementById('announcer').textContent;

export const streamed = () => document.querySelector('.streaming')?.textContent;

export const ownState = (state) => [...document.querySelectorAll('.own')].at(-1)?.dataset.state === state;

export const finished = (replies) =>
  document.querySelectorAll('.reply[aria-busy=false]').length === replies &&
  document.querySelectorAll('.reply').length === replies;

export const listLength = () => [...document.querySelectorAll('.reply')].at(-1).querySelectorAll('ol > li').length;

export const rendered = () => ({
  headings: document.querySelectorAll('.reply :is(h3, h4)').length,
  tables: document.querySelectorAll('.reply table').length,
  code: document.querySelectorAll('.reply pre > code').length,
  streaming: document.querySelectorAll('.streaming').length,
});

export const transcript = () =>
  [...document.querySelectorAll('.bubble, .reply .body')].map((element) => element.textContent);

export const secretsKept = () =>
  [...Object.values({ ...localStorage }), ...Object.values({ ...sessionStorage }), document.cookie, location.href]
    .filter((value) => value.includes('eyJ'))
    .join();

export const fromBottom = () => {
  const { scrollHeight, scrollTop, clientHeight } = document.getElementById('scroller');
  return scrollHeight - scrollTop - clientHeight;
};

/** Elements that stick out to the right, but for those within a box that scrolls by itself. */
export const tooWide = () => {
  const within = (element) => element.closest('pre, .wide-box') && !element.matches('pre, .wide-box');
  const width = document.documentElement.clientWidth;
  return [...document.querySelectorAll('body *')]
    .filter((element) => !within(element) && element.getBoundingClientRect().right > width + 0.5)
    .map((element) => `${element.tagName}.${element.className}`);
};

export const focused = () => {
  const { activeElement } = document;
  const name = activeElement.id || activeElement.className;
  return getComputedStyle(activeElement).outlineStyle === 'none' ? `${name} without a visible focus` : name;
};
