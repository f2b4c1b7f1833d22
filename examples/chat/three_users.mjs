// Three users write at once, on keep-alive connections, while a fourth reads the stream; without any retry.
//
//     node examples/chat/three_users.mjs http://127.0.0.1:8000 [SECONDS]
//
// Prints one line of JSON: how many of each status, what the stream brought, and every error by its code.

import http from "node:http";

const [url, seconds = "5"] = process.argv.slice(2);
const end = Date.now() + Number(seconds) * 1000;
const agent = new http.Agent({ keepAlive: true });
const report = { statuses: {}, streamed: 0, streams: 0, errors: {} };
const failed = (error) => { report.errors[error.code ?? error.message] = (report.errors[error.code ?? error.message] ?? 0) + 1; };

function ask(method, path, headers, body) {
  return new Promise((resolve) => {
    const request = http.request(url + path, { method, agent, headers }, (response) => {
      response.on("error", (error) => { failed(error); resolve(null); });
      response.resume().on("end", () => resolve(response.statusCode));
    });
    request.on("error", (error) => { failed(error); resolve(null); });
    request.end(body);
  });
}

async function write(user) {
  for (let n = 0; Date.now() < end; n++) {
    const body = JSON.stringify({ text: `${user} says ${n}` });
    const headers = { "content-type": "application/json", "content-length": Buffer.byteLength(body), "x-user": user };
    const status = await ask("POST", "/messages", headers, body);
    report.statuses[status] = (report.statuses[status] ?? 0) + 1;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

// As a browser's EventSource: when the stream ends it comes back with the last id it has seen.
async function read() {
  let last = "0";
  while (Date.now() < end) {
    await new Promise((resolve) => {
      const headers = { "x-user": "reader", "last-event-id": last };
      const request = http.get(`${url}/messages/stream`, { headers }, (response) => {
        report.streams++;
        let text = "";
        response.setEncoding("utf8").on("data", (chunk) => {
          text += chunk;
          for (let at = text.indexOf("\n\n"); at >= 0; at = text.indexOf("\n\n")) {
            const id = /^id: (\d+)$/m.exec(text.slice(0, at));
            if (id) { last = id[1]; report.streamed++; }
            text = text.slice(at + 2);
          }
        });
        response.on("end", () => { clearTimeout(timer); resolve(); });
        response.on("error", (error) => { clearTimeout(timer); if (Date.now() < end) failed(error); resolve(); });
      });
      const timer = setTimeout(() => request.destroy(), Math.max(0, end - Date.now()));
      request.on("error", (error) => { clearTimeout(timer); if (Date.now() < end) failed(error); resolve(); });
    });
  }
}

await Promise.all([write("alice"), write("bob"), write("carol"), read()]);
console.log(JSON.stringify(report));
agent.destroy();
