/* What the book's widgets share: elements, numbers as text, axes, curves, the parts of a slider, and
   the line of controls for what only a kernel can compute.

   A widget imports it; Python joins the two texts into one program (`_shared.py`), because a page
   that was opened as a file may import nothing. */

const SVG = "http://www.w3.org/2000/svg";

/* ---- elements --------------------------------------------------------------------------- */

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function draw(parent, tag, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  parent.append(element);
  return element;
}

/* Empty an SVG element and give it a size. */
export function resize(svg, width, height) {
  svg.replaceChildren();
  for (const [name, value] of Object.entries({ viewBox: `0 0 ${width} ${height}`, width, height })) {
    svg.setAttribute(name, value);
  }
}

/* Size a canvas for the screen's resolution; return its context, which counts in CSS pixels. */
export function canvasContext(canvas, width, height) {
  const ratio = Math.min(self.devicePixelRatio || 1, 3);
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.cssText = `width:${width}px;height:${height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.lineWidth = 1;
  context.lineJoin = "round";
  return context;
}

/* Call `relayout` when the width of an element or the theme changes; return how to stop that. */
export function watch(element, relayout) {
  let width = element.clientWidth, waiting = 0;
  const change = () => { // a task for each widget: to draw all those of a page anew takes long
    waiting ||= setTimeout(() => {
      waiting = 0;
      width = element.clientWidth;
      relayout();
    });
  };
  const sizes = new ResizeObserver(() => { if (element.clientWidth !== width) change(); });
  sizes.observe(element);
  // the theme button of the book, of JupyterLab, and of the operating system
  const themes = new MutationObserver(change);
  const attributeFilter = ["data-theme", "data-jp-theme-light"];
  for (const node of [document.documentElement, document.body]) {
    themes.observe(node, { attributes: true, attributeFilter });
  }
  const media = self.matchMedia("(prefers-color-scheme: dark)");
  media.addEventListener("change", change);
  return () => {
    clearTimeout(waiting);
    sizes.disconnect();
    themes.disconnect();
    media.removeEventListener("change", change);
  };
}

export const themeOf = (root) =>
  getComputedStyle(root).getPropertyValue("--eos-theme").trim() || "light";

/* ---- numbers ---------------------------------------------------------------------------- */

export const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
export const thousands = (n) => String(Math.round(n)).replace(/\B(?=(\d{3})+$)/g, ",");
const minus = (text) => text.replace("-", "−");
const superscript = (n) => String(n).replace(/./g, (c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]);
const exponentOf = (x) => Math.floor(Math.log10(Math.abs(x)) + 1e-12);

/* A number with three significant digits, written as in a text: 0.05, 12,400, 3.10×10⁻⁵. */
export function number(x, digits = 3) {
  if (!Number.isFinite(x)) return "–";
  if (x === 0) return "0";
  const [mantissa, power] = x.toExponential(digits - 1).split("e"), exponent = Number(power); // of what is rounded
  if (exponent < -3 || exponent > 5) return minus(`${mantissa}×10${superscript(exponent)}`);
  return minus(exponent >= Math.min(digits, 3) ? thousands(x) : String(Number(x.toPrecision(digits))));
}

/* A tick label; `power`: 10⁻² instead of 0.01, for axes of many decades. */
function tickLabel(x, power) {
  const exponent = exponentOf(x);
  if (x === 0 || !(power || exponent < -3 || exponent > 5)) return number(x, 4);
  const factor = Number((x / 10 ** exponent).toPrecision(3));
  return minus(`${factor === 1 ? "" : `${factor}×`}10${superscript(exponent)}`);
}

/* Round tick values, about `count` of them, within [low, high]. */
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
  const values = [];
  for (let k = Math.ceil(low / step - 1e-9); k <= high / step + 1e-9; k++) values.push(k * step);
  return values.map((v) => Number(v.toPrecision(12)));
}

function logTicks(low, high, count) {
  const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
  const every = Math.max(1, Math.ceil((last - first + 1) / count));
  const values = [];
  for (let k = first; k <= last; k++) if (k % every === 0) values.push(10 ** k);
  if (last - first < 2) {
    for (let k = first - 1; k <= last; k++) for (const m of [2, 5]) values.push(m * 10 ** k);
  }
  return values.filter((v) => v >= low * 0.999 && v <= high * 1.001).sort((a, b) => a - b);
}

/* The ticks of an axis { log, low, high }, about `count` of them, as [value, label]. */
export function tickLabels({ log, low, high }, count) {
  const values = log ? logTicks(low, high, count) : ticks(low, high, count);
  return values.map((value) => [value, tickLabel(value, log && high / low > 1e4)]);
}

/* The float32 numbers behind a DataView. */
export function floats(view) {
  if (!view || !view.byteLength) return new Float32Array(0);
  // a copy, since the bytes may not start at a multiple of four
  return new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

/* The colour at a fraction of the way through equally spaced `#rrggbb` stops, as in palette.py. */
export function mix(stops, fraction) {
  const place = clamp(fraction, 0, 1) * (stops.length - 1);
  const k = Math.min(Math.floor(place), stops.length - 2);
  return "#" + [1, 3, 5].map((c) => {
    const [a, b] = [stops[k], stops[k + 1]].map((stop) => parseInt(stop.slice(c, c + 2), 16));
    return Math.floor(a + (place - k) * (b - a) + 0.5).toString(16).padStart(2, "0");
  }).join("");
}

/* The colour of a step size; `range`: the step sizes at the two ends of the map. */
export const stepSizeColor = (lr, [low, high], stops) =>
  mix(stops, high > low ? Math.log(lr / low) / Math.log(high / low) : 0.5);

/* ---- axes and curves -------------------------------------------------------------------- */

/* A function from values to pixels; `from` and `to` are the pixels of an axis { log, low, high }. */
export function scale({ log, low, high }, from, to) {
  const f = log ? (v) => Math.log(Math.max(v, 1e-300)) : (v) => v;
  const a = f(low), b = f(high);
  // values far beyond the range end just as far outside the panel, where the clip cuts the curve
  return (v) => from + (to - from) * clamp((f(v) - a) / (b - a), -9, 10);
}

/* Grid, ticks and edges of the panel { left, top, width, height, xTicks, yTicks, xScale, yScale }.
   `lines`: its heading, one text for each line. `xLabel`: given for the lowest of several panels. */
export function axes(parent, panel, lines, xLabel = "") {
  const { left, top, width, height, xScale, yScale } = panel, bottom = top + height;
  lines.forEach((line, k) => draw(parent, "text",
    { x: 2, y: top - 9 - 15 * (lines.length - 1 - k), class: "eos-label" }, line));
  for (const [value, label] of panel.yTicks) {
    const y = yScale(value).toFixed(1);
    draw(parent, "line", { x1: left, x2: left + width, y1: y, y2: y, class: "eos-grid" });
    draw(parent, "text", { x: left - 6, y: Number(y) + 4, "text-anchor": "end" }, label);
  }
  for (const [value, label] of panel.xTicks) {
    const x = xScale(value).toFixed(1);
    draw(parent, "line", { x1: x, x2: x, y1: bottom, y2: bottom + (xLabel ? 5 : 3), class: "eos-tick" });
    if (xLabel) draw(parent, "text", { x, y: bottom + 18, "text-anchor": "middle" }, label);
  }
  draw(parent, "path", { class: "eos-edge", d: `M${left} ${top}v${height}h${width}` });
  if (xLabel) {
    draw(parent, "text", { x: left + width / 2, y: bottom + 35, "text-anchor": "middle",
      class: "eos-label" }, xLabel);
  }
}

/* SVG path of n points at the pixels x(i), y(i), drawn as if every point were connected, at a cost
   bounded by the width: of all points that follow one another in a pixel column, the first, lowest,
   highest and last are enough. Subsampling instead would lose spikes, and the oscillation with
   period two altogether. A point that is not a number is a gap; one between two gaps is a dot. `stop`: pixel
   at which to end. */
export function path(n, x, y, stop = Infinity) {
  let d = "", pen = "M", drawn = 0; // points since the pen was lifted
  let column = NaN, first = 0, low = 0, high = 0, last = -1, least = 0, most = 0;
  const flush = () => {
    if (last < 0) return;
    const middle = low < high ? [low, high] : [high, low];
    let previous = -1;
    for (const i of [first, ...middle, last]) {
      if (i === previous) continue;
      d += `${pen}${x(i).toFixed(1)} ${y(i).toFixed(1)}`;
      pen = "L";
      drawn += 1;
      previous = i;
    }
    last = -1;
  };
  const lift = () => {
    flush();
    if (drawn === 1) d += "h0";
    drawn = 0;
    pen = "M";
  };
  for (let i = 0; i < n; i++) {
    const px = x(i), py = y(i), c = Math.floor(px);
    if (Number.isNaN(px + py)) {
      lift();
      column = NaN;
      continue;
    }
    if (c !== column) {
      flush();
      column = c;
      first = low = high = i;
      least = most = py;
    } else if (py < least) [low, least] = [i, py];
    else if (py > most) [high, most] = [i, py];
    last = i;
    if (px > stop) break; // one point beyond the edge, so that the line reaches it
  }
  lift();
  return d;
}

/* Let pointer and keys move a cursor over a plot. `at(pixel)`: the place at so many pixels from its
   left; `move(event)`: the place that a key leads to, if any; `set(place)`, null being none. */
export function trackCursor(plot, { at, move, set }) {
  const point = (event) => set(at(event.clientX - plot.getBoundingClientRect().left));
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse" && document.activeElement !== plot) set(null);
  });
  plot.addEventListener("blur", () => set(null));
  plot.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Escape") return set(null);
    const place = move(event);
    if (place === undefined) return;
    event.preventDefault();
    set(place);
  });
}

/* Fill a table; the first cell of each row is its heading, the others know the name of their column,
   for where it has no room above them. Return the rows. */
export function fillTable(table, head, rows) {
  const body = rows.map(([first, ...cells]) => make("tr", {}, make("th", { scope: "row" }, first),
    ...cells.map((text, k) => make("td", { "data-name": head[k + 1] }, text))));
  const columns = head.map((text) => make("th", { scope: "col" }, text));
  table.replaceChildren(make("thead", {}, make("tr", {}, ...columns)), make("tbody", {}, ...body));
  return body;
}

/* ---- the slider ------------------------------------------------------------------------- */

/* Markup of a named slider between two buttons; the values beside it are the widget's own. */
export const sliderMarkup = (id, max, values) => `
  <div class="eos-control">
    <label class="eos-name" for="${id}-slider"></label>
    <div class="eos-slide">
      <button type="button" class="eos-step" data-by="-1">‹</button>
      <div class="eos-track"><span></span><span></span>
        <input type="range" id="${id}-slider" min="0" max="${max}" step="1"
          data-lm-suppress-shortcuts="true">
        <div class="eos-ticks" aria-hidden="true"></div>
      </div>
      <button type="button" class="eos-step" data-by="1">›</button>
    </div>
    <div class="eos-values">${values}</div>
  </div>`;

/* Name the slider and its buttons. */
export function nameSlider(root, name, less, more) {
  root.querySelector(".eos-name").textContent = name;
  const labels = [less, more];
  root.querySelectorAll(".eos-step").forEach((button, k) => button.setAttribute("aria-label", labels[k]));
}

/* How many values a key on the slider moves by, of `count`; 0 for other keys. */
export function keyMoves(event, count) {
  if (event.altKey || event.ctrlKey || event.metaKey) return 0;
  const leap = Math.max(2, Math.round(count / 4));
  return { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1,
    PageUp: leap, PageDown: -leap }[event.key] || 0;
}

/* Marks below the slider, for values at these fractions of its length. */
export function tickMarks(root, fractions) {
  const marks = fractions.map((fraction) => {
    const mark = make("i");
    mark.style.setProperty("--at", fraction);
    return mark;
  });
  root.querySelector(".eos-ticks").replaceChildren(...marks);
  return marks;
}

/* ---- what only a kernel can compute -------------------------------------------------------- */

/* A field to type a value in, a button that has the kernel compute, its progress, and a stop button.
   `verbs`: "Train", "Training"; `trait`: where the kernel says how far it is; `complaint(value)`:
   what is wrong with a value, or ""; `hint`: which values are right; `choose(value)`: show it. */
export function makeRunner({ model, id, symbol, verbs, trait, complaint, hint, choose, request }) {
  const box = make("div", { class: "eos-trainer" });
  box.innerHTML = `
    <label for="${id}-typed"></label>
    <input id="${id}-typed" type="text" inputmode="decimal" autocomplete="off" size="7"
      data-lm-suppress-shortcuts="true" aria-describedby="${id}-message">
    <button type="button" class="eos-go"></button>
    <button type="button" class="eos-stop">Stop</button>
    <progress max="1" aria-label="progress"></progress><span class="eos-count"></span>
    <p class="eos-message" id="${id}-message" role="status" aria-live="polite"></p>`;
  const [typed, go, stop, bar] = ["input", ".eos-go", ".eos-stop", "progress"].map((s) => box.querySelector(s));
  const message = box.querySelector(".eos-message"), count = box.querySelector(".eos-count");
  box.querySelector("label").textContent = symbol;
  let waiting = 0;
  const state = () => model.get(trait) || { state: "idle" };
  const say = (text, wrong) => {
    message.textContent = text;
    message.classList.toggle("eos-wrong", Boolean(wrong));
  };
  const read = () => { // the typed value, or null with a message that says what is wrong
    const text = typed.value.trim().replace(",", ".");
    const value = text === "" ? NaN : Number(text);
    const wrong = Number.isFinite(value) ? complaint(value) : `“${typed.value}” is not a number`;
    typed.setAttribute("aria-invalid", String(Boolean(wrong)));
    if (wrong) say(`${wrong}: ${hint}.`, true);
    else if (message.classList.contains("eos-wrong")) say("");
    return wrong ? null : value;
  };
  typed.addEventListener("change", () => { const value = read(); if (value !== null) choose(value); });
  typed.addEventListener("keydown", (event) => { if (event.key === "Enter" && !go.disabled) go.click(); });
  go.addEventListener("click", () => {
    const value = read();
    if (value === null || state().state === "running") return;
    choose(value);
    say("");
    model.send(request(value));
    go.disabled = true;
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      say("The kernel has not answered yet: it may be busy with a cell, or have been restarted "
        + "(then run the cell above again).", true);
      go.disabled = false;
    }, 5000);
  });
  stop.addEventListener("click", () => {
    model.send({ do: "stop" });
    stop.disabled = true;
    say("stopping…");
  });
  return {
    box,
    /* Offer to compute this value. */
    update(value) {
      const { state: now, value: at } = state();
      if (document.activeElement !== typed) {
        typed.value = String(value);
        typed.setAttribute("aria-invalid", "false");
      }
      go.textContent = now === "running" ? `${verbs[1]} at ${symbol} = ${number(at)}`
        : `${verbs[0]} at ${symbol} = ${number(value)}`;
      go.disabled = now === "running";
    },
    /* Show what the kernel says. */
    receive() {
      const { state: now, message: text, step, num_steps: steps } = state();
      clearTimeout(waiting);
      const running = now === "running";
      box.classList.toggle("eos-running", running);
      stop.disabled = !running || text === "stopping…";
      go.disabled = running; // with the message, not with the next picture
      if (running && steps) bar.value = step / steps; else bar.removeAttribute("value");
      count.textContent = running && steps ? `${thousands(step)} / ${thousands(steps)} steps` : "";
      if (running ? text : now !== "idle") say(text, now === "failed");
    },
    dispose: () => clearTimeout(waiting),
  };
}
