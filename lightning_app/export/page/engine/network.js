// The network, in evaluation: character ids in, logits of the next character out. It is that of
// model/gpt.py, with the weights of generation/cpu_engine.py: int8 with a scale per row, and every
// norm's gain multiplied into the matrix that follows it.
//
// V characters, D = sizes.embd; `kv` = kvHeads * headDim.

'use strict';

const POSITIONS_PER_PASS = 8; // of a text that is read: the weights are converted once for several

// How many of the last characters of a text of n characters the network sees; as
// `context_length` in model/kv_cache.py.
function contextLength(n, blockSize) {
  if (n <= blockSize) return n;
  const step = blockSize - Math.floor(blockSize / 2);
  return n - Math.ceil((n - blockSize) / step) * step;
}

// The hashes of the last n codes, the newest at the end of `codes`, for each n of `sizes`, ascending,
// that is not more than there are; as `ngram_hashes` in model/ngram_counting.py. All arithmetic is
// that of unsigned 32-bit integers.
function ngramHashes(codes, sizes) {
  const hashes = [];
  let h = 0;
  for (let n = 1; n <= codes.length && hashes.length < sizes.length; n++) {
    h = Math.imul(h ^ codes[codes.length - n], 0x735a2d97) >>> 0;
    h = (h ^ (h >>> 15)) >>> 0;
    if (n === sizes[hashes.length]) hashes.push(h);
  }
  return hashes;
}

class Network {
  // sizes, codes, tensors: of the page's model; see `page.py`. weights: Uint8Array of all tensors.
  // wasm: the contents of kernel.wasm, or null.
  constructor({ sizes, codes, tensors }, weights, wasm) {
    this.sizes = sizes;
    this.codes = codes;
    const { vocab, blockSize, layers, heads, kvHeads, embd, mlp } = sizes;
    const headDim = (this.headDim = embd / heads);
    const kv = (this.kv = kvHeads * headDim);
    const T = POSITIONS_PER_PASS;
    const arrays = { // what the network computes with, in numbers of float32
      cos: (blockSize * headDim) / 2, sin: (blockSize * headDim) / 2,
      keys: layers * blockSize * kv, values: layers * blockSize * kv,
      attention: layers * heads * blockSize,
      x: T * embd, h: T * embd, projected: T * (embd + 2 * kv), attended: T * embd, gateUp: 2 * T * mlp,
      logits: T * vocab, gates: T * 2 * sizes.ngramRows.length, scratch: Math.max(embd, mlp),
    };
    const space = Object.values(arrays).reduce((sum, n) => sum + n * 4 + 16, weights.length + 16);
    const { name, memory, first, functions } = makeKernel(wasm, space);
    this.kernelName = name;
    this.kernel = functions;
    this.memory = memory;
    new Uint8Array(memory, first).set(weights);
    this.at = {}; // the first byte of each array and tensor
    for (const [name, offset] of Object.entries(tensors)) this.at[name] = first + offset;
    let next = first + Math.ceil(weights.length / 16) * 16;
    for (const [name, n] of Object.entries(arrays)) {
      this.at[name] = next;
      next += Math.ceil((n * 4) / 16) * 16;
    }
    this.f32 = new Float32Array(memory);
    this.readTables();
    this.fillPositions();
    this.read = []; // the ids whose keys and values are in memory
    this.hashes = sizes.ngramRows.map(() => new Uint32Array(blockSize)); // of the n-grams up to them
    this.passes = 0; // how often `forward` was called
    this.passStart = 0; // the position of its first id
  }

  // The n-gram tables: see `NgramCounts` in model/ngrams.py.
  readTables() {
    const { ngramRows, ngramEntries, indexBytes } = this.sizes, { at, memory } = this;
    if (!ngramRows.length) return;
    const Index = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array }[indexBytes];
    const rows = ngramRows.reduce((sum, n) => sum + n, 0);
    const lengths = new Index(memory, at.ngram_lengths, rows);
    this.ngramStarts = new Uint32Array(rows + 1);
    for (let row = 0; row < rows; row++) this.ngramStarts[row + 1] = this.ngramStarts[row] + lengths[row];
    this.tableCharacters = new Index(memory, at.ngram_characters, ngramEntries);
    this.tableShares = new Uint8Array(memory, at.ngram_shares, ngramEntries);
  }

  // Rotary positions. PyTorch computes the angles in float32, and so does this.
  fillPositions() {
    const { blockSize, ropeTheta } = this.sizes, { at, f32, headDim } = this;
    const half = headDim / 2;
    for (let j = 0; j < half; j++) {
      const frequency = Math.fround(ropeTheta ** Math.fround((-2 * j) / headDim));
      for (let position = 0; position < blockSize; position++) {
        const angle = Math.fround(position * frequency);
        f32[at.cos / 4 + position * half + j] = Math.cos(angle);
        f32[at.sin / 4 + position * half + j] = Math.sin(angle);
      }
    }
  }

  // Logits (V) of the character that follows `window`: 1 to blockSize ids. What is in memory of
  // the same ids at the same positions is not computed again.
  logitsAfter(window) {
    let known = 0;
    while (known < window.length - 1 && this.read[known] === window[known]) known++;
    while (known < window.length) {
      const ids = window.slice(known, known + POSITIONS_PER_PASS);
      this.forward(ids, known);
      known += ids.length;
    }
    return this.logits(this.read.length - 1 - this.passStart);
  }

  // A copy of the logits (V) after id t of the last `forward`.
  logits(t) {
    const { vocab } = this.sizes, first = this.at.logits / 4 + t * vocab;
    return this.f32.slice(first, first + vocab);
  }

  // How much the last position attended to positions 0 to n - 1: an array (n) for each head, of
  // each layer.
  attentionWeights(n) {
    const { layers, heads, blockSize } = this.sizes;
    return Array.from({ length: layers }, (_, layer) =>
      Array.from({ length: heads }, (_, head) => {
        const first = this.at.attention / 4 + (layer * heads + head) * blockSize;
        return this.f32.slice(first, first + n);
      }));
  }

  // Read up to POSITIONS_PER_PASS ids at positions from `position` on. Their keys and values, and
  // the logits after each, are in memory then.
  forward(ids, position) {
    const { vocab, layers, embd, mlp, ngramRows } = this.sizes;
    const { kernel, at, kv } = this, T = ids.length;
    this.read.length = position;
    for (const id of ids) this.read.push(id);
    this.passStart = position;
    this.passes++;
    const shares = ids.map((_, t) => this.ngramShares(position + t));
    for (let t = 0; t < T; t++) this.embed(position + t, shares[t], at.x + 4 * t * embd);
    for (let layer = 0; layer < layers; layer++) {
      this.normalizeAll(T);
      this.multiplyLayer('qkv', layer, at.projected, at.h, embd + 2 * kv, embd, T);
      for (let t = 0; t < T; t++) this.attendFrom(layer, position + t, t);
      this.multiplyLayer('o', layer, at.h, at.attended, embd, embd, T);
      kernel.addTo(at.x, at.h, T * embd);
      this.normalizeAll(T);
      this.multiplyLayer('gate_up', layer, at.gateUp, at.h, 2 * mlp, embd, T);
      kernel.activate(at.gateUp, at.gateUp, mlp, T);
      this.multiplyLayer('down', layer, at.h, at.gateUp, embd, mlp, T);
      kernel.addTo(at.x, at.h, T * embd);
    }
    this.normalizeAll(T);
    kernel.multiply(at.logits, at.head, at.h, vocab, embd, T);
    if (!ngramRows.length) return;
    kernel.multiply(at.gates, at.ngram_gates, at.h, 2 * ngramRows.length, embd, T);
    for (let t = 0; t < T; t++) this.addNgramLogits(shares[t], t);
  }

  // What may follow `position`, from the n-gram tables and from the text up to it: an array of
  // [source, id, share]; see `NgramCounts` in model/ngrams.py.
  ngramShares(position) {
    const { ngramSizes, ngramRows } = this.sizes, { codes, read, hashes, ngramStarts } = this;
    const tables = ngramRows.length, shares = [], recent = [];
    const longest = tables ? ngramSizes[tables - 1] : 0;
    for (let i = Math.max(0, position + 1 - longest); i <= position; i++) recent.push(codes[read[i]]);
    let firstRow = 0;
    ngramHashes(recent, ngramSizes).forEach((hash, table) => {
      const earlier = hashes[table];
      earlier[position] = hash;
      const row = firstRow + (hash % ngramRows[table]);
      firstRow += ngramRows[table];
      for (let entry = ngramStarts[row]; entry < ngramStarts[row + 1]; entry++) {
        shares.push([table, this.tableCharacters[entry], this.tableShares[entry] / 255]);
      }
      const followed = new Map(); // in this text
      let total = 0;
      for (let place = ngramSizes[table] - 1; place < position; place++) {
        if (earlier[place] !== hash) continue;
        const id = read[place + 1];
        followed.set(id, (followed.get(id) ?? 0) + 1);
        total++;
      }
      for (const [id, count] of followed) {
        shares.push([tables + table, id, Math.log1p((100 * count) / (total + 2)) / Math.log(101)]);
      }
    });
    return shares;
  }

  // x (D) = the embedding of the id at `position`, plus the vectors of the shares.
  embed(position, shares, x) {
    const { vocab, embd } = this.sizes, { at, f32 } = this;
    const row = at.embedding / 4 + this.read[position] * embd;
    f32.copyWithin(x / 4, row, row + embd);
    for (const [source, id, share] of shares) {
      const vector = at.ngram_vectors / 4 + (source * vocab + id) * embd;
      for (let j = 0; j < embd; j++) f32[x / 4 + j] += share * f32[vector + j];
    }
  }

  // Add the shares, each source's times its gate, to the logits of the t-th id of this pass.
  addNgramLogits(shares, t) {
    const { vocab, ngramRows } = this.sizes, { at, f32 } = this;
    const logits = at.logits / 4 + t * vocab, gates = at.gates / 4 + t * 2 * ngramRows.length;
    for (const [source, id, share] of shares) f32[logits + id] += f32[gates + source] * share;
  }

  normalizeAll(T) {
    const { embd } = this.sizes, { kernel, at } = this;
    for (let t = 0; t < T; t++) kernel.normalize(at.h + 4 * t * embd, at.x + 4 * t * embd, embd);
  }

  multiplyLayer(name, layer, out, x, rows, columns, T) {
    const matrix = this.at[name] + layer * rows * columns;
    const scale = this.at[`${name}_scale`] + 4 * layer * rows;
    this.kernel.multiplyInt8(out, matrix, scale, x, rows, columns, T, this.at.scratch);
  }

  // Attention of the id at `position`, the t-th of this pass.
  attendFrom(layer, position, t) {
    const { heads, kvHeads, embd, blockSize } = this.sizes, { kernel, at, f32, headDim, kv } = this;
    const bytes = 4 * headDim;
    const cos = at.cos + 2 * position * headDim, sin = at.sin + 2 * position * headDim;
    const q = at.projected + 4 * t * (embd + 2 * kv), k = q + 4 * embd, v = k + 4 * kv;
    const cached = (name, head) => at[name] + (layer * kvHeads + head) * blockSize * bytes;
    for (let head = 0; head < kvHeads; head++) {
      kernel.rotate(k + head * bytes, at.k_gain + layer * bytes, cos, sin, headDim);
      for (const [name, from] of [['keys', k], ['values', v]]) {
        const first = (from + head * bytes) / 4;
        f32.copyWithin((cached(name, head) + position * bytes) / 4, first, first + headDim);
      }
    }
    for (let head = 0; head < heads; head++) {
      kernel.rotate(q + head * bytes, at.q_gain + layer * bytes, cos, sin, headDim);
      const kvHead = Math.floor((head * kvHeads) / heads);
      kernel.attend(
        at.attended + 4 * t * embd + head * bytes,
        at.attention + 4 * (layer * heads + head) * blockSize,
        q + head * bytes, cached('keys', kvHead), cached('values', kvHead), position + 1, headDim,
      );
    }
  }
}
