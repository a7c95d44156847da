/* The laboratory: trains a small network in the page and draws its loss and sharpness as it goes.

   The mathematics is laboratory_engine.js, in a worker; this is what the reader sees and touches.
   A picture costs the same after ten steps as after a million, because the engine's record does
   not grow: what is drawn of a long run is the lowest and highest value of consecutive steps. */

import {
  clamp, make, nameSlider, number, scale, sliderMarkup, stepSizeColor, themeOf, thousands, tickLabels,
  trackCursor, watch,
} from "./plot.js";
import { laboratoryEngine, workerSource } from "./laboratory_engine.js";

const MAGNIFIED = 60; // steps in the magnifier
const RECENT = 240; // steps in the phase portrait
const POSITIONS = 400; // of the slider
const GHOSTS = 4;
const FARTHEST = 1e6; // step to which an address leads
const PHASE = "oscillation and sharpness/threshold";
const PAGE = "laboratory.html"; // the laboratory's own page, beside the chapters
const CHOICES = {
  speed: { 10: "10 steps/s", 60: "60 steps/s", 300: "300 steps/s", Infinity: "full speed" },
  task: { chebyshev: "Chebyshev polynomial", spirals: "two spirals", rings: "disc and ring",
    digits: "handwritten digits", linear: "linear map", quadratic: "quadratic" },
  activation: { tanh: "tanh", relu: "ReLU", gelu: "GELU", softplus: "softplus", linear: "none (linear)" },
  loss: { square: "square loss", cross_entropy: "cross-entropy" },
  init: { lecun: "LeCun", pytorch: "PyTorch" },
  bias: { yes: "yes", no: "no" },
  optimizer: { gd: "gradient descent", polyak: "Polyak momentum", nesterov: "Nesterov momentum",
    rmsprop: "RMSProp", adam: "Adam", flow: "gradient flow" },
};
const CLASSES = ["digits", "spirals", "rings"];
/* The settings that the form offers: name, label, and when it matters. */
const FORM = [
  ["task", "task"],
  ["degree", "degree", (s) => s.task === "chebyshev"],
  ["points", "examples", (s) => s.task !== "quadratic"],
  ["noise", "noise", (s) => ["spirals", "rings"].includes(s.task)],
  ["dimension", "dimension", (s) => s.task === "linear"],
  ["spectrum", "curvatures", (s) => s.task === "quadratic"],
  ["hidden", "hidden layers", (s) => s.task !== "quadratic"],
  ["activation", "activation", (s) => s.task !== "quadratic"],
  ["bias", "biases", (s) => s.task !== "quadratic"],
  ["init", "initial weights", (s) => s.task !== "quadratic"],
  ["loss", "loss", (s) => CLASSES.includes(s.task)],
  ["optimizer", "optimizer"],
  ["beta", "momentum β", (s) => ["polyak", "nesterov"].includes(s.optimizer)],
  ["beta1", "β₁", (s) => s.optimizer === "adam"],
  ["beta2", "β₂", (s) => ["adam", "rmsprop"].includes(s.optimizer)],
  ["batch", "batch (0: all)", (s) => s.task !== "quadratic" && s.optimizer !== "flow"],
  ["eigenvalues", "eigenvalues"],
  ["measureEvery", "measure every"],
  ["seed", "seed"],
];
/* What decides the loss function: ghosts stay while these do. */
const PROBLEM = ["task", "points", "degree", "dimension", "noise", "dataSeed", "spectrum", "hidden",
  "activation", "bias", "init", "seed", "loss"];

let laboratories = 0; // numbers the ids, since several may share a page

/* An engine that answers (`receive` is its owner's): in a worker, or on the main thread where a
   worker is refused. */
function connect() {
  const unanswered = [], receive = (message) => link.receive(message);
  let worker = null, post = (message) => worker.postMessage(message), answered = false;
  const onMainThread = () => {
    const scope = { postMessage: (data) => queueMicrotask(() => receive(data)) };
    laboratoryEngine().serve(scope, 4); // short slices: the page is drawn between them
    worker = null;
    post = (data) => scope.onmessage({ data });
    answered = true;
    unanswered.splice(0).forEach(post);
  };
  try {
    const url = URL.createObjectURL(new Blob([workerSource()], { type: "text/javascript" }));
    worker = new Worker(url);
    worker.onmessage = ({ data }) => {
      if (!answered) URL.revokeObjectURL(url);
      unanswered.length = 0;
      answered = true;
      receive(data);
    };
    worker.onerror = (event) => { // a page may forbid workers, and says so only now
      event.preventDefault();
      if (answered) receive({ type: "error", message: event.message });
      else onMainThread();
    };
  } catch {
    onMainThread();
  }
  const link = {
    receive() {},
    send(message) {
      if (!answered) unanswered.push(message);
      post(message);
    },
    close: () => worker?.terminate(),
  };
  return link;
}

/* In a built page a whole laboratory is opened to be used: its worker starts while the browser
   still reads the page. */
const early = new WeakMap();
function initialize({ model }) {
  if (model.get("_host") === "static" && !model.get("compact")) early.set(model, connect());
}

/* The curvature that an adaptive optimizer feels is another quantity than the sharpness. */
const isAdaptive = ({ optimizer }) => ["adam", "rmsprop"].includes(optimizer);
const curvatureOf = (settings) => (isAdaptive(settings) ? "preconditioned sharpness" : "sharpness");

const say = (element, text) => { if (element.textContent !== text) element.textContent = text; };
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

/* The state of a run in words, from its last steps. */
export function describe({ state, message, record }, stepSize, optimizer) {
  if (state === "diverged") return `diverged: ${message}`;
  const { loss, eigenvalue1, threshold } = record.recent, n = loss.length;
  const known = [...eigenvalue1.keys()].filter((i) => Number.isFinite(eigenvalue1[i])).slice(-MAGNIFIED);
  if (record.steps < 2) return "ready";
  if (known.length < 6) return "training";
  const third = Math.max(1, Math.floor(known.length / 3));
  const early = median(known.slice(0, third).map((i) => eigenvalue1[i]));
  const late = median(known.slice(-third).map((i) => eigenvalue1[i]));
  if (optimizer === "flow") return late > early ? "following gradient flow, sharpening" : "following gradient flow";
  const ratio = late / threshold[n - 1];
  if (Math.abs(loss[n - 1]) < 1e-14) return "solved";
  if (late === early) return ratio > 1 ? "above the threshold" : "below the threshold"; // a quadratic
  if (ratio > 1.2) return "above the threshold";
  if (ratio > 0.9) return "at the edge";
  return late > early ? "below the edge, sharpening" : "below the edge, not sharpening";
}

function render({ model, el }) {
  const id = `eos-lab-${++laboratories}`, get = (name) => model.get(name);
  const live = get("_host") !== "static", presets = get("presets"), engine = laboratoryEngine();
  const compact = get("compact");
  const options = (choices) => Object.entries(choices)
    .map(([value, text]) => `<option value="${value}">${text}</option>`).join("");

  /* -- skeleton: constant text; what comes from the model is set as text, never markup -- */
  const root = make("div", { class: `eos-x eos-lab${compact ? " eos-compact" : ""}`, role: "group",
    "aria-labelledby": `${id}-title`, "data-lm-suppress-shortcuts": "true" });
  root.innerHTML = `
    <div class="eos-title" id="${id}-title"></div>
    <div class="eos-choose"><label for="${id}-preset">experiment</label><select id="${id}-preset"></select></div>
    <p class="eos-claim"></p>
    ${sliderMarkup(id, POSITIONS, '<span>η = <b class="eos-lr"></b></span><span class="eos-limit"></span>')}
    <div class="eos-run">
      <button type="button" class="eos-go" disabled>Run</button>
      <button type="button" class="eos-one" disabled>Step</button>
      <button type="button" class="eos-reset" disabled>Reset</button>
      <button type="button" class="eos-twin" disabled>Freeze a quadratic</button>
      <label><span class="eos-hidden">speed</span><select class="eos-speed">${options(CHOICES.speed)}</select></label>
    </div>
    <div class="eos-status"><i></i><span role="status" aria-live="polite"></span></div>
    <div class="eos-numbers"></div>
    <div class="eos-panels">
      <div class="eos-main" tabindex="0" role="slider" data-lm-suppress-shortcuts="true"
        aria-label="train loss and sharpness" aria-valuemin="0" aria-valuemax="0" aria-valuenow="0"><canvas></canvas></div>
      <div class="eos-side">
        <figure class="eos-magnifier"><figcaption></figcaption><div role="img"><canvas></canvas></div></figure>
        <figure class="eos-phase"><figcaption>${PHASE}</figcaption><div role="img"><canvas></canvas></div></figure>
        <figure class="eos-fit"><figcaption></figcaption><div role="img"><canvas></canvas></div></figure>
      </div>
    </div>
    <div class="eos-tools">
      <fieldset><legend>x axis</legend>
        <label><input type="radio" name="${id}-axis" value="steps"><span>steps</span></label>
        <label><input type="radio" name="${id}-axis" value="time"><span>time</span></label></fieldset>
      <button type="button" class="eos-forget">Forget earlier runs</button>
      <span class="eos-export">Save
        <button type="button" data-save="json">data, JSON</button>
        <button type="button" data-save="csv">data, CSV</button>
        <button type="button" data-save="png">picture</button>
        <a>link to this run</a></span>
    </div>
    <p class="eos-open"><a>Open this run in the laboratory</a></p>
    <details class="eos-settings"><summary>task, network, optimizer</summary><form></form>
      <p class="eos-wrong" role="alert"></p></details>
    <details class="eos-lines"><summary>the same run with eoslib</summary><pre tabindex="0"></pre></details>`;
  const $ = (selector) => root.querySelector(selector), all = (selector) => [...root.querySelectorAll(selector)];
  const slider = $(".eos-track input"), go = $(".eos-go"), status = $(".eos-status span"), form = $("form");
  const chooser = $(".eos-choose select"), speed = $(".eos-speed"), wrong = $(".eos-wrong");
  const entitle = () => { $(".eos-title").textContent = get("title"); };
  entitle();
  model.on("change:title", entitle);
  nameSlider(root, "step size η", "smaller step size", "larger step size");
  slider.disabled = true; // as the buttons are, until there is a run
  slider.dataset.lmSuppressShortcuts = "true";
  presets.forEach((preset, k) => chooser.append(make("option", { value: k }, preset.name)));
  chooser.append(make("option", { value: -1 }, "your own"));
  for (const [name, label] of FORM) {
    const field = CHOICES[name] ? make("select") : make("input", { type: "text", autocomplete: "off",
      inputmode: ["hidden", "spectrum"].includes(name) ? "text" : "decimal", "data-lm-suppress-shortcuts": "true" });
    if (CHOICES[name]) field.innerHTML = options(CHOICES[name]);
    field.name = name;
    form.append(make("label", {}, make("span", {}, label), field));
  }
  if (compact) $(".eos-status").after(wrong); // the form is not there
  el.append(root);
  const still = el.nextElementSibling; // in the book: the picture for readers without scripts
  if (compact && still?.matches("noscript")) {
    el.append(make("div", { class: "eos-print" }));
    el.lastChild.innerHTML = still.textContent;
  }

  /* -- the run ------------------------------------------------------------------------------ */
  let base = {}; // the settings from which Reset begins
  let warm = 0; // steps that are done before the reader sees the run
  let home = -1; // the preset with which the run began, or −1
  let next = null; // a run that waits until the one in progress is there to be its shadow
  let session = 0, started = null, snap = null, initial = null, stepSize = 0, unit = 2, range = [0.01, 2], goal = 0;
  let running = false, awaiting = false, refused = false, stepped = false, stale = true, lastFrame = 0, owed = 0, axis = "steps", ghosts = [];
  let theme = "light", paint = null, widths = null, shown = {}, fit = null, fitAge = 0, point = null;
  let cursor = null, place = null; // a step that the reader points at; where the curves are in the picture
  const name = () => `${id}-${session}`;
  let link = null;
  const send = (type, content = {}) => {
    if (!link) {
      link = early.get(model) ?? connect();
      early.delete(model);
      link.receive = receive;
    }
    link.send({ type, session: name(), ...content });
  };
  const problem = (settings) => JSON.stringify(PROBLEM.map((key) => settings[key]));
  const usesStep = () => base.optimizer !== "flow";
  const threshold = (lr) => unit / lr, symbol = () => `${number(unit)}/η`;
  const inks = new Map(); // by step size: a reader's hand makes thousands of changes
  const color = (lr) => {
    if (inks.size > 2 * POSITIONS) inks.clear();
    if (!inks.has(lr)) inks.set(lr, stepSizeColor(lr, range, get("colors")[theme].stops));
    return inks.get(lr);
  };

  function complain(text) {
    wrong.textContent = text;
    $(".eos-settings").open = true; // it shows there
  }

  /* Begin a run. What was shown becomes a ghost if it was of the same loss function. */
  function begin(settings, { steps = 0, weights = null } = {}) {
    const checked = engine.checkSettings(settings), same = started && problem(checked) === problem(base);
    keep(same);
    if (session) send("stop");
    [base, warm, session] = [checked, steps, session + 1];
    [started, snap, fit, initial, shown, point] = [null, null, null, null, same ? { high: shown.high } : {}, null];
    const { optimizer, beta, beta1 } = base; // what the engine makes of them does not depend on the task
    unit = new engine.Session({ task: "quadratic", optimizer, beta, beta1, stepSize: 1 }).threshold;
    stepSize = base.stepSize;
    for (const [at, lr] of base.changes) if (at <= steps) stepSize = lr;
    const lrs = [stepSize, ...base.changes.map((c) => c[1])];
    range = [Math.min(isAdaptive(base) ? 1e-5 : 0.01, ...lrs), Math.max(isAdaptive(base) ? 0.1 : 2, ...lrs)];
    inks.clear();
    [awaiting, refused, stepped, cursor, stale] = [false, false, false, null, true];
    goal = steps;
    delete root.dataset.step;
    root.dataset.why = "";
    send("start", { settings: base, recent: RECENT, initialPoint: weights, images: base.task === "digits" ? images() : undefined });
    send("weights"); // the initial ones: nothing has moved yet
    if (steps) send("step", { steps });
    write();
    schedule();
  }

  function keep(same) {
    if (!same) ghosts = [];
    else if (snap?.record.steps > 20) {
      ghosts = [...ghosts, { ...snap, base }].slice(-GHOSTS);
    }
  }

  function images() {
    const { mean, deviation } = get("images"), view = get("pixels"), count = view.byteLength / 65;
    const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
    return { pixels: Float64Array.from(bytes.subarray(0, 64 * count)), labels: [...bytes.subarray(64 * count)], mean, deviation };
  }

  function receive(message) {
    if (message.session && message.session !== name()) return; // of a run that is over
    if (message.type === "started") [started, stale] = [message, true];
    if (message.type === "weights") {
      if (initial === null) initial = Float64Array.from(message.point);
      else {
        point = Float64Array.from(message.point);
        hand();
      }
    }
    if (message.type === "error") {
      running = awaiting = false;
      if (refused) return; // there is no such run, whatever was asked of it
      refused = message.request === "start";
      complain(message.message);
    }
    if (message.type === "update") {
      awaiting = false;
      if (!message.record.steps) return schedule(); // not even step 0 is measured
      // a picture that would be the same is not drawn again
      stale ||= !running || message.state !== snap?.state || message.record.steps !== snap.record.steps || Boolean(message.outputs);
      snap = message;
      if (base.changes.length) { // what was planned, not what was chosen; also what the next updates will use
        const { steps } = snap.record;
        stepSize = base.changes.find(([at]) => at === steps - 1 || at === steps)?.[1] ?? snap.stepSize;
      }
      if (message.outputs) fit = message.outputs;
      if (snap.state === "diverged") halt();
      if (stepped && snap.record.steps > goal) {
        stepped = false;
        if (live) send("weights");
      }
      if (next && snap.record.steps > goal) {
        const { settings, steps } = next;
        next = null;
        begin(settings, { steps });
      }
    }
    schedule();
  }

  function halt(why = "") {
    if (running) send("pause");
    running = false;
    goal = 0;
    root.dataset.why = why;
    ask();
    if (snap && live) send("weights");
    stale = true;
    schedule();
  }

  function run() {
    if (snap?.state === "diverged" || next) return;
    running = true;
    root.dataset.why = "";
    [lastFrame, owed] = [0, 0];
    if (speed.value === "Infinity") send("run");
    stale = true; // the button says "Pause" at once, not when the worker answers
    schedule();
  }

  const ask = () => {
    awaiting = true;
    const inputs = fitAge++ % 6 === 0 || !running ? grid() : undefined;
    send("frame", { inputs });
  };

  /* Once a frame: let the worker go on, ask it how far it is, draw what it said last. */
  let frame = 0, touched = false;
  const schedule = () => { frame ||= requestAnimationFrame(tick); };
  function tick(now) {
    frame = 0;
    const busy = running || (started && !snap) || (snap && snap.record.steps <= goal && snap.state === "training");
    if (running && speed.value !== "Infinity" && snap) {
      const rate = Number(speed.value);
      owed = Math.min(owed + (lastFrame ? (rate * (now - lastFrame)) / 1000 : 1), Math.max(1, rate / 10));
      lastFrame = now;
      if (owed >= 1 && snap.record.steps > goal) {
        const steps = Math.floor(owed);
        owed -= steps;
        goal = Math.max(snap.record.steps - 1, 0) + steps;
        send("step", { steps });
      }
    }
    if (busy && !awaiting) ask();
    if (stale) update();
    if (busy) schedule();
  }

  /* -- what the reader does ----------------------------------------------------------------- */
  const lrAt = (position) => Number((range[0] * (range[1] / range[0]) ** (position / POSITIONS)).toPrecision(3));
  const positionOf = (lr) => (POSITIONS * Math.log(lr / range[0])) / Math.log(range[1] / range[0]);

  /* From here on it is the reader's experiment: begun with a preset, or not even that. */
  function depart() {
    chooser.value = -1;
    $(".eos-claim").textContent = "";
  }
  function forsake() {
    depart();
    home = -1;
  }

  function choose(lr) {
    stepSize = clamp(lr, ...range);
    base = { ...base, stepSize, changes: [], twinAt: -1 };
    warm = 0;
    if (!compact) depart();
    if (snap?.state !== "diverged") send("stepSize", { value: stepSize });
    if (!running && snap) ask(); // its address
    stale = true;
    schedule();
  }
  slider.addEventListener("input", () => choose(lrAt(Number(slider.value))));
  slider.addEventListener("keydown", (event) => {
    const by = { PageUp: 40, PageDown: -40 }[event.key];
    if (!by) return;
    event.preventDefault();
    choose(lrAt(clamp(positionOf(stepSize) + by, 0, POSITIONS)));
  });
  all(".eos-step").forEach((button) => button.addEventListener("click", () =>
    choose(lrAt(clamp(positionOf(stepSize) + 8 * Number(button.dataset.by), 0, POSITIONS)))));
  go.addEventListener("click", () => (running ? halt() : run()));
  $(".eos-one").addEventListener("click", () => {
    if (running) halt();
    goal = Math.max(snap.record.steps - 1, 0) + 1;
    root.dataset.why = "";
    stepped = true;
    send("step", { steps: 1 });
    schedule();
  });
  $(".eos-reset").addEventListener("click", () => {
    if (!started || next) return; // it is not disabled meanwhile: that would take the focus from it
    if (running) halt();
    // back to the state that the text is talking about
    if (presets[home]?.warm) preset(home);
    else begin(base, { steps: warm, weights: given() });
  });
  $(".eos-twin").addEventListener("click", () => {
    send("twin");
    if (running) return;
    root.dataset.why = "the quadratic is frozen here and leaves with the next step";
    ask();
    stale = true;
    schedule();
  });
  $(".eos-forget").addEventListener("click", () => {
    if (document.activeElement === $(".eos-forget")) main.focus({ preventScroll: true }); // the button will be disabled
    ghosts = [];
    stale = true;
    schedule();
  });
  speed.addEventListener("change", () => {
    if (!running) return;
    send("pause");
    goal = 0;
    run();
  });
  all(".eos-tools input").forEach((radio) => radio.addEventListener("change", () => {
    axis = radio.value;
    shown = {};
    stale = true;
    schedule();
  }));

  /* Say which preset is shown. */
  function announce(k) {
    home = chooser.value = k;
    $(".eos-claim").textContent = presets[k].text;
    axis = presets[k].axis;
    speed.value = presets[k].speed;
    wrong.textContent = "";
  }

  function preset(k, steps = presets[k].warm, side = presets[k].axis) {
    const { settings, shadow } = presets[k];
    if (running) halt();
    if (next) [snap, next] = [null, null];
    announce(k);
    axis = side;
    if (shadow) {
      begin({ ...settings, ...shadow.settings }, { steps: shadow.steps });
      ghosts = [];
      next = { settings, steps };
      return;
    }
    begin(settings, { steps });
    ghosts = ghosts.slice(-1);
  }
  chooser.addEventListener("change", () => {
    if (Number(chooser.value) >= 0) preset(Number(chooser.value));
    else { forsake(); $(".eos-settings").open = true; }
  });

  /* A change of the form is a new run; settings that no longer fit are changed with it. */
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", ({ target }) => {
    const { SETTINGS, checkSettings } = engine;
    try {
      const wanted = { ...base, stepSize, changes: [], twinAt: -1, [target.name]: SETTINGS[target.name].read(target.value.trim()) };
      if (target.name === "task") {
        Object.assign(wanted, { batch: 0, points: { chebyshev: 20, digits: 200, linear: 50 }[wanted.task] ?? 60 });
        wanted.dimension = Math.min(wanted.dimension, wanted.points);
        if (!CLASSES.includes(wanted.task)) wanted.loss = "square";
      }
      if (wanted.task === "quadratic" || wanted.optimizer === "flow") wanted.batch = 0;
      if (isAdaptive(wanted) !== isAdaptive(base)) wanted.stepSize = isAdaptive(wanted) ? 0.001 : 0.2;
      checkSettings(wanted);
      if (running) halt();
      target.removeAttribute("aria-invalid");
      wrong.textContent = "";
      forsake();
      next = null;
      begin(wanted, { weights: given(wanted) });
    } catch (error) {
      target.setAttribute("aria-invalid", "true");
      wrong.textContent = error.message;
    }
  });

  function write() { // the form, from the settings
    for (const [key, , matters] of FORM) {
      const field = form.elements[key];
      field.value = engine.SETTINGS[key].write(base[key]);
      field.removeAttribute("aria-invalid");
      field.parentNode.hidden = Boolean(matters && !matters(base));
    }
    form.elements.loss.querySelector("[value=cross_entropy]").disabled = !CLASSES.includes(base.task);
    all(".eos-tools input").forEach((radio) => { radio.checked = radio.value === axis; });
    const [low, high] = range;
    all(".eos-track span").forEach((end, k) => { end.textContent = number([low, high][k]); });
  }

  /* -- the network's fit: where it is asked for its outputs ----------------------------------- */
  function grid() {
    const task = started?.task;
    if (!task || base.task === "digits" || compact) return undefined;
    if (base.task === "chebyshev") return Float64Array.from({ length: 81 }, (_, i) => -1 + i / 40);
    if (base.task === "linear") return task.inputs;
    // as long as it is asked the worker answers nothing else: a large network in fewer places
    const side = clamp(Math.floor(Math.sqrt(4e6 / started.parameters)), 8, 28);
    return Float64Array.from({ length: 2 * side * side }, (_, i) => {
      const cell = i >> 1;
      return (((i % 2 ? side - 1 - Math.floor(cell / side) : cell % side) + 0.5) / side) * 2.6 - 1.3;
    });
  }

  /* -- drawing ------------------------------------------------------------------------------ */
  function surface(canvas, height) {
    if (!widths.get(canvas)) widths.set(canvas, canvas.parentNode.clientWidth);
    const width = widths.get(canvas), ratio = Math.min(self.devicePixelRatio || 1, 3);
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.cssText = `width:${width}px;height:${height}px`;
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = `12px ${paint.font}`;
    context.lineJoin = "bevel"; // round joins take longer than all the rest of a jagged curve
    return { context, width, height };
  }

  function stroke(context, style, lines, { alpha = 1, width = 1.4, dash = [] } = {}) {
    context.save();
    Object.assign(context, { strokeStyle: style, globalAlpha: alpha, lineWidth: width });
    context.setLineDash(dash);
    context.beginPath();
    for (const line of lines) {
      line.forEach(([x, y], k) => {
        if (!k) context.moveTo(x, y);
        else if (x !== line[k - 1][0] || y !== line[k - 1][1]) context.lineTo(x, y);
      });
    }
    context.stroke();
    context.restore();
  }

  /* `halo`: for a text that curves may cross. */
  function label(context, text, x, y, { style = paint.muted, align = "left", bold = false, halo = true } = {}) {
    context.save();
    Object.assign(context, { fillStyle: style, textAlign: align, strokeStyle: paint.surface, lineWidth: 3 });
    if (bold) context.font = `600 ${context.font}`;
    if (halo) context.strokeText(text, x, y);
    context.fillText(text, x, y);
    context.restore();
  }

  /* The step sizes of a run as [step, time, η], from its settings: exact, unlike its envelope. */
  const planned = new Map(); // by address
  function phases({ address }) {
    if (planned.has(address)) return planned.get(address);
    if (planned.size > 2 * GHOSTS) planned.clear();
    const { stepSize: first, changes } = engine.decodeSettings(address), list = [[0, 0, first]];
    planned.set(address, list);
    for (const [step, lr] of changes) {
      const [before, time, old] = list.at(-1);
      if (step === before) list.pop();
      list.push([step, time + (step - before) * old, lr]);
    }
    return list;
  }

  const across = (record, b) => (axis === "time" ? record.low.time[b] : b * record.width);
  const extremes = (runs, channel) => {
    let low = Infinity, high = -Infinity;
    for (const { record } of runs) {
      for (const v of record.low[channel]) if (v > 0 && v < low) low = v;
      for (const v of record.high[channel]) if (v > high) high = v;
    }
    return [low, high];
  };

  const comparable = (ghost) => isAdaptive(ghost.base) === isAdaptive(base);

  /* Ranges that move seldom, so that the reader sees the run move and not the axes. */
  function ranges(runs, limit) {
    const end = Math.max(...runs.map(({ record }) => across(record, record.low.loss.length - 1)));
    const few = base.task === "quadratic" ? 60 : 300; // steps that fill the picture at first
    const least = axis === "time" ? (usesStep() ? few * base.stepSize : 10) : few;
    while (!(shown.x >= end * 1.04)) shown.x = shown.x ? shown.x * 1.4 : Math.max(least, end * 1.25);
    const [low, high] = extremes(runs, "loss");
    const start = Math.max(...runs.map(({ record }) => record.low.loss[0]).filter((v) => v < Infinity), 1e-300);
    const top = 10 ** Math.ceil(Math.log10(Math.min(high > 0 ? high : 1, 1e3 * start) * 1.05));
    const loss = { log: true, high: top, low: Math.max(10 ** Math.floor(Math.log10(Math.min(low, top / 10))), top * 1e-12) };
    const alike = [...ghosts.filter(comparable), snap];
    const thresholds = [...alike.map((one) => one.threshold), limit].filter(Number.isFinite);
    const sharpest = extremes(alike, "eigenvalue1")[1], cap = thresholds.length ? 3 * Math.max(...thresholds) : Infinity;
    const need = 1.12 * Math.max(Math.min(sharpest > 0 ? sharpest : 1, cap), ...thresholds);
    if (!(shown.high >= need && shown.high < 2.5 * need)) shown.high = 1.15 * need;
    return { x: { low: 0, high: shown.x }, loss, sharpness: { low: 0, high: shown.high } };
  }

  function axesOn(context, { left, right, top, bottom, x, y, xs, ys }, heading, xLabel) {
    label(context, heading, 4, top - 9, { style: paint.ink, halo: false });
    for (const [value, text] of ys) {
      stroke(context, paint.grid, [[[left, y(value)], [right, y(value)]]], { width: 1 });
      label(context, text, left - 6, y(value) + 4, { align: "right", halo: false });
    }
    stroke(context, paint.rule, [[[left, top], [left, bottom], [right, bottom]]], { width: 1 });
    if (!xLabel) return;
    for (const [value, text] of xs) label(context, text, x(value), bottom + 17, { align: "center", halo: false });
    label(context, xLabel, (left + right) / 2, bottom + 34, { align: "center", style: paint.ink, halo: false });
  }

  /* One channel of a run as its envelope, in the colours of its step sizes. What falls into one column of
     pixels is drawn as one, from its lowest to its highest value, and from the end that is nearer: most of
     the time of a picture goes into the length of its curves. */
  function curve(context, panel, run, channel, look = {}) {
    const { record } = run, low = record.low[channel], high = record.high[channel];
    if (!low) return;
    const list = phases(run), lines = list.map(() => []);
    let part = 0, open = null, column = NaN, ends = null; // of the column: its highest and lowest point
    for (let b = 0; b < low.length; b++) {
      while (part + 1 < list.length && b * record.width > list[part + 1][0]) { part += 1; open = null; }
      if (!(low[b] < Infinity)) { // a gap, unless it lies between two measurements
        if (!channel.startsWith("eigenvalue") || (run.base ?? base).measureEvery === 1) open = null;
        continue;
      }
      const px = panel.x(across(record, b));
      if (!open) {
        lines[part].push(open = []);
        column = NaN;
        if (b && low[b - 1] < Infinity) open.push([panel.x(across(record, b - 1)), panel.y(low[b - 1])]);
      }
      const top = panel.y(high[b]), bottom = panel.y(low[b]);
      if (Math.floor(px) === column) {
        ends[0][1] = Math.min(ends[0][1], top);
        ends[1][1] = Math.max(ends[1][1], bottom);
        continue;
      }
      const before = open.at(-1)?.[1];
      column = Math.floor(px);
      ends = [[px, top], [px, bottom]];
      open.push(...(Math.abs(before - bottom) < Math.abs(before - top) ? [ends[1], ends[0]] : ends));
    }
    const flow = (run.base ?? base).optimizer === "flow", alike = new Map(); // by colour: fewer strokes
    lines.forEach((line, k) => {
      if (!line.length) return;
      const ink = flow ? paint.ink : color(list[k][2]);
      if (!alike.has(ink)) alike.set(ink, []);
      alike.get(ink).push(...line);
    });
    for (const [ink, line] of alike) stroke(context, ink, line, look);
  }

  /* Where a curve leaves the picture at the top: a mark at its highest point, which says how high. */
  function beyond(context, { left, right, top, x }, run, channel, end) {
    const { record } = run, highest = record.high[channel].reduce((a, v) => Math.max(a, v), -Infinity);
    if (!(highest > end)) return;
    const px = x(across(record, record.high[channel].indexOf(highest))), room = px + 70 < right;
    const ink = (run.base ?? base).optimizer === "flow" ? paint.ink : color(run.stepSize);
    Object.assign(context, { fillStyle: ink, globalAlpha: run === snap ? 1 : 0.5 });
    context.beginPath();
    for (const [dx, dy] of [[0, 0], [5, 8], [-5, 8]]) context.lineTo(px + dx, top + dy);
    context.fill();
    context.globalAlpha = 1;
    if (run === snap) label(context, `up to ${number(highest)}`, clamp(px + (room ? 8 : -8), left, right), top + 10, { align: room ? "left" : "right" });
  }

  function drawMain() {
    const canvas = $(".eos-main canvas"), tall = compact ? 118 : paint.width < 600 ? 150 : 190;
    const { context, width } = surface(canvas, 2 * tall + 100);
    const left = isAdaptive(base) ? 58 : 46, right = width - 14, limit = threshold(stepSize); // five digits, or three
    const runs = [...ghosts, snap], range = ranges(runs, limit), x = scale(range.x, left, right);
    const panel = (name, top) => ({ left, right, top, bottom: top + tall, x, y: scale(range[name], top + tall, top),
      xs: tickLabels(range.x, (right - left) / 80), ys: tickLabels(range[name], 5) });
    const upper = panel("loss", 22), lower = panel("sharpness", tall + 58), { top, bottom, y } = lower;
    place = { left, right, high: range.x.high };
    const taken = []; // heights of labels
    const tag = (text, level, look = {}) => {
      const at = clamp(level - 6, top + 12, bottom - 4);
      if (taken.some((other) => Math.abs(other - at) < 14)) return;
      taken.push(at);
      label(context, text, right - 4, at, { align: "right", bold: true, ...look });
    };
    const clip = (panel, paintIt) => {
      context.save();
      context.beginPath();
      context.rect(left, panel.top, right - left, panel.bottom - panel.top);
      context.clip();
      paintIt();
      context.restore();
    };
    const faint = (ghost) => ({ alpha: ghost.base.optimizer === "flow" ? 0.7 : 0.35 });
    const loss = base.task === "quadratic" ? "loss (½ Σ aᵢθᵢ²)"
      : `train loss (${base.loss === "square" ? "½ mean squared error" : "cross-entropy"})`;
    axesOn(context, upper, `${loss}, log scale`);
    axesOn(context, lower, curvatureOf(base),
      axis === "steps" ? "step" : usesStep() ? "time = sum of step sizes" : "time");
    clip(upper, () => {
      for (const ghost of ghosts) curve(context, upper, ghost, "loss", faint(ghost));
      curve(context, upper, snap, "loss");
      if (snap.twin) curve(context, upper, { ...snap, base: { optimizer: "flow" } }, "twin", { dash: [4, 3] });
    });
    clip(lower, () => {
      if (Number.isFinite(limit)) {
        Object.assign(context, { fillStyle: paint.accent, globalAlpha: 0.07 });
        context.fillRect(left, top, right - left, y(limit) - top);
        context.globalAlpha = 1;
      }
      for (const ghost of ghosts.filter(comparable)) {
        if (Number.isFinite(ghost.threshold)) {
          stroke(context, color(ghost.stepSize), [[[left, y(ghost.threshold)], [right, y(ghost.threshold)]]], { dash: [5, 4], alpha: 0.45 });
        }
        curve(context, lower, ghost, "eigenvalue1", faint(ghost));
      }
      if (usesStep()) { // the line where it was, then where the slider puts it
        const list = phases(snap), at = (phase) => x(phase[axis === "time" ? 1 : 0]);
        const here = x(axis === "time" ? snap.time : snap.step);
        let column = NaN; // of pixels, where the last one drawn ends: one is enough
        list.forEach((phase, k) => {
          const level = y(threshold(phase[2])), end = k + 1 < list.length ? Math.min(at(list[k + 1]), here) : here;
          if (at(phase) >= here || Math.floor(end) === column) return;
          column = Math.floor(end);
          stroke(context, color(phase[2]), [[[at(phase), level], [end, level]]], { dash: [5, 4] });
        });
        stroke(context, color(stepSize), [[[here, y(limit)], [right, y(limit)]]], { dash: [5, 4], width: 2.2 });
      }
      for (let j = base.eigenvalues; j > 1; j--) curve(context, lower, snap, `eigenvalue${j}`, { alpha: 0.45 });
      curve(context, lower, snap, "eigenvalue1");
    });
    if (Number.isFinite(limit)) tag(`${symbol()} = ${number(limit)}`, y(limit), { style: color(stepSize) });
    for (const ghost of ghosts.filter(comparable)) {
      const { base: { optimizer }, record, threshold: was } = ghost;
      if (optimizer === "flow") {
        const end = x(across(record, record.low.loss.length - 1)), level = y(record.high.eigenvalue1.at(-1));
        const room = end + 90 < right;
        label(context, "gradient flow", room ? end + 6 : right - 4, clamp(level + (room ? 4 : -6), top + 12, bottom - 4),
          { style: paint.ink, align: room ? "left" : "right" });
      }
      else if (was !== limit) tag(`${number(was * ghost.stepSize)}/η = ${number(was)}`, y(was), { style: color(ghost.stepSize), bold: false });
    }
    if (snap.twin) {
      label(context, snap.twin.state === "diverged" ? `quadratic diverged at step ${snap.twin.step}` : "quadratic, dashed",
        right - 4, upper.top + 14, { align: "right", style: paint.ink });
    }
    for (const [panel, channel, end, alike] of [[upper, "loss", range.loss.high, ghosts], [lower, "eigenvalue1", range.sharpness.high, ghosts.filter(comparable)]]) {
      for (const run of [...alike, snap]) beyond(context, panel, run, channel, end);
    }
    if (cursor === null) return;
    const here = x(across(snap.record, bucketAt(cursor)));
    stroke(context, paint.ink, [upper, lower].map((one) => [[here, one.top], [here, one.bottom]]), { alpha: 0.55, width: 1 });
  }

  const bucketAt = (step) => clamp(Math.floor(step / snap.record.width), 0, snap.record.low.loss.length - 1);

  /* What was measured at the step that the reader points at, or at the last one. */
  function reading() {
    const { record } = snap, { low, high, width, steps } = record, b = cursor === null ? -1 : bucketAt(cursor);
    const value = (channel) => {
      if (b < 0) return number(record.recent[channel].at(-1));
      const [from, to] = [number(low[channel][b]), number(high[channel][b])];
      return from === to ? to : `${from} to ${to}`;
    };
    const limit = b < 0 ? (usesStep() ? threshold(stepSize) : Infinity) : high.threshold[b];
    const ratio = (b < 0 ? record.recent.eigenvalue1.at(-1) : high.eigenvalue1[b]) / limit;
    const first = b * width, last = Math.min(first + width, steps) - 1;
    return [
      b < 0 ? `step ${thousands(steps - 1)}` : `step ${thousands(first)}${last > first ? ` to ${thousands(last)}` : ""}`,
      `loss ${value("loss")}`, `${curvatureOf(base)} ${value("eigenvalue1")}`,
      ...(limit > 0 && limit < Infinity && Number.isFinite(ratio) ? [`${ratio.toFixed(2)} × threshold`] : []),
    ].join(" · ");
  }

  const main = $(".eos-main");
  const look = (step) => {
    cursor = step;
    stale = true;
    schedule();
  };
  trackCursor(main, {
    at: (pixel) => {
      if (!snap || !place) return null;
      const value = (place.high * (pixel - place.left)) / (place.right - place.left), { record } = snap;
      if (axis === "steps") return clamp(Math.round(value), 0, record.steps - 1);
      const beyond = record.high.time.findIndex((time) => time >= value);
      return beyond < 0 ? record.steps - 1 : beyond * record.width;
    },
    move: ({ key }) => {
      if (!snap) return undefined;
      const { steps, width } = snap.record, last = steps - 1, at = cursor ?? last;
      const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 20, PageDown: -20 }[key];
      if (by) return clamp((bucketAt(at) + by) * width, 0, last);
      return { Home: 0, End: last }[key];
    },
    set: look,
  });

  function frameOf(context, width, height, names) {
    stroke(context, paint.rule, [[[0.5, 0.5], [width - 0.5, 0.5], [width - 0.5, height - 0.5], [0.5, height - 0.5], [0.5, 0.5]]], { width: 1 });
    context.font = `11px ${paint.font}`;
    names.forEach(([text, x, y, align]) => label(context, text, x, y, { align }));
  }

  // With a parity the points are steps, and every second one is open.
  function dots(context, points, parity) {
    const ink = color(stepSize);
    for (const open of parity === undefined ? [0] : [0, 1]) {
      context.beginPath();
      points.forEach(([x, y], i) => {
        if (parity !== undefined && (i + parity) % 2 !== open) return;
        context.moveTo(x + 2, y);
        context.arc(x, y, 2, 0, 7);
      });
      Object.assign(context, { strokeStyle: ink, fillStyle: open ? paint.surface : ink, lineWidth: 1 });
      context.fill();
      context.stroke();
    }
  }

  /* Above the loss, below the displacement along the top eigenvector, which changes sign with every
     step where the loss may not show it. */
  function drawMagnifier() {
    const { recent, first } = snap.record, from = Math.max(0, recent.loss.length - MAGNIFIED);
    const { context, width, height } = surface($(".eos-magnifier canvas"), 150), half = height / 2;
    const names = [];
    ["loss", "oscillation1"].forEach((channel, k) => {
      const values = [...recent[channel].subarray(from)], known = values.filter(Number.isFinite);
      if (!known.length) return;
      const [low, high] = [Math.min(...known), Math.max(...known)], top = k * half;
      const x = scale({ low: 0, high: Math.max(values.length - 1, 1) }, 8, width - 8);
      const y = scale(high > low ? { low, high } : { low: low - 1, high: high + 1 }, top + half - 17, top + 17);
      const points = values.map((v, i) => [x(i), y(v)]).filter((_, i) => Number.isFinite(values[i]));
      stroke(context, color(stepSize), [points], { alpha: 0.5, width: 1 });
      dots(context, points, (first + from) % 2);
      names.push([`${k ? "oscillation" : "loss"}, up to ${number(high)}`, 5, top + 12], [number(low), 5, top + half - 4]);
    });
    stroke(context, paint.rule, [[[0, half], [width, half]]], { width: 1 });
    frameOf(context, width, height, names);
    let rises = 0;
    for (let i = from + 1; i < recent.loss.length; i++) rises += recent.loss[i] > recent.loss[i - 1];
    const count = recent.loss.length - from;
    const text = count > 1 ? `the last ${count} steps: loss rose ${rises} times` : "the last steps, as they come";
    return { figure: $(".eos-magnifier"), text, spoken: `magnifier, ${text}` };
  }

  function drawPhase() {
    const { oscillation1, eigenvalue1, threshold: limits } = snap.record.recent;
    const { context, width, height } = surface($(".eos-phase canvas"), 130), flow = !usesStep();
    const usable = [...eigenvalue1.keys()].filter((i) => eigenvalue1[i] < Infinity && oscillation1[i] < Infinity);
    const ratio = (i) => (flow ? eigenvalue1[i] : eigenvalue1[i] / limits[i]);
    const heights = [...usable.map(ratio), ...(flow ? [] : [1])], widest = Math.max(0, ...usable.map((i) => Math.abs(oscillation1[i])));
    const middle = (Math.min(...heights) + Math.max(...heights)) / 2 || 0, reach = Math.max(Math.max(...heights) - middle, 0.02) * 1.25;
    const side = widest || 1, x = scale({ low: -side, high: side }, 8, width - 8), y = scale({ low: middle - reach, high: middle + reach }, height - 4, 4);
    const names = [[`±${number(widest)}`, width - 4, height - 5, "right"], [number(middle + reach), 4, 12], [number(middle - reach), 4, height - 5]];
    if (!flow) {
      stroke(context, color(stepSize), [[[0, y(1)], [width, y(1)]]], { dash: [5, 4] });
      names.push(["1", width / 2, y(1) - 4, "center"]);
    }
    const points = usable.map((i) => [x(oscillation1[i]), y(ratio(i))]);
    for (const parity of [0, 1]) { // every second iterate: the two sides of the valley
      stroke(context, color(stepSize), [points.filter((_, i) => i % 2 === parity)], { alpha: 0.35, width: 1 });
    }
    dots(context, points.slice(-MAGNIFIED), (snap.record.first + (usable.slice(-MAGNIFIED)[0] ?? 0)) % 2);
    frameOf(context, width, height, names);
    return { figure: $(".eos-phase"), text: PHASE, spoken: `phase portrait of the last ${RECENT} steps: displacement along the top `
      + `eigenvector up to ${number(widest)}, ${curvatureOf(base)} ${number(ratio(usable.at(-1) ?? 0))}${flow ? "" : " of the threshold"}` };
  }

  function drawFit() {
    const figure = $(".eos-fit"), { task: kind } = base, task = started?.task;
    figure.hidden = !task;
    if (!task) return null;
    const { context, width, height } = surface(figure.querySelector("canvas"), kind === "spirals" || kind === "rings" ? 180 : 130);
    const accuracy = snap.record.recent.accuracy?.at(-1), share = `${number(100 * accuracy)} % right`;
    let text = "";
    if (kind === "digits") {
      text = `accuracy: ${share}`;
      const y = scale({ low: 0, high: 1 }, height - 4, 4), x = scale({ low: 0, high: Math.max(1, shown.x) }, 4, width - 4);
      const values = snap.record.high.accuracy;
      stroke(context, paint.ink, [[...values].map((v, b) => [x(across(snap.record, b)), y(v)])]);
    } else if (kind === "chebyshev") {
      text = "the network's fit and the targets";
      const x = scale({ low: -1.05, high: 1.05 }, 0, width), y = scale({ low: -1.6, high: 1.6 }, height, 0);
      if (fit) stroke(context, paint.ink, [[...fit].map((v, i) => [x(-1 + i / 40), y(v)])]);
      dots(context, [...task.targets].map((v, i) => [x(task.inputs[i]), y(v)]));
    } else if (kind === "linear") {
      text = "outputs against targets";
      const reach = 1.1 * Math.max(...task.targets.map(Math.abs)), at = scale({ low: -reach, high: reach }, 0, width);
      const y = scale({ low: -reach, high: reach }, height, 0);
      stroke(context, paint.muted, [[[at(-reach), y(-reach)], [at(reach), y(reach)]]], { width: 1 });
      if (fit) dots(context, [...fit].map((v, i) => [at(task.targets[i]), y(v)]));
    } else {
      text = `decision regions: ${share}`;
      const side = fit ? Math.sqrt(fit.length / 2) : 1, size = Math.min(width, height), cell = size / side;
      const at = (v) => (v + 1.3) / 2.6 * size;
      const kinds = [color(range[0]), color(range[1])];
      context.globalAlpha = 0.3;
      for (const second of fit ? [0, 1] : []) {
        context.fillStyle = kinds[second];
        for (let c = 0; c < side * side; c++) {
          if (fit[2 * c] > fit[2 * c + 1] === Boolean(second)) continue;
          const [from, to] = [c % side, (c % side) + 1].map((i) => Math.round(i * cell)); // whole pixels leave no seams
          const [upper, lower] = [Math.floor(c / side), Math.floor(c / side) + 1].map((i) => Math.round(i * cell));
          context.fillRect(from, upper, to - from, lower - upper);
        }
      }
      context.globalAlpha = 1;
      for (let i = 0; i < task.count; i++) {
        context.beginPath();
        context.arc(at(task.inputs[2 * i]), size - at(task.inputs[2 * i + 1]), 3, 0, 7);
        Object.assign(context, { fillStyle: kinds[task.targets[2 * i + 1]], strokeStyle: paint.surface });
        context.fill();
        context.stroke();
      }
    }
    if (kind !== "spirals" && kind !== "rings") frameOf(context, width, height, []);
    return { figure, text, spoken: text };
  }

  /* The pictures beside the main one. While a run goes on they take turns, so that the main picture keeps
     its pace; then all of them show the last step. */
  const beside = [drawMagnifier, drawPhase, drawFit];
  let turn = -1; // the one drawn last, −1 before any was
  function drawBeside() {
    const all = turn < 0 || !running;
    turn = (turn + 1) % beside.length;
    return (all ? beside.map((picture) => picture()) : [beside[turn]()]).filter(Boolean);
  }

  /* Colours and sizes, which only a new theme or a new width changes. */
  function dress() {
    const style = getComputedStyle(root);
    theme = themeOf(root);
    inks.clear();
    paint = { font: style.fontFamily, width: root.clientWidth };
    // all before the first canvas gets its size: every width asked for after a change is another layout
    widths = new Map(all("canvas").map((canvas) => [canvas, canvas.parentNode.clientWidth]));
    turn = -1;
    for (const key of ["ink", "muted", "rule", "grid", "surface", "accent"]) paint[key] = style.getPropertyValue(`--${key}`).trim();
    root.style.setProperty(`--ramp-${theme}`, `linear-gradient(to right, ${get("colors")[theme].stops})`);
  }

  function update() {
    stale = false;
    if (!base.task) return; // not begun
    if (!paint) dress();
    const limit = usesStep() ? threshold(stepSize) : Infinity, diverged = snap?.state === "diverged";
    const ready = snap && !next, visible = ready && paint.width > 0;
    // pictures before all else: a text on a canvas asks for the layout, which any change has made out of date
    if (visible) drawMain();
    const captions = visible && !compact ? drawBeside() : [];
    root.style.setProperty(`--eta-${theme}`, color(stepSize));
    slider.value = positionOf(stepSize);
    slider.disabled = !usesStep();
    all(".eos-step").forEach((button) => { button.disabled = !usesStep(); });
    say($(".eos-lr"), usesStep() ? number(stepSize) : "→ 0");
    say($(".eos-limit"), usesStep() ? `${symbol()} = ${number(limit)}` : "no threshold");
    slider.setAttribute("aria-valuetext", `step size ${number(stepSize)}, threshold ${symbol()} = ${number(limit)}`);
    say(go, running ? "Pause" : "Run");
    const reset = $(".eos-reset"), { activeElement: held } = document;
    reset.disabled &&= !started;
    if (diverged && held?.parentNode === reset.parentNode) reset.focus({ preventScroll: true }); // the others will be disabled
    go.disabled = diverged || !started || Boolean(next);
    $(".eos-one").disabled = go.disabled || !snap;
    $(".eos-twin").disabled = $(".eos-one").disabled || !usesStep();
    $(".eos-forget").disabled = !ghosts.length;
    if (!ready) return;
    const { record } = snap;
    for (const { figure, text, spoken } of captions) {
      say(figure.querySelector("figcaption"), text);
      figure.querySelector("[role]").setAttribute("aria-label", spoken);
    }
    const words = `${describe(snap, stepSize, base.optimizer)}${!running && root.dataset.why ? `; ${root.dataset.why}` : ""}`
      + (base.task === "quadratic" && Math.min(...base.spectrum) < 0 ? "; the loss has no minimum" : "")
      + (!diverged ? "" : presets[home]?.warm ? ". Press Reset to go back." : ". Choose a smaller step size and press Reset.");
    say(status, words); // spoken when it changes
    root.classList.toggle("eos-lost", diverged);
    const facts = reading();
    say($(".eos-numbers"), facts);
    const here = cursor === null ? record.steps - 1 : cursor;
    for (const [key, value] of [["max", record.steps - 1], ["now", here], ["text", facts.replaceAll(" · ", ", ")]]) {
      main.setAttribute(`aria-value${key}`, value);
    }
    Object.assign(root.dataset, { step: record.steps - 1, state: snap.state, sharpness: record.recent.eigenvalue1.at(-1), threshold: limit });
    if (!visible) return;
    main.setAttribute("aria-label", `train loss and ${curvatureOf(base)}, ${words}`);
    remember();
    const code = $(".eos-lines pre"); // while a run goes on it is left alone, so that it can be read
    if ($(".eos-lines").open && (!running || !code.textContent)) code.textContent = lines();
  }

  /* -- what leaves the page ------------------------------------------------------------------- */

  /* The run in an address: its settings, the reader's changes of the step size, and how far it went; where the
     settings leave it open (a chapter does not know the other presets), also the preset, and the x axis. */
  const addresses = presets.map((one) => engine.encodeSettings(one.settings));
  function address() {
    const k = Number(chooser.value), timely = axis === "time" || presets[k]?.axis === "time";
    return `#laboratory?${[snap.address, (compact ? k >= 0 : addresses.indexOf(addresses[k]) < k) && `preset=${presets[k].key}`,
      timely && `axis=${axis}`, `at=${snap.record.steps - 1}`].filter(Boolean).join("&")}`;
  }

  $(".eos-export a").addEventListener("click", (event) => {
    if (!running || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault(); // following it would begin the run anew; once paused the page has its address
    halt();
  });

  let written = {}; // the address that was last given to the page, and as the browser spells it
  function remember() {
    const repeats = !given(); // weights that came from Python are not in the address
    $(".eos-export a").hidden = !repeats || !get("linked"); // another page's address leads nowhere
    $(".eos-open").hidden = live || !repeats;
    if (!repeats) return;
    $(".eos-export a").href = address();
    $(".eos-open a").href = PAGE + address();
    // browsers stop listening to a page that writes its address at every frame
    if (running || !get("linked") || !touched || (written.own === address() && written.hash === location.hash)) return;
    history.replaceState(null, "", address());
    written = { own: address(), hash: location.hash };
  }

  function contents() { // JSON has no infinity: what was not measured is null
    const rows = (side) => Object.fromEntries(Object.entries(side).map(([key, row]) =>
      [key, [...row].map((v) => (Number.isFinite(v) ? v : null))]));
    const { steps, width, low, high } = snap.record, { task } = started;
    const table = (values, columns) => Array.from({ length: task.count }, (_, i) => [...values.subarray(i * columns, (i + 1) * columns)]);
    return {
      settings: engine.decodeSettings(snap.address), state: snap.state, message: snap.message, steps: steps - 1,
      every: width, low: rows(low), high: rows(high), initialPoint: [...initial],
      ...(task && { inputs: table(task.inputs, task.numInputs), targets: table(task.targets, task.numOutputs) }),
    };
  }

  function csv() {
    const { width, low, high } = snap.record, channels = Object.keys(low);
    const cell = (v) => (Number.isFinite(v) ? v : "");
    const head = ["step", ...channels.flatMap((c) => (width > 1 ? [`${c} low`, `${c} high`] : [c]))];
    return [head, ...[...low.loss.keys()].map((b) => [b * width, ...channels.flatMap((c) =>
      (width > 1 ? [cell(low[c][b]), cell(high[c][b])] : [cell(low[c][b])]))])].map((row) => row.join(",")).join("\n") + "\n";
  }

  function picture(done) {
    const canvas = $(".eos-main canvas"), copy = make("canvas", { width: canvas.width, height: canvas.height });
    const context = copy.getContext("2d");
    context.fillStyle = paint.surface;
    context.fillRect(0, 0, copy.width, copy.height);
    context.drawImage(canvas, 0, 0);
    copy.toBlob(done);
  }

  function lines() {
    const { changes, stepSize: first, ...s } = engine.decodeSettings(snap.address), steps = snap.record.steps - 1;
    const flow = s.optimizer === "flow", [rule, ...numbers] = {
      gd: ["GradientDescent"], polyak: ["Polyak", s.beta], nesterov: ["Nesterov", s.beta], flow: [],
      rmsprop: ["RMSProp", s.beta2, s.epsilon], adam: ["Adam", s.beta1, s.beta2, s.epsilon],
    }[s.optimizer];
    const cannot = s.task === "quadratic" ? "this task" : steps < 1 ? "a run of no steps" : "";
    if (cannot) return `# eoslib's train has no counterpart of ${cannot}; the saved data hold the run`;
    const { task } = started, sizes = [task.numInputs, ...s.hidden, task.numOutputs];
    const act = { tanh: "Tanh", relu: "ReLU", gelu: "GELU", softplus: "Softplus", linear: "Identity" }[s.activation];
    const layers = sizes.slice(1).map((n, l) => `    nn.Linear(${sizes[l]}, ${n}${s.bias === "yes" ? "" : ", bias=False"}),`)
      .join(`\n    nn.${act}(),\n`);
    const past = changes.filter(([step]) => step < steps).map(([step, lr]) => `(${step}, ${lr})`);
    const made = `${rule}(${[first, ...numbers].join(", ")})`;
    const several = s.eigenvalues > 1 ? `,\n    sharpness=SharpnessTracker(objective, ${s.eigenvalues})` : "";
    const batches = s.batch ? `,\n    batches=Minibatches(${s.batch}),  # drawn by another generator than the page's` : "";
    const names = [...(flow ? ["gradient_flow"] : [rule, "every", "train"]), "Objective", ...(past.length ? ["StepSizeChanges"] : []),
      ...(s.batch ? ["Minibatches"] : []), ...(several ? ["SharpnessTracker"] : [])].sort();
    return `import json

import torch
from eoslib import ${names.join(", ")}
from torch import nn

with open("laboratory.json") as file:  # from “Save data, JSON”
    data = json.load(file)
model = nn.Sequential(
${layers}
)
inputs, targets, theta = (
    torch.tensor(data[name], dtype=torch.float64)
    for name in ("inputs", "targets", "initialPoint")
)
objective = Objective(model, inputs, targets, "${s.loss}", dtype="float64")
` + (flow ? `run = gradient_flow(
    objective,
    duration=${snap.record.recent.time.at(-1)},
    tick=${snap.record.recent.time.at(-1)} / ${steps},
    alpha=${s.flowStep},
    theta=theta${several}
)
` : `rule = ${past.length ? `StepSizeChanges(${made}, [${past.join(", ")}])` : made}
run = train(
    objective,
    rule,
    num_steps=${steps},
    theta=theta,
    sharpness_schedule=every(${s.measureEvery})${several}${batches}
)
`);
  }
  $(".eos-lines").addEventListener("toggle", ({ target }) => {
    if (!target.open) $(".eos-lines pre").textContent = "";
    stale = true;
    schedule();
  });

  const save = (blob, file) => {
    const link = make("a", { download: file, href: URL.createObjectURL(blob) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  all("[data-save]").forEach((button) => button.addEventListener("click", () => {
    if (!snap || !initial) return;
    const text = (content, type) => new Blob([content], { type });
    ({
      json: () => save(text(JSON.stringify(contents()), "application/json"), "laboratory.json"),
      csv: () => save(text(csv(), "text/csv"), "laboratory.csv"),
      png: () => picture((blob) => save(blob, "laboratory.png")),
    })[button.dataset.save]();
  }));

  /* To Python: settings and state as JSON; the weights and the envelopes as one block of float64. */
  function hand() {
    const { record, state, message } = snap, channels = Object.keys(record.low);
    const rows = [point, initial, ...channels.flatMap((c) => [record.low[c], record.high[c]])];
    const block = new Float64Array(rows.reduce((sum, row) => sum + row.length, 0));
    rows.reduce((at, row) => { block.set(row, at); return at + row.length; }, 0);
    model.set("numbers", new DataView(block.buffer));
    model.set("result", { settings: engine.decodeSettings(snap.address), state, message, steps: record.steps - 1,
      every: record.width, channels, parameters: point.length, threshold: Number.isFinite(snap.threshold) ? snap.threshold : null,
      stepSize: snap.stepSize, examples: started.task?.count ?? 1 });
    model.save_changes();
  }

  /* A run that came from Python, as an earlier run of the same problem. */
  function shadow() {
    const { channels, settings, threshold: was, ...record } = get("shadow");
    if (!channels) return [];
    const view = get("shadow_numbers"), length = view.byteLength / 16 / channels.length;
    const row = (k) => new Float64Array(view.buffer.slice(view.byteOffset + 8 * k * length, view.byteOffset + 8 * (k + 1) * length));
    for (const [side, offset] of [["low", 0], ["high", 1]]) {
      record[side] = Object.fromEntries(channels.map((channel, k) => [channel, row(2 * k + offset)]));
    }
    const own = engine.checkSettings(settings);
    if (problem(own) !== problem(base)) return [];
    return [{ record, base: own, stepSize: own.stepSize, threshold: was ?? Infinity, address: engine.encodeSettings(own) }];
  }

  /* Weights that came from Python belong to the settings that came with them. */
  const given = (settings = base) => {
    const view = get("initial_point"), own = get("settings");
    if (!view?.byteLength || problem(engine.checkSettings(own)) !== problem(settings)) return null;
    return new Float64Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
  };

  /* -- begin ---------------------------------------------------------------------------------- */
  speed.value = 300;
  // the page's address changes when the reader does something, not before
  for (const event of ["click", "input", "change"]) root.addEventListener(event, () => { touched = true; }, true);
  function fromPython() {
    if (running) halt();
    next = null;
    forsake();
    wrong.textContent = "";
    try {
      const settings = engine.checkSettings(get("settings"));
      if (settings.optimizer === "flow") axis = "time"; // a step of Python's is another than the page's
      begin(settings, { weights: given(settings) });
      if (!ghosts.length) ghosts = shadow();
    } catch (error) {
      complain(error.message);
    }
  }
  const described = () => get("linked") && location.hash.match(/^#laboratory\?(.*)$/)?.[1];
  function open() {
    let complaint = "";
    if (described()) {
      try {
        const parts = described().split("&"), ours = ["at", "preset", "axis"];
        const { at, preset: key, axis: wanted } = Object.fromEntries(parts.map((part) => part.split("=")));
        const told = parts.filter((part) => part && !ours.includes(part.split("=")[0])), settings = engine.decodeSettings(told.join("&"));
        const steps = clamp(Math.floor(Number(at) || 0), 0, FARTHEST), own = engine.encodeSettings(settings);
        const alike = presets.flatMap((one, k) => (addresses[k] === own ? [k] : []));
        const named = presets.findIndex((one) => one.key === key);
        const k = told.length || named < 0 ? alike.find((one) => one === named) ?? alike[0] : named;
        wrong.textContent = "";
        const side = ["steps", "time"].includes(wanted) ? wanted : presets[k]?.axis ?? "steps";
        if (k === undefined) {
          forsake();
          next = null;
          axis = side;
          begin(settings, { steps });
        } else preset(k, at === undefined && !told.length ? presets[k].warm : steps, side);
        if (key !== undefined && named < 0 && !compact) complain(`There is no preset "${key}".`);
        if (wanted !== undefined && wanted !== side) complain(`axis is "steps" or "time", not "${wanted}".`);
        if (at > FARTHEST) complain(`A link leads no further than to step ${thousands(FARTHEST)}.`);
        return;
      } catch (error) {
        complaint = `The address does not describe a run: ${error.message}`;
      }
    }
    const k = presets.findIndex((one) => one.key === get("preset"));
    if (k >= 0) preset(k);
    else fromPython();
    if (complaint) complain(complaint);
  }
  const reopen = () => {
    if (!described() || (snap && location.hash === address())) return;
    if (running) halt();
    open();
  };
  if (get("linked")) self.addEventListener("hashchange", reopen);
  model.on("change:settings", fromPython);
  const hidden = () => { if (document.hidden && running) halt("paused while the page was hidden"); };
  document.addEventListener("visibilitychange", hidden);
  const unwatch = watch(root, () => { paint = null; stale = true; schedule(); });
  $(".eos-twin").hidden = compact && !presets.some(({ settings }) => settings.twinAt >= 0);
  // a small laboratory far down in a chapter takes no time before the reader comes near
  const near = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    near.disconnect();
    open();
  }, { rootMargin: "600px" });
  if (compact) near.observe(root);
  else open();
  return () => {
    near.disconnect();
    unwatch();
    model.off("change:settings", fromPython);
    model.off("change:title", entitle);
    self.removeEventListener("hashchange", reopen);
    document.removeEventListener("visibilitychange", hidden);
    cancelAnimationFrame(frame);
    if (!link) return;
    link.receive = () => {};
    send("stop"); // without a worker nothing else ends the run
    link.close();
  };
}

export default { initialize, render };
