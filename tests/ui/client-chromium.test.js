/** What the client does without the chat page, seen in Chromium. */

import { chromium } from './harness/browsers.js';
import { clientBehaviours } from './client-behaviours.js';
import { clientFeatures } from './client-features.js';

clientBehaviours('Chromium', chromium);
clientFeatures('Chromium', chromium);
