/** What the client does without the chat page, seen in Firefox. */

import { firefox } from './harness/browsers.js';
import { clientBehaviours } from './client-behaviours.js';
import { clientFeatures } from './client-features.js';

clientBehaviours('Firefox', firefox);
clientFeatures('Firefox', firefox);
