/* How much the softmaxes of rows differ: the sum of p log(p / q), where p and q are the softmaxes
 * of x and of y, each plus a floor.
 *
 * The terms of that sum are some 1e-4 where the rows are those of a fine-tune and of its base, and
 * what is left of them in the end 1e-8: it takes float64. As p and q have the same sum, that of
 * p log(p / q) - p + q is the same, whose terms are positive and small where p and q are close.
 * They are good to float32's precision in float32, if the differences of x and y are what is given
 * to the exponential. So rows that are close are computed like that, all others in float64; the
 * row itself decides, as the result must be the same on every processor.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "formats.h"
#include "variant.h"

/* Long chains of operations: several at once keep the processor busy. */
#if defined(__clang__)
#define INTERLEAVED _Pragma("clang loop interleave_count(4)")
#else
#define INTERLEAVED
#endif

enum { LANES = 16 };

/* Rows are close where the differences of x and y are within CLOSE of the first one, and none of y
 * is above SMALL in size, so that their exponentials need not be divided by the largest one. */
static const float CLOSE = 0.25f, SMALL = 16;

static double from_bits(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint64_t to_bits(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* exp(x) for x <= 0, 0 for what is too small: 2^k e^r with |r| <= ln(2) / 2. NaN stays. */
static inline double exponential(double x) {
    static const double shift = 6755399441055744.0; /* 1.5 * 2^52: what is added is rounded */
    double bounded = x < -700 ? -700 : x;
    double shifted = bounded * 1.4426950408889634 + shift, k = shifted - shift;
    double r = bounded - k * 0.693147180369123816490 - k * 1.90821492927058770002e-10;
    double sum = 1 / 6227020800.0;
    sum = sum * r + 1 / 479001600.0;
    sum = sum * r + 1 / 39916800.0;
    sum = sum * r + 1 / 3628800.0;
    sum = sum * r + 1 / 362880.0;
    sum = sum * r + 1 / 40320.0;
    sum = sum * r + 1 / 5040.0;
    sum = sum * r + 1 / 720.0;
    sum = sum * r + 1 / 120.0;
    sum = sum * r + 1 / 24.0;
    sum = sum * r + 1 / 6.0;
    sum = sum * r + 0.5;
    sum = sum * r + 1;
    sum = sum * r + 1;
    return sum * from_bits((to_bits(shifted) + 1023) << 52);
}

/* log(x) of a positive normal number: e ln(2) + log(m), m from sqrt(1/2) to sqrt(2). */
static inline double logarithm(double x) {
    uint64_t bits = to_bits(x);
    double e = from_bits(0x4330000000000000u | bits >> 52) - 4503599627370496.0 - 1023;
    double m = from_bits((bits & 0x000fffffffffffffu) | 0x3ff0000000000000u);
    double large = m > 1.4142135623730951 ? 1 : 0;
    m = m * (1 - 0.5 * large);
    double s = (m - 1) / (m + 1), z = s * s, sum = 1 / 21.0;
    sum = sum * z + 1 / 19.0;
    sum = sum * z + 1 / 17.0;
    sum = sum * z + 1 / 15.0;
    sum = sum * z + 1 / 13.0;
    sum = sum * z + 1 / 11.0;
    sum = sum * z + 1 / 9.0;
    sum = sum * z + 1 / 7.0;
    sum = sum * z + 1 / 5.0;
    sum = sum * z + 1 / 3.0;
    sum = sum * z + 1;
    return (e + large) * 0.6931471805599453 + 2 * s * sum;
}

/* exp(x) for |x| <= SMALL in float32, good to 2e-7. */
static inline float exponential_32(float x) {
    static const float shift = 12582912; /* 1.5 * 2^23 */
    float shifted = x * 1.44269504f + shift, k = shifted - shift;
    float r = x - k * 0.693359375f + k * 2.12194440e-4f;
    float sum = 1 / 720.0f;
    sum = sum * r + 1 / 120.0f;
    sum = sum * r + 1 / 24.0f;
    sum = sum * r + 1 / 6.0f;
    sum = sum * r + 0.5f;
    sum = sum * r + 1;
    sum = sum * r + 1;
    return sum * of_bits((bits_of(shifted) + 127) << 23);
}

/* exp(x) - 1 for |x| <= CLOSE, good to float32's precision for the smallest x. */
static inline float exponential_minus_1(float x) {
    float sum = 1 / 720.0f;
    sum = sum * x + 1 / 120.0f;
    sum = sum * x + 1 / 24.0f;
    sum = sum * x + 1 / 6.0f;
    sum = sum * x + 0.5f;
    return x + x * x * sum;
}

static float largest(const float *x, int64_t n) {
    float lanes[LANES], most = x[0];
    int64_t whole = n - n % LANES;
    for (int l = 0; l < LANES; l++) lanes[l] = x[0];
    for (int64_t i = 0; i < whole; i += LANES)
        for (int l = 0; l < LANES; l++) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
    for (int64_t i = whole; i < n; i++) most = x[i] > most ? x[i] : most;
    for (int l = 0; l < LANES; l++) most = lanes[l] > most ? lanes[l] : most;
    return most;
}

static double sum(const double *x, int64_t n) {
    double lanes[LANES] = {0}, total = 0;
    int64_t whole = n - n % LANES;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int l = 0; l < LANES; l++) lanes[l] += x[i + l];
    for (int64_t i = whole; i < n; i++) lanes[i - whole] += x[i];
    for (int l = 0; l < LANES; l++) total += lanes[l];
    return total;
}

/* The same of float32 numbers. */
static double sum_32(const float *x, int64_t n) {
    double lanes[LANES] = {0}, total = 0;
    int64_t whole = n - n % LANES;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int l = 0; l < LANES; l++) lanes[l] += (double)x[i + l];
    for (int64_t i = whole; i < n; i++) lanes[i - whole] += (double)x[i];
    for (int l = 0; l < LANES; l++) total += lanes[l];
    return total;
}

/* to = softmax(x) + floor */
static void softmax(double *restrict to, const float *restrict x, int64_t n, double floor) {
    double most = (double)largest(x, n);
    INTERLEAVED
    for (int64_t i = 0; i < n; i++) to[i] = exponential((double)x[i] - most);
    double total = sum(to, n);
    for (int64_t i = 0; i < n; i++) to[i] = to[i] / total + floor;
}

/* Of any rows x and y; p and q are memory. */
static double far_divergence(const float *x, const float *y, int64_t n, double floor,
                             double *restrict p, double *restrict q) {
    softmax(p, x, n, floor);
    softmax(q, y, n, floor);
    /* p takes the terms; a NaN of q alone would get lost in the logarithm. */
    INTERLEAVED
    for (int64_t i = 0; i < n; i++) p[i] = p[i] * logarithm(p[i] / q[i]) + 0 * q[i];
    double total = sum(p, n);
    return total < 0 ? 0 : total;
}

/* x -= y + x[0] - y[0]; whether the rows are close. NaN is close to nothing.
 *
 * A number added to a whole row is nothing to its softmax. Taken away it costs no digits, and rows
 * that differ by nothing else, as those of one element, have a divergence of 0 and no more. */
static int subtract(float *restrict x, const float *restrict y, int64_t n) {
    float first = x[0] - y[0];
    int32_t far = 0;
    for (int64_t i = 0; i < n; i++) {
        x[i] = x[i] - y[i] - first;
        far |= !(fabsf(x[i]) <= CLOSE) | !(fabsf(y[i]) <= SMALL);
    }
    return !far;
}

/* Of rows y + change and y that are close; both are overwritten.
 *
 * With w = exp(y), g = w (exp(change) - 1) and their sums W and G, the softmaxes are
 * q = w / W and p = (w + g) / (W + G), and u = p - q = (g - w G / W) / (W + G).
 *
 * With s = u / (p + q) the logarithm of p / q is 2 atanh(s) = 2 (s + s^3 / 3 + s^5 / 5 + ...), and
 * p = u (1 + s) / (2 s), so p log(p / q) - p + q = s u (1 + (1 + s) (s / 3 + s^3 / 5 + ...)).
 */
static double close_divergence(float *restrict change, float *restrict y, int64_t n, float floor) {
    INTERLEAVED
    for (int64_t i = 0; i < n; i++) {
        y[i] = exponential_32(y[i]);
        change[i] = y[i] * exponential_minus_1(change[i]);
    }
    double weight = sum_32(y, n), growth = sum_32(change, n);
    float share = (float)(1 / weight), grown = (float)(1 / (weight + growth));
    float mean = (float)(growth / weight);
    INTERLEAVED
    for (int64_t i = 0; i < n; i++) {
        float q = y[i] * share, u = (change[i] - y[i] * mean) * grown;
        float s = u / (u + 2 * (q + floor)), z = s * s;
        float sum = 1 / 11.0f;
        sum = sum * z + 1 / 9.0f;
        sum = sum * z + 1 / 7.0f;
        sum = sum * z + 1 / 5.0f;
        sum = sum * z + 1 / 3.0f;
        change[i] = s * u * (1 + (1 + s) * s * sum);
    }
    return sum_32(change, n);
}

/* For each of `rows` rows of `row` elements the divergence; NaN in a row gives NaN. `memory` holds
 * three rows. */
void VARIED(divergence)(const array *x, const array *y, int64_t rows, int64_t row, double floor,
                        double *memory, float *out) {
    float *one = (float *)memory, *other = one + row;
    for (int64_t r = 0; r < rows; r++) {
        load(one, x, r * row, row);
        load(other, y, r * row, row);
        if (subtract(one, other, row)) {
            out[r] = (float)close_divergence(one, other, row, (float)floor);
        } else {
            load(one, x, r * row, row);
            out[r] = (float)far_divergence(one, other, row, floor, memory + row, memory + 2 * row);
        }
    }
}
