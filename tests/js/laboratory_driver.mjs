/* Runs the laboratory's engine on jobs that a Python test wrote as JSON to the standard input, and
   writes what it found as JSON to the standard output. It asserts nothing. */

import { readFileSync } from "node:fs";
import { laboratoryEngine } from "../../eoslib/widgets/laboratory_engine.js";

const engine = laboratoryEngine();
const { EigenTracker, Network, Random, Session } = engine;

const JOBS = {
  /* Loss, gradient, products with given vectors and leading eigenvalues of any network. */
  objective({ architecture, inputs, targets, point, vectors, eigenvalues }) {
    const network = new Network(architecture, inputs.length);
    network.load(network.inputs, inputs.flat());
    network.load(network.targets, targets.flat());
    const theta = Float64Array.from(point), gradient = new Float64Array(network.size);
    const loss = network.evaluate(theta, gradient);
    const multiply = (vector, result) => network.hessianProduct(vector, result);
    const products = vectors.map((vector) => {
      const result = new Float64Array(network.size);
      multiply(Float64Array.from(vector), result);
      return [...result];
    });
    const options = { tolerance: 1e-12, limit: 2000 };
    const tracker = new EigenTracker(network.size, eigenvalues, new Random(0, 0), options);
    for (const _ of tracker.solve(multiply));
    return {
      size: network.size, loss, gradient: [...gradient], products, converged: tracker.converged,
      eigenvalues: [...tracker.values.subarray(0, eigenvalues)],
    };
  },

  /* A whole run: every step of every channel, and the point at every step. */
  run({ settings, steps, initialPoint, images, twinAt, points = true }) {
    const session = new Session(settings, { initialPoint, images, recent: steps + 1 });
    const path = [];
    for (let step = 0; step <= steps && session.state === "training"; step++) {
      if (step === twinAt) session.startTwin();
      session.advance({ steps: step === 0 ? 0 : 1 });
      if (points) path.push([...session.point]);
    }
    const { record, ...rest } = session.snapshot();
    const series = Object.entries(record.recent).map(([name, row]) => [name, [...row]]);
    const { task } = session;
    return {
      ...rest, series: Object.fromEntries(series), path, point: [...session.point],
      inputs: task && [...task.inputs], targets: task && [...task.targets],
    };
  },

  /* Values of the elementary functions. */
  functions({ at }) {
    const names = ["exp", "log", "tanh", "normalDistribution"];
    return Object.fromEntries(names.map((name) => [name, at.map((x) => engine[name](x))]));
  },
};

const jobs = JSON.parse(readFileSync(0, "utf8"));
// JSON has no infinity: what was not measured becomes null
process.stdout.write(JSON.stringify(jobs.map(({ job, ...rest }) => JOBS[job](rest))));
