/* Numbers as the widgets write them. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { number } from "../../eoslib/widgets/plot.js";

test("three digits, the exponent that of the rounded number", () => {
  for (const [x, text] of [
    [0.0009999, "0.001"], [0.0009994, "9.99×10⁻⁴"], [0.00099949, "9.99×10⁻⁴"],
    [-0.0009999, "−0.001"], [3.1e-5, "3.10×10⁻⁵"], [0.05, "0.05"], [1.005, "1"], [12.34, "12.3"], [999.6, "1,000"],
    [12400, "12,400"], [999400, "999,400"], [999600, "1.00×10⁶"], [2.5e10, "2.50×10¹⁰"], [0, "0"], [NaN, "–"],
    [5e-324, "4.94×10⁻³²⁴"],
  ]) assert.equal(number(x), text);
  assert.equal(number(0.00099996, 4), "0.001");
});
