// Node with better-sse: one channel, a broadcast per line, on one process.
import { createServer } from "node:http";
import { createServer as createFeed } from "node:net";
import { createInterface } from "node:readline";
import { createChannel, createSession } from "better-sse";

const [port, feedPort] = process.argv.slice(2).map(Number);
const channel = createChannel();
let seq = 0;

createServer(async (request, response) => {
  channel.register(await createSession(request, response, { serializer: (data) => data }));
}).listen(port, "127.0.0.1", 2048);

createFeed((socket) => {
  createInterface({ input: socket, crlfDelay: Infinity }).on("line", (line) =>
    channel.broadcast(line, "message", { eventId: String(++seq) }),
  );
}).listen(feedPort, "127.0.0.1");
