/* A small virtual machine that computes one block of a merge.
 *
 * A block is cut into tiles, and for each tile the whole program runs: its registers are a tile
 * long and stay in the core's first cache, so an instruction costs a few cycles for eight or
 * sixteen elements, and an input is read from memory once, however long the formula is.
 *
 * The result is the same on every processor: every operation is rounded on its own (the compiler
 * must not fuse a product with a sum), and sums are taken over a fixed number of lanes.
 *
 * programs.py writes the programs.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "random.h"
#include "tiles.h"

enum { TILE = 512, LANES = 64, WIDE_LANES = 32, SIZE = 0x7fffffff };

enum operation {
    LOAD,       /* to = input a, widened */
    LOAD_MINUS, /* to = input b, widened, - a */
    NUMBER,     /* to = x */
    ADD,        /* to = a + b */
    SUB,
    MUL,
    SUB_SQUARED, /* to = (a - b) * (a - b) */
    DIV,
    ADD_NUMBER,  /* to = a + x */
    FROM_NUMBER, /* to = x - a */
    MUL_NUMBER,
    DIV_NUMBER,  /* to = a / x */
    INTO_NUMBER, /* to = x / a */
    ADD_SCALED,  /* to = a + x * b, rounded twice */
    ADD_SIGN,    /* to = a + x * the sign of b */
    ABS,
    SIGN,         /* -1, 0 or 1; 0 for NaN */
    SIDE,         /* -1 where a is below 0, else 1 */
    CLAMP,        /* to at least x and at most y; NaN stays */
    MUL_AT_LEAST, /* to = a * b, at least x; NaN stays */
    KEEP,         /* to = a where it is chosen by cut b, else 0; NaN stays */
    CHANCE,       /* to = a where it is chosen by chance b, else a * 0 */
    STORE,        /* output b = a, rounded */
    SUM,          /* total `to` += a, in float32 within a tile */
    DOT,          /* total `to` += a * b, in float32 within a tile */
    SUM_WIDE,     /* as SUM, in float64 */
    DOT_WIDE,     /* as DOT, in float64 */
    COUNT,        /* count b takes the sizes of a as scores */
    SPREAD,       /* to = the float32 numbers of input a, each for b elements */
};

/* The bits of the least size that is rounded to infinity, by type. */
static const int32_t INFINITE[] = {[F32] = 0x7f800000, [BF16] = 0x7f7f8000, [F16] = 0x477ff000};

/* Makes every NaN that was stored the same; how many stored numbers are NaN or infinite. */
static int64_t repair(const array *to, int64_t start, const word *bits, int n) {
    const int32_t nan = to->type == F32 ? 0x7fc00000 : to->type == BF16 ? 0x7fc0 : 0x7e00;
    const int width = to->type == F32 ? 4 : 2;
    int64_t bad = 0;
    for (int i = 0; i < n; i++) {
        int32_t size = bits[i] & 0x7fffffff;
        if (size > 0x7f800000) memcpy((char *)to->data + (start + i) * width, &nan, (size_t)width);
        bad += size >= INFINITE[to->type];
    }
    return bad;
}

static inline uint16_t upper_half(uint32_t bits) {
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Rounds to the nearest, ties to even; how many are NaN or infinite then. */
static int64_t store(const array *to, int64_t start, const float *restrict from, int n) {
    const word *restrict bits = (const word *)from;
    uint16_t *restrict half = (uint16_t *)to->data + start;
    int32_t largest = 0;
    for (int i = 0; i < n; i++) {
        int32_t size = bits[i] & 0x7fffffff;
        largest = size > largest ? size : largest;
    }
    if (to->type == F32)
        memcpy((float *)to->data + start, from, (size_t)n * sizeof(float));
    else if (to->type == BF16)
        for (int i = 0; i < n; i++) half[i] = upper_half(bits[i]);
    else
        for (int i = 0; i < n; i++) half[i] = (uint16_t)narrowed(from[i]);
    return largest < INFINITE[to->type] ? 0 : repair(to, start, bits, n);
}

static void spread(float *restrict to, const float *restrict numbers, int64_t start, int n,
                   int64_t each) {
    int64_t at = start / each, left = each - start % each;
    for (int i = 0; i < n; at++, left = each) {
        int stop = n - i < left ? n : i + (int)left;
        for (; i < stop; i++) to[i] = numbers[at];
    }
    for (int i = n; i < TILE; i++) to[i] = 0;
}

static double added(double *lanes) {
    for (int half = WIDE_LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) lanes[l] += lanes[l + half];
    return lanes[0];
}

/* Adds up a tile: in float32 over LANES, and these in float64. */
#define NARROW_SUM(number) \
    float lanes[LANES] = {0}; \
    double wide[WIDE_LANES] = {0}; \
    for (int i = 0; i < TILE; i += LANES) \
        for (int l = 0; l < LANES; l++) lanes[l] += (number); \
    for (int i = 0; i < LANES; i += WIDE_LANES) \
        for (int l = 0; l < WIDE_LANES; l++) wide[l] += (double)lanes[i + l]; \
    return added(wide)

/* The same in float64. */
#define WIDE_SUM(number) \
    double lanes[WIDE_LANES] = {0}; \
    for (int i = 0; i < TILE; i += WIDE_LANES) \
        for (int l = 0; l < WIDE_LANES; l++) lanes[l] += (number); \
    return added(lanes)

static double sum(const float *a) { NARROW_SUM(a[i + l]); }

static double sum_wide(const float *a) { WIDE_SUM((double)a[i + l]); }

static double dot(const float *a, const float *b) { NARROW_SUM(a[i + l] * b[i + l]); }

static double dot_wide(const float *a, const float *b) {
    WIDE_SUM((double)a[i + l] * (double)b[i + l]);
}

/* Beyond the block a tile holds what was left there: zeros, for what adds tiles up. */
static const float *whole(const float *a, float *copy, int n) {
    if (n == TILE) return a;
    memset(copy, 0, TILE * sizeof(float));
    memcpy(copy, a, (size_t)n * sizeof(float));
    return copy;
}

static void keep(float *restrict to, const float *restrict a, cut *by, int n) {
    const float limit = by->limit, equal = by->equal;
    for (int i = 0; i < TILE; i++) to[i] = fabsf(a[i]) <= limit ? 0 : a[i];
    if (by->budget <= 0) return;
    int equals = 0;
    for (int i = 0; i < n; i++) equals += fabsf(a[i]) == equal;
    if (equals <= by->budget) {
        for (int i = 0; i < n; i++) to[i] = fabsf(a[i]) == equal ? a[i] : to[i];
        by->budget -= equals;
        return;
    }
    for (int i = 0; by->budget > 0; i++) { /* its last one is in this tile */
        if (fabsf(a[i]) == equal) {
            to[i] = a[i];
            by->budget--;
        }
    }
}

/* A product, so that NaN and infinity are not hidden. */
static void choose(float *restrict to, const float *restrict a, const chance *by, int64_t first) {
    const uint16_t whole = (uint16_t)by->whole; /* compared 16 bits wide */
    uint16_t words[TILE], equal = 0;
    VARIED(random_words)(by->key, first, TILE, words);
    for (int i = 0; i < TILE; i++) to[i] = a[i] * (words[i] < whole ? 1.0f : 0.0f);
    if (!by->rest) return;
    for (int i = 0; i < TILE; i++) equal |= words[i] == whole;
    for (int i = 0; i < TILE && equal; i++)
        if (words[i] == whole && VARIED(more_bits)(by->key, first + i) < by->rest) to[i] = a[i];
}

/* Counts and lists the scores of a tile that are not below the bracket. */
#if defined(__AVX512F__)

static void bracket(const word *bits, count *of, int n) {
    const __m512i low = _mm512_set1_epi32((int)of->low), high = _mm512_set1_epi32((int)of->high),
                  common = _mm512_set1_epi32((int)of->common), sizes = _mm512_set1_epi32(SIZE);
    uint32_t *const first = of->inside + of->found, *inside = first;
    int upto = 0, within = 0, i = 0;
    for (; i + 16 <= n; i += 16) {
        __m512i scores = _mm512_and_si512(_mm512_loadu_si512(bits + i), sizes);
        __mmask16 not_above = _mm512_cmple_epu32_mask(scores, high);
        __mmask16 between = _mm512_mask_cmpge_epu32_mask(not_above, scores, low);
        __mmask16 listed = _mm512_mask_cmpneq_epu32_mask(between, scores, common);
        /* Sixteen fit, as not more are listed than were looked at. */
        _mm512_storeu_si512(inside, _mm512_maskz_compress_epi32(listed, scores));
        inside += __builtin_popcount(listed);
        upto += __builtin_popcount(not_above);
        within += __builtin_popcount(between);
    }
    for (; i < n; i++) {
        uint32_t score = bits[i] & SIZE;
        int between = score >= of->low && score <= of->high;
        if (between && score != of->common) *inside++ = score;
        upto += score <= of->high;
        within += between;
    }
    of->above += n - upto;
    of->equal += within - (inside - first);
    of->found += inside - first;
}

#else

static void bracket(const word *restrict bits, count *of, int n) {
    const uint32_t low = of->low, high = of->high, common = of->common, width = high - low;
    uint8_t listed[TILE] = {0};
    int32_t above = 0, equal = 0;
    for (int i = 0; i < n; i++) {
        above += (bits[i] & SIZE) > high;
        equal += (bits[i] & SIZE) == common;
    }
    of->above += above;
    of->equal += equal;
    if (low == high) return;
    for (int i = 0; i < n; i++) {
        uint32_t score = bits[i] & SIZE;
        listed[i] = (score - low <= width) & (score != common);
    }
    uint32_t *restrict inside = of->inside + of->found;
    for (int start = 0; start < n; start += 8) {
        uint64_t eight;
        memcpy(&eight, listed + start, sizeof eight);
        for (; eight; eight &= eight - 1)
            *inside++ = bits[start + __builtin_ctzll(eight) / 8] & SIZE;
    }
    of->found = inside - of->inside;
}

#endif

static void tally(const float *a, count *of, int n) {
    const word *bits = (const word *)a;
    bracket(bits, of, n);
    int32_t nonzero = 0;
    if (of->of_nonzero)
        for (int i = 0; i < n; i++) nonzero += (bits[i] & SIZE) != 0;
    of->nonzero += nonzero;
}

/* x times the sign of a, which is 0 for NaN. */
static inline float signed_by(float a, float x) {
    return __builtin_islessgreater(a, 0) ? of_bits(bits_of(x) ^ (bits_of(a) & ~SIZE)) : x * 0;
}

static inline float at_least(float a, float x) { return a < x ? x : a; }

static inline float at_most(float a, float x) { return a > x ? x : a; }

#define EACH(expression) \
    for (int i = 0; i < TILE; i++) to[i] = (expression); \
    break

int64_t VARIED(tiles)(const instruction *program, int64_t length, int64_t begin, int64_t end,
                      const state *of) {
    int64_t bad = 0;
    float one[TILE], other[TILE];
    for (int64_t start = begin; start < end; start += TILE) {
        int n = (int)(end - start < TILE ? end - start : TILE);
        for (const instruction *at = program; at < program + length; at++) {
            float *restrict to = of->registers + (int64_t)at->to * TILE;
            const float *restrict a = of->registers + (int64_t)at->a * TILE;
            const float *restrict b = of->registers + (int64_t)at->b * TILE;
            float x = at->x, y = at->y;
            switch (at->operation) {
            case LOAD:
                load(to, of->inputs + at->a, start, n);
                for (int i = n; i < TILE; i++) to[i] = 0;
                break;
            case LOAD_MINUS: load_minus(to, of->inputs + at->b, start, n, a); break;
            case NUMBER: EACH(x);
            case ADD: EACH(a[i] + b[i]);
            case SUB: EACH(a[i] - b[i]);
            case MUL: EACH(a[i] * b[i]);
            case SUB_SQUARED: EACH((a[i] - b[i]) * (a[i] - b[i]));
            case DIV: EACH(a[i] / b[i]);
            case ADD_NUMBER: EACH(a[i] + x);
            case FROM_NUMBER: EACH(x - a[i]);
            case MUL_NUMBER: EACH(a[i] * x);
            case DIV_NUMBER: EACH(a[i] / x);
            case INTO_NUMBER: EACH(x / a[i]);
            case ADD_SCALED: EACH(a[i] + x * b[i]);
            case ADD_SIGN: EACH(a[i] + signed_by(b[i], x));
            case ABS: EACH(fabsf(a[i]));
            case SIGN: EACH(signed_by(a[i], 1));
            case SIDE: EACH(a[i] < 0 ? -1 : 1);
            case CLAMP: EACH(at_most(at_least(a[i], x), y));
            case MUL_AT_LEAST: EACH(at_least(a[i] * b[i], x));
            case KEEP: keep(to, a, of->cuts + at->b, n); break;
            case CHANCE: choose(to, a, of->chances + at->b, of->first + start); break;
            case STORE: bad += store(of->outputs + at->b, start, a, n); break;
            case SUM: of->totals[at->to] += sum(whole(a, one, n)); break;
            case DOT: of->totals[at->to] += dot(whole(a, one, n), whole(b, other, n)); break;
            case SUM_WIDE: of->totals[at->to] += sum_wide(whole(a, one, n)); break;
            case DOT_WIDE:
                of->totals[at->to] += dot_wide(whole(a, one, n), whole(b, other, n));
                break;
            case COUNT: tally(a, of->counts + at->b, n); break;
            case SPREAD: spread(to, of->inputs[at->a].data, start, n, at->b); break;
            }
        }
    }
    return bad;
}
