/* What the laboratory's engine promises by itself. Its mathematics is compared with the library's
   in ../test_laboratory_engine.py, which also runs this file. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { laboratoryEngine, workerSource } from "../../eoslib/widgets/laboratory_engine.js";

const {
  EigenTracker, Network, Random, RunRecord, SETTINGS, Session, checkSettings, decodeSettings,
  encodeSettings, symmetricEigen, addProduct,
} = laboratoryEngine();

const EDGE = { degree: 5, points: 12, hidden: [12, 8], stepSize: 0.4 };

const bitsOf = (numbers) => [...new Uint32Array(Float64Array.from(numbers).buffer)];

function assertSameBits(one, other) {
  assert.deepEqual(bitsOf(one), bitsOf(other));
}

/* A session after so many steps. */
function after(steps, settings, options) {
  const session = new Session(settings, options);
  session.advance({ steps });
  return session;
}

// ---- determinism ----

for (const settings of [
  EDGE,
  { ...EDGE, optimizer: "adam", stepSize: 0.005, eigenvalues: 3 },
  { task: "spirals", points: 40, noise: 0.1, loss: "cross_entropy", activation: "gelu", batch: 7,
    measureEvery: 3 },
  { ...EDGE, optimizer: "flow", activation: "softplus" },
]) {
  test(`a run repeats bit for bit: ${encodeSettings(settings)}`, () => {
    const whole = after(300, settings), sliced = new Session(settings);
    while (sliced.record.steps < 301) {
      if (sliced.record.steps % 2) sliced.advance({ milliseconds: 0 }); // one piece of work
      else sliced.advance({ steps: Math.min(17, 300 - Math.max(sliced.record.steps - 1, 0)) });
    }
    assertSameBits(whole.point, sliced.point);
    for (const [name, row] of Object.entries(whole.record.snapshot().recent)) {
      assertSameBits(row, sliced.record.snapshot().recent[name]);
    }
  });
}

test("the seed decides, and each use of it has its own stream", () => {
  const weights = (settings) => new Session(settings).point;
  assert.notDeepEqual(weights({ seed: 1 }), weights({ seed: 2 }));
  assertSameBits(weights({ task: "rings", dataSeed: 1 }), weights({ task: "rings", dataSeed: 2 }));
  const noisy = { task: "rings", noise: 0.1 };
  assert.notDeepEqual(
    new Session({ ...noisy, dataSeed: 1 }).task.inputs,
    new Session({ ...noisy, dataSeed: 2 }).task.inputs);
});

test("random numbers look uniform and normal", () => {
  const random = new Random(5, 0), n = 40000, draws = new Float64Array(n);
  const mean = (f) => draws.reduce((sum, x) => sum + f(x), 0) / n;
  for (let i = 0; i < n; i++) draws[i] = random.uniform();
  assert.ok(draws.every((x) => x >= 0 && x < 1));
  assert.ok(Math.abs(mean((x) => x) - 1 / 2) < 0.01);
  assert.ok(Math.abs(mean((x) => x * x) - 1 / 3) < 0.01);
  assert.ok(Math.abs(mean((x) => draws[0] * x) - draws[0] / 2) < 0.01);
  random.fillGaussian(draws);
  assert.ok(Math.abs(mean((x) => x)) < 0.02);
  assert.ok(Math.abs(mean((x) => x * x) - 1) < 0.03);
  assert.ok(Math.abs(mean((x) => x ** 4) - 3) < 0.2);
});

// ---- settings ----

test("settings survive the page's address", () => {
  const random = new Random(1, 0);
  const pick = (...values) => values[Math.floor(random.uniform() * values.length)];
  for (let i = 0; i < 300; i++) {
    const given = {
      task: pick("chebyshev", "spirals", "quadratic"), hidden: pick([], [7], [3, 4, 5]),
      stepSize: pick(0.1, 1 / 3, 1e-7, 2.5e10), seed: pick(0, 4294967295), bias: pick("yes", "no"),
      spectrum: pick([20, 1], [1e-3, -4.25, 1 / 7]), twinAt: pick(-1, 0, 900),
      changes: pick([], [[0, 0.1]], [[5, 0.3], [1200, 1 / 3]]), noise: pick(0, 0.1),
    };
    const complete = checkSettings(given), address = encodeSettings(given);
    assert.deepEqual(decodeSettings(address), complete);
    assert.deepEqual(decodeSettings(`#${encodeURI(address)}`), complete);
    assert.equal(encodeSettings(complete), address);
  }
  assert.equal(encodeSettings({}), "");
  assert.deepEqual(Object.keys(decodeSettings("")), Object.keys(SETTINGS));
});

test("the address repeats what the reader did", () => {
  const session = after(100, EDGE);
  session.setStepSize(0.1);
  session.advance({ steps: 50 });
  session.startTwin();
  session.advance({ milliseconds: 0 });
  session.setStepSize(0.5); // in the middle of a step, or not: it counts for the next update
  session.advance({ steps: 50 });
  const { address, stepSize } = session.snapshot();
  assert.match(address, /changes=100:0\.1,15[01]:0\.5/);
  assert.equal(stepSize, 0.5);
  const again = after(session.record.steps - 1, decodeSettings(address));
  assertSameBits(again.point, session.point);
  assertSameBits(again.record.snapshot().recent.twin, session.record.snapshot().recent.twin);
});

test("what the reader does replaces what was planned", () => {
  const session = after(10, { ...EDGE, changes: [[5, 0.3], [20, 0.2]] });
  assert.equal(session.optimizer.stepSize, 0.3);
  session.setStepSize(0.1);
  session.advance({ steps: 30 });
  assert.equal(session.optimizer.stepSize, 0.1);
  assert.deepEqual(session.settings.changes, [[5, 0.3], [10, 0.1]]);
});

for (const [settings, message] of [
  [{ stepSize: 0 }, /stepSize must be a number above 0 .*, got 0/],
  [{ stepSize: "0.1" }, /stepSize must be a number above 0 .*, got "0.1"/],
  [{ learningRate: 0.1 }, /unknown setting learningRate; there are task, points/],
  [{ task: "cifar" }, /task must be one of chebyshev, digits, .* got "cifar"/],
  [{ hidden: [30, 0] }, /hidden must be at most 60 layers of 1 to 1000 units, got \[30,0\]/],
  [{ hidden: 30 }, /hidden must be at most 60 layers/],
  [{ eigenvalues: 2.5 }, /eigenvalues must be a whole number from 1 to 8, got 2.5/],
  [{ beta: 1 }, /beta must be a number in \[0, 1\), got 1/],
  [{ loss: "cross_entropy" }, /loss must be square: chebyshev has no classes/],
  [{ batch: 21 }, /batch must be at most points = 20, got 21/],
  [{ batch: 5, optimizer: "flow" }, /batch must be 0 with gradient flow/],
  [{ task: "linear", dimension: 30 }, /dimension must be at most points = 20/],
  [{ changes: [[5, 0.1], [5, 0.2]] }, /changes must be pairs of a step and a step size/],
  [{ changes: [7] }, /changes must be pairs/],
  [{ optimizer: "flow", twinAt: 3 }, /twinAt must be −1 with gradient flow/],
  [{ task: "digits" }, /the task digits needs its images/],
  [{ hidden: [1000, 100], points: 100 }, /layers of 1, 1000, 100, 1 units with 100 examples are/],
  [{ hidden: [1000], points: 5000 }, /more than a page can train; take fewer units or points/],
  [{ hidden: [400, 400], points: 2 }, /more than a page can train/],
]) {
  test(`refused: ${JSON.stringify(settings)}`, () => {
    assert.throws(() => new Session(settings), message);
  });
}

test("refused: addresses and arguments that make no sense", () => {
  assert.throws(() => decodeSettings("stepSize=fast"), /stepSize must be a number above 0/);
  assert.throws(() => decodeSettings("stepSize="), /stepSize must be a number above 0/);
  assert.throws(() => decodeSettings("stepSize=1e307"), /stepSize must be a number above 0/);
  for (const list of ["20,1,", "20,,1", " "]) { // an empty place is no zero
    assert.throws(() => decodeSettings(`spectrum=${list}`), /spectrum must be 1 to 1000 numbers/);
  }
  assert.throws(() => decodeSettings("speed=3"), /unknown setting speed/);
  assert.throws(() => decodeSettings("changes=3"), /changes must be pairs/);
  assert.throws(() => new Session({}, { initialPoint: [1, 2] }), /initialPoint must be 701 finite/);
  const images = { pixels: [1, 2, 3], labels: [0, 1, 1], mean: 0, deviation: 1 };
  assert.throws(
    () => new Session({ task: "digits", points: 4 }, { images }), /3 images; points asks for 4/);
  const session = new Session({});
  assert.throws(() => session.setStepSize(NaN), /stepSize must be a number above 0/);
  assert.throws(() => session.predict([]), /inputs must be a multiple of 1 numbers, got 0/);
  assert.throws(() => new Session({ optimizer: "flow" }).startTwin(), /gradient flow has no twin/);
  assert.throws(() => new Session({ task: "quadratic" }).predict([1]), /no outputs to predict/);
});

// ---- the record ----

test("no spike is lost, at any length", () => {
  const random = new Random(3, 0);
  const sizes = [[2, 1, 9], [8, 5, 1000], [64, 60, 5000], [1024, 60, 1]];
  for (const [capacity, length, steps] of sizes) {
    const record = new RunRecord(["zigzag", "rare"], length, capacity);
    const zigzag = [], rare = [];
    for (let step = 0; step < steps; step++) {
      const spike = random.uniform() < 0.002 ? 1000 * random.uniform() : 0;
      zigzag.push((-1) ** step * random.uniform() + spike);
      rare.push(random.uniform() < 0.05 ? random.gaussian() : Infinity);
      record.push([zigzag[step], rare[step]]);
      const { low, high, width, first, recent, steps: recorded } = record.snapshot();
      assert.equal(recorded, step + 1);
      assert.equal(low.zigzag.length, Math.ceil((step + 1) / width));
      assert.ok(low.zigzag.length <= capacity);
      assertSameBits(recent.zigzag, zigzag.slice(first));
      assert.equal(recent.zigzag.length, Math.min(length, step + 1));
      if (step % 97 && step !== steps - 1) continue;
      for (let bucket = 0; bucket < low.zigzag.length; bucket++) {
        for (const [name, series] of [["zigzag", zigzag], ["rare", rare]]) {
          const part = series.slice(bucket * width, (bucket + 1) * width).filter(Number.isFinite);
          assert.equal(low[name][bucket], Math.min(...part)); // ∞ if there was nothing
          assert.equal(high[name][bucket], Math.max(...part));
        }
      }
    }
  }
});

test("a spiking run keeps its spikes", () => {
  const session = new Session(EDGE), losses = [];
  for (let step = 0; step < 3000; step++) {
    session.advance({ steps: step ? 1 : 0 });
    losses.push(session.values[1]);
  }
  const { low, high, width } = session.record.snapshot();
  assert.equal(width, 4);
  const late = losses.slice(1000), spike = Math.max(...late), at = losses.indexOf(spike);
  assert.ok(spike > 5 * late.reduce((sum, x) => sum + x) / late.length);
  assert.equal(high.loss[Math.floor(at / 4)], spike);
  losses.forEach((loss, step) => {
    assert.ok(low.loss[Math.floor(step / 4)] <= loss && loss <= high.loss[Math.floor(step / 4)]);
  });
});

test("100,000 steps take no more memory than 2,000", () => {
  const session = after(2000, { task: "quadratic", stepSize: 0.05 });
  const buffers = () => [session.record.low, session.record.high, session.record.recent]
    .flat().reduce((sum, row) => sum + row.byteLength, 0);
  const before = buffers();
  session.advance({ steps: 100000 });
  assert.equal(buffers(), before);
  const { low, width, steps } = session.record.snapshot();
  assert.equal(steps, 102001);
  assert.equal(width, 128);
  assert.ok(low.loss.length <= 1024);
});

// ---- runs ----

test("divergence is an outcome", () => {
  for (const settings of [
    { ...EDGE, stepSize: 30 },
    { ...EDGE, stepSize: 1e200 },
    { task: "quadratic", spectrum: [20, 1], stepSize: 0.11 },
    { task: "quadratic", spectrum: [-1, 1], stepSize: 0.5 },
    { task: "digits", points: 2, hidden: [5], activation: "relu", stepSize: 1e5 },
  ]) {
    const images = { pixels: [9, 1, 2, 7, 3, 8], labels: [3, 4], mean: 4, deviation: 3 };
    const session = after(2000, settings, { images, recent: 2000 });
    assert.equal(session.state, "diverged");
    assert.match(session.message, /^the loss was .* at step \d+ with step size [\d.e+]+$/);
    assert.ok(session.message.includes(`at step ${session.step} `));
    const { steps, low, high, recent } = session.snapshot().record;
    assert.equal(steps, session.step); // what diverged is not on record
    for (const rows of [low, high, recent]) {
      for (const row of Object.values(rows)) assert.ok(!row.some(Number.isNaN));
    }
    assert.ok(recent.loss.every(Number.isFinite));
    assert.equal(session.advance({ steps: 10 }), 0); // and nothing more happens
    assert.equal(session.record.steps, steps);
  }
});

test("a quadratic behaves as the algebra says", () => {
  const settings = { task: "quadratic", spectrum: [20, 1], stepSize: 0.09, eigenvalues: 2 };
  const session = after(30, settings);
  const { loss, eigenvalue1, eigenvalue2, oscillation1, time } = session.record.snapshot().recent;
  for (let t = 0; t <= 30; t++) {
    const [x, y] = [(1 - 0.09 * 20) ** t, (1 - 0.09) ** t];
    assert.ok(Math.abs(loss[t] - (10 * x * x + y * y / 2)) < 1e-12 * (1 + loss[t]));
    assert.ok(Math.abs(eigenvalue1[t] - 20) < 1e-12 && Math.abs(eigenvalue2[t] - 1) < 1e-12);
    if (t) assert.ok(Math.abs(Math.abs(oscillation1[t]) - 0.9 * 0.8 ** (t - 1)) < 1e-12);
    if (t > 1) assert.ok(oscillation1[t] * oscillation1[t - 1] < 0);
    assert.ok(Math.abs(time[t] - 0.09 * t) < 1e-12);
  }
});

test("thresholds are where the rules lose stability", () => {
  const rules = {
    gd: {}, polyak: { beta: 0.8 }, nesterov: { beta: 0.8 },
    rmsprop: { beta2: 0.9999 }, adam: { beta1: 0.8, beta2: 0.9999 },
  };
  for (const [optimizer, options] of Object.entries(rules)) {
    for (const [factor, grows] of [[0.97, false], [1.03, true]]) {
      const settings = { task: "quadratic", spectrum: [1], optimizer, ...options, stepSize: 1 };
      const session = new Session(settings);
      session.advance({ steps: 0 });
      const frozen = session.optimizer.preconditioner;
      session.optimizer.stepSize = factor * session.threshold * (frozen ? frozen[0] : 1);
      // drive the rule with its averages, but with the preconditioner held fixed
      const rule = session.optimizer, held = frozen && [...frozen], point = [1], gradient = [1];
      rule.momentum?.fill(0);
      for (let t = 0; t < 1000; t++) {
        gradient[0] = point[0];
        rule.observe(gradient);
        if (frozen) frozen.set(held);
        rule.apply(point, gradient);
      }
      assert.equal(Math.abs(point[0]) > 1, grows, `${optimizer} at ${factor}: ${point[0]}`);
    }
  }
});

test("mini-batches visit every example once an epoch and average their losses", () => {
  const session = new Session({ ...EDGE, batch: 4 }), { task } = session, seen = [];
  const alone = new Network(session.architecture, 4), gradient = new Float64Array(alone.size);
  for (let step = 0; step < 6; step++) {
    session.advance({ steps: step ? 1 : 0 });
    const drawn = session.order.slice(session.drawn - 4, session.drawn);
    seen.push(...drawn);
    alone.load(alone.inputs, task.inputs, drawn);
    alone.load(alone.targets, task.targets, drawn);
    alone.evaluate(session.point, gradient);
    assertSameBits(gradient, session.batchGradient);
  }
  const all = [...task.inputs.keys()];
  for (const epoch of [seen.slice(0, 12), seen.slice(12)]) {
    assert.deepEqual(epoch.toSorted((a, b) => a - b), all);
    assert.notDeepEqual(epoch, all);
  }
});

test("the quadratic twin diverges where the network does not", () => {
  const session = after(900, EDGE);
  session.startTwin();
  session.advance({ steps: 300 });
  assert.equal(session.state, "training");
  const { twin } = session.snapshot();
  assert.equal(twin.state, "diverged");
  assert.equal(twin.since, 900);
  assert.ok(twin.step < 1200);
});

/* To pause is to wait for the piece of work that is being done. */
test("a piece of work holds one pass over the network", () => {
  for (const settings of [
    { eigenvalues: 8 }, { optimizer: "flow" }, { optimizer: "adam", stepSize: 1e-3 },
    { batch: 5, twinAt: 3 }, { optimizer: "polyak", twinAt: 0 },
  ]) {
    const session = new Session(settings), objectives = [session.objective, session.batchNetwork];
    const makeObjective = session.makeObjective.bind(session);
    let passes = 0, most = 0, all = 0;
    const watch = (objective) => {
      for (const name of ["evaluate", "hessianProduct"]) {
        const own = objective[name].bind(objective);
        objective[name] = (...given) => { passes += 1; return own(...given); };
      }
      return objective;
    };
    objectives.filter(Boolean).forEach(watch);
    session.makeObjective = () => watch(makeObjective()); // of the twin
    while (session.record.steps < 45) {
      passes = 0;
      session.work.next();
      [most, all] = [Math.max(most, passes), all + passes];
    }
    assert.equal(most, 1, JSON.stringify(settings));
    assert.ok(all > 2 * 45, `only ${all} passes were seen`);
  }
});

test("the step size moves the edge", () => {
  const session = after(1500, EDGE, { recent: 300 });
  const middle = () => [...session.record.snapshot().recent.eigenvalue1].sort((a, b) => a - b)[150];
  const before = middle() * 0.4;
  session.setStepSize(0.3);
  session.advance({ steps: 1500 });
  const later = middle() * 0.3;
  for (const product of [before, later]) assert.ok(product > 1.9 && product < 2.2, String(product));
});

test("outputs at any inputs", () => {
  const session = after(50, EDGE);
  const fit = session.predict(session.task.inputs);
  const loss = fit.reduce((sum, y, i) => sum + (y - session.task.targets[i]) ** 2, 0) / 24;
  const fresh = new Session(EDGE, { initialPoint: session.point });
  fresh.advance({ steps: 0 });
  assert.ok(Math.abs(loss - fresh.values[1]) < 1e-14);
  assertSameBits(session.predict([0.3]), session.predict([9, 0.3, -1]).subarray(1, 2));
  const plane = new Session({ task: "rings" }); // row by row: two inputs, two outputs a point
  assert.equal(plane.predict([0, 0, 1, 1, 0, 1]).length, 6);
});

test("the classes of the plane have the shapes of their names", () => {
  for (const [task, points] of [["spirals", 80], ["rings", 31]]) {
    const { inputs, targets } = new Session({ task, points }).task;
    for (let i = 0; i < points; i++) {
      const radius = Math.hypot(inputs[2 * i], inputs[2 * i + 1]);
      const label = targets[2 * i + 1];
      assert.equal(targets[2 * i] + label, 1);
      if (task === "rings") assert.ok(Math.abs(radius - (label ? 0.9 : 0.4)) < 1e-9);
      else {
        const turns = 1.25 * (radius - 0.1) / 0.9 + label / 2;
        assert.ok(Math.abs(inputs[2 * i] - radius * Math.cos(2 * Math.PI * turns)) < 1e-9);
      }
    }
  }
});

// ---- linear algebra ----

test("matrix products with any shape and strides", () => {
  const random = new Random(7, 0);
  for (let trial = 0; trial < 200; trial++) {
    const [m, n, depth] = [0, 0, 0].map(() => 1 + Math.floor(9 * random.uniform()));
    const [A, B, C] = [m * depth, depth * n, m * n].map((size) => {
      const matrix = new Float64Array(size + 3);
      random.fillGaussian(matrix);
      return matrix;
    });
    const [flipA, flipB] = [random.uniform() < 0.5, random.uniform() < 0.5];
    const a = flipA ? [1, m] : [depth, 1], b = flipB ? [1, depth] : [n, 1], before = C.slice();
    addProduct(C, 3, n, 1, A, 2, ...a, B, 1, ...b, m, n, depth);
    for (let i = 0; i < m; i++) {
      for (let j = 0; j < n; j++) {
        let sum = 0;
        for (let k = 0; k < depth; k++) {
          sum += A[2 + i * a[0] + k * a[1]] * B[1 + k * b[0] + j * b[1]];
        }
        assert.equal(C[3 + i * n + j], before[3 + i * n + j] + sum);
      }
    }
    assertSameBits(C.subarray(0, 3), before.subarray(0, 3));
  }
});

test("small symmetric eigenproblems", () => {
  const random = new Random(8, 0);
  for (let trial = 0; trial < 100; trial++) {
    const size = 1 + Math.floor(12 * random.uniform()), stride = size + 2;
    const matrix = new Float64Array(stride * stride);
    for (let i = 0; i < size; i++) {
      for (let j = 0; j <= i; j++) {
        const entry = trial % 3 ? random.gaussian() : Math.round(random.gaussian());
        matrix[i * stride + j] = matrix[j * stride + i] = entry;
      }
    }
    const values = new Float64Array(size), vectors = new Float64Array(stride * stride);
    symmetricEigen(matrix.slice(), stride, size, values, vectors);
    for (let j = 0; j < size; j++) {
      if (j) assert.ok(values[j] <= values[j - 1]);
      for (let i = 0; i < size; i++) {
        let image = 0, overlap = 0;
        for (let k = 0; k < size; k++) {
          image += matrix[i * stride + k] * vectors[j * stride + k];
          overlap += vectors[i * stride + k] * vectors[j * stride + k];
        }
        assert.ok(Math.abs(image - values[j] * vectors[j * stride + i]) < 1e-12 * size);
        assert.ok(Math.abs(overlap - (i === j ? 1 : 0)) < 1e-13 * size);
      }
    }
  }
});

/* Solve once for a diagonal matrix; the k leading values. */
function track(tracker, diagonal) {
  const multiply = (v, result) => result.set(v.map((x, i) => x * diagonal[i]));
  for (const _ of tracker.solve(multiply));
  assert.ok(tracker.converged);
  return [...tracker.values.subarray(0, tracker.count)];
}

test("eigenvalues of prescribed spectra", () => {
  const spectra = {
    "dominant negative": [-50, ...Array.from({ length: 59 }, (_, i) => i / 12)],
    "all negative": Array.from({ length: 50 }, (_, i) => -9 + i / 8),
    "tight cluster": [2, 2 - 1e-6, 2 - 2e-6, ...Array(40).fill(0.5)],
    multiple: [...Array(4).fill(7), ...Array(30).fill(1)],
    "rank one": [4, ...Array(50).fill(0)],
    zero: Array(30).fill(0),
    "one by one": [-3],
    "long tail": [80, 41, ...Array.from({ length: 400 }, (_, i) => (i * 0.618) % 1)],
    "close rivals": [10, 9.9, ...Array.from({ length: 300 }, (_, i) => (9.8 * i) / 300)],
  };
  for (const [name, spectrum] of Object.entries(spectra)) {
    for (const count of [1, 3]) {
      const options = { tolerance: 1e-9, limit: 2000 };
      const tracker = new EigenTracker(spectrum.length, count, new Random(1, 1), options);
      const sorted = spectrum.toSorted((a, b) => b - a).slice(0, count);
      for (let repeat = 0; repeat < 3; repeat++) {
        track(tracker, spectrum).forEach((value, j) => {
          const error = Math.abs(value - sorted[j]);
          assert.ok(error <= 1e-7 * (1 + Math.abs(sorted[0])), `${name} ${j}: ${value}`);
        });
      }
    }
  }
});

test("the eigenvalue that overtakes is followed", () => {
  // λ₁ falls, λ₂ rises through it, with eigenvectors that do not turn at all
  const tracker = new EigenTracker(200, 1, new Random(2, 2));
  for (let step = 0; step < 100; step++) {
    const diagonal = new Float64Array(200).map((_, i) => Math.sin(i));
    [diagonal[50], diagonal[150]] = [10 - step / 20, 6 + step / 20];
    const [value] = track(tracker, diagonal);
    assert.ok(Math.abs(value - Math.max(diagonal[50], diagonal[150])) < 0.01, `step ${step}`);
  }
});

test("what comes up from far below is found by the cold search", () => {
  // the warm start holds the leading coordinates exactly and nothing of those that jump up
  const tracker = new EigenTracker(400, 1, new Random(3, 3)), lags = [];
  for (let step = 0; step < 600; step++) {
    const diagonal = new Float64Array(400).map((_, i) => (i % 5) / 2), phase = step % 60;
    [diagonal[0], diagonal[1]] = [10, 8];
    if (phase >= 30) diagonal[2 + Math.floor(step / 60)] = 12;
    const found = Math.abs(track(tracker, diagonal)[0] - (phase >= 30 ? 12 : 10)) < 0.01;
    if (phase === 30) lags.push(0);
    if (phase < 30) assert.ok(found);
    else if (!found) assert.equal(++lags[lags.length - 1], phase - 29); // and never lost again
  }
  assert.ok(Math.max(...lags) < 20 && Math.max(...lags) > 0, String(lags));
});

test("a product that is not finite is no eigenvalue", () => {
  const tracker = new EigenTracker(20, 1, new Random(4, 4));
  for (const _ of tracker.solve((v, result) => result.fill(NaN)));
  assert.equal(tracker.converged, false);
  assert.ok(Math.abs(track(tracker, new Float64Array(20).fill(3))[0] - 3) < 1e-12); // and recovers
});

// ---- the worker ----

/* The worker's text in a scope of its own, as a classic worker would run it. */
function startWorker() {
  const inbox = [], waiting = [];
  const scope = {
    postMessage(message, transfer) {
      assert.ok(transfer.every((buffer) => buffer instanceof ArrayBuffer));
      inbox.push(structuredClone(message, { transfer }));
      waiting.shift()?.();
    },
  };
  // Node's own channel lets no timer run while messages keep coming, and keeps the process alive
  class MessageChannel {
    port1 = {};
    port2 = { postMessage: () => setImmediate(() => this.port1.onmessage()) };
  }
  new Function("self", "MessageChannel", workerSource())(scope, MessageChannel);
  return {
    inbox,
    send: (message) => scope.onmessage({ data: structuredClone(message) }),
    async next() {
      while (!inbox.length) await new Promise((resolve) => { waiting.push(resolve); });
      return inbox.shift();
    },
  };
}

test("the worker's protocol", async () => {
  const worker = startWorker();
  const session = "net";
  worker.send({ type: "start", session, settings: EDGE });
  const started = await worker.next();
  assert.equal(started.type, "started");
  assert.equal(started.session, session);
  assert.equal(started.parameters, 137);
  assert.deepEqual(started.settings, checkSettings(EDGE));
  assert.equal(started.task.inputs.length, 12);
  const zero = await worker.next();
  assert.equal(zero.type, "update");
  assert.equal(zero.record.steps, 1);

  worker.send({ type: "step", session, steps: 40 });
  const forty = await worker.next();
  assert.equal(forty.record.steps, 41);
  assert.equal(forty.running, false);
  assertSameBits(forty.record.recent.loss, after(40, EDGE).record.snapshot().recent.loss);

  worker.send({ type: "stepSize", session, value: 0.05 });
  worker.send({ type: "twin", session });
  worker.send({ type: "run", session });
  await new Promise((resolve) => { setTimeout(resolve, 60); });
  assert.equal(worker.inbox.length, 0); // nothing unasked
  worker.send({ type: "frame", session, inputs: Float64Array.of(0, 0.5) });
  const frame = await worker.next();
  assert.equal(frame.running, true);
  assert.equal(frame.stepSize, 0.05);
  assert.equal(frame.outputs.length, 2);
  assert.equal(frame.twin.since, 40);
  assert.ok(frame.record.steps > 41);
  worker.send({ type: "pause", session });
  worker.send({ type: "frame", session });
  const paused = await worker.next();
  await new Promise((resolve) => { setTimeout(resolve, 30); });
  worker.send({ type: "frame", session });
  const later = await worker.next();
  assert.equal(later.running, false);
  assert.equal(later.record.steps, paused.record.steps);

  worker.send({ type: "weights", session });
  assert.equal((await worker.next()).point.length, 137);
  worker.send({ type: "stop", session });
  worker.send({ type: "frame", session });
  assert.match((await worker.next()).message, /there is no session net/);
});

test("the worker answers mistakes and divergence", async () => {
  const worker = startWorker();
  worker.send({ type: "start", session: 1, settings: { stepSize: -1 } });
  const error = await worker.next();
  assert.equal(error.type, "error");
  assert.equal(error.request, "start");
  assert.match(error.message, /stepSize must be a number above 0 .*, got -1/);
  worker.send({ type: "dance", session: 1 });
  assert.match((await worker.next()).message, /unknown message type dance/);
  worker.send({ type: "start", session: 2, settings: { ...EDGE, stepSize: 50 } });
  assert.equal((await worker.next()).type, "started");
  assert.equal((await worker.next()).type, "update");
  worker.send({ type: "run", session: 2 });
  const diverged = await worker.next();
  assert.equal(diverged.state, "diverged");
  assert.equal(diverged.running, false);
  assert.match(diverged.message, /at step \d+ with step size 50/);
  worker.send({ type: "run", session: 2 });
  worker.send({ type: "frame", session: 2 });
  assert.equal((await worker.next()).running, false);
});
