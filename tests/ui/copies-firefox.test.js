/** What the client does with copies of frames, seen in Firefox. */

import { firefox } from './harness/browsers.js';
import { clientCopies } from './client-copies.js';

clientCopies('Firefox', firefox);
