// Users of an HTTP service, as a Node backend is one: http.Agent({keepAlive: true}), and nothing is ever sent twice.
//
// Standard input: one line of JSON, {port, crews: [...]} (bench/hangups/client.py has the fields), then, as lines,
// "mark" (say now what is under way) and "stop" (send nothing new, wait for what is under way, report, end).
// Standard output, JSON lines: {"progress": …} every 50 ms, {"mark": …} for each mark, {"result": …} at the end.

import http from 'node:http';
import readline from 'node:readline';

const PROGRESS_MS = 50;
const AFTER_ERROR_MS = 20; // a refused user tries something else a little later, and does not spin
const END = 'event: end\n';

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const between = ([low, high]) => low + Math.random() * (high - low);
const count = (counts, name) => { counts[name] = (counts[name] ?? 0) + 1; };
const say = (line) => process.stdout.write(JSON.stringify(line) + '\n');

let stopped = false;
let stop;
const stopping = new Promise((resolve) => { stop = () => { stopped = true; resolve(); }; });

/** What went wrong, in few words. Node calls two things ECONNRESET: a reset, and an end before the answer. */
const kind = (error) => (error.message === 'socket hang up' ? error.message : error.code ?? error.message);

/** Users that behave alike, and what they saw. */
class Crew {
  constructor(port, plan) {
    this.port = port;
    this.plan = plan;
    this.body = plan.body_bytes ? Buffer.alloc(plan.body_bytes, 'x') : null;
    this.asked = 0;
    this.open = 0; // answers whose head came and whose end did not
    this.sockets = new Set();
    this.underway = new Set();
    this.tally = {
      requests: 0, statuses: {}, failures: [], late: {}, opened: 0, reused: 0, closing: 0, retry_after: 0,
      answered_by: {}, slowest_ms: {},
    };
  }

  agent(maxSockets) {
    return new http.Agent({ keepAlive: true, maxSockets });
  }

  async run() {
    const { clients, own_connections } = this.plan;
    const shared = own_connections ? null : this.agent(clients);
    const users = Array.from({ length: clients }, () => this.user(shared ?? this.agent(1)));
    await Promise.all(users);
  }

  async user(agent) {
    await this.pause(Math.random() * this.plan.spread_ms);
    while (!this.done()) {
      const went = await this.ask(agent, this.wish());
      if (!this.done()) await this.pause(between(this.plan.think_ms) + (went ? 0 : AFTER_ERROR_MS));
    }
  }

  done() {
    return stopped || (this.plan.requests > 0 && this.asked >= this.plan.requests);
  }

  /** Ends early when we stop: thoughts are not awaited. */
  pause(ms) {
    return ms > 0 ? Promise.race([sleep(ms), stopping]) : undefined;
  }

  wish() {
    this.asked += 1;
    const rare = this.plan.every.find(([nth]) => this.asked % nth === 0);
    return (rare ? rare[1] : this.plan.wish).split(' ');
  }

  /** One request; resolves, never rejects, to whether it was answered whole. */
  ask(agent, [method, path]) {
    return new Promise((resolve) => {
      const route = path.split('?')[0];
      const entry = { started_ms: Date.now(), socket: null };
      let response = null;
      let settled = false;
      this.underway.add(entry);

      const settle = (wrong) => {
        if (settled) {
          if (wrong) count(this.tally.late, wrong);
          return;
        }
        settled = true;
        clearTimeout(timer);
        this.underway.delete(entry);
        if (response) this.open -= 1;
        this.note(route, entry, response, request.reusedSocket, wrong);
        resolve(!wrong);
      };

      const body = method === 'POST' ? this.body : null;
      const headers = body ? { 'content-length': body.length } : {};
      if (!this.plan.keep_alive) headers.connection = 'close';
      const request = http.request({ host: '127.0.0.1', port: this.port, agent, method, path, headers });
      const timer = setTimeout(() => { settle('timeout'); request.destroy(); }, this.plan.timeout_ms);
      request.on('socket', (socket) => { entry.socket = socket; this.meet(socket); });
      request.on('error', (error) => settle(kind(error)));
      request.on('response', (answer) => {
        if (settled) return;
        response = answer;
        this.open += 1;
        entry.socket.worker = answer.headers['x-worker'] ?? entry.socket.worker;
        const streams = answer.headers['content-type']?.startsWith('text/event-stream');
        let tail = '';
        answer.on('data', (bytes) => { if (streams) tail = (tail + bytes).slice(-100); });
        answer.on('end', () => settle(streams && !tail.includes(END) ? 'cut' : null));
        answer.on('error', () => {}); // 'close' follows and says it
        answer.on('close', () => { if (!settled) settle('aborted'); });
      });
      request.end(body);
    });
  }

  meet(socket) {
    if (this.sockets.has(socket)) return;
    this.tally.opened += 1;
    this.sockets.add(socket);
    socket.on('close', () => this.sockets.delete(socket));
  }

  note(route, { started_ms, socket }, response, reused, wrong) {
    const { tally } = this;
    const worker = socket?.worker ?? null;
    tally.requests += 1;
    if (reused) tally.reused += 1;
    if (wrong) {
      tally.failures.push({ kind: wrong, route, worker: worker && Number(worker), reused, started_ms, at_ms: Date.now() });
      return;
    }
    count(tally.statuses, `${route} ${response.statusCode}`);
    if (response.headers.connection === 'close') tally.closing += 1;
    if (response.headers['retry-after']) tally.retry_after += 1;
    if (worker === null) return;
    count(tally.answered_by, worker);
    tally.slowest_ms[worker] = Math.max(tally.slowest_ms[worker] ?? 0, Date.now() - started_ms);
  }

  progress() {
    const { requests, failures, answered_by } = this.tally;
    return { requests, errors: failures.length, open: this.open, connections: this.sockets.size, answered_by };
  }

  /** Connections and requests under way, by the worker that last answered on them. */
  mark() {
    const found = { connections: {}, underway: {} };
    for (const socket of this.sockets) count(found.connections, socket.worker ?? 'unknown');
    for (const { socket } of this.underway) count(found.underway, socket?.worker ?? 'unknown');
    return found;
  }
}

async function main({ port, crews: plans }) {
  const crews = plans.map((plan) => new Crew(port, plan));
  const each = (what) => Object.fromEntries(crews.map((crew) => [crew.plan.name, what(crew)]));
  const progress = () => say({ progress: each((crew) => crew.progress()) });
  orders.mark = () => say({ mark: each((crew) => crew.mark()) });
  const ticking = setInterval(progress, PROGRESS_MS);
  await Promise.all(crews.map((crew) => crew.run()));
  clearInterval(ticking);
  progress();
  say({ result: each((crew) => crew.tally) });
  process.stdout.end(() => process.exit(0)); // idle connections would keep us
}

const orders = { stop };
let begun = false;
const input = readline.createInterface({ input: process.stdin });
input.on('close', () => stop());
input.on('line', (line) => {
  if (begun) orders[line]?.();
  else main(JSON.parse(line));
  begun = true;
});
