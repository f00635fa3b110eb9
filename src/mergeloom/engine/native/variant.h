/* Every C file but dispatch.c is compiled once for each variant of a processor family, with VARIANT
 * as its name: VARIED(tiles) is tiles_v4 then. dispatch.c chooses. */

#define JOINED_(name, variant) name##_##variant
#define JOINED(name, variant) JOINED_(name, variant)
#define VARIED(name) JOINED(name, VARIANT)
