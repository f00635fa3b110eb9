/* Random choices weighed by ranks; library.py knows the same struct. */

#include <stdint.h>

#include "variant.h"

/* How elements of a tensor are chosen: by words of the key and by their ranks in rows of `row`
 * elements; `words` is memory for as many as are chosen at once, `buffer` see ranks.c. */
typedef struct {
    uint64_t key;
    int64_t row;
    double first, step;
    void *buffer;
    uint16_t *words;
    uint8_t *chosen, *left;
} ranking;

/* Chooses among `n` elements of whole rows, by their sizes as the integers of their bits. They are
 * elements `first` to `first` + n of the tensor, and `done` of those asked for come before them. */
void VARIED(rank)(const ranking *by, const int32_t *sizes, int64_t first, int64_t done, int64_t n);
