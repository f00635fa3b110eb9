/* Chooses the variants of the library's functions for the processor at hand. */

#define FUNCTIONS(each) each(run_program) each(random_words) each(divergence) each(choose_by_rank)

#define DECLARE_ANY(name) void name##_any(void);
FUNCTIONS(DECLARE_ANY)

#if defined(__x86_64__)

#include <cpuid.h>

#define DECLARE(name) \
    void name##_v3(void); \
    void name##_v4(void);
FUNCTIONS(DECLARE)

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

/* The best variant that the processor can run, of those up to a level. */
static void *chosen(int at_most, void *any, void *v3, void *v4) {
    int found = x86_level(), level = found > at_most ? at_most : found;
    return level >= 4 ? v4 : level == 3 ? v3 : any;
}

#define CHOSEN(name) chosen(at_most, (void *)name##_any, (void *)name##_v3, (void *)name##_v4)

#else

#define CHOSEN(name) ((void)at_most, (void *)name##_any)

#endif

/* mergeloom_run_program(4) is the variant of run_program for this processor, of level 4 or below.
 */
#define CHOOSE(name) \
    void *mergeloom_##name(int at_most) { return CHOSEN(name); }
FUNCTIONS(CHOOSE)
