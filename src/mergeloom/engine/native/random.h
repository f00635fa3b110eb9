/* Random bits by counting; see random.c. */

#include <stdint.h>

#include "variant.h"

/* The random words, 16 bits each, of elements [first, first + count). */
void VARIED(random_words)(uint64_t key, int64_t first, int64_t count, uint16_t *words);

/* 32 random bits of one element besides those of its word. */
uint32_t VARIED(more_bits)(uint64_t key, int64_t element);
