/* Runs a program over elements that may be in files, and may go to files.
 *
 * They are read, computed and written chunk by chunk, so that what was read is still in the core's
 * second cache when the tiles load it, as is what they store when it is written; and Python is
 * asked once for a whole range.
 */

#if !defined(_WIN32)
#include <errno.h>
#include <unistd.h>
#endif

#include "ranks.h"
#include "tiles.h"

/* An input or an output: all elements that the program is run for at `data`, or an open file that
 * has the tensor at `offset`. There is room at `data` for all of them, where those of the file are
 * `kept`, else for a chunk. An output may be sizes that only choose elements, with a `ranking`;
 * chunks are whole rows then. */
typedef struct {
    char *data;
    int64_t type, file, offset, kept;
    const ranking *ranking;
} place;

static const int64_t BYTES[] = {[F32] = 4, [BF16] = 2, [F16] = 2, [BOOL] = 1};

#if defined(_WIN32)

/* Without positioned reads and writes Python reads and writes. */
static int transferred(int writes, char *data, int64_t file, int64_t offset, int64_t size) {
    (void)writes, (void)data, (void)file, (void)offset, (void)size;
    return 0;
}

#else

/* Reads `size` bytes of a file, or writes them; whether that was possible. */
static int transferred(int writes, char *data, int64_t file, int64_t offset, int64_t size) {
    while (size > 0) {
        ssize_t count = writes ? pwrite((int)file, data, (size_t)size, offset)
                               : pread((int)file, data, (size_t)size, offset);
        if (count < 0 && errno == EINTR) continue;
        if (count == 0 && writes) errno = ENOSPC;
        if (count <= 0) return 0;
        data += count, offset += count, size -= count;
    }
    return 1;
}

#endif

/* The part of a program's run that is done at once. */
typedef struct {
    int64_t done;  /* elements of the run before it */
    int64_t first; /* its first element in the tensor */
    int64_t n;
} part;

/* Where the tiles find a place's elements; they count them from the start of the run. */
static array in_memory(const place *at, part now) {
    int64_t skip = at->kept ? 0 : now.done * BYTES[at->type];
    return (array){(void *)((intptr_t)at->data - skip), at->type};
}

/* Reads or writes the elements of places that are in files; the first that cannot be, or -1. */
static int64_t failed(int writes, const place *places, const array *found, int64_t count,
                      part now) {
    for (int64_t i = 0; i < count; i++) {
        int64_t bytes = BYTES[places[i].type];
        char *data = (char *)((intptr_t)found[i].data + now.done * bytes);
        if (places[i].file >= 0 &&
            !transferred(writes, data, places[i].file, places[i].offset + now.first * bytes,
                         now.n * bytes))
            return i;
    }
    return -1;
}

static void choose(const place *outputs, const array *found, int64_t count, part now) {
    for (int64_t i = 0; i < count; i++)
        if (outputs[i].ranking)
            VARIED(rank)(outputs[i].ranking, (const int32_t *)found[i].data + now.done, now.first,
                         now.done, now.n);
}

/* Runs a program over pieces of a tensor, of `size` elements each, that begin at elements `starts`,
 * `chunk` elements at a time. What it loads and stores in memory lies one piece after the other.
 * `places` are the inputs and, after them, the outputs; `arrays` is memory for as many. The result
 * is that of VARIED(tiles), or -1 - n when place n cannot be read or written. */
int64_t VARIED(run_program)(const instruction *program, int64_t length, const int64_t *starts,
                            int64_t pieces, int64_t size, int64_t chunk, const place *places,
                            int64_t inputs, int64_t outputs, array *arrays, const state *given) {
    state of = *given;
    of.inputs = arrays, of.outputs = arrays + inputs;
    int64_t bad = 0, at;
    part now = {0};
    for (; now.done < pieces * size; now.done += now.n) {
        int64_t into = now.done % size;
        now.first = starts[now.done / size] + into;
        now.n = size - into < chunk ? size - into : chunk;
        for (int64_t i = 0; i < inputs + outputs; i++) arrays[i] = in_memory(places + i, now);
        at = failed(0, places, arrays, inputs, now);
        if (at >= 0) return -1 - at;
        of.first = now.first - now.done;
        bad += VARIED(tiles)(program, length, now.done, now.done + now.n, &of);
        choose(places + inputs, of.outputs, outputs, now);
        at = failed(1, places + inputs, of.outputs, outputs, now);
        if (at >= 0) return -1 - inputs - at;
    }
    return bad;
}
