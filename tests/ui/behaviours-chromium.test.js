/** What the chat page and the client do, seen in Chromium. */

import { chromium } from './harness/browsers.js';
import { behaviours } from './behaviours.js';

behaviours('Chromium', chromium);
