// Opens a URL by the `eventsource` package, which reconnects by itself, and tells what it sees: a line of JSON for every
// event with one of the given names, and for every change of state. It ends when the package has closed the stream.

import { EventSource } from "eventsource";

const STATES = ["connecting", "open", "closed"];
const [url, ...names] = process.argv.slice(2);
const source = new EventSource(url);

function tell(what) {
  process.stdout.write(JSON.stringify(what) + "\n");
}

source.onopen = () => tell({ state: "open" });
source.onerror = error => tell({ state: STATES[source.readyState], code: error.code, message: error.message });
for (const name of names)
  source.addEventListener(name, event => tell({ event: event.type, data: event.data, id: event.lastEventId }));
