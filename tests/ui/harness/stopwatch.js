/** Time without what the machine took away: a bound on it says something of the program, and not of its neighbours. */

/** What a timer is late by, this process stood still. */
const BEAT_MS = 20;

let beat = performance.now();
let lost = 0;

const late = () => Math.max(0, performance.now() - beat - BEAT_MS);

setInterval(() => {
  lost += late();
  beat = performance.now();
}, BEAT_MS).unref();

/** @returns {() => number} how many milliseconds the machine has worked since then, whoever for */
export function startWatch() {
  const [began, before] = [performance.now(), lost + late()];
  return () => performance.now() - began - (lost + late() - before);
}
