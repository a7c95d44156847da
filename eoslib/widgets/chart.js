/* Charts from data: panels with lines, marks, direct labels, a cursor and a legend that reads values.

   A panel is { x, y, xlog, ylog, xlim, ylim, group }; panels of one group stand above one another and
   share an x axis, a cursor and a legend. A line is { panel, label, style, pale, n, x(i), values },
   a mark { panel, label, along: "x" or "y", at: [place] or [from, to], null being an open end }. */

import {
  axes, canvasContext, clamp, draw, make, number, path, resize, scale, tickLabels, trackCursor,
} from "./plot.js";

const CONNECTED = ["solid", "dashed", "dotted"];
const SWATCH = { // how the other styles look in the legend, in a box of 24 by 12
  points: "M4 6h0M12 6h0M20 6h0", stems: "M5 11V6M12 11V2M19 11V8", bars: "M4 11V6h5V11M11 11V2h5V11",
};

/* Index of the point of a line nearest to x; -1 where it has none. */
function nearest({ n, x, values }, target) {
  let best = -1, distance = Infinity;
  for (let i = 0; i < n; i++) {
    const away = Math.abs(x(i) - target);
    if (away <= distance && !Number.isNaN(values[i])) [best, distance] = [i, away];
  }
  return best;
}

/* Move labels { x, y, width, height }, y being the middle, apart where they would meet. */
function spread(labels, top, bottom) {
  const push = (order, bound, sign) => order.forEach((label, k) => {
    const limits = order.slice(0, k)
      .filter((other) => label.x < other.x + other.width && other.x < label.x + label.width)
      .map((other) => other.y + (sign * (other.height + label.height)) / 2);
    limits.push(bound + (sign * label.height) / 2);
    label.y = sign * Math.max(sign * label.y, ...limits.map((limit) => sign * limit));
  });
  labels.sort((a, b) => a.y - b.y);
  push(labels, top, 1);
  push([...labels].reverse(), bottom, -1);
}

/* SVG paths of a line on these scales: { curve, dots, area }. */
function shapes({ n, style, x, values }, xScale, yScale, base) {
  const px = (i) => xScale(x(i)), py = (i) => yScale(values[i]);
  if (CONNECTED.includes(style)) return { curve: path(n, px, py) };
  const points = [];
  for (let i = 0; i < n; i++) {
    if (!Number.isNaN(px(i) + py(i))) points.push([px(i), py(i)].map((v) => Number(v.toFixed(1))));
  }
  const across = points.map(([at]) => at).sort((a, b) => a - b);
  const gap = Math.min(40, ...across.slice(1).map((at, k) => at - across[k]).filter((d) => d > 0));
  const each = (shape) => points.map(([at, end]) => shape(at, end)).join("");
  if (style === "bars") {
    return { area: each((at, end) => `M${at - 0.45 * gap} ${base}V${end}h${0.9 * gap}V${base}z`) };
  }
  return { dots: each((at, end) => `M${at} ${end}h0`),
    curve: style === "stems" ? each((at, end) => `M${at} ${base}V${end}`) : "" };
}

/* Charts in the element `box`; `id` is a prefix for ids; `color(one)` is the colour of a line or mark.

   load({ panels, background, frames }): frames are { lines, marks }; all of them decide how much room
     labels get, so that nothing moves but the data. With `ghosts` they are shown faintly.
   layout(): axes and what no frame changes; again after a change of the width or the theme.
   show(frame): draw this one. */
export function makeCharts(box, id, color) {
  const style = (one) => `--eta:${color(one)}`;
  const ruler = make("canvas").getContext("2d");
  let panels = [], background = [], everyLine = [], everyMark = [], ghosts = false, groups = [], frame = null;

  const textWidth = (text) => ruler.measureText(text).width;
  const wrap = (text, width) => text.split(" ").reduce((lines, word) => {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (textWidth(longer) <= width) lines[lines.length - 1] = longer; else lines.push(word);
    return lines;
  }, [""]).filter(Boolean);
  const drawn = (panel) => [...background, ...frame.lines].filter((line) => panels[line.panel] === panel);
  const inside = (group, one) => group.panels.includes(panels[one.panel]);

  function load(content) {
    ({ panels, background, ghosts } = content);
    everyLine = [background, ...content.frames.map(({ lines }) => lines)].flat();
    everyMark = content.frames.flatMap(({ marks }) => marks);
    groups = [];
    for (const panel of panels) (groups[panel.group] ??= { panels: [], cursor: null }).panels.push(panel);
    box.replaceChildren();
    for (const group of groups) {
      group.plot = make("div", { class: "eos-plot", tabindex: "0", role: "slider",
        "aria-label": `cursor along the x axis, ${group.panels[0].x}`, "data-lm-suppress-shortcuts": "true" });
      group.canvas = make("canvas", { "aria-hidden": "true" });
      group.plot.append(group.canvas);
      group.svg = draw(group.plot, "svg", { "aria-hidden": "true" });
      group.legend = make("div", { class: "eos-legend" });
      box.append(group.plot, group.legend);
      trackCursor(group.plot, {
        at: (pixel) => group.panels[0].value(clamp((pixel - group.panels[0].left) / group.panels[0].width, 0, 1)),
        move: (event) => move(group, event),
        set(x) {
          group.cursor = x;
          if (group.layer) point(group);
        },
      });
    }
  }

  /* Where a key moves the cursor: along the points of one line, by a pixel at least or, with Shift,
     by one point. */
  function move(group, event) {
    const here = reading(group);
    if (!here) return undefined;
    const { line: { n, x }, i } = here, { xScale } = group.panels[0];
    const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1,
      PageUp: n / 10, PageDown: -n / 10, Home: -n, End: n }[event.key];
    if (!by) return undefined;
    let k = clamp(Math.round(i + by), 0, n - 1);
    const near = () => !(Math.abs(xScale(x(k)) - xScale(x(i))) >= 1); // true for a gap as well
    while (Math.abs(by) === 1 && !event.shiftKey && k > 0 && k < n - 1 && near()) k += by;
    return x(k);
  }

  /* Room right of the panels, for the names of lines that end there and of horizontal marks. */
  function margin(group, widest) {
    const ending = ({ panel, label, x, ...line }) => {
      const { xlog, xlim: [low, high] } = panels[panel];
      const last = nearest({ x, ...line }, high);
      return label && last >= 0 && scale({ log: xlog, low, high }, 0, 1)(x(last)) > 0.85;
    };
    const named = [...everyLine.filter(ending), ...everyMark.filter((mark) => mark.along === "y" && mark.at.length === 1)];
    const words = named.filter((one) => inside(group, one)).flatMap(({ label }) => wrap(label, widest));
    return Math.max(14, ...words.map((word) => textWidth(word) + 12));
  }

  function layout() {
    const width = Math.floor(box.clientWidth), narrow = width < 430, count = panels.length;
    if (!width) return;
    ruler.font = `12.5px ${getComputedStyle(box).fontFamily}`; // not for every frame: that lays the page out
    const size = (count > 2 ? 150 : count > 1 ? 185 : 270) * (narrow ? 0.85 : 1);
    for (const line of everyLine) line.shapes = null;
    for (const group of groups) {
      const yTicks = group.panels.map(({ y, ylim: [low, high], ylog: log }) =>
        (y ? tickLabels({ low, high, log }, log ? 5 : 4) : [])); // an axis without a name has no numbers
      const left = Math.max(34, ...yTicks.flat().map(([, label]) => textWidth(label) + 10));
      group.labelWidth = narrow ? 84 : 150;
      const inner = width - left - margin(group, group.labelWidth);
      group.bottom = 0;
      const headings = group.panels.map((panel, k) => {
        const heading = wrap(panel.y && panel.y + (panel.ylog ? ", log scale" : ""), width - 4);
        const top = group.bottom + 15 * heading.length + (k ? 18 : 8);
        const [low, high] = panel.xlim, x = { low, high, log: panel.xlog };
        group.bottom = top + size;
        Object.assign(panel, {
          left, top, width: inner, height: size, xTicks: tickLabels(x, inner / 60), yTicks: yTicks[k],
          xScale: scale(x, left, left + inner),
          yScale: scale({ low: panel.ylim[0], high: panel.ylim[1], log: panel.ylog }, group.bottom, top),
          value: (f) => (panel.xlog ? low * (high / low) ** f : low + f * (high - low)),
          clip: `${id}-clip-${panels.indexOf(panel)}`,
        });
        return heading;
      });
      group.width = width;
      resize(group.svg, width, group.bottom + 40);
      const defs = draw(group.svg, "defs");
      group.layer = {};
      for (const name of ["bands", "axes", "background", "marks", "lines", "labels", "cursor"]) {
        group.layer[name] = draw(group.svg, "g", { class: `eos-${name}` });
      }
      group.panels.forEach((panel, k) => {
        const clip = draw(defs, "clipPath", { id: panel.clip });
        draw(clip, "rect", { x: left, y: panel.top, width: inner, height: size });
        const last = k === group.panels.length - 1;
        axes(group.layer.axes, panel, headings[k], last ? panel.x + (panel.xlog ? ", log scale" : "") : "");
      });
      for (const line of background) drawLine(group, line, group.layer.background);
      if (ghosts) drawGhosts(group);
    }
  }

  /* The lines of all frames, faintly, on a canvas: painted once per layout, so that showing a frame
     costs the same whatever their number. */
  function drawGhosts(group) {
    const context = canvasContext(group.canvas, group.width, group.bottom + 40);
    for (const panel of group.panels) {
      context.save();
      context.beginPath();
      context.rect(panel.left, panel.top, panel.width, panel.height);
      context.clip();
      context.globalAlpha = 0.3;
      for (const line of everyLine) {
        if (panels[line.panel] !== panel || background.includes(line)) continue;
        context.strokeStyle = color(line);
        context.stroke(new Path2D(shapesOf(line).curve));
      }
      context.restore();
    }
  }

  function shapesOf(line) {
    const { xScale, yScale, ylog, ylim } = panels[line.panel];
    return (line.shapes ??= shapes(line, xScale, yScale, yScale(ylog ? ylim[0] : 0)));
  }

  function show(next) {
    frame = next;
    for (const group of groups) {
      if (!group.layer) continue;
      for (const name of ["bands", "marks", "lines", "labels"]) group.layer[name].replaceChildren();
      for (const mark of frame.marks) drawMark(group, mark);
      for (const line of frame.lines) drawLine(group, line, group.layer.lines);
      for (const panel of group.panels) drawNames(group, panel);
      point(group);
    }
  }

  function drawLine(group, line, layer) {
    if (!inside(group, line)) return;
    const { curve, dots, area } = shapesOf(line), clip = { "clip-path": `url(#${panels[line.panel].clip})` };
    const g = draw(layer, "g", { style: style(line), class: line.pale ? "eos-pale" : "" });
    if (area) draw(g, "path", { d: area, class: "eos-area", ...clip });
    if (curve) draw(g, "path", { d: curve, class: `eos-line eos-${line.style}`, ...clip });
    if (dots) draw(g, "path", { d: dots, class: "eos-dots" });
  }

  function drawMark(group, mark) {
    if (!inside(group, mark)) return;
    const { left, top, width, height, xScale, yScale } = panels[mark.panel];
    const vertical = mark.along === "x", edges = vertical ? [left, left + width] : [top + height, top];
    const [low, high] = [...edges].sort((a, b) => a - b);
    const at = mark.at.map((end, k) => (end === null ? edges[k] : (vertical ? xScale : yScale)(end)));
    if (at.length === 2) {
      const [from, to] = at.map((v) => clamp(v, low, high)).sort((a, b) => a - b), length = to - from;
      const area = vertical ? { x: from, width: length, y: top, height } : { x: left, width, y: from, height: length };
      draw(group.layer.bands, "rect", { ...area, class: "eos-tint", style: style(mark) });
      if (mark.label && length > (vertical ? textWidth(mark.label) + 8 : 22)) {
        draw(group.layer.bands, "text", { x: area.x + 8, y: area.y + 15, class: "eos-above", style: style(mark) }, mark.label);
      }
    } else if (at[0] >= low - 0.5 && at[0] <= high + 0.5) {
      draw(group.layer.marks, "path", { class: "eos-dash", style: style(mark),
        d: vertical ? `M${at} ${top}v${height}` : `M${left} ${at}h${width}` });
    }
  }

  /* Names at the ends of lines and of horizontal marks; vertical marks have theirs at the top. */
  function drawNames(group, panel) {
    const { left, top, width, height, xlim, xScale, yScale } = panel, layer = group.layer.labels;
    const right = left + width, bottom = top + height, names = [];
    const add = (one, text, end, y) => {
      // a name that began in the panel would lie over the ends of other lines
      const beside = end > right - Math.min(28, 0.15 * width);
      const x = (beside ? right : end) + 8;
      const lines = wrap(text, beside ? group.width - right - 10 : group.labelWidth);
      const longest = Math.max(...lines.map(textWidth));
      const from = clamp(y, top, bottom);
      const height = 14 * lines.length + (lines.length > 1 ? 4 : 0); // where one name ends and the next begins
      names.push({ one, lines, end, from, y: from, x: Math.min(x, group.width - longest), width: longest + 4, height });
    };
    for (const line of drawn(panel)) {
      const last = nearest(line, xlim[1]);
      if (line.label && last >= 0) add(line, line.label, xScale(line.x(last)), yScale(line.values[last]));
    }
    for (const mark of frame.marks) {
      if (panels[mark.panel] !== panel || mark.at.length > 1 || !mark.label) continue;
      const [at] = mark.at, x = xScale(at), y = yScale(at);
      if (mark.along === "y") {
        add(mark, mark.label + (y < top - 0.5 ? " ↑ above" : y > bottom + 0.5 ? " ↓ below" : ""), right, y);
      } else if (x >= left && x <= right) {
        const flip = x + textWidth(mark.label) > right;
        draw(layer, "text", { x: x + (flip ? -5 : 5), y: top + 12, class: "eos-tag", "text-anchor": flip ? "end" : "start" }, mark.label);
      }
    }
    spread(names, top - 6, bottom + 6);
    for (const { one, lines, end, x, y, from } of names) {
      if (Math.abs(y - from) > 5 || x - end > 16) { // a thread to where it belongs
        draw(layer, "path", { class: "eos-thread", style: style(one), d: `M${end + 1} ${from}L${x - 2} ${y}` });
      }
      const text = draw(layer, "text", { class: "eos-tag" });
      lines.forEach((line, k) => draw(text, "tspan", { x, y: y + 4.5 + 14 * (k - (lines.length - 1) / 2) }, line));
    }
  }

  /* Where the cursor stands: a point of the line with most points; without a cursor its last one. */
  function reading(group) {
    const lines = frame ? group.panels.flatMap(drawn) : [];
    if (!lines.length) return null;
    const line = lines.reduce((best, one) => (one.n > best.n ? one : best));
    const i = Math.max(0, nearest(line, group.cursor ?? group.panels[0].xlim[1]));
    return { line, i, x: line.x(i) };
  }

  function point(group) {
    const [{ x: name, xlim, xScale, top }] = group.panels, layer = group.layer.cursor, here = reading(group);
    const x = here ? here.x : xlim[0], said = here ? [`${name} ${number(x, 4)}`] : ["nothing to read here"];
    layer.replaceChildren();
    group.legend.replaceChildren();
    for (const [end, value] of [["min", xlim[0]], ["max", xlim[1]], ["now", x]]) group.plot.setAttribute(`aria-value${end}`, value);
    if (here) group.legend.append(key(name, number(x, 4)));
    if (here && group.cursor !== null) draw(layer, "path", { d: `M${xScale(x).toFixed(1)} ${top}V${group.bottom}` });
    for (const panel of group.panels) {
      for (const line of drawn(panel)) {
        const i = nearest(line, x), cx = xScale(line.x(i)), cy = panel.yScale(line.values[i]);
        if (group.cursor !== null && cy >= panel.top && cy <= panel.top + panel.height) {
          draw(layer, "circle", { cx: cx.toFixed(1), cy: cy.toFixed(1), r: 4, style: style(line) });
        }
        if (!line.label) continue;
        // a line may have been measured elsewhere only: say where, unless the plot cannot tell
        const value = number(line.values[i]) + (Math.abs(cx - xScale(x)) > 1 ? ` at ${number(line.x(i), 4)}` : "");
        said.push(`${line.label} ${value}`);
        group.legend.append(key(line.label, value, line));
      }
    }
    group.plot.setAttribute("aria-valuetext", said.join(", "));
  }

  /* An entry of the legend: how the line looks, its name, its value. */
  function key(name, value, line) {
    const entry = make("span", { class: `eos-key${line?.pale ? " eos-pale" : ""}` });
    if (line) {
      const kind = { points: "eos-dots", bars: "eos-area" }[line.style] ?? `eos-line eos-${line.style}`;
      const swatch = draw(entry, "svg", { width: 24, height: 12, "aria-hidden": "true", style: style(line) });
      draw(swatch, "path", { d: SWATCH[line.style] ?? "M1 6H23", class: kind });
    }
    entry.append(make("span", {}, name), make("b", {}, value));
    return entry;
  }

  return { load, layout, show };
}
