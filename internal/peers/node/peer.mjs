// Takes locks with node-redlock on behalf of a Go test, which drives it with one JSON object per line:
//
//   {"id": 1, "op": "connect", "servers": ["127.0.0.1:6379"]}
//   {"id": 2, "op": "acquire", "redlock": 1, "key": "k", "ttl": 1000, "wait": true}
//   {"id": 3, "op": "extend", "lock": 2, "ttl": 1000}
//   {"id": 4, "op": "release", "lock": 2}
//   {"id": 5, "op": "using", "redlock": 1}
//   {"id": 6, "op": "disconnect", "redlock": 1}
//
// where redlock is the id of the connect, and lock that of the acquire.
//
// Each is answered, in any order, with {"id": 1} or {"id": 1, "error": "what went wrong", "votes": ["ResourceLockedError"]}.
// It ends with its input. The first argument is the directory that has node_modules in it.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { before } from "./before.mjs";

const require = createRequire(process.argv[2] + "/");
const Redis = require("ioredis").default;
const Redlock = require("redlock").default;

const redlocks = new Map(); // by id: {clients, redlock}
const locks = new Map(); // by id: {redlock, lock}

const once = { retryCount: 0 };
const patiently = { retryCount: -1, retryDelay: 10, retryJitter: 5 };

const ops = {
  async connect({ id, servers }) {
    const clients = servers.map((server) => {
      const [host, port] = server.split(":");
      // A server that is down must answer at once that it is down, instead of letting commands wait for it.
      const client = new Redis({ host, port, lazyConnect: true, enableOfflineQueue: false, maxRetriesPerRequest: 0 });
      client.on("error", () => {}); // the command says so, too
      return client;
    });
    await Promise.all(clients.map((client) => client.connect().catch(() => {})));
    redlocks.set(id, { clients, redlock: new Redlock(clients) });
  },
  async disconnect({ redlock: id }) {
    for (const client of redlocks.get(id).clients) client.disconnect();
    redlocks.delete(id);
  },
  async acquire({ id, redlock: connected, key, ttl, wait }) {
    const { redlock } = redlocks.get(connected);
    const lock = await redlock.acquire([key], ttl, wait ? patiently : once);
    locks.set(id, { redlock, lock });
  },
  async extend({ lock: id, ttl }) {
    const { redlock, lock } = locks.get(id);
    locks.set(id, { redlock, lock: await redlock.extend(lock, ttl, once) });
  },
  async release({ lock: id }) {
    const { redlock, lock } = locks.get(id);
    await redlock.release(lock, once);
    locks.delete(id);
  },
  async using({ redlock: connected }) {
    await before(redlocks.get(connected).redlock, async () => {});
  },
};

// votesAgainst names what each server has said to the last attempt.
async function votesAgainst(error) {
  const last = await error.attempts?.at(-1);
  return last && [...last.votesAgainst.values()].map((e) => e.name);
}

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  ops[command.op](command)
    .then(() => ({}))
    .catch(async (error) => ({ error: String(error.message), votes: await votesAgainst(error) }))
    .then((answer) => process.stdout.write(JSON.stringify({ id: command.id, ...answer }) + "\n"));
}
process.exit();
