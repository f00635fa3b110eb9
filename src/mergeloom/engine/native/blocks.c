/* Runs a program over a block whose inputs may still be in files.
 *
 * The block is read and computed chunk by chunk, so that what was read is still in the core's
 * second cache when the tiles load it, and Python is asked once for a whole block.
 */

#if !defined(_WIN32)
#include <errno.h>
#include <unistd.h>
#endif

#include "tiles.h"

/* An input of a block: in memory at `data`, or at `offset` of an open file. What is read goes to
 * its place in `data` where the whole block is kept, else there is room for one chunk. */
typedef struct {
    char *data;
    int64_t type, file, offset, kept;
} source;

enum { CHUNK = 1 << 16 }; /* elements */

static const int64_t BYTES[] = {[F32] = 4, [BF16] = 2, [F16] = 2, [BOOL] = 1};

#if defined(_WIN32)

/* Without positioned reads Python reads. */
static int filled(char *data, int64_t file, int64_t offset, int64_t size) {
    (void)data, (void)file, (void)offset, (void)size;
    return 0;
}

#else

static int filled(char *data, int64_t file, int64_t offset, int64_t size) {
    while (size > 0) {
        ssize_t count = pread((int)file, data, (size_t)size, offset);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return 0;
        data += count, offset += count, size -= count;
    }
    return 1;
}

#endif

/* What VARIED(tiles) gives; -1 - n when input n cannot be read. `inputs` is memory for what the
 * program loads from: arrays of the whole block, though of some there is only a chunk. */
int64_t VARIED(run_block)(const instruction *program, int64_t length, int64_t size,
                          const source *sources, int64_t count, array *inputs, const state *of) {
    int64_t bad = 0;
    for (int64_t start = 0; start < size; start += CHUNK) {
        int64_t end = size - start < CHUNK ? size : start + CHUNK;
        for (int64_t i = 0; i < count; i++) {
            const source *from = sources + i;
            int64_t bytes = BYTES[from->type], skip = start * bytes;
            int whole = from->file < 0 || from->kept;
            char *data = from->data + (whole ? skip : 0);
            if (from->file >= 0 &&
                !filled(data, from->file, from->offset + skip, (end - start) * bytes))
                return -1 - i;
            inputs[i] = (array){(void *)((intptr_t)data - skip), from->type};
        }
        bad += VARIED(tiles)(program, length, start, end, of);
    }
    return bad;
}
