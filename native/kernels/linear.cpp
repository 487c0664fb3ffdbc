// Products with packed weights, for one instruction set. See linear.h for the layouts.
//
// Rows are prepared so that a tile of them is read in the order in which it is used: [step][row of the tile], a step
// being as many inputs as lie side by side in the weight: one float; two bfloat16, widened to floats where there is no
// instruction for them; four bytes, quantized per row (INT8) or per row and group (formats of groups).
//
// Every output is one sum in the order of the inputs, whatever the number of rows: results do not depend on the batch.
#include "linear.h"

#include "bfloat16.h"
#include "vectors.h"

namespace qcpu {
namespace QCPU_ISA {
namespace {

// How far ahead of its use a weight is fetched into the second-level cache: there are several streams of them, and what
// the processor fetches by itself ends with each page of 4 KiB.
const long AHEAD = 4096;
const long CHUNK = 256;
// Rows of the largest tile that there is.
const long MOST_TILE_ROWS = 32;

template <class A, class B>
constexpr bool is_same = false;
template <class A>
constexpr bool is_same<A, A> = true;

// Lines of 64 bytes that a step of a panel's 16 outputs has, where it is no product of whole numbers.
template <class T>
constexpr int planes = 1;
template <>
constexpr int planes<Int6> = 3;

template <class T>
constexpr int vectors_per_panel() {
    return T::step_bytes / planes<T> / T::vector_bytes;
}

// Where column c of a tile lies, from the first one: in the panel of the first, or in those after it.
template <class T, int C>
inline long column_offset(int c, long panel) {
    constexpr int V = vectors_per_panel<T>();
    return C < V ? c * T::vector_bytes : c / V * panel + c % V * T::vector_bytes;
}

// Memory that will be wanted: `each` bytes a step, from `at` on.
struct Stream {
    const uint8_t* at;
    long each;
};

// What is fetched while a tile is worked on: its own weights so far ahead, or (0) in the first half of its steps `now`,
// and then `later`.
struct Fetched {
    long ahead;
    Stream now, later;
};

template <class T, int C>
inline void fetch_step(const uint8_t* w, long panel, Fetched& f) {
    if (!f.ahead) {
        fetch(f.now.at);
        f.now.at += f.now.each;
        return;
    }
    for (int c = 0; c < C; c++)
        for (int plane = 0; c * T::vector_bytes % 64 == 0 && plane < planes<T>; plane++)
            fetch(w + column_offset<T, C>(c, panel) + plane * 64 + f.ahead);
}

// Steps of a tile: R rows against C vectors of weights.
template <class T, int R, int C>
inline void add_steps(typename T::Sum (&sums)[R][C], const uint8_t* w, long panel, const uint8_t* x, long steps, Fetched& f) {
    for (long step = 0; step < steps; step++, w += T::step_bytes, x += R * T::x_bytes) {
        fetch_step<T, C>(w, panel, f);
        if (R <= 3) {
            typename T::X spread[R];
            for (int r = 0; r < R; r++) spread[r] = T::spread(x + r * T::x_bytes);
            for (int c = 0; c < C; c++) {
                const typename T::Weight weight = T::load(w + column_offset<T, C>(c, panel));
                for (int r = 0; r < R; r++) sums[r][c] = T::dot(sums[r][c], weight, spread[r]);
            }
        } else {
            typename T::Weight weights[C];
            for (int c = 0; c < C; c++) weights[c] = T::load(w + column_offset<T, C>(c, panel));
            for (int r = 0; r < R; r++) {
                const typename T::X spread = T::spread(x + r * T::x_bytes);
                for (int c = 0; c < C; c++) sums[r][c] = T::dot(sums[r][c], weights[c], spread);
            }
        }
    }
}

// All steps of panels of `steps` steps. Near their end, the weights that come next lie behind the last of these C columns.
template <class T, int R, int C>
inline void add_panel(typename T::Sum (&sums)[R][C], const uint8_t* w, long panel, const uint8_t* x, long steps, Fetched f) {
    constexpr int V = vectors_per_panel<T>();
    const long near = AHEAD / T::step_bytes < steps ? steps - AHEAD / T::step_bytes : 0, turn = f.ahead ? near : steps / 2;
    add_steps<T, R, C>(sums, w, panel, x, turn, f);
    if (f.ahead && C > V) f.ahead += (C / V - 1) * panel;
    f.now = f.later;
    add_steps<T, R, C>(sums, w + turn * T::step_bytes, panel, x + turn * R * T::x_bytes, steps - turn, f);
}

inline void store_output(const Product& p, long row, long output, Floats v) {
    const long left = p.weight.outputs - output;
    if (left <= 0) return;
    const long at = row * p.out_stride + output;
    if (left >= LANES) {
        if (p.dtype == FLOAT32) {
            if (p.bias) v = floats_add(v, floats_load((const float*)p.bias + output));
            floats_store((float*)p.out + at, v);
        } else {
            if (p.bias) v = floats_add(v, floats_load_bfloat16((const uint16_t*)p.bias + output));
            floats_store_bfloat16((uint16_t*)p.out + at, v);
        }
        return;
    }
    float values[LANES];
    floats_store(values, v);
    for (long i = 0; i < left; i++) {
        if (p.dtype == FLOAT32) {
            ((float*)p.out)[at + i] = values[i] + (p.bias ? ((const float*)p.bias)[output + i] : 0.0f);
        } else {
            const float bias = p.bias ? from_bfloat16(((const uint16_t*)p.bias)[output + i]) : 0.0f;
            ((uint16_t*)p.out)[at + i] = to_bfloat16(values[i] + bias);
        }
    }
}

// A tile of R rows, prepared at `x`, and C vectors from number `vector` on.
struct Place {
    const uint8_t* x;
    long row, vector;
    Fetched fetched;
};

template <class T, int R, int C>
void float_tile(const Product& p, const Place& at) {
    constexpr int V = vectors_per_panel<T>();
    const long panel = panel_bytes(p.weight), steps = panel / T::step_bytes;
    const uint8_t* w = p.weight.data + at.vector / V * panel + at.vector % V * T::vector_bytes;
    typename T::Sum sums[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) sums[r][c] = T::zero();
    add_panel<T, R, C>(sums, w, panel, at.x, steps, at.fetched);
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) store_output(p, at.row + r, (at.vector + c) * LANES, sums[r][c]);
}

template <class T, int R, int C>
void int8_tile(const Product& p, const Place& at) {
    constexpr int V = vectors_per_panel<T>();
    const long panel = panel_bytes(p.weight), steps = (panel - INT8_HEAD) / T::step_bytes;
    const uint8_t* w = p.weight.data + at.vector / V * panel;
    typename T::Sum sums[R][C];
    for (int c = 0; c < C; c++) {
        const uint8_t* head = p.weight.data + (at.vector + c) / V * panel + (at.vector + c) % V * LANES * 4;
        const typename T::Sum start = T::x_unsigned ? T::load_sum((const int32_t*)(head + 64)) : T::zero();
        for (int r = 0; r < R; r++) sums[r][c] = start;
    }
    add_panel<T, R, C>(sums, w + INT8_HEAD + at.vector % V * T::vector_bytes, panel, at.x, steps, at.fetched);
    for (int c = 0; c < C; c++) {
        const uint8_t* head = p.weight.data + (at.vector + c) / V * panel + (at.vector + c) % V * LANES * 4;
        const Floats scale = floats_load((const float*)head);
        for (int r = 0; r < R; r++) {
            const Floats factor = floats_mul(scale, floats_all(p.factors[at.row + r]));
            store_output(p, at.row + r, (at.vector + c) * LANES, floats_mul(floats_from(sums[r][c]), factor));
        }
    }
}

// Scale and shift of the group of number `group` of a block, of the outputs from `lane` of its panel on.
struct Scaling {
    Floats scale, shift;
};

inline Scaling scaling(const Matrix& m, const uint8_t* block, long group, long lane) {
    const auto half = [&](long at) { return floats_load_half((const uint16_t*)(block + at) + lane); };
    const long parts = m.shifted ? 2 : 1;
    switch (m.scales) {
        case FLOATS: {
            const float* head = (const float*)block + lane;
            return {floats_load(head), m.shifted ? floats_load(head + 16) : floats_zero()};
        }
        case HALVES: {
            const long at = group * parts * 32;
            return {half(at), m.shifted ? half(at + 32) : floats_zero()};
        }
        default: {
            const int8_t* steps = (const int8_t*)block + 64 + group * parts * 16 + lane;
            return {floats_mul(floats_load_bytes(steps), half(0)),
                    m.shifted ? floats_mul(floats_load_bytes(steps + 16), half(32)) : floats_zero()};
        }
    }
}

// A step of a group: R rows, `next` bytes from four inputs to the next, against C vectors.
template <class T, int R, int C>
inline void add_group_step(typename T::Sum (&sums)[R][C], const uint8_t* w, long panel, const uint8_t* x) {
    const long next = R * T::x_bytes;
    if (T::fours > 2) {
        // Of so many registers a vector of weights takes, only one has room at a time.
        for (int c = 0; c < C; c++) {
            const typename T::Weight weight = T::load(w + column_offset<T, C>(c, panel));
            for (int r = 0; r < R; r++) sums[r][c] = T::dot(sums[r][c], weight, T::spread(x + r * T::x_bytes, next));
        }
        return;
    }
    typename T::Weight weights[C];
    for (int c = 0; c < C; c++) weights[c] = T::load(w + column_offset<T, C>(c, panel));
    for (int r = 0; r < R; r++) {
        const typename T::X spread = T::spread(x + r * T::x_bytes, next);
        for (int c = 0; c < C; c++) sums[r][c] = T::dot(sums[r][c], weights[c], spread);
    }
}

// What a group's sums add to the totals. The numbers of its rows begin at `factors` and at `shifted` by.
template <class T, int R, int C>
inline void add_group(Floats (&totals)[R][C], const typename T::Sum (&sums)[R][C], const Scaling& by, int c,
                      const float* factors, const float* shifted) {
    for (int r = 0; r < R; r++)
        totals[r][c] = floats_fma(floats_from(sums[r][c]), floats_mul(by.scale, floats_all(factors[r])), totals[r][c]);
    for (int r = 0; shifted && r < R; r++) totals[r][c] = floats_fma(by.shift, floats_all(shifted[r]), totals[r][c]);
}

template <class T, int R, int C>
void group_tile(const Product& p, const Place& at) {
    constexpr int V = vectors_per_panel<T>();
    const Matrix& m = p.weight;
    const long panel = panel_bytes(m), block = block_bytes(m), blocks = panel / block, head = head_bytes(m);
    const long groups = span(m) / m.group, first = at.row * blocks * groups, jump = C > V ? (C / V - 1) * panel : 0;
    const uint8_t *w = m.data + at.vector / V * panel, *x = at.x;
    const long lane = at.vector % V;
    const float *factors = p.factors + first, *shifted = m.shifted ? p.totals + first : nullptr;
    const int32_t* starts = p.starts + first;
    Floats totals[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) totals[r][c] = floats_zero();
    Fetched f = at.fetched;
    for (long b = 0; b < blocks; b++, w += block) {
        if (f.ahead) f.ahead = (blocks - b) * block > AHEAD + block ? AHEAD : AHEAD + jump;
        if (b == blocks / 2) f.now = f.later;
        for (long line = 0; f.ahead && line < head; line += 64)
            for (int c = 0; c < C; c += V) fetch(w + c / V * panel + line + f.ahead);
        const uint8_t* codes = w + head + lane * T::vector_bytes;
        for (long g = 0; g < groups; g++, factors += R, starts += R) {
            typename T::Sum sums[R][C];
            for (int r = 0; r < R; r++)
                for (int c = 0; c < C; c++) sums[r][c] = T::start(starts + r);
            for (long k = 0; k < m.group; k += 4 * T::fours, codes += T::step_bytes, x += T::fours * R * T::x_bytes) {
                fetch_step<T, C>(codes, panel, f);
                add_group_step<T, R, C>(sums, codes, panel, x);
            }
            for (int c = 0; c < C; c++) {
                const Scaling by = scaling(m, w + (lane + c) / V * panel, g, (lane + c) % V * LANES);
                add_group<T, R, C>(totals, sums, by, c, factors, shifted);
            }
            if (shifted) shifted += R;
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) store_output(p, at.row + r, (at.vector + c) * LANES, totals[r][c]);
}

template <class T, int R, int C>
inline void any_tile(const Product& p, const Place& at) {
    if constexpr (is_same<T, Int8>) int8_tile<T, R, C>(p, at);
    else if constexpr (is_same<T, Int4> || is_same<T, Int6> || is_same<T, Codes>) group_tile<T, R, C>(p, at);
    else float_tile<T, R, C>(p, at);
}

// Vectors [at.vector, last) for one tile of R rows.
template <class T, int R>
void tile_row(const Product& p, Place at, long last) {
    constexpr int V = vectors_per_panel<T>(), C = T::columns(R);
    const long half = panel_bytes(p.weight) / T::step_bytes / 2;
    for (; at.vector + C <= last; at.vector += C) {
        any_tile<T, R, C>(p, at);
        at.fetched.now.at += half * at.fetched.now.each;
        at.fetched.later.at += half * at.fetched.later.each;
    }
    if constexpr (C > V)
        for (; at.vector < last; at.vector += V) any_tile<T, R, V>(p, at);
}

template <class T>
void tile_rows(const Product& p, const Place& at, long last, int rows) {
    switch (rows) {
        case 1: return tile_row<T, 1>(p, at, last);
        case 2: return tile_row<T, 2>(p, at, last);
        case 3: return tile_row<T, 3>(p, at, last);
        case 4: return tile_row<T, 4>(p, at, last);
    }
    if constexpr (T::tile_rows >= 6) {
        if (rows == 5) return tile_row<T, 5>(p, at, last);
        if (rows == 6) return tile_row<T, 6>(p, at, last);
    }
    if constexpr (T::tile_rows >= 12) {
        switch (rows) {
            case 7: return tile_row<T, 7>(p, at, last);
            case 8: return tile_row<T, 8>(p, at, last);
            case 9: return tile_row<T, 9>(p, at, last);
            case 10: return tile_row<T, 10>(p, at, last);
            case 11: return tile_row<T, 11>(p, at, last);
            case 12: return tile_row<T, 12>(p, at, last);
        }
    }
}

// Bytes of one prepared row: whole steps, and whole blocks of groups.
template <class T>
long row_bytes(const Matrix& m) {
    if (in_groups(m)) return divided_up(m.inputs, span(m)) * span(m);
    const long head = m.format == INT8 ? INT8_HEAD : 0;
    return (panel_bytes(m) - head) / T::step_bytes * T::x_bytes;
}

// Bytes a step by which `bytes` are fetched in half of `steps`.
inline long by_step(long bytes, long steps) { return divided_up(2 * bytes, steps); }

// Tiles up to which each panel meets all of them before the next: their rows stay in the first cache, and what is
// computed for one panel hides that the next is read.
const long FEW_TILES = 4;

template <class T>
void multiply_few(const Product& p, long first, long last, long tile, long last_tile) {
    constexpr int V = vectors_per_panel<T>();
    const long bytes = row_bytes<T>(p.weight), panel = panel_bytes(p.weight);
    // As many panels as the columns of the widest tile.
    const long columns = T::columns(int(p.first_row(tile + 1) - p.first_row(tile)));
    const long step = columns > V ? columns / V : 1, quarter = step * panel / 4;
    // Steps that a tile makes for a block; two tiles fetch the next.
    const long steps = panel / T::step_bytes * (columns < V ? V / columns : 1), each = by_step(quarter, steps);
    for (long at = first; at < last; at += step) {
        const uint8_t* next = p.weight.data + (at + step) * panel;
        for (long t = tile; t < last_tile; t++) {
            const long row = p.first_row(t), share = t - tile;
            Fetched fetched{0, {next, 0}, {next, 0}};
            if (share < 2) fetched = {0, {next + 2 * share * quarter, each}, {next + (2 * share + 1) * quarter, each}};
            const Place place{p.prepared + row * bytes, row, at * V, fetched};
            tile_rows<T>(p, place, (at + step < last ? at + step : last) * V, int(p.first_row(t + 1) - row));
        }
    }
}

template <class T>
void multiply_tiles(const Product& p, long first, long last, long tile, long last_tile) {
    constexpr int V = vectors_per_panel<T>();
    const long bytes = row_bytes<T>(p.weight), tiles = last_tile - tile, panel = panel_bytes(p.weight);
    if (tiles > 1 && tiles <= FEW_TILES) return multiply_few<T>(p, first, last, tile, last_tile);
    // Whoever computes these panels computes as many behind them next. All tiles, of this piece and of others of these
    // panels, bring a share of those; each the rows of the next one, too.
    const long share = last < panels(p.weight) ? (last - first) * panel / p.tiles : 0;
    const uint8_t* after = p.weight.data + last * panel;
    for (long t = tile; t < last_tile; t++) {
        const long row = p.first_row(t), count = p.first_row(t + 1) - row, next = p.first_row((t + 1) % p.tiles);
        const long steps = panel / T::step_bytes * divided_up((last - first) * V, T::columns(int(count)));
        Fetched fetched{AHEAD, {}, {}};
        if (t > tile)
            fetched = {0, {p.prepared + next * bytes, by_step(count * bytes, steps)}, {after + t * share, by_step(share, steps)}};
        tile_rows<T>(p, {p.prepared + row * bytes, row, first * V, fetched}, last * V, int(count));
    }
}

#ifdef QCPU_AMX
#include "linear_amx.h"

bool by_tiles(const Matrix& m) { return m.format == BFLOAT16 || m.format == INT8; }
#endif

#include "linear_prepare.h"

int tile_rows_of(int format) {
#ifdef QCPU_AMX
    if (format == BFLOAT16 || format == INT8) return AMX_ROWS;
#endif
    switch (format) {
        case FLOAT32: return Float32::tile_rows;
        case BFLOAT16: return Bfloat16::tile_rows;
        case INT8: return Int8::tile_rows;
        default: return Int4::tile_rows;
    }
}

long prepared_bytes(const Matrix& m) {
#ifdef QCPU_AMX
    if (by_tiles(m)) return amx_row_bytes(m);
#endif
    switch (m.format) {
        case FLOAT32: return row_bytes<Float32>(m);
        case BFLOAT16: return row_bytes<Bfloat16>(m);
        case INT8: return row_bytes<Int8>(m);
        default: return row_bytes<Int4>(m);
    }
}

void prepare(const Product& p, long tile) {
    switch (p.weight.format) {
        case FLOAT32: return prepare_floats<Float32>(p, tile);
        case BFLOAT16: return prepare_floats<Bfloat16>(p, tile);
        case INT8: return prepare_int8(p, tile);
        case INT4: return prepare_groups<Int4>(p, tile);
        case INT6: return prepare_groups<Int6>(p, tile);
        default: return prepare_groups<Codes>(p, tile);
    }
}

void multiply(const Product& p, long first, long last, long tile, long last_tile) {
    switch (p.weight.format) {
        case FLOAT32: return multiply_tiles<Float32>(p, first, last, tile, last_tile);
#ifdef QCPU_AMX
        case BFLOAT16: return amx_multiply<TileBfloat16>(p, first, last, tile, last_tile);
        case INT8: return amx_multiply<TileInt8>(p, first, last, tile, last_tile);
#else
        case BFLOAT16: return multiply_tiles<Bfloat16>(p, first, last, tile, last_tile);
        case INT8: return multiply_tiles<Int8>(p, first, last, tile, last_tile);
#endif
        case INT4: return multiply_tiles<Int4>(p, first, last, tile, last_tile);
        case INT6: return multiply_tiles<Int6>(p, first, last, tile, last_tile);
        default: return multiply_tiles<Codes>(p, first, last, tile, last_tile);
    }
}

}  // namespace

extern const LinearTable linear_table;
const LinearTable linear_table{tile_rows_of, prepared_bytes, prepare, multiply};

}  // namespace QCPU_ISA
}  // namespace qcpu
