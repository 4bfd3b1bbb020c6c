/** What the chat page and the client do, seen in Firefox. */

import { firefox } from './harness/browsers.js';
import { behaviours } from './behaviours.js';

behaviours('Firefox', firefox);
