/** What the client does without the chat page, seen in Firefox. */

import { firefox } from './harness/browsers.js';
import { clientBehaviours } from './client-behaviours.js';

clientBehaviours('Firefox', firefox);
