// The arithmetic of network.js for WebAssembly with SIMD (128 bits: four float32). kernel.js has
// the same functions in JavaScript.
//
// Compile with `python -m lightning_app.export.page.build_kernel`, which needs `ziglang` of PyPI.
//
// All arrays are rows of float32 in the memory that JavaScript allocates and hands over; `count`
// vectors are stored one after the other. Loops that end in `for (; j < n; j++)` first take as many
// numbers as fill vectors, then the rest.

#include <stdint.h>
#include <wasm_simd128.h>

#define EXPORT(name) __attribute__((export_name(#name)))
#define INLINE static inline __attribute__((always_inline))

INLINE v128_t load(const float *x) { return wasm_v128_load(x); }
INLINE v128_t splat(float x) { return wasm_f32x4_splat(x); }
INLINE v128_t add(v128_t a, v128_t b) { return wasm_f32x4_add(a, b); }
INLINE v128_t mul(v128_t a, v128_t b) { return wasm_f32x4_mul(a, b); }

INLINE float sum(v128_t x) {
    return (wasm_f32x4_extract_lane(x, 0) + wasm_f32x4_extract_lane(x, 1)) +
           (wasm_f32x4_extract_lane(x, 2) + wasm_f32x4_extract_lane(x, 3));
}

// e^x with a relative error of 5e-7, for x from -87 to 88: 2^k e^r with |r| <= ln(2) / 2, and a
// polynomial for e^r. generation/cpu_kernels.py uses the same.
INLINE v128_t exponential(v128_t x) {
    v128_t k = wasm_f32x4_floor(add(mul(x, splat(1.44269504f)), splat(0.5f)));
    v128_t r = add(x, mul(k, splat(-0.693359375f)));
    r = add(r, mul(k, splat(2.12194440e-4f)));
    v128_t p = splat(1.0f / 720);
    p = add(mul(p, r), splat(1.0f / 120));
    p = add(mul(p, r), splat(1.0f / 24));
    p = add(mul(p, r), splat(1.0f / 6));
    p = add(mul(p, r), splat(0.5f));
    p = add(mul(p, r), splat(1.0f));
    p = add(mul(p, r), splat(1.0f));
    v128_t power = wasm_i32x4_add(wasm_i32x4_trunc_sat_f32x4(k), wasm_i32x4_splat(127));
    return mul(p, wasm_i32x4_shl(power, 23));
}

// One value by the same polynomial, so that a number's place in an array does not matter.
INLINE float exponential_of(float x) { return wasm_f32x4_extract_lane(exponential(splat(x)), 0); }

INLINE v128_t clamp(v128_t x) { return wasm_f32x4_max(splat(-80), wasm_f32x4_min(splat(80), x)); }

// `rows` dot products with `count` vectors, for the function below: `count` is a constant there, so
// that the sums stay in registers.
INLINE void multiply_vectors(float *out, const int8_t *matrix, const float *scale, const float *x,
                             int rows, int columns, const int count) {
    for (int row = 0; row < rows; row++, matrix += columns) {
        v128_t sums[4][2];
        for (int t = 0; t < count; t++) sums[t][0] = sums[t][1] = splat(0);
        int j = 0;
        for (; j + 16 <= columns; j += 16) {
            v128_t w = wasm_v128_load(matrix + j);
            v128_t low = wasm_i16x8_extend_low_i8x16(w), high = wasm_i16x8_extend_high_i8x16(w);
            v128_t w0 = wasm_f32x4_convert_i32x4(wasm_i32x4_extend_low_i16x8(low));
            v128_t w1 = wasm_f32x4_convert_i32x4(wasm_i32x4_extend_high_i16x8(low));
            v128_t w2 = wasm_f32x4_convert_i32x4(wasm_i32x4_extend_low_i16x8(high));
            v128_t w3 = wasm_f32x4_convert_i32x4(wasm_i32x4_extend_high_i16x8(high));
            for (int t = 0; t < count; t++) {
                const float *v = x + t * columns + j;
                sums[t][0] = add(sums[t][0], mul(w0, load(v)));
                sums[t][1] = add(sums[t][1], mul(w1, load(v + 4)));
                sums[t][0] = add(sums[t][0], mul(w2, load(v + 8)));
                sums[t][1] = add(sums[t][1], mul(w3, load(v + 12)));
            }
        }
        for (int t = 0; t < count; t++) {
            float total = sum(add(sums[t][0], sums[t][1]));
            for (int k = j; k < columns; k++) total += matrix[k] * x[t * columns + k];
            out[t * rows + row] = total * scale[row];
        }
    }
}

// out (count, rows) = scale * (matrix @ x): matrix (rows, columns) int8 with a scale per row, x
// (count, columns). The matrix is converted once for four vectors.
EXPORT(multiplyInt8)
void multiply_int8(float *out, const int8_t *matrix, const float *scale, const float *x, int rows,
                   int columns, int count) {
    for (; count >= 4; count -= 4, out += 4 * rows, x += 4 * columns)
        multiply_vectors(out, matrix, scale, x, rows, columns, 4);
    for (; count; count--, out += rows, x += columns)
        multiply_vectors(out, matrix, scale, x, rows, columns, 1);
}

INLINE float dot(const float *a, const float *b, int n) {
    v128_t s0 = splat(0), s1 = s0;
    int j = 0;
    for (; j + 8 <= n; j += 8) {
        s0 = add(s0, mul(load(a + j), load(b + j)));
        s1 = add(s1, mul(load(a + j + 4), load(b + j + 4)));
    }
    float total = sum(add(s0, s1));
    for (; j < n; j++) total += a[j] * b[j];
    return total;
}

// out (count, rows) = matrix @ x: matrix (rows, columns), x (count, columns).
EXPORT(multiply)
void multiply(float *out, const float *matrix, const float *x, int rows, int columns, int count) {
    for (int t = 0; t < count; t++, x += columns)
        for (int row = 0; row < rows; row++) *out++ = dot(matrix + row * columns, x, columns);
}

// out (n) = x / RMS(x).
EXPORT(normalize)
void normalize(float *out, const float *x, int n) {
    float factor = 1 / __builtin_sqrtf(dot(x, x, n) / n + 1e-6f);
    int j = 0;
    for (; j + 4 <= n; j += 4) wasm_v128_store(out + j, mul(load(x + j), splat(factor)));
    for (; j < n; j++) out[j] = x[j] * factor;
}

// x (n) += y.
EXPORT(addTo)
void add_to(float *x, const float *y, int n) {
    int j = 0;
    for (; j + 4 <= n; j += 4) wasm_v128_store(x + j, add(load(x + j), load(y + j)));
    for (; j < n; j++) x[j] += y[j];
}

// Normalise one head's query or key x (n), multiply it by its gain, and rotate it by its position:
// cos and sin (n / 2).
EXPORT(rotate)
void rotate(float *x, const float *gain, const float *cos, const float *sin, int n) {
    normalize(x, x, n);
    int half = n / 2;
    for (int j = 0; j < half; j++) {
        float a = x[j] * gain[j], b = x[j + half] * gain[j + half];
        x[j] = a * cos[j] - b * sin[j];
        x[j + half] = b * cos[j] + a * sin[j];
    }
}

// One query head: out (n) and weights (positions) for the query q (n), keys and values
// (positions, n).
EXPORT(attend)
void attend(float *out, float *weights, const float *q, const float *keys, const float *values,
            int positions, int n) {
    float factor = 1 / __builtin_sqrtf(n), highest = -3e38f, total = 0;
    for (int t = 0; t < positions; t++) {
        weights[t] = factor * dot(q, keys + t * n, n);
        if (weights[t] > highest) highest = weights[t];
    }
    v128_t totals = splat(0);
    int t = 0;
    for (; t + 4 <= positions; t += 4) {
        v128_t w = exponential(clamp(wasm_f32x4_sub(load(weights + t), splat(highest))));
        wasm_v128_store(weights + t, w);
        totals = add(totals, w);
    }
    for (; t < positions; t++) {
        float x = weights[t] - highest;
        total += weights[t] = exponential_of(x < -80 ? -80 : x);
    }
    float scale = 1 / (total + sum(totals));
    for (t = 0; t < positions; t++) weights[t] *= scale;
    int j = 0;
    for (; j + 4 <= n; j += 4) {
        v128_t mixed = splat(0);
        for (t = 0; t < positions; t++)
            mixed = add(mixed, mul(splat(weights[t]), load(values + t * n + j)));
        wasm_v128_store(out + j, mixed);
    }
    for (; j < n; j++) {
        out[j] = 0;
        for (t = 0; t < positions; t++) out[j] += weights[t] * values[t * n + j];
    }
}

// out (count, n) = silu(gate) * up: gate_up (count, 2 n) has the gate, then up. `out` may be gate_up.
EXPORT(activate)
void activate(float *out, const float *gate_up, int n, int count) {
    for (int t = 0; t < count; t++, out += n, gate_up += 2 * n) {
        int j = 0;
        for (; j + 4 <= n; j += 4) {
            v128_t gate = load(gate_up + j), up = load(gate_up + n + j);
            v128_t power = exponential(clamp(wasm_f32x4_neg(gate)));
            v128_t silu = wasm_f32x4_div(gate, add(splat(1), power));
            wasm_v128_store(out + j, mul(silu, up));
        }
        for (; j < n; j++) {
            float x = -gate_up[j];
            float power = exponential_of(x < -80 ? -80 : x > 80 ? 80 : x);
            out[j] = gate_up[j] / (1 + power) * gate_up[n + j];
        }
    }
}
