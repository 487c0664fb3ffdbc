// Products of bfloat16 and INT8 by AMX tiles. Included by linear.cpp, within its namespace.
//
// Up to 32 rows of x against 32 outputs: two tiles of each make four of sums. Prepared rows lie one after another, each
// padded with zeros to whole tiles. All numbers of rows take this road, so results do not depend on the batch.

#include "../vectors/amx.h"

const int AMX_ROWS = 32, TILE_BYTES = 64;

struct TileBfloat16 {
    typedef Floats Sum;
    static const int inputs_per_step = 2, step_bytes = 128, head = 0;
};
struct TileInt8 {
    typedef Ints Sum;
    static const int inputs_per_step = 4, step_bytes = 64, head = INT8_HEAD;
};

template <class T>
constexpr bool in_bytes() {
    return is_same<T, TileInt8>;
}

// Bytes of one prepared row.
long amx_row_bytes(const Matrix& m) {
    return divided_up(m.inputs * (m.format == INT8 ? 1 : 2), TILE_BYTES) * TILE_BYTES;
}

void amx_shape(long rows) {
    TileShapes shapes;
    const uint8_t upper = uint8_t(rows < 16 ? rows : 16), lower = uint8_t(rows > 16 ? rows - 16 : 0);
    // A tile that is not used has a shape all the same: nothing may be loaded into one without.
    const uint8_t counts[8] = {upper, upper, lower ? lower : upper, lower ? lower : upper, upper, lower ? lower : upper, 16, 16};
    for (int i = 0; i < 8; i++) {
        shapes.rows[i] = counts[i];
        shapes.bytes[i] = TILE_BYTES;
    }
    tiles_shape(&shapes);
}

// 64 bytes of every row against sixteen steps of weights: `stride` bytes apart, the second sixteen outputs `across`
// bytes behind the first.
template <class T>
inline void amx_step(const uint8_t* x, long row_bytes, const uint8_t* w, long across, bool lower) {
    tile_load(4, x, row_bytes);
    tile_load(6, w, T::step_bytes);
    tile_load(7, w + across, T::step_bytes);
    if (lower) tile_load(5, x + 16 * row_bytes, row_bytes);
    if constexpr (in_bytes<T>()) {
        tile_dot_bytes(0, 4, 6);
        tile_dot_bytes(1, 4, 7);
        if (lower) tile_dot_bytes(2, 5, 6);
        if (lower) tile_dot_bytes(3, 5, 7);
    } else {
        tile_dot_bfloat16(0, 4, 6);
        tile_dot_bfloat16(1, 4, 7);
        if (lower) tile_dot_bfloat16(2, 5, 6);
        if (lower) tile_dot_bfloat16(3, 5, 7);
    }
}

template <class T>
void amx_store(const Product& p, const uint8_t* panel, const Place& at, long rows, int halves) {
    const long row = at.row, output = at.vector * 16;
    alignas(64) int32_t sums[4][16][16];
    tile_store(0, sums[0], TILE_BYTES);
    tile_store(1, sums[1], TILE_BYTES);
    if (rows > 16) tile_store(2, sums[2], TILE_BYTES);
    if (rows > 16) tile_store(3, sums[3], TILE_BYTES);
    for (int half = 0; half < halves; half++)
        for (long r = 0; r < rows; r++) {
            const int32_t* from = sums[r / 16 * 2 + half][r % 16];
            Floats value;
            if constexpr (in_bytes<T>()) {
                const uint8_t* head = panel + half * panel_bytes(p.weight);
                const Ints sum = Int8::load_sum(from) + Int8::load_sum((const int32_t*)(head + 64));
                value = floats_mul(floats_from(sum), floats_mul(floats_load((const float*)head), floats_all(p.factors[row + r])));
            } else {
                value = floats_load((const float*)from);
            }
            store_output(p, row + r, output + half * 16, value);
        }
}

// 32 outputs of one tile of rows; `panel` is where the first of them are stored. With `halves` 1 there are only 16, which
// are multiplied twice and stored once.
template <class T>
void amx_block(const Product& p, const uint8_t* panel, const Place& at, long rows, int halves) {
    const long row_bytes = amx_row_bytes(p.weight), bytes = panel_bytes(p.weight);
    const long steps = (bytes - T::head) / T::step_bytes, whole = steps / 16 * 16;
    const long across = T::step_bytes == 128 ? 64 : halves == 2 ? bytes : 0;
    const uint8_t *w = panel + T::head, *x = at.x;
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    for (long step = 0; step < whole; step += 16, w += 16 * T::step_bytes, x += TILE_BYTES) {
        for (long ahead = 0; at.fetched.ahead && ahead < 16 * T::step_bytes; ahead += 64) {
            fetch(w + AHEAD + ahead);
            if (T::step_bytes == 64) fetch(w + across + AHEAD + ahead);
        }
        amx_step<T>(x, row_bytes, w, across, rows > 16);
    }
    if (whole < steps) {
        // What lies behind the panel may be no number, and 0 times that is none.
        alignas(64) uint8_t tail[2 * 16 * 128] = {};
        memcpy(tail, w, size_t((steps - whole) * T::step_bytes));
        if (T::step_bytes == 64) memcpy(tail + 2048, w + across, size_t((steps - whole) * T::step_bytes));
        amx_step<T>(x, row_bytes, tail, T::step_bytes == 128 ? 64 : 2048, rows > 16);
    }
    amx_store<T>(p, panel, at, rows, halves);
}

template <class T>
void amx_multiply(const Product& p, long first, long last, long tile, long last_tile) {
    const long at_once = T::step_bytes == 128 ? 1 : 2, row_bytes = amx_row_bytes(p.weight);
    long shaped = 0;
    for (long t = tile; t < last_tile; t++) {
        const long row = p.first_row(t), rows = p.first_row(t + 1) - row;
        if (rows != shaped) amx_shape(rows);
        shaped = rows;
        for (long panel = first; panel < last; panel += at_once) {
            const Place at{p.prepared + row * row_bytes, row, panel * panel_outputs(p.weight) / 16, {t == tile ? AHEAD : 0, {}, {}}};
            const int halves = T::step_bytes == 128 || panel + 1 < last ? 2 : 1;
            amx_block<T>(p, p.weight.data + panel * panel_bytes(p.weight), at, rows, halves);
        }
    }
    tiles_release();
}
