/* Runs a program over elements that may still be in files.
 *
 * They are read and computed chunk by chunk, so that what was read is still in the core's second
 * cache when the tiles load it, and Python is asked once for a whole block.
 */

#if !defined(_WIN32)
#include <errno.h>
#include <unistd.h>
#endif

#include "tiles.h"

/* An input: all elements that the program asks for at `data`, or an open file that has the tensor
 * at `offset`. There is room at `data` for all that is read, where that is `kept`, else for a
 * chunk. */
typedef struct {
    char *data;
    int64_t type, file, offset, kept;
} source;

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

/* Runs a program over pieces of a tensor, of `size` elements each, that begin at elements `starts`,
 * `chunk` elements at a time. What it loads and stores in memory lies one piece after the other.
 * The result is that of VARIED(tiles), or -1 - n when input n cannot be read. `inputs` is memory
 * for what is loaded. */
int64_t VARIED(run_program)(const instruction *program, int64_t length, const int64_t *starts,
                            int64_t pieces, int64_t size, int64_t chunk, const source *sources,
                            int64_t count, array *inputs, const state *given) {
    state of = *given;
    int64_t bad = 0;
    for (int64_t done = 0; done < pieces * size;) {
        int64_t into = done % size, first = starts[done / size] + into;
        int64_t n = size - into < chunk ? size - into : chunk;
        for (int64_t i = 0; i < count; i++) {
            const source *from = sources + i;
            int64_t bytes = BYTES[from->type], skip = done * bytes;
            char *data = from->data + (from->kept ? skip : 0);
            if (from->file >= 0 &&
                !filled(data, from->file, from->offset + first * bytes, n * bytes))
                return -1 - i;
            inputs[i] = (array){(void *)((intptr_t)data - skip), from->type};
        }
        of.first = first - done;
        bad += VARIED(tiles)(program, length, done, done + n, &of);
        done += n;
    }
    return bad;
}
