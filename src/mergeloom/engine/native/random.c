/* Random bits by counting: Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random
 * numbers: as easy as 1, 2, 3" (2011).
 *
 * A call makes 128 random bits of a key and a counter, and remembers nothing: an element's bits
 * follow from its number alone, whatever is asked for before, at once or beside it.
 * randomness.py makes the same bits.
 */

#include "random.h"

#include <string.h>

/* Long chains of operations: several at once keep the processor busy. */
#if defined(__clang__)
#define INTERLEAVED _Pragma("clang loop interleave_count(8)")
#else
#define INTERLEAVED
#endif

enum { ROUNDS = 10, WORDS = 8, CALLS = 64 };

#define LOW 0xffffffffu

/* What is added to the lower and the upper half of the key in each round. */
static void round_keys(uint64_t key, uint64_t keys[ROUNDS][2]) {
    uint32_t low = (uint32_t)key, high = (uint32_t)(key >> 32);
    for (int r = 0; r < ROUNDS; r++) {
        keys[r][0] = low + (uint32_t)r * 0x9E3779B9u;
        keys[r][1] = high + (uint32_t)r * 0xBB67AE85u;
    }
}

/* One call: four numbers of 32 bits, the first in the lower half of to[0]. Numbers are kept in 64
 * bits, whose upper halves say nothing before the last round, which puts two results into each. */
static inline void philox(const uint64_t keys[ROUNDS][2], uint64_t x0, uint64_t x1, uint64_t x2,
                          uint64_t x3, uint64_t *to) {
    uint64_t one, other;
    for (int r = 0;; r++) {
        one = (x0 & LOW) * 0xD2511F53u;
        other = (x2 & LOW) * 0xCD9E8D57u;
        if (r == ROUNDS - 1) break;
        x0 = other >> 32 ^ x1 ^ keys[r][0];
        x2 = one >> 32 ^ x3 ^ keys[r][1];
        x1 = other;
        x3 = one;
    }
    to[0] = (other >> 32 | other << 32) ^ (x1 & LOW) ^ keys[ROUNDS - 1][0];
    to[1] = (one >> 32 | one << 32) ^ (x3 & LOW) ^ keys[ROUNDS - 1][1];
}

/* CALLS calls from `call` on, a multiple of CALLS: the counter's upper half is the same in all. */
static inline void draw(const uint64_t keys[ROUNDS][2], uint64_t call, uint16_t *to) {
    const uint64_t low = call & LOW, high = call >> 32;
    INTERLEAVED for (int i = 0; i < CALLS; i++) {
        uint64_t made[2];
        philox(keys, low + (uint64_t)i, high, 0, 0, made);
        memcpy(to + i * WORDS, made, sizeof made);
    }
}

/* Element e has word e % 8 of call e / 8; `count` may be anything. */
void VARIED(random_words)(uint64_t key, int64_t first, int64_t count, uint16_t *words) {
    uint64_t keys[ROUNDS][2];
    uint16_t more[CALLS * WORDS];
    round_keys(key, keys);
    for (int64_t done = 0; done < count;) {
        const int64_t element = first + done, skipped = element % (CALLS * WORDS);
        const int64_t left = count - done, upto = CALLS * WORDS - skipped;
        const int64_t n = left < upto ? left : upto;
        const int all = n == CALLS * WORDS;
        draw(keys, (uint64_t)(element - skipped) / WORDS, all ? words + done : more);
        if (!all) memcpy(words + done, more + skipped, (size_t)n * sizeof *more);
        done += n;
    }
}

/* From counters that no words are made of: their last number is 1, not 0. */
uint32_t VARIED(more_bits)(uint64_t key, int64_t element) {
    uint64_t keys[ROUNDS][2], made[2];
    round_keys(key, keys);
    philox(keys, (uint64_t)element & LOW, (uint64_t)element >> 32, 0, 1, made);
    return (uint32_t)made[0];
}
