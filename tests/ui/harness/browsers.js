/**
 * Chromium by Playwright and Firefox by Puppeteer (WebDriver BiDi), behind the few verbs that the behaviours need.
 * What `open` gives is in a context of its own, a `tab` of it in the same one; each collects what goes wrong.
 */

import { setTimeout as pause } from 'node:timers/promises';
import { chromium as playwright } from 'playwright-core';
import puppeteer from 'puppeteer-core';

// Far longer than anything takes: the machine may be slow, or stand still for seconds.
const WAIT_MS = 60_000;
const POLL_MS = 25;

const CHROMIUM = process.env.CHROMIUM_BIN ?? '/usr/bin/chromium';
const FIREFOX = process.env.FIREFOX_BIN ?? '/usr/bin/firefox-esr';

const CHROMIUM_FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

/** Runs in the page before anything else: what the content security policy forbids is not always in the console. */
function watchPolicy() {
  globalThis.policyViolations = [];
  document.addEventListener('securitypolicyviolation', (event) => {
    globalThis.policyViolations.push(`${event.violatedDirective}: ${event.blockedURI}`);
  });
}

/** Somewhere a function can run: a page, or a frame within one. */
class Place {
  constructor(raw) {
    this.raw = raw;
  }

  /** Runs a function in the page, with one argument. */
  evaluate(action, argument) {
    return this.raw.evaluate(action, argument);
  }

  /** Waits until a function in the page gives something true, and returns that. */
  async until(condition, argument, ms = WAIT_MS) {
    const deadline = Date.now() + ms;
    let fault;
    for (let late = false; !late; ) {
      late = Date.now() >= deadline;
      // While a page gives way to the next one, nothing can be evaluated.
      const last = await this.evaluate(condition, argument).catch((err) => void (fault = err));
      if (last) return last;
      if (!late) await pause(POLL_MS);
    }
    const seen = await this.evaluate(() => `${document.getElementById('status')?.innerText}\n${document.body.innerText}`);
    throw new Error(`waited ${ms} ms for ${condition} with ${argument}; the page shows:\n${seen}\n${this.told()}`, { cause: fault });
  }

  click(selector) {
    return this.raw.click(selector);
  }

  told() {
    return '';
  }
}

/** One page in one browser. The first page of a context opens more of them by `tab`. */
class Page extends Place {
  /** what the console and the page reported as an error */
  problems = [];
  /** everything that the console was told */
  said = [];

  constructor(raw) {
    super(raw);
    raw.on('console', (message) => {
      const type = typeof message.type === 'function' ? message.type() : message.type;
      this.said.push(message.text());
      if (type === 'error') this.problems.push(message.text());
    });
    raw.on('pageerror', (err) => this.problems.push(String(err)));
  }

  async goto(url) {
    await this.raw.goto(url);
  }

  async reload() {
    await this.raw.reload();
  }

  /** Waits for a frame within the page whose address begins with this. */
  async frame(address) {
    const deadline = Date.now() + WAIT_MS;
    while (Date.now() < deadline) {
      const raw = this.raw.frames().find((frame) => frame !== this.raw.mainFrame() && frame.url().startsWith(address));
      if (raw) return new Place(raw);
      await pause(POLL_MS);
    }
    throw new Error(`no frame of ${address}, have ${this.raw.frames().map((frame) => frame.url())}`);
  }

  told() {
    return `problems: ${this.problems.join('\n')}`;
  }

  type(text) {
    return this.raw.keyboard.type(text);
  }

  press(key) {
    return this.raw.keyboard.press(key);
  }

  async shiftPress(key) {
    await this.raw.keyboard.down('Shift');
    await this.raw.keyboard.press(key);
    await this.raw.keyboard.up('Shift');
  }

  screenshot(path) {
    return this.raw.screenshot({ path });
  }

  /** Errors of the page and of its policy, but for those that a test provokes. @param {RegExp} [expected] */
  async faults(expected = /$^/) {
    const violations = await this.evaluate(() => globalThis.policyViolations);
    return [...this.problems, ...violations].filter((problem) => !expected.test(problem));
  }
}

/** The page that a context begins with: it ends with it. */
const first = (page, context, tab) => Object.assign(page, { tab, close: () => context.close() });

export async function chromium() {
  const browser = await playwright.launch({ executablePath: CHROMIUM, args: CHROMIUM_FLAGS });
  return {
    name: 'Chromium',
    darkness: true,
    async open({ width = 1280, height = 800, dark = false, touch = false, before } = {}) {
      const context = await browser.newContext({
        viewport: { width, height },
        colorScheme: dark ? 'dark' : 'light',
        hasTouch: touch,
        isMobile: touch,
        deviceScaleFactor: touch ? 2 : 1,
      });
      context.setDefaultTimeout(WAIT_MS);
      const tab = async () => {
        const raw = await context.newPage();
        await raw.addInitScript(watchPolicy);
        if (before) await raw.addInitScript(before);
        const page = new Page(raw);
        page.resize = (size) => raw.setViewportSize(size);
        page.close = () => raw.close();
        return page;
      };
      return first(await tab(), context, tab);
    },
    close: () => browser.close(),
  };
}

export async function firefox() {
  const browser = await puppeteer.launch({ browser: 'firefox', executablePath: FIREFOX, headless: true });
  return {
    name: 'Firefox',
    darkness: false,
    async open({ width = 1280, height = 800, before } = {}) {
      const context = await browser.createBrowserContext();
      const tab = async () => {
        const raw = await context.newPage();
        raw.setDefaultTimeout(WAIT_MS);
        await raw.setViewport({ width, height });
        await raw.evaluateOnNewDocument(watchPolicy);
        if (before) await raw.evaluateOnNewDocument(before);
        const page = new Page(raw);
        page.resize = (size) => raw.setViewport(size);
        page.close = () => raw.close();
        return page;
      };
      return first(await tab(), context, tab);
    },
    close: () => browser.close(),
  };
}
