/** What the client does with copies of frames, seen in Chromium. */

import { chromium } from './harness/browsers.js';
import { clientCopies } from './client-copies.js';

clientCopies('Chromium', chromium);
