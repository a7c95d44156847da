/* How fast the laboratory's engine is: training steps with the sharpness tracked at every step, per
   second, in this thread of Node and, with --chromium[=PATH], in a worker of headless Chromium.

       node benchmarks/laboratory.mjs [--chromium[=PATH]] [--repeats=N]

   Prints JSON. Every case trains from its initial weights; the rate is the best of N whole runs,
   because other processes can only slow a run down. On a machine that is never idle, the rate per
   second of processor time (all threads of Node together) says more. In Chromium the rate includes
   the messages, and beside it stand the rate while the page asks for 60 frames a second and the
   longest time between a request to pause and its answer. */

import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import os from "node:os";
import { inflateRawSync } from "node:zlib";
import { laboratoryEngine } from "../eoslib/widgets/laboratory_engine.js";

const PACKAGE = new URL("../eoslib/", import.meta.url);
const ENGINE = new URL("widgets/laboratory_engine.js", PACKAGE);

const option = (name) => process.argv.slice(2)
  .map((argument) => argument.split("="))
  .find(([key]) => key === `--${name}`);
const repeats = Number(option("repeats")?.[1] ?? 3);

/* The first images of the library's digits, as a page carries them; the file is a zip archive of
   NumPy arrays of bytes. */
function digits(count) {
  const archive = readFileSync(new URL("digits-1k.npz", PACKAGE)), arrays = {};
  for (let at = 0; archive.readUInt32LE(at) === 0x04034b50;) { // one local file header a turn
    const nameEnd = at + 30 + archive.readUInt16LE(at + 26);
    const start = nameEnd + archive.readUInt16LE(at + 28);
    const end = start + archive.readUInt32LE(nameEnd + 12); // NumPy's archives are zip64
    const array = inflateRawSync(archive.subarray(start, end));
    const bytes = array.subarray(10 + array.readUInt16LE(8)); // after NumPy's header
    arrays[archive.toString("utf8", at + 30, nameEnd)] = Uint8Array.from(bytes);
    at = end;
  }
  const pixels = arrays["pixels.npy"], mean = pixels.reduce((sum, x) => sum + x) / pixels.length;
  const variance = pixels.reduce((sum, x) => sum + (x - mean) ** 2, 0) / pixels.length;
  const [few, labels] = [pixels.slice(0, 64 * count), arrays["labels.npy"].slice(0, count)];
  return { pixels: few, labels, mean, deviation: Math.sqrt(variance) };
}

const chebyshev = { task: "chebyshev", degree: 6, points: 20, hidden: [30, 20], stepSize: 0.2 };
const CASES = [
  { name: "1-30-20-1 tanh, 20 Chebyshev points", steps: 5000, settings: chebyshev },
  { name: "the same, 3 eigenvalues", steps: 5000, settings: { ...chebyshev, eigenvalues: 3 } },
  {
    name: "the same, Adam", steps: 5000,
    settings: { ...chebyshev, optimizer: "adam", stepSize: 1e-3 },
  },
  {
    name: "64-64-10 tanh, 300 digits", steps: 300, images: digits(300),
    settings: { task: "digits", points: 300, hidden: [64], stepSize: 0.05 },
  },
  {
    name: "the same, cross-entropy", steps: 300, images: digits(300),
    settings: { task: "digits", points: 300, hidden: [64], stepSize: 0.5, loss: "cross_entropy" },
  },
];

function inNode() {
  const { Session } = laboratoryEngine();
  return CASES.map(({ name, steps, settings, images }) => {
    let best = 0, bestCpu = 0, session;
    for (let repeat = 0; repeat < repeats; repeat++) {
      session = new Session(settings, { images });
      const started = performance.now(), cpu = process.cpuUsage();
      session.advance({ steps });
      best = Math.max(best, (1000 * steps) / (performance.now() - started));
      const { user, system } = process.cpuUsage(cpu);
      bestCpu = Math.max(bestCpu, (1e6 * steps) / (user + system));
    }
    if (session.state !== "training") throw new Error(`${name}: ${session.message}`);
    const { low, high } = session.record.snapshot();
    return {
      name, steps, stepsPerSecond: Math.round(best), stepsPerCpuSecond: Math.round(bestCpu),
      parameters: session.point.length,
      productsPerStep: Number((session.tracker.products / steps).toFixed(2)),
      sharpnessOverThreshold: Number((high.eigenvalue1.at(-1) / session.threshold).toFixed(3)),
      lossAtTheEnd: low.loss.at(-1),
    };
  });
}

/* The page's side; it becomes text and must stand by itself. */
async function inPage(cases, repeats) {
  const { workerSource } = await import("/laboratory_engine.js");
  const worker = new Worker(URL.createObjectURL(new Blob([workerSource()])));
  const next = () => new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => (data.type === "error" ? reject(data.message) : resolve(data));
  });
  const ask = (message) => {
    worker.postMessage({ session: 0, ...message });
    return next();
  };
  const results = [];
  for (const { name, steps, settings, images } of cases) {
    const start = async () => {
      await ask({ type: "start", settings, images });
      await next();
    };
    let best = 0, framed = 0, pause = 0;
    for (let repeat = 0; repeat < repeats; repeat++) {
      await start();
      let started = performance.now();
      await ask({ type: "step", steps });
      best = Math.max(best, (1000 * steps) / (performance.now() - started));

      await start();
      started = performance.now();
      worker.postMessage({ session: 0, type: "run" });
      let update = { record: { steps: 0 } };
      while (update.record.steps < steps) {
        await new Promise((resolve) => { setTimeout(resolve, 16); });
        update = await ask({ type: "frame" });
      }
      framed = Math.max(framed, (1000 * update.record.steps) / (performance.now() - started));
      started = performance.now();
      worker.postMessage({ session: 0, type: "pause" });
      await ask({ type: "frame" });
      pause = Math.max(pause, performance.now() - started);
    }
    results.push({
      name, steps, stepsPerSecond: Math.round(best), stepsPerSecondWithFrames: Math.round(framed),
      pauseMilliseconds: Number(pause.toFixed(1)),
    });
  }
  return { agent: navigator.userAgent, results };
}

function inChromium(path) {
  const plain = CASES.map(({ images, ...rest }) => ({
    ...rest,
    images: images && { ...images, pixels: [...images.pixels], labels: [...images.labels] },
  }));
  const script = `(${inPage})(${JSON.stringify(plain)}, ${repeats})
    .catch((error) => ({ error: String(error) }))
    .then((result) => fetch("/result", { method: "POST", body: JSON.stringify(result) }));`;
  const profile = mkdtempSync(`${os.tmpdir()}/laboratory-`);
  return new Promise((resolve, reject) => {
    let browser;
    const server = createServer(async (request, response) => {
      if (request.url === "/laboratory_engine.js") {
        response.setHeader("Content-Type", "text/javascript");
        response.end(readFileSync(ENGINE));
      } else if (request.url === "/result") {
        let body = "";
        for await (const chunk of request) body += chunk;
        response.end();
        browser.kill();
        server.close();
        resolve(JSON.parse(body));
      } else if (request.url === "/") {
        response.setHeader("Content-Type", "text/html");
        response.end(`<!doctype html><script type="module">${script}</script>`);
      } else response.writeHead(404).end();
    });
    server.listen(0, "127.0.0.1", () => {
      browser = spawn(path, [
        "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        `--user-data-dir=${profile}`, `http://127.0.0.1:${server.address().port}/`,
      ], { stdio: "ignore" });
      browser.on("error", reject);
      browser.on("exit", (code) => {
        rmSync(profile, { recursive: true, force: true, maxRetries: 20 });
        reject(new Error(`${path} ended with code ${code} before it had answered`)); // or after
      });
      for (const signal of ["SIGINT", "SIGTERM"]) {
        process.once(signal, () => { browser.kill(); process.exitCode = 1; server.close(); });
      }
    });
  });
}

const chromium = option("chromium");
const load = () => Number(os.loadavg()[0].toFixed(1));
const [{ model: cpu }, { length: cores }] = [os.cpus()[0], os.cpus()];
const machine = { cpu, cores, node: process.version, loadBefore: load() };
const report = { machine, node: inNode() };
if (chromium) report.chromium = await inChromium(chromium[1] ?? "chromium");
machine.loadAfter = load();
console.log(JSON.stringify(report, null, 2));
