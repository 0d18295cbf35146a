// better-sse's channels: `node better-sse.mjs PORT KIND RATE BURST CHANNELS`, where better-sse is installed.
import http from "node:http";
import { createChannel, createSession } from "better-sse";

const kind = process.argv[3];
const [port, , rate, burst, channelCount] = process.argv.slice(2).map(Number);
const channels = Array.from({ length: channelCount }, () => createChannel());
const responses = new Set();
const pad = "0".repeat(56);
let number = 1_000_000;

const turn = () => new Promise((resolve) => setImmediate(resolve));
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// As long as the others' event, and with the same mark (../mark.h): Node's clock is CLOCK_MONOTONIC too.
const event = (channel) => ({
  t: "@" + process.hrtime.bigint().toString().padStart(19, "0"),
  seq: number++,
  src: "s" + String(channel).padStart(2, "0"),
  value: pad,
});

const server = http.createServer(async (request, response) => {
  const session = await createSession(request, response, { keepAlive: 15_000 });
  session.push("hello");
  responses.add(response);
  response.once("close", () => responses.delete(response));
  for (const channel of channels) channel.register(session);
});
server.listen({ port, host: "127.0.0.1", backlog: 4096 });

// better-sse does not wait for clients that are slow, so we do, or its memory would grow for ever.
const drained = async () => {
  for (const response of responses)
    if (response.writableNeedDrain)
      await new Promise((resolve) => response.once("drain", resolve).once("close", resolve));
};

if (kind === "shared" && rate > 0) {
  let due = performance.now();
  for (let i = 0; ; i++, due += 1000 / (rate * channelCount)) {
    if (due > performance.now()) await pause(due - performance.now());
    channels[i % channelCount].broadcast(event(i % channelCount));
  }
} else if (kind === "shared") {
  for (;;) {
    for (let i = 0; i < burst; i++) channels[0].broadcast(event(0));
    await turn();
    await drained();
  }
}
