// AMX: eight tiles of sixteen rows of 64 bytes. Tiles 0 to 3 hold sums, 4 and 5 rows of x, 6 and 7 weights.
//
// With QCPU_EMULATE_AMX the instructions are loops: products by tiles can then be checked on processors without them.

// As the processor reads it.
struct TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

#ifndef QCPU_EMULATE_AMX

#define tiles_shape(shapes) _tile_loadconfig(shapes)
#define tiles_release() _tile_release()
#define tile_zero(tile) _tile_zero(tile)
#define tile_load(tile, from, stride) _tile_loadd(tile, from, stride)
#define tile_store(tile, to, stride) _tile_stored(tile, to, stride)
#define tile_dot_bfloat16(sums, x, w) _tile_dpbf16ps(sums, x, w)
#define tile_dot_bytes(sums, x, w) _tile_dpbusd(sums, x, w)

#else

thread_local TileShapes emulated_shapes;
thread_local uint8_t emulated[8][16][64];

inline void tiles_shape(const TileShapes* shapes) {
    emulated_shapes = *shapes;
    memset(emulated, 0, sizeof emulated);
}
inline void tiles_release() {}
inline void tile_zero(int tile) { memset(emulated[tile], 0, sizeof emulated[tile]); }
inline void tile_load(int tile, const void* from, long stride) {
    for (int r = 0; r < emulated_shapes.rows[tile]; r++)
        memcpy(emulated[tile][r], (const uint8_t*)from + r * stride, emulated_shapes.bytes[tile]);
}
inline void tile_store(int tile, void* to, long stride) {
    for (int r = 0; r < emulated_shapes.rows[tile]; r++)
        memcpy((uint8_t*)to + r * stride, emulated[tile][r], emulated_shapes.bytes[tile]);
}
inline void tile_dot_bfloat16(int sums, int x, int w) {
    for (int r = 0; r < emulated_shapes.rows[sums]; r++)
        for (int n = 0; n < emulated_shapes.bytes[sums] / 4; n++) {
            float total, parts[2] = {};
            for (int k = 0; k < emulated_shapes.bytes[x] / 4; k++)
                for (int i = 0; i < 2; i++) {
                    uint16_t a, b;
                    memcpy(&a, &emulated[x][r][k * 4 + i * 2], 2);
                    memcpy(&b, &emulated[w][k][n * 4 + i * 2], 2);
                    parts[i] += from_bfloat16(a) * from_bfloat16(b);
                }
            memcpy(&total, &emulated[sums][r][n * 4], 4);
            total += parts[0] + parts[1];
            memcpy(&emulated[sums][r][n * 4], &total, 4);
        }
}
inline void tile_dot_bytes(int sums, int x, int w) {
    for (int r = 0; r < emulated_shapes.rows[sums]; r++)
        for (int n = 0; n < emulated_shapes.bytes[sums] / 4; n++) {
            int32_t total;
            memcpy(&total, &emulated[sums][r][n * 4], 4);
            for (int k = 0; k < emulated_shapes.bytes[x]; k++)
                total += emulated[x][r][k] * (int8_t)emulated[w][k / 4][n * 4 + k % 4];
            memcpy(&emulated[sums][r][n * 4], &total, 4);
        }
}

#endif
