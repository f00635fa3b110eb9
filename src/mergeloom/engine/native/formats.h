/* The formats of stored numbers. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint32_t __attribute__((may_alias)) word; /* the bits of a float */

enum type { F32, BF16, F16, BOOL };

typedef struct {
    void *data;
    int64_t type;
} array;

static inline float of_bits(uint32_t bits) {
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

static inline uint32_t bits_of(float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

/* Half precision by the processor where it can, else by integers; the results are the same. */
#if defined(__F16C__) || defined(__aarch64__)

static inline float widened(uint16_t half) {
    _Float16 number;
    memcpy(&number, &half, sizeof number);
    return (float)number;
}

static inline uint32_t narrowed(float number) {
    _Float16 half = (_Float16)number;
    uint16_t bits;
    memcpy(&bits, &half, sizeof bits);
    return bits;
}

#else

static inline float widened(uint16_t half) {
    int32_t size = half & 0x7fff;
    uint32_t finite = bits_of(of_bits((uint32_t)size << 13) * 0x1p112f); /* exact: moves the bias */
    uint32_t special = (uint32_t)size << 13 | (size > 0x7c00 ? 0x7fc00000 : 0x7f800000);
    return of_bits((size < 0x7c00 ? finite : special) | (uint32_t)(half & 0x8000) << 16);
}

/* Of any number but NaN. */
static inline uint32_t narrowed(float number) {
    int32_t all = (int32_t)bits_of(number), size = all & 0x7fffffff;
    int32_t most = size < 0x47800000 ? size : 0x47800000; /* 65536, which becomes infinity */
    int32_t normal = (most - 0x38000000 + 0xfff + (most >> 13 & 1)) >> 13;
    /* Below 2^-14 halves are multiples of 2^-24, as floats between 0.5 and 1 are. */
    int32_t small = (int32_t)bits_of(of_bits((uint32_t)size) + 0.5f) - 0x3f000000;
    return (uint32_t)((size < 0x38800000 ? small : normal) | (all >> 16 & 0x8000));
}

#endif

#define EACH_LOADED(number) \
    if (minus) \
        for (int64_t i = 0; i < n; i++) to[i] = (number) - minus[i]; \
    else \
        for (int64_t i = 0; i < n; i++) to[i] = (number)

/* Elements [start, start + n), widened; less those of `minus` if it is there. */
static inline void load_minus(float *restrict to, const array *from, int64_t start, int64_t n,
                              const float *restrict minus) {
    if (from->type == F32) {
        const float *restrict full = (const float *)from->data + start;
        EACH_LOADED(full[i]);
    } else if (from->type == BF16) {
        const uint16_t *restrict half = (const uint16_t *)from->data + start;
        EACH_LOADED(of_bits((uint32_t)half[i] << 16));
    } else if (from->type == F16) {
        const uint16_t *restrict half = (const uint16_t *)from->data + start;
        EACH_LOADED(widened(half[i]));
    } else {
        const uint8_t *restrict flag = (const uint8_t *)from->data + start;
        EACH_LOADED((float)flag[i]);
    }
}

/* Elements [start, start + n), widened. */
static inline void load(float *restrict to, const array *from, int64_t start, int64_t n) {
    load_minus(to, from, start, n, NULL);
}
