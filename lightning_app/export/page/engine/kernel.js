// The network's arithmetic. It works on one block of memory; every argument that is an array is the
// array's first byte in it. There are two implementations with the same functions: kernel.c,
// compiled to WebAssembly with SIMD, and JavaScript, for browsers that lack SIMD or forbid
// WebAssembly. Their results differ by rounding only.

'use strict';

const PAGE_SIZE = 65536; // bytes, of WebAssembly's memory

// A kernel with `bytes` of free memory: {name, memory, first, functions}; `first` is the first free
// byte. `wasm` is the contents of kernel.wasm, or null for JavaScript.
function makeKernel(wasm, bytes) {
  try {
    if (wasm) return webAssemblyKernel(wasm, bytes);
  } catch {
    // No SIMD, or a content security policy without WebAssembly: JavaScript can do it too.
  }
  const memory = new ArrayBuffer(bytes);
  return { name: 'JavaScript', memory, first: 0, functions: javaScriptKernel(memory) };
}

function webAssemblyKernel(wasm, bytes) {
  const module = new WebAssembly.Module(wasm);
  const memory = new WebAssembly.Memory({ initial: Math.ceil(bytes / PAGE_SIZE) + 2 });
  const functions = new WebAssembly.Instance(module, { env: { memory } }).exports;
  const first = Math.ceil(functions.__heap_base.value / 16) * 16;
  return { name: 'WebAssembly', memory: memory.buffer, first, functions };
}

// See kernel.c for what each function computes. An address in bytes divided by 4 is an index of f32.
function javaScriptKernel(memory) {
  const f32 = new Float32Array(memory);
  const i8 = new Int8Array(memory);

  // Four sums, so that the processor can add to one before another is finished.
  function dot(a, b, n) {
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0, j = 0;
    for (; j + 4 <= n; j += 4) {
      s0 += f32[a + j] * f32[b + j];
      s1 += f32[a + j + 1] * f32[b + j + 1];
      s2 += f32[a + j + 2] * f32[b + j + 2];
      s3 += f32[a + j + 3] * f32[b + j + 3];
    }
    for (; j < n; j++) s0 += f32[a + j] * f32[b + j];
    return s0 + s1 + (s2 + s3);
  }

  function dotInt8(matrix, x, n) {
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0, j = 0;
    for (; j + 4 <= n; j += 4) {
      s0 += i8[matrix + j] * f32[x + j];
      s1 += i8[matrix + j + 1] * f32[x + j + 1];
      s2 += i8[matrix + j + 2] * f32[x + j + 2];
      s3 += i8[matrix + j + 3] * f32[x + j + 3];
    }
    for (; j < n; j++) s0 += i8[matrix + j] * f32[x + j];
    return s0 + s1 + (s2 + s3);
  }

  function multiplyInt8(out, matrix, scale, x, rows, columns, count) {
    let o = out / 4;
    for (let t = 0; t < count; t++) {
      const v = x / 4 + t * columns;
      for (let row = 0; row < rows; row++) {
        f32[o++] = dotInt8(matrix + row * columns, v, columns) * f32[scale / 4 + row];
      }
    }
  }

  function multiply(out, matrix, x, rows, columns, count) {
    let o = out / 4;
    for (let t = 0; t < count; t++) {
      const v = x / 4 + t * columns;
      for (let row = 0; row < rows; row++) f32[o++] = dot(matrix / 4 + row * columns, v, columns);
    }
  }

  function normalize(out, x, n) {
    const o = out / 4, v = x / 4, factor = 1 / Math.sqrt(dot(v, v, n) / n + 1e-6);
    for (let j = 0; j < n; j++) f32[o + j] = f32[v + j] * factor;
  }

  function addTo(x, y, n) {
    const v = x / 4, w = y / 4;
    for (let j = 0; j < n; j++) f32[v + j] += f32[w + j];
  }

  function rotate(x, gain, cos, sin, n) {
    normalize(x, x, n);
    const v = x / 4, g = gain / 4, half = n / 2;
    for (let j = 0; j < half; j++) {
      const a = f32[v + j] * f32[g + j], b = f32[v + half + j] * f32[g + half + j];
      const c = f32[cos / 4 + j], s = f32[sin / 4 + j];
      f32[v + j] = a * c - b * s;
      f32[v + half + j] = b * c + a * s;
    }
  }

  function attend(out, weights, q, keys, values, positions, n) {
    const o = out / 4, w = weights / 4, k = keys / 4, v = values / 4, factor = 1 / Math.sqrt(n);
    let highest = -Infinity, total = 0;
    for (let t = 0; t < positions; t++) {
      f32[w + t] = factor * dot(q / 4, k + t * n, n);
      highest = Math.max(highest, f32[w + t]);
    }
    for (let t = 0; t < positions; t++) {
      f32[w + t] = Math.exp(f32[w + t] - highest);
      total += f32[w + t];
    }
    for (let j = 0; j < n; j++) f32[o + j] = 0;
    for (let t = 0; t < positions; t++) {
      const weight = (f32[w + t] /= total), value = v + t * n;
      for (let j = 0; j < n; j++) f32[o + j] += weight * f32[value + j];
    }
  }

  function activate(out, gateUp, n, count) {
    for (let t = 0; t < count; t++) {
      const o = out / 4 + t * n, g = gateUp / 4 + 2 * t * n;
      for (let j = 0; j < n; j++) {
        f32[o + j] = (f32[g + j] / (1 + Math.exp(-f32[g + j]))) * f32[g + n + j];
      }
    }
  }

  return { multiplyInt8, multiply, normalize, addTo, rotate, attend, activate };
}
