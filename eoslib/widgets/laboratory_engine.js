/* The laboratory's engine: the mathematics of the Python library, for a page without a kernel.

   Data flows one way: settings → task → objective → optimizer → session → record → view.

   One function holds everything, because a page opened from a file can only start a classic
   worker, from text: `workerSource()` is that text, `laboratoryEngine()` the engine itself.

   All numbers are float64, and a run repeats bit for bit in every browser: exp, log and tanh are
   made here of operations that IEEE 754 rounds alike everywhere. Math.exp may differ in the last
   bit, which at the edge of stability decides when the next spike comes. */

export function laboratoryEngine() {
"use strict";

// ---- elementary functions ----

// ln 2 in two parts; the first has 32 bits, so that its multiples by exponents are exact
const LN2_HIGH = 2977044471 / 4294967296, LN2_LOW = 1.9082149292705877e-10;
const POWERS_OF_TWO = new Float64Array(2098); // 2^(i − 1074)
for (let i = 0, power = Number.MIN_VALUE; i < 2098; i++, power *= 2) POWERS_OF_TWO[i] = power;

/* e^r − 1 for |r| ≤ ½ ln 2: its Taylor polynomial of degree 13, to 2⁻⁵³ relative. */
function smallExpm1(r) {
  const tail = 1 / 5040 + r * (1 / 40320 + r * (1 / 362880 + r * (1 / 3628800
    + r * (1 / 39916800 + r * (1 / 479001600 + r * (1 / 6227020800))))));
  const head = 1 / 2 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120 + r * (1 / 720 + r * tail))));
  return r + r * r * head;
}

function exp(x) {
  if (!(x < 709.78)) return x + Infinity; // or NaN
  if (x < -745) return 0;
  const k = Math.round(x * Math.LOG2E), half = k >> 1; // 2^k may be no number
  return (1 + smallExpm1(x - k * LN2_HIGH - k * LN2_LOW)) * POWERS_OF_TWO[half + 1074] * POWERS_OF_TWO[k - half + 1074];
}

/* tanh |x| = t/(t + 2) with t = e^{2|x|} − 1: no cancellation at any x. */
function tanh(x) {
  const y = 2 * Math.abs(x);
  if (!(y < 44)) return Math.sign(x); // or NaN
  const k = Math.round(y * Math.LOG2E);
  const power = POWERS_OF_TWO[k + 1074];
  const t = power * smallExpm1(y - k * LN2_HIGH - k * LN2_LOW) + (power - 1);
  return x < 0 ? -t / (t + 2) : t / (t + 2);
}

const bits = new DataView(new ArrayBuffer(8));

/* ln x = e ln 2 + 2 artanh s, with x = 2^e (1 + s)/(1 − s) and |s| ≤ 0.172; x normal, positive. */
function log(x) {
  if (!(x < Infinity)) return x;
  bits.setFloat64(0, x);
  let exponent = (bits.getUint32(0) >>> 20) - 1023;
  let mantissa = x / POWERS_OF_TWO[exponent + 1074];
  if (mantissa > Math.SQRT2) { mantissa /= 2; exponent += 1; }
  const s = (mantissa - 1) / (mantissa + 1), q = s * s;
  let series = 0;
  for (let n = 23; n >= 3; n -= 2) series = (series + 1 / n) * q;
  return exponent * LN2_HIGH + (2 * s * series + exponent * LN2_LOW + 2 * s);
}

/* [cos, sin]: short series at a 1024th of the angle, then ten doublings. */
function direction(angle) {
  const a = angle / 1024, q = a * a;
  let c = 1 - q / 2 * (1 - q / 12 * (1 - q / 30)), s = a * (1 - q / 6 * (1 - q / 20));
  for (let i = 0; i < 10; i++) [c, s] = [c * c - s * s, 2 * c * s];
  return [c, s];
}

const SQRT_2PI = 2.5066282746310002;

/* The normal distribution function Φ, which GELU needs: in each cell of width 1/8 the Taylor
   polynomial about its middle c. The density obeys φ' = −xφ, hence the coefficients
   (n + 1) φ_{n+1} = −(c φ_n + φ_{n−1}); Φ(c) is summed from cell to cell. */
const CELLS = 72, TERMS = 12, normalTaylor = new Float64Array(CELLS * TERMS);
for (let cell = 0, edge = 0.5; cell < CELLS; cell++) {
  const c = (cell + 0.5) / 8, a = normalTaylor.subarray(cell * TERMS, (cell + 1) * TERMS);
  let before = 0, density = exp(-c * c / 2) / SQRT_2PI;
  for (let n = 1; n < TERMS; n++) {
    a[n] = density / n;
    [before, density] = [density, -(c * density + before) / n];
  }
  let left = 0, right = 0; // the polynomial without its constant at both ends of the cell
  for (let n = TERMS - 1; n > 0; n--) {
    left = (left + a[n]) / -16;
    right = (right + a[n]) / 16;
  }
  a[0] = edge - left;
  edge += right - left;
}

function normalDistribution(x) {
  const y = Math.abs(x);
  if (!(y < 9)) return (1 + Math.sign(x)) / 2;
  const cell = Math.floor(8 * y), at = cell * TERMS, d = y - (cell + 0.5) / 8;
  let sum = 0;
  for (let n = TERMS - 1; n >= 0; n--) sum = sum * d + normalTaylor[at + n];
  return x < 0 ? 1 - sum : sum;
}

// ---- random numbers ----

/* The generator xoshiro128** (Blackman and Vigna 2018). Every use has a stream of its own: more
   draws for the data do not change the weights. */
class Random {
  constructor(seed, stream) {
    this.state = new Uint32Array(4);
    let mix = Math.imul(seed, 0x9e3779b9) ^ Math.imul(stream + 1, 0x85ebca6b);
    for (let i = 0; i < 4; i++) {
      mix = (mix + 0x6d2b79f5) | 0;
      let word = Math.imul(mix ^ (mix >>> 16), 0x21f0aaad);
      word = Math.imul(word ^ (word >>> 15), 0x735a2d97);
      this.state[i] = word ^ (word >>> 15);
    }
  }

  word() {
    const s = this.state;
    const product = Math.imul(s[1], 5);
    const result = Math.imul((product << 7) | (product >>> 25), 9) >>> 0;
    const shifted = s[1] << 9;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= shifted;
    s[3] = (s[3] << 11) | (s[3] >>> 21);
    return result;
  }

  /* Uniform on [0, 1), 53 bits. */
  uniform() {
    return ((this.word() >>> 5) * 67108864 + (this.word() >>> 6)) / 9007199254740992;
  }

  /* Standard normal, by Marsaglia's polar method. */
  gaussian() {
    for (;;) {
      const u = 2 * this.uniform() - 1, v = 2 * this.uniform() - 1, q = u * u + v * v;
      if (q > 0 && q < 1) return u * Math.sqrt(-2 * log(q) / q);
    }
  }

  fillGaussian(vector) {
    for (let i = 0; i < vector.length; i++) vector[i] = this.gaussian();
  }

  shuffle(items) {
    for (let i = items.length - 1; i > 0; i--) {
      const j = Math.floor(this.uniform() * (i + 1));
      [items[i], items[j]] = [items[j], items[i]];
    }
  }
}

const STREAM = { weights: 0, data: 1, batches: 2, eigenvectors: 3 };

// ---- vectors and matrices ----

/* Four partial sums: one alone would wait for every addition. */
function dot(x, y) {
  const n = x.length, even = n - (n % 4);
  let a = 0, b = 0, c = 0, d = 0;
  for (let i = 0; i < even; i += 4) {
    a += x[i] * y[i];
    b += x[i + 1] * y[i + 1];
    c += x[i + 2] * y[i + 2];
    d += x[i + 3] * y[i + 3];
  }
  for (let i = even; i < n; i++) a += x[i] * y[i];
  return a + b + (c + d);
}

function addScaled(y, factor, x) {
  for (let i = 0; i < y.length; i++) y[i] += factor * x[i];
}

function scale(x, factor) {
  for (let i = 0; i < x.length; i++) x[i] *= factor;
}

/* C += A·B for an m × depth matrix A and a depth × n matrix B inside larger arrays: entry (i, k)
   of A lies at a + i·aRow + k·aColumn, and likewise for B and C. So one kernel serves products
   with either factor transposed. The 4 × 2 sums of a tile stay in registers; at the rims a tile
   computes some rows twice and stores them once. Every sum runs over k in order, so that an
   example's result does not depend on its neighbours. */
function addProduct(C, c, cRow, cColumn, A, a, aRow, aColumn, B, b, bRow, bColumn, m, n, depth) {
  if (Math.ceil(n / 4) * Math.ceil(m / 2) < Math.ceil(m / 4) * Math.ceil(n / 2)) {
    addProduct(C, c, cColumn, cRow, B, b, bColumn, bRow, A, a, aColumn, aRow, n, m, depth);
    return;
  }
  for (let i = 0; i < m; i += 4) {
    const i1 = i + 1 < m ? aRow : 0, i2 = i + 2 < m ? 2 * aRow : 0, i3 = i + 3 < m ? 3 * aRow : 0;
    for (let j = 0; j < n; j += 2) {
      let p0 = a + i * aRow, p1 = p0 + i1, p2 = p0 + i2, p3 = p0 + i3;
      let q0 = b + j * bColumn, q1 = j + 1 < n ? q0 + bColumn : q0;
      let s00 = 0, s01 = 0, s10 = 0, s11 = 0, s20 = 0, s21 = 0, s30 = 0, s31 = 0;
      for (let k = 0; k < depth; k++) {
        const x0 = A[p0], x1 = A[p1], x2 = A[p2], x3 = A[p3], y0 = B[q0], y1 = B[q1];
        s00 += x0 * y0; s01 += x0 * y1;
        s10 += x1 * y0; s11 += x1 * y1;
        s20 += x2 * y0; s21 += x2 * y1;
        s30 += x3 * y0; s31 += x3 * y1;
        p0 += aColumn; p1 += aColumn; p2 += aColumn; p3 += aColumn;
        q0 += bRow; q1 += bRow;
      }
      const r = c + i * cRow + j * cColumn, whole = j + 1 < n;
      C[r] += s00;
      if (i1) C[r + cRow] += s10;
      if (i2) C[r + 2 * cRow] += s20;
      if (i3) C[r + 3 * cRow] += s30;
      if (!whole) continue;
      C[r + cColumn] += s01;
      if (i1) C[r + cRow + cColumn] += s11;
      if (i2) C[r + 2 * cRow + cColumn] += s21;
      if (i3) C[r + 3 * cRow + cColumn] += s31;
    }
  }
}

/* Plane rotation of the entries at p, p + step, … and q, …. */
function rotate(values, p, q, step, count, c, s) {
  for (let i = 0; i < count; i++, p += step, q += step) {
    const x = values[p], y = values[q];
    values[p] = c * x - s * y;
    values[q] = s * x + c * y;
  }
}

/* Eigenpairs of a small symmetric matrix by Jacobi rotations. `matrix` (row length
   `stride`) is destroyed; row j of `vectors` belongs to values[j], descending. */
function symmetricEigen(matrix, stride, size, values, vectors) {
  for (let i = 0; i < size; i++) {
    vectors.fill(0, i * stride, i * stride + size);
    vectors[i * stride + i] = 1;
  }
  for (let sweep = 0, off = 1, diagonal = 0; sweep < 50 && off > 1e-32 * diagonal; sweep++) {
    for (let p = 0; p < size; p++) {
      for (let q = p + 1; q < size; q++) {
        const pq = matrix[p * stride + q];
        if (pq === 0) continue;
        const half = (matrix[q * stride + q] - matrix[p * stride + p]) / (2 * pq);
        const t = (half < 0 ? -1 : 1) / (Math.abs(half) + Math.sqrt(half * half + 1));
        const c = 1 / Math.sqrt(t * t + 1), s = t * c;
        rotate(matrix, p, q, stride, size, c, s);
        rotate(matrix, p * stride, q * stride, 1, size, c, s);
        rotate(vectors, p * stride, q * stride, 1, size, c, s);
      }
    }
    off = diagonal = 0;
    for (let i = 0; i < size; i++) {
      values[i] = matrix[i * stride + i];
      diagonal += values[i] * values[i];
      for (let j = 0; j < i; j++) off += matrix[i * stride + j] * matrix[i * stride + j];
    }
  }
  for (let i = 0; i < size; i++) {
    let best = i;
    for (let j = i + 1; j < size; j++) if (values[j] > values[best]) best = j;
    if (best === i) continue;
    [values[i], values[best]] = [values[best], values[i]];
    rotate(vectors, i * stride, best * stride, 1, size, 0, 1); // exchange, but for a sign
  }
}

// ---- objectives ----

/* An objective has `size` (P), `evaluate(point, gradient)`, which gives the loss and fills the
   gradient, and `hessianProduct(vector, result)` at the point last evaluated. */

/* z becomes φ(z) in place, `slope` φ'(z), `bend` φ''(z). */
const ACTIVATIONS = {
  tanh(value, slope, bend) {
    for (let i = 0; i < value.length; i++) {
      const t = tanh(value[i]), s = 1 - t * t;
      value[i] = t;
      slope[i] = s;
      bend[i] = -2 * t * s;
    }
  },
  relu(value, slope, bend) {
    for (let i = 0; i < value.length; i++) {
      slope[i] = value[i] > 0 ? 1 : 0;
      bend[i] = 0;
      if (value[i] < 0) value[i] = 0;
    }
  },
  gelu(value, slope, bend) {
    for (let i = 0; i < value.length; i++) {
      const z = value[i], distribution = normalDistribution(z);
      const density = exp(-z * z / 2) / SQRT_2PI;
      value[i] = z * distribution;
      slope[i] = distribution + z * density;
      bend[i] = (2 - z * z) * density;
    }
  },
  softplus(value, slope, bend) {
    for (let i = 0; i < value.length; i++) {
      const z = value[i];
      if (z > 20) { // PyTorch's threshold, beyond which it is linear
        slope[i] = 1;
        bend[i] = 0;
        continue;
      }
      const e = exp(-Math.abs(z)), s = z < 0 ? e / (1 + e) : 1 / (1 + e);
      // ln(1 + e), corrected for the rounding of 1 + e
      const sum = 1 + e, logarithm = log(sum) + (e - (sum - 1)) / sum;
      value[i] = z > 0 ? z + logarithm : logarithm;
      slope[i] = s;
      bend[i] = s * (1 - s);
    }
  },
  linear(value, slope, bend) {
    slope.fill(1);
    bend.fill(0);
  },
};

/* All arrays are (outputs × n). `residual` becomes ∂L/∂outputs; `curve` multiplies a tangent of the
   outputs by ∂²L/∂outputs², in place. */
const LOSSES = {
  square: {
    value(outputs, targets, residual, n) { // ½‖f − y‖², mean over the examples
      let sum = 0;
      for (let i = 0; i < outputs.length; i++) {
        const difference = outputs[i] - targets[i];
        sum += difference * difference;
        residual[i] = difference / n;
      }
      return sum / (2 * n);
    },
    curve(tangent, probabilities, n) {
      for (let i = 0; i < tangent.length; i++) tangent[i] /= n;
    },
  },
  cross_entropy: {
    value(outputs, targets, residual, n, probabilities) { // −log softmax(f)_y, mean
      let sum = 0;
      for (let i = 0; i < n; i++) {
        let largest = -Infinity, total = 0, aligned = 0;
        for (let j = i; j < outputs.length; j += n) {
          largest = outputs[j] > largest ? outputs[j] : largest;
          aligned += targets[j] * outputs[j];
        }
        for (let j = i; j < outputs.length; j += n) {
          total += probabilities[j] = exp(outputs[j] - largest);
        }
        for (let j = i; j < outputs.length; j += n) {
          probabilities[j] /= total;
          residual[j] = (probabilities[j] - targets[j]) / n;
        }
        sum += log(total) + largest - aligned;
      }
      return sum / n;
    },
    curve(tangent, probabilities, n) {
      for (let i = 0; i < n; i++) {
        let mean = 0;
        for (let j = i; j < tangent.length; j += n) mean += probabilities[j] * tangent[j];
        for (let j = i; j < tangent.length; j += n) {
          tangent[j] = probabilities[j] * (tangent[j] - mean) / n;
        }
      }
    },
  },
};

/* The mean loss of a multilayer perceptron over `count` examples.

   Parameters are one vector in PyTorch's order: layer by layer W, (out × in) row by row, then b.
   Activations are kept as (units × examples), so that the loops over examples run through memory.

   Hessian-vector products are exact, by differentiating both passes along the vector v (Pearlmutter
   1994). A `tangent` is the derivative of a quantity along v. With z = Wa + b, δ = ∂L/∂z and the
   signal β = Wᵀδ that reaches the layer below,

       ż = Ẇa + Wȧ + ḃ,   ȧ = φ'(z) ż,   β̇ = Ẇᵀδ + Wᵀδ̇,   δ̇ = φ'(z) β̇ + φ''(z) β ż,
       (Hv)_W = δ̇ aᵀ + δ ȧᵀ,   (Hv)_b = Σ δ̇

   where Ẇ, ḃ are the slices of v; what has no dot is left over from the gradient. */
class Network {
  constructor({ sizes, activation, loss, bias }, count) {
    const matrix = (units) => new Float64Array(units * count);
    Object.assign(this, { count, bias, activate: ACTIVATIONS[activation], loss: LOSSES[loss] });
    this.inputs = matrix(sizes[0]);
    this.targets = matrix(sizes.at(-1));
    this.probabilities = matrix(sizes.at(-1));
    this.layers = [];
    this.size = 0;
    for (let l = 1, input = this.inputs, inputTangent = null; l < sizes.length; l++) {
      const fanIn = sizes[l - 1], fanOut = sizes[l], biases = this.size + fanIn * fanOut;
      const [output, outputTangent] = [matrix(fanOut), matrix(fanOut)];
      this.layers.push({
        fanIn, fanOut, weights: this.size, biases, input, inputTangent, output, outputTangent,
        slope: matrix(fanOut), bend: matrix(fanOut),
        delta: matrix(fanOut), deltaTangent: matrix(fanOut),
      });
      this.size = biases + (bias ? fanOut : 0);
      [input, inputTangent] = [output, outputTangent];
    }
    this.last = this.layers.at(-1);
    this.point = new Float64Array(this.size);
    this.signal = matrix(Math.max(...sizes));
  }

  /* Fill `to`, inputs or targets, from rows: the first ones, or those that an order names. */
  load(to, rows, order, first = 0) {
    const n = this.count, width = to.length / n;
    for (let i = 0; i < n; i++) {
      const row = (order ? order[first + i] : i) * width;
      for (let j = 0; j < width; j++) to[j * n + i] = rows[row + j];
    }
  }

  /* The outputs at a point, (outputs × examples). */
  forward(point) {
    this.point.set(point);
    for (const layer of this.layers) {
      const { input, output, slope, bend } = layer;
      this.spreadBiases(layer, point, output);
      this.addWeighted(layer, point, input, output);
      if (layer !== this.last) this.activate(output, slope, bend);
    }
    return this.last.output;
  }

  evaluate(point, gradient) {
    const { layers, targets, last, probabilities } = this;
    const outputs = this.forward(point);
    const value = this.loss.value(outputs, targets, last.delta, this.count, probabilities);
    gradient.fill(0);
    for (let l = layers.length - 1; l >= 0; l--) {
      const layer = layers[l];
      this.addOuter(layer, layer.delta, layer.input, gradient);
      this.sumBiases(layer, layer.delta, gradient);
      if (l === 0) break;
      const { slope, bend, delta } = layers[l - 1];
      delta.fill(0);
      this.addPulledBack(layer, point, layer.delta, delta); // β, for the moment
      for (let i = 0; i < delta.length; i++) {
        bend[i] *= delta[i]; // φ''(z) β
        delta[i] *= slope[i];
      }
    }
    return value;
  }

  hessianProduct(vector, result) {
    const { layers, last, point, signal } = this;
    for (const layer of layers) {
      const { input, inputTangent, outputTangent, deltaTangent, slope, bend } = layer;
      const tangent = layer === last ? deltaTangent : outputTangent; // ż, for the moment
      this.spreadBiases(layer, vector, tangent);
      this.addWeighted(layer, vector, input, tangent);
      if (inputTangent) this.addWeighted(layer, point, inputTangent, tangent);
      if (layer === last) break;
      for (let i = 0; i < tangent.length; i++) {
        deltaTangent[i] = bend[i] * tangent[i];
        outputTangent[i] = slope[i] * tangent[i];
      }
    }
    this.loss.curve(last.deltaTangent, this.probabilities, this.count);
    result.fill(0);
    for (let l = layers.length - 1; l >= 0; l--) {
      const layer = layers[l], { input, inputTangent, delta, deltaTangent } = layer;
      this.addOuter(layer, deltaTangent, input, result);
      this.sumBiases(layer, deltaTangent, result);
      if (l === 0) break;
      this.addOuter(layer, delta, inputTangent, result);
      const { slope, deltaTangent: below } = layers[l - 1];
      signal.fill(0, 0, below.length);
      this.addPulledBack(layer, vector, delta, signal);
      this.addPulledBack(layer, point, deltaTangent, signal);
      for (let i = 0; i < below.length; i++) below[i] += slope[i] * signal[i];
    }
  }

  /* Share of the examples whose largest output is the label's, at the last point. */
  accuracy() {
    const { targets, count: n } = this, outputs = this.last.output;
    let right = 0;
    for (let i = 0; i < n; i++) {
      let output = i, target = i;
      for (let j = i + n; j < outputs.length; j += n) {
        if (outputs[j] > outputs[output]) output = j;
        if (targets[j] > targets[target]) target = j;
      }
      if (output === target) right++;
    }
    return right / n;
  }

  /* With W the layer's slice of `vector`: to += W·from, to += Wᵀ·from, W += delta·fromᵀ. */
  addWeighted({ weights, fanIn, fanOut }, vector, from, to) {
    const n = this.count;
    addProduct(to, 0, n, 1, vector, weights, fanIn, 1, from, 0, n, 1, fanOut, n, fanIn);
  }

  addPulledBack({ weights, fanIn, fanOut }, vector, from, to) {
    const n = this.count;
    addProduct(to, 0, n, 1, vector, weights, 1, fanIn, from, 0, n, 1, fanIn, n, fanOut);
  }

  addOuter({ weights, fanIn, fanOut }, delta, from, vector) {
    const n = this.count;
    addProduct(vector, weights, fanIn, 1, delta, 0, n, 1, from, 0, 1, n, fanOut, fanIn, n);
  }

  spreadBiases({ biases, fanOut }, vector, to) {
    const n = this.count;
    for (let j = 0; j < fanOut; j++) to.fill(this.bias ? vector[biases + j] : 0, j * n, j * n + n);
  }

  sumBiases({ biases, fanOut }, delta, vector) {
    const n = this.count;
    for (let j = 0; this.bias && j < fanOut; j++) {
      let sum = 0;
      for (let i = j * n; i < j * n + n; i++) sum += delta[i];
      vector[biases + j] = sum;
    }
  }
}

/* ½ Σ aᵢ θᵢ². */
class Quadratic {
  constructor(spectrum) {
    this.spectrum = Float64Array.from(spectrum);
    this.size = spectrum.length;
  }

  evaluate(point, gradient) {
    this.hessianProduct(point, gradient);
    return dot(point, gradient) / 2;
  }

  hessianProduct(vector, result) {
    for (let i = 0; i < this.size; i++) result[i] = this.spectrum[i] * vector[i];
  }
}

/* The quadratic Taylor polynomial about a point of an objective that it keeps to itself. */
class TaylorModel {
  constructor(objective, point) {
    const size = objective.size;
    Object.assign(this, { size, objective, centre: point.slice() });
    this.slope = new Float64Array(size);
    this.displacement = new Float64Array(size);
    this.value = objective.evaluate(this.centre, this.slope);
  }

  evaluate(point, gradient) {
    const { displacement, centre, slope } = this;
    for (let i = 0; i < this.size; i++) displacement[i] = point[i] - centre[i];
    this.objective.hessianProduct(displacement, gradient);
    const value = this.value + dot(slope, displacement) + dot(displacement, gradient) / 2;
    addScaled(gradient, 1, slope);
    return value;
  }
}

// ---- optimizers ----

/* A step is `observe(gradient)`, which updates the averages, then `apply`, which moves. Between
   them one measures: `preconditioner` is the diagonal of the matrix P that this very step divides
   by, or null, and `threshold` the largest curvature, of H or of P^-½ H P^-½, at which the rule
   converges on a quadratic with P held fixed.

       gd         θ ← θ − ηg                                           2/η
       polyak     v ← βv + g,  θ ← θ − ηv                              (2 + 2β)/η
       nesterov   v ← βv + g,  θ ← θ − η(g + βv)                       (2 + 2β)/((1 + 2β)η)
       rmsprop    s ← β₂s + (1 − β₂)g²,  P = √s + ε,  θ ← θ − ηP⁻¹g    2/η
       adam       m ← β₁m + (1 − β₁)g,  s as above,  θ ← θ − ηP⁻¹m     (2 + 2β₁)/((1 − β₁)η)
                  P = (1 − β₁ᵗ)(√(s/(1 − β₂ᵗ)) + ε)

   The conventions are PyTorch's: velocity without damping, ε outside the root, RMSProp (whose
   `alpha` is β₂) without bias correction, Adam with both. (Cohen et al. 2021, 2022.) */
class Optimizer {
  constructor(settings, size) {
    Object.assign(this, { name: settings.optimizer, stepSize: settings.stepSize, settings });
    const vectorFor = (...names) => names.includes(this.name) ? new Float64Array(size) : null;
    this.momentum = vectorFor("polyak", "nesterov", "adam");
    this.squares = vectorFor("rmsprop", "adam");
    this.preconditioner = this.squares?.slice();
    this.power1 = this.power2 = 1; // β₁ᵗ and β₂ᵗ
  }

  get threshold() {
    const { beta, beta1 } = this.settings;
    switch (this.name) {
      case "polyak": return (2 + 2 * beta) / this.stepSize;
      case "nesterov": return (2 + 2 * beta) / ((1 + 2 * beta) * this.stepSize);
      case "adam": return (2 + 2 * beta1) / ((1 - beta1) * this.stepSize);
      default: return 2 / this.stepSize;
    }
  }

  clone() {
    const copy = Object.assign(Object.create(Optimizer.prototype), this);
    for (const key of ["momentum", "squares", "preconditioner"]) copy[key] = this[key]?.slice();
    return copy;
  }

  observe(gradient) {
    const { beta, beta1, beta2, epsilon } = this.settings;
    const { momentum, squares, preconditioner } = this;
    if (momentum) {
      scale(momentum, this.name === "adam" ? beta1 : beta);
      addScaled(momentum, this.name === "adam" ? 1 - beta1 : 1, gradient);
    }
    if (!preconditioner) return;
    this.power1 *= beta1;
    this.power2 *= beta2;
    const [first, second] = this.name === "adam"
      ? [1 - this.power1, Math.sqrt(1 - this.power2)] : [1, 1];
    for (let i = 0; i < squares.length; i++) {
      squares[i] = beta2 * squares[i] + (1 - beta2) * gradient[i] * gradient[i];
      preconditioner[i] = first * (Math.sqrt(squares[i]) / second + epsilon);
    }
  }

  apply(point, gradient) {
    const { momentum, preconditioner, stepSize: eta } = this, { beta } = this.settings;
    const direction = this.name === "polyak" || this.name === "adam" ? momentum : gradient;
    if (preconditioner) {
      for (let i = 0; i < point.length; i++) point[i] -= eta * direction[i] / preconditioner[i];
    } else if (this.name === "nesterov") {
      for (let i = 0; i < point.length; i++) point[i] -= eta * (gradient[i] + beta * momentum[i]);
    } else {
      addScaled(point, -eta, direction);
    }
  }
}

// ---- leading eigenvalues ----

/* The k largest (algebraic) eigenvalues of a symmetric operator that changes little from one
   solve to the next, from products alone.

   Rayleigh-Ritz on an orthonormal basis Q whose images W = HQ are kept: the eigenpairs (θ, y) of
   QᵀHQ give the best approximations in the span, x = Qy, with the true residual r = Wy − θx. The
   basis begins with earlier Ritz vectors and is extended by residuals (from a single vector that
   is the Lanczos method); when full it begins again. θ_j is accepted when the bound on its error

       min(‖r_j‖, min over s ≥ j of (‖r_1‖² + … + ‖r_s‖²)/(θ_j − θ_{s+1} − ‖r_{s+1}‖))

   is at most `tolerance` × |θ_j| (or |θ_1|/10 if that is more): the bound of Kato and Temple and,
   for clusters, its block form (Mathias 1998), the next eigenvalue being estimated.

   A solve starts from the Ritz vectors of the solve before last, because at the edge of stability
   the iterate nearly repeats every second step, and from what is new in the last. Two things guard
   against following the wrong eigenvector. One vector more is carried than is reported, accurate
   enough to see it overtake. And every `coldEvery`-th solve also searches on from a random vector:
   what comes up from further below is invisible to a start without a component along it. */
class EigenTracker {
  constructor(size, count, random, { tolerance = 1e-3, coldEvery = 20, limit = 200 } = {}) {
    const rows = (number) => Array.from({ length: number }, () => new Float64Array(size));
    Object.assign(this, { size, random, tolerance, coldEvery, limit });
    this.count = Math.min(count, size);
    this.carried = Math.min(this.count + 1, size);
    this.capacity = Math.min(size, 2 * this.count + 16);
    this.basis = rows(this.capacity);
    this.images = rows(this.capacity);
    this.vectors = rows(this.carried); // eigenvectors, the result of the last solve
    this.older = rows(this.carried); // of the one before
    this.spare = rows(this.carried);
    this.residuals = rows(Math.min(this.carried + 1, size));
    this.norms = new Float64Array(this.residuals.length);
    this.values = new Float64Array(this.capacity); // Ritz values; the first `count` are the result
    const square = () => new Float64Array(this.capacity * this.capacity);
    Object.assign(this, { projected: square(), work: square(), coefficients: square() });
    Object.assign(this, { solves: 0, found: 0, products: 0, filled: 0, converged: false });
  }

  /* Solve for the operator v ↦ Hv, given as multiply(v, result); yields between products and
     passes over the basis. Then `converged`, `values` and `vectors` hold the answer. */
  *solve(multiply) {
    const cold = this.solves++ % this.coldEvery === 0 && this.carried < this.size;
    const last = this.products + this.limit;
    let start = [this.spare, this.vectors, this.older][Math.min(this.found, 2)];
    if (!this.found) {
      for (const vector of start) {
        this.random.fillGaussian(vector);
        yield;
      }
    }
    if (this.found > 1) start = start.concat(this.vectors.filter((vector) => this.isNew(vector)));
    for (let pair = 0, searched = 0; pair >= 0;) {
      if (cold) this.random.fillGaussian(this.residuals[0]);
      for (const vector of cold ? [...start, this.residuals[0]] : start) {
        if (this.filled < this.size && !(yield* this.extend(vector, multiply))) return;
      }
      for (;;) {
        this.project();
        for (let j = 0; j < this.known; j++) {
          this.measure(j);
          yield;
        }
        pair = this.firstOpen();
        this.converged = pair < 0 || pair >= this.count;
        if (pair < 0 && cold) pair = this.searchPair(++searched);
        if (this.filled === this.size || this.products >= last) pair = -1;
        if (pair < 0 || this.filled === this.capacity) break;
        if (!(yield* this.extend(this.residuals[pair], multiply))) return;
      }
      for (let j = 0; j < this.carried; j++) {
        this.keep(j);
        yield;
      }
      start = this.spare;
      this.filled = 0;
    }
    [this.vectors, this.older, this.spare] = [this.spare, this.vectors, this.older];
    this.found += 1;
  }

  /* Does a vector lie mostly outside the span of `older`? */
  isNew(vector) {
    let inside = 0;
    for (const other of this.older) inside += dot(other, vector) ** 2;
    return inside < 0.5;
  }

  /* Extend the basis; false if the product is not finite. */
  *extend(vector, multiply) {
    const m = this.filled, { basis, capacity } = this, row = basis[m], image = this.images[m];
    row.set(vector);
    for (let left = 0; !(left > 1e-10);) {
      const norm = Math.sqrt(dot(row, row));
      if (norm > 0) scale(row, 1 / norm);
      for (let pass = 0; pass < 2; pass++) { // the first leaves rounding errors
        for (let i = 0; i < m; i++) addScaled(row, -dot(basis[i], row), basis[i]);
      }
      left = Math.sqrt(dot(row, row));
      if (left > 1e-10) scale(row, 1 / left);
      else this.random.fillGaussian(row); // it lay in the span
    }
    for (let i = 0; i < m; i++) addScaled(row, -dot(basis[i], row), basis[i]);
    yield;
    multiply(row, image);
    yield;
    this.products += 1;
    let finite = true;
    for (let i = 0; i <= m; i++) {
      const entry = this.projected[m * capacity + i] = dot(basis[i], image);
      this.projected[i * capacity + m] = entry;
      finite &&= Number.isFinite(entry);
    }
    this.filled = finite ? m + 1 : 0;
    if (!finite) [this.found, this.converged] = [0, false];
    return finite;
  }

  /* Ritz values and coefficients. */
  project() {
    const { filled: m, capacity, values, coefficients } = this;
    this.work.set(this.projected);
    symmetricEigen(this.work, capacity, m, values, coefficients);
    this.rounding = 2e-14 * Math.max(Math.abs(values[0]), Math.abs(values[m - 1]));
    this.known = Math.min(m, this.residuals.length);
  }

  /* The residual of Ritz pair j. */
  measure(j) {
    const { filled: m, capacity, values, coefficients } = this;
    const residual = this.residuals[j].fill(0);
    for (let i = 0; i < m; i++) {
      const y = coefficients[j * capacity + i], row = this.basis[i], image = this.images[i];
      for (let p = 0; p < this.size; p++) residual[p] += y * (image[p] - values[j] * row[p]);
    }
    this.norms[j] = Math.sqrt(dot(residual, residual));
  }

  /* Bound on the error of Ritz value j. */
  errorBound(j) {
    const { values, norms } = this;
    let bound = norms[j], squares = 0;
    for (let s = 0; s + 1 < this.known; s++) {
      squares += norms[s] * norms[s];
      const gap = values[j] - values[s + 1] - norms[s + 1];
      if (s >= j && gap > 0) bound = Math.min(bound, squares / gap);
    }
    return bound;
  }

  /* Index of the first pair that is not accurate enough, or −1; the spare one is unless it may
     overtake or has a large residual. */
  firstOpen() {
    const { count, rounding, tolerance, values } = this, tenth = Math.abs(values[0]) / 10;
    let allowed = 0;
    for (let j = 0; j < count; j++) {
      allowed = Math.max(tolerance * Math.max(Math.abs(values[j]), tenth), rounding);
      if (this.errorBound(j) > allowed) return j;
    }
    if (count >= this.known) return -1;
    const margin = values[count - 1] - values[count] + allowed;
    const open = this.norms[count] > tenth || this.errorBound(count) > margin;
    return open && this.norms[count] > rounding ? count : -1;
  }

  /* Index of the pair at which the cold search goes on, for 6 products, and up to 16 while it may
     overtake the last eigenvalue asked for, or −1. */
  searchPair(searched) {
    const { count, norms, values } = this;
    let pair = count;
    while (pair < this.known && norms[pair] <= this.rounding) pair++;
    if (pair >= this.known || searched > 16) return -1;
    return searched <= 6 || 2 * norms[pair] > values[count - 1] - values[pair] ? pair : -1;
  }

  /* Put Ritz vector j into `spare`, with the sign that continues `vectors`. */
  keep(j) {
    const vector = this.spare[j].fill(0);
    for (let i = 0; i < this.filled; i++) {
      addScaled(vector, this.coefficients[j * this.capacity + i], this.basis[i]);
    }
    let overlap = 0;
    for (const before of this.vectors) {
      const candidate = dot(before, vector);
      if (Math.abs(candidate) > Math.abs(overlap)) overlap = candidate;
    }
    if (overlap < 0) scale(vector, -1);
  }
}

// ---- the record ----

/* A run of any length in bounded memory. Consecutive steps share a bucket with the lowest and the
   highest value of every channel; when the buckets are full, neighbours are joined. So no spike
   is lost. Beside it, the last `length` steps exactly. What was not measured is ∞ in a step
   and an empty interval (low ∞, high −∞) in a bucket. */
class RunRecord {
  constructor(channels, length, capacity = 1024) {
    Object.assign(this, { channels, length, capacity, width: 1, steps: 0 });
    this.low = channels.map(() => new Float64Array(capacity).fill(Infinity));
    this.high = channels.map(() => new Float64Array(capacity).fill(-Infinity));
    this.recent = channels.map(() => new Float64Array(length));
  }

  push(values) {
    if (this.steps === this.capacity * this.width) this.join();
    const bucket = Math.floor(this.steps / this.width), place = this.steps % this.length;
    for (let c = 0; c < values.length; c++) {
      const value = values[c], low = this.low[c], high = this.high[c];
      this.recent[c][place] = value;
      if (value < low[bucket]) low[bucket] = value;
      if (value > high[bucket] && value < Infinity) high[bucket] = value;
    }
    this.steps += 1;
  }

  join() {
    const half = this.capacity / 2;
    for (let c = 0; c < this.channels.length; c++) {
      const low = this.low[c], high = this.high[c];
      for (let b = 0; b < half; b++) {
        low[b] = Math.min(low[2 * b], low[2 * b + 1]);
        high[b] = Math.max(high[2 * b], high[2 * b + 1]);
      }
      low.fill(Infinity, half);
      high.fill(-Infinity, half);
    }
    this.width *= 2;
  }

  /* Copies by channel: `low` and `high`, whose bucket b covers the steps from b·width on, and
     `recent`, from step `first` on. */
  snapshot() {
    const { channels, width, steps, length } = this, buckets = Math.ceil(steps / width);
    const first = Math.max(0, steps - length), last = new Float64Array(steps - first);
    const copy = (pick) => Object.fromEntries(channels.map((name, c) => [name, pick(c)]));
    return {
      steps, width, first,
      low: copy((c) => this.low[c].slice(0, buckets)),
      high: copy((c) => this.high[c].slice(0, buckets)),
      recent: copy((c) => last.map((_, i) => this.recent[c][(first + i) % length])),
    };
  }
}

// ---- tasks ----

const row = (matrix, width, i) => matrix.subarray(i * width, (i + 1) * width);

/* A task: `inputs` (count × numInputs) and `targets` (count × numOutputs), row by row. */
function makeTask(count, numInputs, numOutputs, fill, classification = false) {
  const inputs = new Float64Array(count * numInputs);
  const targets = new Float64Array(count * numOutputs);
  for (let i = 0; i < count; i++) fill(i, row(inputs, numInputs, i), row(targets, numOutputs, i));
  return { count, numInputs, numOutputs, inputs, targets, classification };
}

/* Points in the plane, classes by turns. */
function planarTask({ points, noise, dataSeed }, place) {
  const random = new Random(dataSeed, STREAM.data);
  return makeTask(points, 2, 2, (i, x, y) => {
    const label = i % 2, share = (Math.floor(i / 2) + 0.5) / Math.ceil(points / 2);
    const [radius, angle] = place(share, label);
    direction(angle).forEach((z, j) => { x[j] = radius * z + noise * random.gaussian(); });
    y[label] = 1;
  }, true);
}

const TASKS = {
  /* T_degree at evenly spaced points of [−1, 1], by Clenshaw's recurrence. */
  chebyshev({ degree, points }) {
    return makeTask(points, 1, 1, (i, x, y) => {
      x[0] = i === points - 1 ? 1 : -1 + i * (2 / (points - 1));
      let below = 0, top = 1;
      if (degree === 0) [below, top] = [1, 0];
      for (let n = degree; n > 1; n--) [below, top] = [-top, below + top * 2 * x[0]];
      y[0] = below + top * x[0];
    });
  },

  /* Images that the page brings: `pixels`, one image after the other, `labels`, and the mean and
     the standard deviation by which all pixels are standardised. */
  digits({ points }, images) {
    if (!images) throw new Error("the task digits needs its images: pass { images }");
    const { pixels, labels, mean, deviation } = images;
    if (labels.length < points) {
      throw new Error(`there are ${labels.length} images; points asks for ${points}`);
    }
    const size = pixels.length / labels.length;
    return makeTask(points, size, 10, (i, x, y) => {
      for (let j = 0; j < size; j++) x[j] = (pixels[i * size + j] - mean) / deviation;
      y[labels[i]] = 1;
    }, true);
  },

  /* Two interleaved spirals of 1¼ turns. */
  spirals: (settings) => planarTask(settings, (share, label) =>
    [0.1 + 0.9 * share, 2 * Math.PI * (1.25 * share + label / 2)]),

  /* A disc's rim inside a ring. */
  rings: (settings) => planarTask(settings, (share, label) =>
    [label ? 0.9 : 0.4, 2 * Math.PI * share]),

  /* A linear map with N(0, 1/dimension) entries at whitened points: XᵀX = n·1. */
  linear({ points, dimension, dataSeed }) {
    const random = new Random(dataSeed, STREAM.data);
    const map = new Float64Array(dimension * dimension), columns = [];
    random.fillGaussian(map);
    while (columns.length < dimension) {
      const column = new Float64Array(points);
      random.fillGaussian(column);
      for (let pass = 0; pass < 2; pass++) {
        for (const other of columns) addScaled(column, -dot(other, column) / points, other);
      }
      scale(column, Math.sqrt(points / dot(column, column)));
      columns.push(column);
    }
    return makeTask(points, dimension, dimension, (i, x, y) => {
      columns.forEach((column, j) => { x[j] = column[i]; });
      for (let j = 0; j < dimension; j++) {
        y[j] = dot(row(map, dimension, j), x) / Math.sqrt(dimension);
      }
    });
  },
};

// ---- settings ----

const choice = (fallback, ...names) => ({
  fallback, expected: `one of ${names.join(", ")}`, valid: (x) => names.includes(x),
  write: String, read: String,
});
const read = (text) => (text.trim() ? Number(text) : NaN);
const number = (fallback, expected, valid) => ({
  fallback, expected: `a number ${expected}`, valid: (x) => Number.isFinite(x) && valid(x),
  write: String, read,
});
const whole = (fallback, low, high) => ({
  ...number(fallback, "", (x) => Number.isInteger(x) && x >= low && x <= high),
  expected: `a whole number from ${low} to ${high}`,
});
const list = (fallback, expected, least, most, item) => ({
  fallback, expected,
  valid: (x) => Array.isArray(x) && x.length >= least && x.length <= most && x.every(item),
  write: (x) => x.join(","), read: (text) => (text ? text.split(",").map(read) : []),
});

const isStepSize = (x) => Number.isFinite(x) && x >= 1e-100 && x <= 1e200;
const isShare = (x) => x >= 0 && x < 1;

/* Every setting and its values; together they repeat a run. */
const SETTINGS = {
  task: choice("chebyshev", ...Object.keys(TASKS), "quadratic"),
  points: whole(20, 2, 5000), // examples
  degree: whole(5, 0, 50), // chebyshev
  dimension: whole(10, 1, 100), // linear
  noise: number(0, "from 0 to 1", (x) => x >= 0 && x <= 1), // spirals, rings
  dataSeed: whole(0, 0, 4294967295),
  spectrum: list([20, 1], "1 to 1000 numbers", 1, 1000, Number.isFinite), // quadratic
  hidden: list([30, 20], "at most 60 layers of 1 to 1000 units", 0, 60,
    (x) => Number.isInteger(x) && x >= 1 && x <= 1000),
  activation: choice("tanh", ...Object.keys(ACTIVATIONS)),
  bias: choice("yes", "yes", "no"),
  init: choice("lecun", "lecun", "pytorch"),
  seed: whole(0, 0, 4294967295),
  loss: choice("square", ...Object.keys(LOSSES)),
  optimizer: choice("gd", "gd", "polyak", "nesterov", "rmsprop", "adam", "flow"),
  stepSize: number(0.2, "above 0 (1e-100 to 1e200)", isStepSize), // η
  beta: number(0.9, "in [0, 1)", isShare), // polyak, nesterov
  beta1: number(0.9, "in [0, 1)", isShare), // adam
  beta2: number(0.99, "in [0, 1)", isShare), // rmsprop, adam
  epsilon: number(1e-8, "above 0", (x) => x > 0), // rmsprop, adam
  batch: whole(0, 0, 5000), // examples a step, drawn without replacement; 0: all of them
  flowStep: number(1, "above 0 and at most 2.5", (x) => x > 0 && x <= 2.5), // α of flow
  eigenvalues: whole(1, 1, 8),
  measureEvery: whole(1, 1, 1000),
  changes: { // of the step size: [step, η] means that the update from that step on uses η
    fallback: [], expected: "pairs of a step and a step size above 0, by ascending steps",
    valid: (x) => Array.isArray(x) && x.every((pair, i) => Array.isArray(pair)
      && pair.length === 2 && Number.isInteger(pair[0]) && pair[0] > (i ? x[i - 1][0] : -1)
      && isStepSize(pair[1])),
    write: (x) => x.map((pair) => pair.join(":")).join(","),
    read: (text) => (text ? text.split(",").map((pair) => pair.split(":").map(read)) : []),
  },
  twinAt: whole(-1, -1, 1e9), // the step at which the quadratic twin starts; −1: never
};

/* (weights + 8 units) × examples, at least 40: eigenvectors cost as much. A product then takes
   some 30 ms. */
const MOST_WORK = 4e6;

function refuse(name, value, expected) {
  throw new Error(`${name} must be ${expected}, got ${JSON.stringify(value)}`);
}

/* All settings, the missing ones filled in; an Error says what is wrong. */
function checkSettings(given = {}) {
  for (const name of Object.keys(given)) {
    if (!Object.hasOwn(SETTINGS, name)) {
      throw new Error(`unknown setting ${name}; there are ${Object.keys(SETTINGS).join(", ")}`);
    }
  }
  const settings = {};
  for (const [name, { fallback, expected, valid }] of Object.entries(SETTINGS)) {
    const value = given[name] ?? fallback;
    if (!valid(value)) refuse(name, value, expected);
    settings[name] = Array.isArray(value) ? structuredClone(value) : value;
  }
  const { task, loss, optimizer, batch, points, dimension } = settings;
  if (loss === "cross_entropy" && !["digits", "spirals", "rings"].includes(task)) {
    refuse("loss", loss, `square: ${task} has no classes`);
  }
  if (batch > points) refuse("batch", batch, `at most points = ${points}`);
  if (batch && (optimizer === "flow" || task === "quadratic")) {
    refuse("batch", batch, `0 with ${optimizer === "flow" ? "gradient flow" : "the quadratic"}`);
  }
  if (task === "linear" && dimension > points) {
    refuse("dimension", dimension, `at most points = ${points}`);
  }
  if (optimizer === "flow" && settings.twinAt >= 0) {
    refuse("twinAt", settings.twinAt, "−1 with gradient flow");
  }
  return settings;
}

/* For a page's address: `hidden=40,40&stepSize=0.1`, defaults left out. */
function encodeSettings(settings) {
  const checked = checkSettings(settings);
  return Object.entries(SETTINGS)
    .map(([name, { fallback, write }]) => [name, write(checked[name]), write(fallback)])
    .filter(([, text, usual]) => text !== usual)
    .map(([name, text]) => `${name}=${text}`)
    .join("&");
}

/* The inverse of encodeSettings; a leading # or ? is skipped. */
function decodeSettings(address) {
  const given = {};
  for (const part of address.replace(/^[#?]/, "").split("&").filter(Boolean)) {
    const [name, text = ""] = part.split("=").map(decodeURIComponent);
    given[name] = SETTINGS[name]?.read?.(text);
  }
  return checkSettings(given);
}

// ---- sessions ----

function initialWeights({ sizes, bias, init, seed }) {
  const random = new Random(seed, STREAM.weights), weights = [];
  for (let l = 1; l < sizes.length; l++) {
    const bound = 1 / Math.sqrt(sizes[l - 1]);
    const uniform = () => bound * (2 * random.uniform() - 1);
    const weight = init === "pytorch" ? uniform : () => bound * random.gaussian();
    for (let i = 0; i < sizes[l - 1] * sizes[l]; i++) weights.push(weight());
    for (let i = 0; bias && i < sizes[l]; i++) weights.push(init === "pytorch" ? uniform() : 0);
  }
  return Float64Array.from(weights);
}

const DIVERGENCE_FACTOR = 1e6; // as in the library: of the initial loss

/* One training run.

   Each step in order: loss and gradient at θ_t, measurements at θ_t, one entry in the record,
   update to θ_{t+1}. So after t updates the steps 0..t are on record, and everything recorded at
   step t belongs to θ_t. With mini-batches, loss and eigenvalues are those of all examples.

   Channels of the record: `time` (the sum of the step sizes), `loss`, `threshold`, `eigenvalue1`
   …, `oscillation1` … (½(θ_t − θ_{t−1}) along the eigenvector: in an oscillation of period two the
   displacement from its centre), `accuracy` for classification, `twin` (its loss). */
class Session {
  /* `images`: see the task digits. `initialPoint`: weights instead of random ones, in PyTorch's
     order. `recent`: how many of the last steps are kept exactly. */
  constructor(given, { images, initialPoint, recent = 60 } = {}) {
    const settings = this.settings = checkSettings(given);
    const { task, hidden, batch, eigenvalues, seed } = settings;
    this.task = task === "quadratic" ? null : TASKS[task](settings, images);
    if (this.task) {
      const sizes = [this.task.numInputs, ...hidden, this.task.numOutputs];
      const work = sizes.slice(1).reduce((sum, fanOut, l) => sum + (sizes[l] + 8) * fanOut, 0);
      if (work * Math.max(this.task.count, 40) > MOST_WORK) {
        throw new Error(`layers of ${sizes.join(", ")} units with ${this.task.count} examples are`
          + " more than a page can train; take fewer units or points");
      }
      this.architecture = { ...settings, sizes, bias: settings.bias === "yes" };
    }
    this.objective = this.makeObjective();
    const size = this.objective.size, vector = () => new Float64Array(size);
    if (initialPoint && (initialPoint.length !== size || !initialPoint.every(Number.isFinite))) {
      throw new Error(`initialPoint must be ${size} finite numbers, got ${initialPoint.length}`);
    }
    this.point = initialPoint ? Float64Array.from(initialPoint)
      : this.task ? initialWeights(this.architecture) : vector().fill(1);
    this.previous = this.point.slice();
    this.gradient = vector();
    this.scratch = vector();
    this.optimizer = new Optimizer(settings, size);
    this.tracker = new EigenTracker(size, eigenvalues, new Random(seed, STREAM.eigenvectors));
    if (settings.optimizer === "flow") this.stages = [vector(), vector(), vector()];
    this.batchGradient = this.gradient;
    if (batch) {
      this.batchGradient = vector();
      this.batchNetwork = new Network(this.architecture, batch);
      this.order = Array.from({ length: this.task.count }, (_, i) => i);
      this.drawn = this.order.length;
      this.random = new Random(seed, STREAM.batches);
    }
    const numbered = (name) => Array.from({ length: eigenvalues }, (_, j) => name + (j + 1));
    const channels = ["time", "loss", "threshold", ...numbered("eigenvalue"),
      ...numbered("oscillation"), ...(this.task?.classification ? ["accuracy"] : []), "twin"];
    this.values = new Float64Array(channels.length);
    this.record = new RunRecord(channels, recent);
    Object.assign(this, { step: 0, time: 0, peak: 0, twin: null, message: "" });
    this.state = "training";
    this.work = this.run();
  }

  get threshold() {
    return this.stages ? Infinity : this.optimizer.threshold;
  }

  /* Go on for so many steps or milliseconds, whichever ends first; the first call begins by
     measuring step 0, and the next one finishes a step that time cut short.
     Returns the number of steps. */
  advance({ steps = Infinity, milliseconds = Infinity }) {
    const { record } = this, before = Math.max(record.steps, 1);
    const deadline = milliseconds < Infinity ? performance.now() + milliseconds : Infinity;
    while (this.state === "training" && (record.steps < before + steps || !record.steps)) {
      this.work.next();
      if (deadline < Infinity && performance.now() >= deadline) break;
    }
    return Math.max(record.steps, 1) - before;
  }

  /* From the next update on; what was planned for later steps is forgotten. */
  setStepSize(stepSize) {
    if (!isStepSize(stepSize)) refuse("stepSize", stepSize, SETTINGS.stepSize.expected);
    const before = this.settings.changes.filter(([step]) => step < this.step);
    this.settings.changes = [...before, [this.step, stepSize]];
  }

  /* From the next update on a twin descends the quadratic Taylor polynomial of the loss about
     this iterate by the same rule (but always with all examples). */
  startTwin() {
    if (this.stages) throw new Error("gradient flow has no twin");
    this.settings.twinAt = this.step;
  }

  /* The network's outputs (count × numOutputs), row by row, at inputs given likewise. */
  predict(inputs) {
    if (!this.task) throw new Error("the quadratic has no outputs to predict");
    const { numInputs, numOutputs } = this.task, count = inputs.length / numInputs;
    if (!(Number.isInteger(count) && count > 0)) {
      throw new Error(`inputs must be a multiple of ${numInputs} numbers, got ${inputs.length}`);
    }
    if (this.predictor?.count !== count) this.predictor = new Network(this.architecture, count);
    this.predictor.load(this.predictor.inputs, inputs);
    const outputs = this.predictor.forward(this.point);
    return outputs.map((_, i) => outputs[(i % numOutputs) * count + Math.floor(i / numOutputs)]);
  }

  /* What a view needs for a frame, in fresh arrays that do not grow with the run. */
  snapshot() {
    const { state, message, step, time, threshold, twin } = this;
    return {
      state, message, step, time, threshold, stepSize: this.optimizer.stepSize,
      twin: twin && { since: twin.since, state: twin.state, step: twin.step },
      address: encodeSettings(this.settings),
      record: this.record.snapshot(),
    };
  }

  /* -- the work, in pieces no longer than a gradient or a product: pausing waits for one -- */

  *run() {
    for (;;) {
      yield* this.measure();
      if (this.state !== "training") return;
      yield;
      yield* this.update();
    }
  }

  *measure() {
    const { objective, optimizer, tracker, values, step } = this;
    const loss = objective.evaluate(this.point, this.gradient);
    if (step === 0) this.limit = DIVERGENCE_FACTOR * Math.max(Math.abs(loss), Number.MIN_VALUE);
    if (!(Math.abs(loss) <= this.limit)) {
      const size = Number.isFinite(loss) ? loss.toPrecision(3) : "no longer finite";
      this.message = `the loss was ${size} at step ${step} with step size ${optimizer.stepSize}`;
      this.state = "diverged";
      return;
    }
    let c = 0;
    values.fill(Infinity);
    values[c++] = this.time;
    values[c++] = loss;
    values[c++] = this.threshold;
    yield;
    if (this.batchNetwork) this.evaluateBatch();
    optimizer.observe(this.batchGradient);
    yield;
    const { eigenvalues, measureEvery } = this.settings;
    if (step % measureEvery === 0) {
      yield* tracker.solve((v, result) => this.multiply(v, result));
      if (tracker.converged) {
        for (let i = 0; i < tracker.size; i++) {
          this.scratch[i] = (this.point[i] - this.previous[i]) / 2;
        }
        for (let j = 0; j < tracker.count; j++) {
          values[c + j] = tracker.values[j];
          values[c + eigenvalues + j] = dot(tracker.vectors[j], this.scratch);
        }
      }
    }
    c += 2 * eigenvalues;
    if (this.task?.classification) values[c++] = objective.accuracy();
    yield;
    if (this.twin?.state === "training") values[c] = this.measureTwin();
    this.record.push(values);
  }

  *update() {
    const { settings, optimizer, point, step } = this;
    if (settings.twinAt === step) {
      this.makeTwin();
      yield;
    }
    for (const [at, stepSize] of settings.changes) if (at === step) optimizer.stepSize = stepSize;
    this.step += 1;
    if (this.twin) {
      this.twin.optimizer.stepSize = optimizer.stepSize;
      this.twin.optimizer.apply(this.twin.point, this.twin.gradient);
    }
    this.previous.set(point);
    if (this.stages) yield* this.flow();
    else {
      optimizer.apply(point, this.batchGradient);
      this.time += optimizer.stepSize;
    }
  }

  /* Gradient flow θ' = −∇L(θ) by the classical Runge-Kutta method with step α/λ, stable up to
     α = 2.785. Once λ is below a thousandth of its peak the step grows no further. */
  *flow() {
    const { point, scratch, gradient, tracker, objective, settings } = this;
    const sharpness = tracker.converged ? tracker.values[0] : this.peak;
    this.peak = Math.max(this.peak, sharpness);
    const h = this.peak > 0
      ? settings.flowStep / Math.max(sharpness, this.peak / 1000) : settings.stepSize;
    let slope = gradient;
    for (let stage = 0; stage < 3; stage++) {
      const part = stage < 2 ? h / 2 : h;
      for (let i = 0; i < point.length; i++) scratch[i] = point[i] - part * slope[i];
      slope = this.stages[stage];
      objective.evaluate(scratch, slope);
      yield;
    }
    const [second, third, fourth] = this.stages;
    for (let i = 0; i < point.length; i++) {
      point[i] -= h / 6 * (gradient[i] + 2 * (second[i] + third[i]) + fourth[i]);
    }
    this.time += h;
  }

  /* Batches are drawn without replacement; when too few are left, all are shuffled. */
  evaluateBatch() {
    const { batchNetwork, order, task } = this;
    if (this.drawn + batchNetwork.count > order.length) {
      this.random.shuffle(order);
      this.drawn = 0;
    }
    batchNetwork.load(batchNetwork.inputs, task.inputs, order, this.drawn);
    batchNetwork.load(batchNetwork.targets, task.targets, order, this.drawn);
    this.drawn += batchNetwork.count;
    batchNetwork.evaluate(this.point, this.batchGradient);
  }

  /* Hv, or P^-½ H P^-½ v where the optimizer has a preconditioner. */
  multiply(v, result) {
    const { objective, scratch, optimizer: { preconditioner: diagonal } } = this;
    if (!diagonal) {
      objective.hessianProduct(v, result);
      return;
    }
    for (let i = 0; i < v.length; i++) scratch[i] = v[i] / Math.sqrt(diagonal[i]);
    objective.hessianProduct(scratch, result);
    for (let i = 0; i < v.length; i++) result[i] /= Math.sqrt(diagonal[i]);
  }

  makeObjective() {
    if (!this.task) return new Quadratic(this.settings.spectrum);
    const network = new Network(this.architecture, this.task.count);
    network.load(network.inputs, this.task.inputs);
    network.load(network.targets, this.task.targets);
    return network;
  }

  makeTwin() {
    this.twin = {
      model: new TaylorModel(this.makeObjective(), this.point), point: this.point.slice(),
      gradient: this.gradient.slice(), optimizer: this.optimizer.clone(),
      since: this.step, state: "training", step: this.step,
    };
  }

  measureTwin() {
    const { twin } = this;
    const value = twin.model.evaluate(twin.point, twin.gradient);
    twin.step = this.step;
    if (!(Math.abs(value) <= this.limit)) {
      twin.state = "diverged";
      return Infinity;
    }
    twin.optimizer.observe(twin.gradient);
    return value;
  }
}

// ---- the worker ----

/* Serve sessions to a page. Every message carries `session`, a name that the page chose;
   sessions that run share the worker's time, `slice` milliseconds between two looks at messages.

       { type: "start", settings, images, initialPoint, recent }  → "started" with the task's data
       { type: "run" }, { type: "pause" }, { type: "stop" }
       { type: "step", steps }
       { type: "stepSize", value }, { type: "twin" }
       { type: "frame", inputs }      → "update": a snapshot, with `outputs` if inputs are given
       { type: "weights" }            → "weights": the current `point`

   An "update" also comes when step 0 is measured, when the steps asked for are done and when the
   run diverges, but not while it runs: a page that draws slowly is not flooded. What cannot be
   done is answered by { type: "error", request, message }. */
function serve(scope, slice = 12) {
  const entries = new Map(), turn = new MessageChannel();
  let turning = false;

  const send = (type, session, content) => {
    const { low, high, recent } = content.record ?? {};
    const buffers = [low, high, recent].flatMap((rows) => Object.values(rows ?? {}))
      .map((row) => row.buffer);
    scope.postMessage({ type, session, ...content }, buffers);
  };
  const update = (name, { session, goal }, outputs) =>
    send("update", name, { running: goal === Infinity, ...session.snapshot(), outputs });

  /* One slice of time for every session that has not yet recorded as many steps as its goal. */
  turn.port1.onmessage = () => {
    turning = false;
    const busy = [...entries].filter(([, { session, goal }]) => session.record.steps < goal);
    for (const [name, entry] of busy) {
      const { session, goal } = entry, { record } = session;
      const steps = goal - Math.max(record.steps, 1);
      session.advance({ steps, milliseconds: slice / busy.length });
      if (session.state !== "training") entry.goal = 0;
      if (record.steps >= entry.goal) update(name, entry);
    }
    if (busy.length) wake();
  };
  const wake = () => {
    if (!turning) turn.port2.postMessage(0);
    turning = true;
  };

  const commands = {
    start(name, entry, { settings, ...options }) {
      const session = new Session(settings, options), { task, point } = session;
      entries.set(name, { session, goal: 1 });
      send("started", name, { settings: session.settings, parameters: point.length, task });
    },
    run(name, entry) { entry.goal = entry.session.state === "training" ? Infinity : 0; },
    pause(name, entry) { entry.goal = 0; },
    stop(name) { entries.delete(name); },
    step(name, entry, { steps = 1 }) {
      entry.goal = Math.max(entry.session.record.steps, 1) + steps;
    },
    stepSize(name, { session }, { value }) { session.setStepSize(value); },
    twin(name, { session }) { session.startTwin(); },
    frame(name, entry, { inputs }) {
      update(name, entry, inputs && entry.session.predict(inputs));
    },
    weights(name, { session }) { send("weights", name, { point: session.point }); },
  };
  scope.onmessage = ({ data: message }) => {
    const { type, session: name } = message, entry = entries.get(name);
    try {
      if (!Object.hasOwn(commands, type)) throw new Error(`unknown message type ${type}`);
      if (!entry && type !== "start") throw new Error(`there is no session ${name}`);
      commands[type](name, entry, message);
      wake();
    } catch (error) {
      send("error", name, { request: type, message: error.message });
    }
  };
}

return {
  EigenTracker, Network, Random, RunRecord, SETTINGS, Session, addProduct, checkSettings,
  decodeSettings, encodeSettings, exp, log, normalDistribution, serve, symmetricEigen, tanh,
};
}

/* For new Worker(URL.createObjectURL(new Blob([workerSource()]))). */
export const workerSource = () => `(${laboratoryEngine})().serve(self);`;
