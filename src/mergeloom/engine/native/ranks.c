/* Random choices weighed by ranks; see ranks.py, which knows what the words mean. */

#include <stdint.h>
#include <string.h>

#include "variant.h"

/* For each of `rows` rows of `row` sizes, as the integers of their bits: chosen is 1 where a size
 * is at least the limit that the element's word leads to by way of `places`.
 *
 * `sorted` has the sizes of a row in ascending order. Limits 0 to `row` are those of the ranks
 * when an element is the last of its equals, the next `row` + 1 those when it is the first;
 * `limits` is memory for them. */
void VARIED(choose_by_rank)(const int32_t *sizes, const int32_t *sorted, const uint16_t *words,
                            const int32_t *places, int64_t rows, int64_t row, int32_t *limits,
                            uint8_t *chosen) {
    for (int64_t r = 0; r < rows; r++) {
        const int64_t at = r * row;
        int32_t *first = limits + row + 1;
        memcpy(limits, sorted + at, (size_t)row * sizeof(int32_t));
        limits[row] = INT32_MAX;
        first[0] = -1;
        for (int64_t i = 0; i < row; i++) first[i + 1] = sorted[at + i] + 1;
        for (int64_t i = at; i < at + row; i++) chosen[i] = sizes[i] >= limits[places[words[i]]];
    }
}
