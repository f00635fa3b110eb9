/* How much the softmax of one row differs from that of another, in float64. */

#include <stdint.h>
#include <string.h>

#include "variant.h"

/* Long chains of operations: several at once keep the processor busy. */
#if defined(__clang__)
#define INTERLEAVED _Pragma("clang loop interleave_count(4)")
#else
#define INTERLEAVED
#endif

enum { LANES = 8 };

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

/* to = softmax(x) + floor */
static void softmax(double *restrict to, const float *restrict x, int64_t n, double floor) {
    double most = (double)largest(x, n);
    INTERLEAVED
    for (int64_t i = 0; i < n; i++) to[i] = exponential((double)x[i] - most);
    double total = sum(to, n);
    for (int64_t i = 0; i < n; i++) to[i] = to[i] / total + floor;
}

/* For each of `rows` rows of `row` elements the sum of p log(p / q), at least 0, where p and q are
 * the softmaxes of x and of y, each plus `floor`. `memory` holds two rows. NaN in a row gives NaN.
 */
void VARIED(softmax)(const float *x, const float *y, int64_t rows, int64_t row, double floor,
                     double *memory, float *out) {
    double *restrict p = memory, *restrict q = memory + row;
    for (int64_t r = 0; r < rows; r++) {
        softmax(p, x + r * row, row, floor);
        softmax(q, y + r * row, row, floor);
        /* p takes the terms; a NaN of q alone would get lost in the logarithm. */
        INTERLEAVED
        for (int64_t i = 0; i < row; i++) p[i] = p[i] * logarithm(p[i] / q[i]) + 0 * q[i];
        double total = sum(p, row);
        out[r] = (float)(total < 0 ? 0 : total);
    }
}
