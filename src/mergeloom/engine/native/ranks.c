/* Random choices weighed by ranks; see ranks.py, which knows what the words mean.
 *
 * No row is sorted. Its sizes are counted in buckets, which says what ranks a bucket has. Nearly
 * all words are above or below the chances of all of them and decide at once; for the others the
 * smaller sizes of the row are counted. */

#include "ranks.h"

#include <string.h>

#include "random.h"

enum {
    PER_BUCKET = 4,  /* elements of a row for each of its buckets */
    BUCKETS = 16384, /* at most, to stay in the core's second cache */
    LANES = 4,       /* counters of a bucket: equal neighbours would wait for one another */
    OCTAVES = 16,    /* below a row's largest size; all that is smaller has one bucket, or is 0 */
    STRETCH = 256,   /* elements that are decided together */
    LOOKS = 128,     /* elements that may need their exact rank; a row with more is left */
    UNDECIDED = 2,
};

/* With the rank k, an element is chosen where the word's first 15 bits are below chance(k). */
typedef struct {
    double first, step;
} chances;

typedef struct {
    const int32_t *sizes;
    const uint16_t *words;
    uint8_t *chosen;
    int64_t length;
} elements;

/* Sizes are integers that rise with them. Those of each 2^shift, from `bottom` on, have two
 * buckets: an even one for the first of them and an odd one for the others. So all of an even
 * bucket are equal, and those of a model in bfloat16 are in even buckets, for the changes there are
 * small multiples of powers of two. */
typedef struct {
    int32_t bottom, shift, buckets;
} scale;

typedef struct {
    int32_t (*counts)[LANES]; /* of a bucket */
    int32_t *ranks;           /* the first one of each bucket, and the row's length */
    uint32_t *sure; /* below its low half all of a bucket are chosen, from its high half on none */
    uint16_t *places; /* the buckets of a row's elements */
} memory;

static inline uint32_t chance(chances all, int32_t rank) {
    return (uint32_t)(int32_t)(all.first + (double)rank * all.step);
}

static scale scale_of(elements row) {
    int32_t largest = 0;
    uint32_t before = UINT32_MAX; /* the smallest but 0, less 1 */
    for (int64_t i = 0; i < row.length; i++) {
        uint32_t less = (uint32_t)row.sizes[i] - 1;
        largest = row.sizes[i] > largest ? row.sizes[i] : largest;
        before = less < before ? less : before;
    }
    int32_t bottom = (int32_t)(before + 1), lowest = largest - (OCTAVES << 23), shift = 0;
    int64_t buckets = row.length / PER_BUCKET < BUCKETS ? row.length / PER_BUCKET : BUCKETS;
    bottom = bottom < lowest ? lowest : bottom;
    while ((largest - bottom) >> shift > buckets / 2) shift++;
    bottom = bottom >> shift << shift;
    return (scale){bottom, shift, 4 + 2 * ((largest - bottom) >> shift)};
}

static void count(elements row, scale by, memory own) {
    const int32_t others = (int32_t)((1u << by.shift) - 1);
    const int64_t last = row.length / LANES * LANES;
    for (int64_t i = 0; i < row.length; i++) {
        int32_t size = row.sizes[i], above = size > by.bottom ? size - by.bottom : 0;
        int32_t place = 2 + 2 * (above >> by.shift) + ((above & others) != 0);
        own.places[i] = (uint16_t)(size < by.bottom ? size != 0 : place);
    }
    memset(own.counts, 0, (size_t)by.buckets * sizeof *own.counts);
    for (int64_t i = 0; i < last; i += LANES)
        for (int lane = 0; lane < LANES; lane++) own.counts[own.places[i + lane]][lane]++;
    for (int64_t i = last; i < row.length; i++) own.counts[own.places[i]][0]++;
}

/* Counts lead to a bucket's ranks, and these to its sure words. */
static void weigh(scale by, chances all, memory own) {
    own.ranks[0] = 0;
    for (int32_t b = 0; b < by.buckets; b++) {
        const int32_t *found = own.counts[b];
        own.ranks[b + 1] = own.ranks[b] + ((found[0] + found[1]) + (found[2] + found[3]));
    }
    for (int32_t b = 0; b < by.buckets; b++)
        own.sure[b] = chance(all, own.ranks[b]) | chance(all, own.ranks[b + 1] - 1) << 16;
}

/* Decide what needs no exact rank; returns how many are left. Of the equals of an even bucket,
 * those with an odd word have its first rank, the others its last. */
static int64_t decide(elements row, memory own) {
    int64_t undecided = 0;
    for (int64_t at = 0; at < row.length; at += STRETCH) {
        int count = row.length - at < STRETCH ? (int)(row.length - at) : STRETCH;
        uint32_t sure[STRETCH]; /* apart, so that the next loop becomes vector instructions */
        for (int i = 0; i < count; i++) sure[i] = own.sure[own.places[at + i]];
        for (int i = 0; i < count; i++) {
            uint32_t word = row.words[at + i], number = word >> 1;
            uint32_t found = (number < sure[i] >> 16) * UNDECIDED - (number < (sure[i] & 0xffff));
            uint32_t equals = (found == UNDECIDED) & ~own.places[at + i];
            found -= equals << (word & 1);
            row.chosen[at + i] = (uint8_t)found;
            undecided += found == UNDECIDED;
        }
    }
    return undecided;
}

/* Whether an element is chosen with its exact rank. */
static int look(elements row, chances all, int64_t element) {
    const uint32_t word = row.words[element], last = ~word & 1;
    const uint32_t limit = (uint32_t)row.sizes[element] + last;
    int32_t before = 0;
    for (int64_t i = 0; i < row.length; i++) before += (uint32_t)row.sizes[i] < limit;
    return word >> 1 < chance(all, before - (int32_t)last);
}

static void look_closely(elements row, chances all) {
    for (int64_t at = 0; at < row.length; at += 8) {
        uint64_t eight = 0;
        if (row.length - at >= 8)
            memcpy(&eight, row.chosen + at, 8);
        else
            memcpy(&eight, row.chosen + at, (size_t)(row.length - at));
        for (eight &= UNDECIDED * 0x0101010101010101u; eight; eight &= eight - 1) {
            int64_t element = at + __builtin_ctzll(eight) / 8;
            row.chosen[element] = (uint8_t)look(row, all, element);
        }
    }
}

/* For each of `rows` rows of `row` sizes, as the integers of their bits: chosen is 1 where an
 * element's word chooses it with its rank, else 0. Rows that would take too long are `left`.
 *
 * `buffer` has 24 bytes for each bucket, a quarter of the row and 8 or 2^14 and 8, whatever is
 * fewer, and 2 for each element. */
void VARIED(choose_by_rank)(const int32_t *sizes, const uint16_t *words, int64_t rows, int64_t row,
                            double first, double step, void *buffer, uint8_t *chosen,
                            uint8_t *left) {
    const int64_t most = 8 + (row / PER_BUCKET < BUCKETS ? row / PER_BUCKET : BUCKETS);
    const chances all = {first, step};
    memory own = {.counts = buffer};
    own.ranks = (int32_t *)(own.counts + most);
    own.sure = (uint32_t *)(own.ranks + most);
    own.places = (uint16_t *)(own.sure + most);
    for (int64_t r = 0; r < rows; r++) {
        const elements at = {sizes + r * row, words + r * row, chosen + r * row, row};
        const scale by = scale_of(at);
        count(at, by, own);
        weigh(by, all, own);
        const int64_t undecided = decide(at, own);
        left[r] = undecided > LOOKS;
        if (undecided && !left[r]) look_closely(at, all);
    }
}

void VARIED(rank)(const ranking *by, const int32_t *sizes, int64_t first, int64_t done, int64_t n) {
    VARIED(random_words)(by->key, first, n, by->words);
    VARIED(choose_by_rank)(sizes, by->words, n / by->row, by->row, by->first, by->step, by->buffer,
                           by->chosen + done, by->left + done / by->row);
}
