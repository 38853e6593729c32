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

INLINE float sum_integers(v128_t x) {
    return (float)wasm_i32x4_extract_lane(x, 0) + (float)wasm_i32x4_extract_lane(x, 1) +
           ((float)wasm_i32x4_extract_lane(x, 2) + (float)wasm_i32x4_extract_lane(x, 3));
}

// x (n), n a multiple of 8, as `high` + `low` / 32768, 16-bit integers, times the scale that is
// returned: 30 bits, more than a float32 has. Products of 16-bit integers are added in pairs by one
// instruction, without a conversion of the weights to float32.
INLINE float split(int16_t *high, int16_t *low, const float *x, int n) {
    v128_t highest = splat(1e-30f);
    for (int j = 0; j < n; j += 4) highest = wasm_f32x4_max(highest, wasm_f32x4_abs(load(x + j)));
    highest = wasm_f32x4_max(highest, wasm_i32x4_shuffle(highest, highest, 2, 3, 0, 1));
    highest = wasm_f32x4_max(highest, wasm_i32x4_shuffle(highest, highest, 1, 0, 3, 2));
    float scale = wasm_f32x4_extract_lane(highest, 0) / 32767;
    v128_t inverse = splat(1 / scale), parts[2][2];
    for (int j = 0; j < n; j += 8) {
        for (int i = 0; i < 2; i++) {
            v128_t y = mul(load(x + j + 4 * i), inverse), nearest = wasm_f32x4_nearest(y);
            parts[0][i] = wasm_i32x4_trunc_sat_f32x4(nearest);
            v128_t rest = mul(wasm_f32x4_sub(y, nearest), splat(32768));
            parts[1][i] = wasm_i32x4_trunc_sat_f32x4(wasm_f32x4_nearest(rest));
        }
        wasm_v128_store(high + j, wasm_i16x8_narrow_i32x4(parts[0][0], parts[0][1]));
        wasm_v128_store(low + j, wasm_i16x8_narrow_i32x4(parts[1][0], parts[1][1]));
    }
    return scale;
}

#define CHUNK 2048 // columns; 32-bit sums of more products could overflow

// `count` rows (1 or 2) times x in `high` and `low`, for n <= CHUNK columns: added to totals.
INLINE void multiply_rows(float *totals, const int8_t *matrix, int columns, const int16_t *high,
                          const int16_t *low, int n, const int count) {
    v128_t sums[2][2];
    for (int r = 0; r < count; r++) sums[r][0] = sums[r][1] = splat(0);
    for (int j = 0; j < n; j += 16) {
        v128_t h0 = wasm_v128_load(high + j), h1 = wasm_v128_load(high + j + 8);
        v128_t l0 = wasm_v128_load(low + j), l1 = wasm_v128_load(low + j + 8);
        for (int r = 0; r < count; r++) {
            v128_t w = wasm_v128_load(matrix + r * columns + j);
            v128_t w0 = wasm_i16x8_extend_low_i8x16(w), w1 = wasm_i16x8_extend_high_i8x16(w);
            sums[r][0] = wasm_i32x4_add(sums[r][0], wasm_i32x4_dot_i16x8(w0, h0));
            sums[r][1] = wasm_i32x4_add(sums[r][1], wasm_i32x4_dot_i16x8(w0, l0));
            sums[r][0] = wasm_i32x4_add(sums[r][0], wasm_i32x4_dot_i16x8(w1, h1));
            sums[r][1] = wasm_i32x4_add(sums[r][1], wasm_i32x4_dot_i16x8(w1, l1));
        }
    }
    for (int r = 0; r < count; r++)
        totals[r] += sum_integers(sums[r][0]) + sum_integers(sums[r][1]) / 32768;
}

// One vector: see `split`. scratch: 4 bytes for each column.
INLINE void multiply_vector(float *out, const int8_t *matrix, const float *scale, const float *x,
                            int rows, int columns, int16_t *scratch) {
    int whole = columns & ~15;
    int16_t *high = scratch, *low = scratch + whole;
    float x_scale = split(high, low, x, whole);
    for (int row = 0; row < rows; row += 2, matrix += 2 * columns) {
        int count = row + 1 < rows ? 2 : 1;
        float totals[2] = {0, 0};
        for (int j = 0; j < whole; j += CHUNK) {
            int n = whole - j < CHUNK ? whole - j : CHUNK;
            if (count == 2) multiply_rows(totals, matrix + j, columns, high + j, low + j, n, 2);
            else multiply_rows(totals, matrix + j, columns, high + j, low + j, n, 1);
        }
        for (int r = 0; r < count; r++) {
            float total = totals[r] * x_scale;
            for (int j = whole; j < columns; j++) total += matrix[r * columns + j] * x[j];
            out[row + r] = total * scale[row + r];
        }
    }
}

// Four vectors, x (4, columns): the weights are converted to float32 once for all of them.
INLINE void multiply_vectors(float *out, const int8_t *matrix, const float *scale, const float *x,
                             int rows, int columns) {
    for (int row = 0; row < rows; row++, matrix += columns) {
        v128_t sums[4];
        for (int t = 0; t < 4; t++) sums[t] = splat(0);
        int j = 0;
        for (; j + 16 <= columns; j += 16) {
            v128_t w = wasm_v128_load(matrix + j);
            v128_t low = wasm_i16x8_extend_low_i8x16(w), high = wasm_i16x8_extend_high_i8x16(w);
            v128_t w0 = wasm_f32x4_convert_i32x4(wasm_i32x4_extend_low_i16x8(low));
            v128_t w1 = wasm_f32x4_convert_i32x4(wasm_i32x4_extend_high_i16x8(low));
            v128_t w2 = wasm_f32x4_convert_i32x4(wasm_i32x4_extend_low_i16x8(high));
            v128_t w3 = wasm_f32x4_convert_i32x4(wasm_i32x4_extend_high_i16x8(high));
            for (int t = 0; t < 4; t++) {
                const float *v = x + t * columns + j;
                v128_t first = add(mul(w0, load(v)), mul(w1, load(v + 4)));
                v128_t second = add(mul(w2, load(v + 8)), mul(w3, load(v + 12)));
                sums[t] = add(sums[t], add(first, second));
            }
        }
        for (int t = 0; t < 4; t++) {
            float total = sum(sums[t]);
            for (int k = j; k < columns; k++) total += matrix[k] * x[t * columns + k];
            out[t * rows + row] = total * scale[row];
        }
    }
}

// out (count, rows) = scale * (matrix @ x): matrix (rows, columns) int8 with a scale per row, x
// (count, columns); scratch: 4 bytes for each column.
EXPORT(multiplyInt8)
void multiply_int8(float *out, const int8_t *matrix, const float *scale, const float *x, int rows,
                   int columns, int count, int16_t *scratch) {
    for (; count >= 4; count -= 4, out += 4 * rows, x += 4 * columns)
        multiply_vectors(out, matrix, scale, x, rows, columns);
    for (; count; count--, out += rows, x += columns)
        multiply_vector(out, matrix, scale, x, rows, columns, scratch);
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
    for (; j + 16 <= n; j += 16) {
        v128_t mixed[4] = {splat(0), splat(0), splat(0), splat(0)};
        for (t = 0; t < positions; t++) {
            v128_t weight = splat(weights[t]);
            for (int i = 0; i < 4; i++)
                mixed[i] = add(mixed[i], mul(weight, load(values + t * n + j + 4 * i)));
        }
        for (int i = 0; i < 4; i++) wasm_v128_store(out + j + 4 * i, mixed[i]);
    }
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
