/* Chooses the variants of tiles.c and softmax.c for the processor at hand: hatch_build.py compiles
 * both once for each of them. */

void tiles_any(void);
void softmax_any(void);

#if defined(__x86_64__)

#include <cpuid.h>

void tiles_v3(void);
void tiles_v4(void);
void softmax_v3(void);
void softmax_v4(void);

/* The processor is asked here, because zig's __builtin_cpu_supports always says no. */
static int x86_level(void) {
    const unsigned leaf1 = bit_SSE3 | bit_SSSE3 | bit_FMA | bit_CMPXCHG16B | bit_SSE4_1 |
                           bit_SSE4_2 | bit_MOVBE | bit_POPCNT | bit_OSXSAVE | bit_AVX | bit_F16C;
    const unsigned leaf7 = bit_BMI | bit_AVX2 | bit_BMI2;
    const unsigned wide = bit_AVX512F | bit_AVX512DQ | bit_AVX512CD | bit_AVX512BW | bit_AVX512VL;
    const unsigned lzcnt = 1u << 5; /* gcc and clang name it differently */
    const unsigned ymm = 0x06, zmm = 0xe6;
    unsigned a, b, c, d, kept, high;

    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & leaf1) != leaf1) return 1;
    if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || !(c & lzcnt)) return 1;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & leaf7) != leaf7) return 1;
    /* The registers that the operating system saves when it switches threads. */
    __asm__("xgetbv" : "=a"(kept), "=d"(high) : "c"(0));
    if ((kept & ymm) != ymm) return 1;
    return (b & wide) == wide && (kept & zmm) == zmm ? 4 : 3;
}

/* The level of this processor, or `at_most`. */
static int level(int at_most) {
    int found = x86_level();
    return found > at_most ? at_most : found;
}

#define CHOOSE(name) \
    (level(at_most) >= 4   ? (void *)name##_v4 \
     : level(at_most) == 3 ? (void *)name##_v3 \
                           : (void *)name##_any)

#else

#define CHOOSE(name) ((void)at_most, (void *)name##_any)

#endif

/* The variants of tiles.c and softmax.c for this processor, of level `at_most` or below. */
void *mergeloom_tiles(int at_most) { return CHOOSE(tiles); }

void *mergeloom_softmax(int at_most) { return CHOOSE(softmax); }
