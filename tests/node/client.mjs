// Opens a URL by the `eventsource` package, which reconnects by itself, and tells what it sees: a line of JSON for every
// event with one of the given names, and for every change of state. It ends when the package has closed the stream.

import { EventSource } from "eventsource";

const STATES = ["connecting", "open", "closed"];
const [url, ...names] = process.argv.slice(2);
const source = new EventSource(url);
const alive = setInterval(() => {}, 60_000); // while the package waits to reconnect, it does not keep the process itself

function tell(what) {
  process.stdout.write(JSON.stringify(what) + "\n");
}

source.onopen = () => tell({ state: "open" });
source.onerror = error => {
  tell({ state: STATES[source.readyState], code: error.code, message: error.message });
  if (source.readyState === EventSource.CLOSED) clearInterval(alive);
};
for (const name of names)
  source.addEventListener(name, event => tell({ event: event.type, data: event.data, id: event.lastEventId }));
