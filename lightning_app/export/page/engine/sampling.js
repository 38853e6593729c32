// How the next character is chosen: the distribution and the draw of generation/sampling.py. Sums
// run from the lowest id to the highest, in float64.

'use strict';

// Probabilities (V) of the next character.
//
// seen(id) says whether a character is in the text already. In this order: repetition penalty,
// temperature, softmax, removal of unlikely characters. options: sampling (argmax, prob, top_k,
// top_p or min_p) with its limit under the same name, temperature, repetition_penalty.
function distribution(logits, seen, options) {
  const { sampling, temperature, repetition_penalty: penalty } = options;
  const V = logits.length, limit = options[sampling], p = new Float64Array(V);
  let top = 0;
  for (let v = 0; v < V; v++) {
    p[v] = logits[v];
    if (penalty !== 1 && seen(v)) p[v] = p[v] > 0 ? p[v] / penalty : p[v] * penalty;
    if (p[v] > p[top]) top = v;
  }
  if (sampling === 'argmax' || temperature === 0) return p.fill(0).fill(1, top, top + 1);
  const highest = p[top];
  for (let v = 0; v < V; v++) p[v] = Math.exp((p[v] - highest) / temperature);
  divideByTotal(p);
  if (sampling === 'prob') return p;
  if (sampling === 'min_p') {
    const threshold = limit * p[top];
    for (let v = 0; v < V; v++) if (p[v] < threshold) p[v] = 0;
  } else {
    let before = 0; // the probability of all characters that rank higher
    ranking(p).forEach((v, rank) => {
      const own = p[v];
      // With top_p, the character with which the sum reaches the limit is kept.
      if (sampling === 'top_k' ? rank >= limit : before >= limit) p[v] = 0;
      before += own;
    });
  }
  return divideByTotal(p);
}

function divideByTotal(p) {
  const total = p.reduce((sum, x) => sum + x, 0);
  for (let v = 0; v < p.length; v++) p[v] /= total;
  return p;
}

// Ids by falling probability; of equal ones, the lower first.
function ranking(p) {
  return Uint32Array.from(p.keys()).sort((a, b) => p[b] - p[a] || a - b);
}

// The first id at which the cumulated p exceeds `uniform` times its total; uniform is in [0, 1).
function draw(p, uniform) {
  const limit = uniform * p.reduce((sum, x) => sum + x, 0);
  let cumulated = 0, last = 0;
  for (let v = 0; v < p.length; v++) {
    if (p[v] > 0) {
      cumulated += p[v];
      last = v;
      if (cumulated > limit) return v;
    }
  }
  return last; // reached by rounding only
}

// The distribution of a text's first character, when nothing is before it: that of the training
// text, by the numbers of its characters, or uniform if they are not known.
function firstDistribution(counts, V) {
  if (!counts) return new Float64Array(V).fill(1 / V);
  return divideByTotal(Float64Array.from(counts));
}

// The surprise at character id, in bits: -log2 of its probability under logits (V), at temperature 1.
function surprise(logits, id) {
  let highest = -Infinity, total = 0;
  for (const x of logits) highest = Math.max(highest, x);
  for (const x of logits) total += Math.exp(x - highest);
  return (Math.log(total) + highest - logits[id]) / Math.LN2;
}
