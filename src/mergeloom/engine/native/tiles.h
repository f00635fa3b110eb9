/* What tiles.c runs; library.py knows the same structs. */

#include <stdint.h>

#include "formats.h"
#include "variant.h"

typedef struct {
    int32_t operation, to, a, b;
    float x, y;
} instruction;

/* Chosen is what is larger than limit in size, and the first `budget` elements equal to `equal`. */
typedef struct {
    float limit, equal;
    int64_t budget;
} cut;

/* Chosen is what has a random word below `whole`, or equal to it and more random bits below `rest`:
 * with a probability of (whole + rest / 2^32) / 2^16, less than 1. */
typedef struct {
    uint64_t key;
    uint32_t whole, rest;
} chance;

/* Of scores as the integers of their bits: how many are above the bracket [low, high], equal to
 * the number `common` inside it, and not zero (0 unless of_nonzero); and all others inside it, one
 * after the other, in an array with room for every score. */
typedef struct {
    uint32_t low, high, common, of_nonzero;
    int64_t above, equal, nonzero, found;
    uint32_t *inside;
} count;

/* What the instructions of a program work with. Element i is element `first` + i of the tensor. */
typedef struct {
    const array *inputs, *outputs;
    double *totals;
    cut *cuts;
    const chance *chances;
    count *counts;
    float *registers;
    int64_t first;
} state;

/* Runs a program of `length` instructions over elements [begin, end); the stored ones that are NaN
 * or infinite. An instruction's `to` is no register that it reads. */
int64_t VARIED(tiles)(const instruction *program, int64_t length, int64_t begin, int64_t end,
                      const state *of);
