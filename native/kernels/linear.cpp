// Products with packed weights, for one instruction set. See linear.h for the layouts.
//
// Rows are prepared so that a tile of them is read in the order in which it is used: [step][row of the tile], a step
// being as many inputs as lie side by side in the weight: one float; two bfloat16, widened to floats where there is no
// instruction for them; four bytes, quantized per row (INT8) or per row and group (INT4).
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

template <class T>
constexpr int vectors_per_panel() {
    return T::step_bytes / T::vector_bytes;
}

// Where column c of a tile lies, from the first one: in the panel of the first, or in those after it.
template <class T, int C>
inline long column_offset(int c, long panel) {
    constexpr int V = vectors_per_panel<T>();
    return C < V ? c * T::vector_bytes : c / V * panel + c % V * T::vector_bytes;
}

// What is fetched while a tile is worked on: its own weights so far ahead (0: nothing), or `stride` bytes a step of what
// will be wanted next.
struct Fetched {
    long ahead;
    const uint8_t* next;
    long stride;
};

template <class T, int C>
inline void fetch_step(const uint8_t* w, long panel, Fetched& f) {
    if (f.next) {
        fetch(f.next);
        f.next += f.stride;
        return;
    }
    for (int c = 0; c < C; c++)
        if (c * T::vector_bytes % 64 == 0) fetch(w + column_offset<T, C>(c, panel) + f.ahead);
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

// All steps of panels of `steps` steps. Near their end, what comes next lies behind the last of these C columns.
template <class T, int R, int C>
inline void add_panel(typename T::Sum (&sums)[R][C], const uint8_t* w, long panel, const uint8_t* x, long steps, Fetched f) {
    constexpr int V = vectors_per_panel<T>();
    const long last = AHEAD / T::step_bytes < steps ? steps - AHEAD / T::step_bytes : 0;
    add_steps<T, R, C>(sums, w, panel, x, last, f);
    if (f.ahead && C > V) f.ahead += (C / V - 1) * panel;
    add_steps<T, R, C>(sums, w + last * T::step_bytes, panel, x + last * R * T::x_bytes, steps - last, f);
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

template <class T, int R, int C>
void int4_tile(const Product& p, const Place& at) {
    constexpr int V = vectors_per_panel<T>();
    const long panel = panel_bytes(p.weight), block = group_bytes(p.weight), groups = panel / block;
    const long steps = p.weight.group / 8, next = R * T::x_bytes, jump = C > V ? (C / V - 1) * panel : 0;
    const uint8_t* w = p.weight.data + at.vector / V * panel;
    const long lane = at.vector % V;
    const float* factors = p.factors + at.row * groups;
    const int32_t* starts = p.starts + at.row * groups;
    const uint8_t* x = at.x;
    Floats totals[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) totals[r][c] = floats_zero();
    Fetched f = at.fetched;
    for (long g = 0; g < groups; g++, w += block, factors += R, starts += R) {
        if (f.ahead) f.ahead = (groups - g) * block > AHEAD + block ? AHEAD : AHEAD + jump;
        typename T::Sum sums[R][C];
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) sums[r][c] = T::start(starts + r);
        const uint8_t* rows = w + INT4_HEAD + lane * T::vector_bytes;
        for (long step = 0; step < steps; step++, rows += T::step_bytes, x += 2 * next) {
            fetch_step<T, C>(rows, panel, f);
            typename T::Weight weights[C];
            for (int c = 0; c < C; c++) weights[c] = T::load(rows + column_offset<T, C>(c, panel));
            for (int r = 0; r < R; r++) {
                const typename T::X spread = T::spread(x + r * T::x_bytes, next);
                for (int c = 0; c < C; c++) sums[r][c] = T::dot(sums[r][c], weights[c], spread);
            }
        }
        for (int c = 0; c < C; c++) {
            const Floats scale = floats_load((const float*)(w + (lane + c) / V * panel) + (lane + c) % V * LANES);
            for (int r = 0; r < R; r++) {
                const Floats factor = floats_mul(scale, floats_all(factors[r]));
                totals[r][c] = floats_fma(floats_from(sums[r][c]), factor, totals[r][c]);
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) store_output(p, at.row + r, (at.vector + c) * LANES, totals[r][c]);
}

template <class T, int R, int C>
inline void any_tile(const Product& p, const Place& at) {
    if constexpr (is_same<T, Int4>) int4_tile<T, R, C>(p, at);
    else if constexpr (is_same<T, Int8>) int8_tile<T, R, C>(p, at);
    else float_tile<T, R, C>(p, at);
}

// Vectors [at.vector, last) for one tile of R rows.
template <class T, int R>
void tile_row(const Product& p, Place at, long last) {
    constexpr int V = vectors_per_panel<T>(), C = T::columns(R);
    const long fetched = at.fetched.stride * (panel_bytes(p.weight) / T::step_bytes);
    for (; at.vector + C <= last; at.vector += C) {
        any_tile<T, R, C>(p, at);
        if (at.fetched.next) at.fetched.next += fetched;
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

// Bytes of one prepared row: whole steps, and for INT4 whole groups.
template <class T>
long row_bytes(const Matrix& m) {
    if (m.format == INT4) return divided_up(m.inputs, m.group) * m.group;
    const long head = m.format == INT8 ? INT8_HEAD : 0;
    return (panel_bytes(m) - head) / T::step_bytes * T::x_bytes;
}

// Tiles up to which each panel meets all of them before the next: their rows stay in the first cache, and what is
// computed for one panel hides that the next is read.
const long FEW_TILES = 4;

template <class T>
void multiply_few(const Product& p, long first, long last, long tile, long last_tile) {
    constexpr int V = vectors_per_panel<T>();
    const long bytes = row_bytes<T>(p.weight), panel = panel_bytes(p.weight);
    // As many panels as the columns of the widest tile.
    const long columns = T::columns(int(p.first_row(tile + 1) - p.first_row(tile)));
    const long step = columns > V ? columns / V : 1, block = step * panel;
    // Steps that a tile makes for a block; two tiles fetch the next.
    const long steps = panel / T::step_bytes * (columns < V ? V / columns : 1), each = divided_up(block / 2, steps);
    for (long at = first; at < last; at += step) {
        const uint8_t* next = p.weight.data + at * panel + block;
        for (long t = tile; t < last_tile; t++) {
            const long row = p.first_row(t);
            const Fetched fetched{0, t - tile < 2 ? next + (t - tile) * (block / 2) : nullptr, each};
            const Place place{p.prepared + row * bytes, row, at * V, fetched};
            tile_rows<T>(p, place, (at + step < last ? at + step : last) * V, int(p.first_row(t + 1) - row));
        }
    }
}

template <class T>
void multiply_tiles(const Product& p, long first, long last, long tile, long last_tile) {
    constexpr int V = vectors_per_panel<T>();
    const long bytes = row_bytes<T>(p.weight), tiles = last_tile - tile;
    if (tiles > 1 && tiles <= FEW_TILES) return multiply_few<T>(p, first, last, tile, last_tile);
    for (long t = tile; t < last_tile; t++) {
        const long row = p.first_row(t), next = p.first_row(t + 1), count = next - row;
        // The first tile brings the weights into the cache, each of the others the rows of the next one.
        const long steps = panel_bytes(p.weight) / T::step_bytes * divided_up((last - first) * V, T::columns(int(count)));
        Fetched fetched{AHEAD, nullptr, 0};
        if (t > tile) fetched = {0, p.prepared + next * bytes, t + 1 < last_tile ? divided_up(count * bytes, steps) : 0};
        tile_rows<T>(p, {p.prepared + row * bytes, row, first * V, fetched}, last * V, int(count));
    }
}

#ifdef QCPU_AMX
#include "linear_amx.h"

bool by_tiles(const Matrix& m) { return m.format == BFLOAT16 || m.format == INT8; }
#endif

// Values [first, first + count) of a row of x as floats, zero behind its end.
inline void load_x(const Product& p, long row, long first, long count, float* out) {
    const long there = p.weight.inputs - first < count ? p.weight.inputs - first : count;
    long i = 0;
    if (p.dtype == FLOAT32) {
        const float* x = (const float*)p.x + row * p.x_stride + first;
        for (; i + LANES <= there; i += LANES) floats_store(out + i, floats_load(x + i));
        for (; i < there; i++) out[i] = x[i];
    } else {
        const uint16_t* x = (const uint16_t*)p.x + row * p.x_stride + first;
        for (; i + LANES <= there; i += LANES) floats_store(out + i, floats_load_bfloat16(x + i));
        for (; i < there; i++) out[i] = from_bfloat16(x[i]);
    }
    for (; i < count; i++) out[i] = 0;
}

// Elements of `bytes` bytes, one each `stride` bytes.
inline void scatter(uint8_t* to, long stride, const void* from, long count, long bytes) {
    if (stride == bytes) {
        memcpy(to, from, size_t(count * bytes));
    } else if (bytes == 4) {
        for (long i = 0; i < count; i++) memcpy(to + i * stride, (const uint8_t*)from + i * 4, 4);
    } else {
        for (long i = 0; i < count; i++) memcpy(to + i * stride, (const uint8_t*)from + i * 8, 8);
    }
}

// How the prepared rows of a tile lie: bytes of one of them, and from a step of one to the next.
struct Rows {
    long row, count, bytes, stride;
    bool in_steps;

    uint8_t* begin(const Product& p, long r, long element) const {
        return p.prepared + row * bytes + r * (in_steps ? element : bytes);
    }
};

// Rows of a tile side by side in each step, or (for AMX) one after another.
template <class T>
Rows rows_of(const Product& p, long tile) {
    const long row = p.first_row(tile), count = p.first_row(tile + 1) - row;
#ifdef QCPU_AMX
    if (by_tiles(p.weight)) return {row, count, amx_row_bytes(p.weight), T::x_bytes, false};
#endif
    return {row, count, row_bytes<T>(p.weight), count * T::x_bytes, true};
}

// Chunk by chunk, so that what the rows of a tile write side by side stays in the first cache.
template <class T>
void prepare_floats(const Product& p, long tile) {
    const Rows rows = rows_of<T>(p, tile);
    const long inputs = p.weight.inputs, per_step = p.weight.format == BFLOAT16 ? 2 : 1, stride = rows.stride;
    const long row = rows.row;
    for (long r = 0; r < rows.count && !rows.in_steps; r++) memset(rows.begin(p, r, T::x_bytes) + rows.bytes - 64, 0, 64);
    for (long k = 0; k < inputs; k += CHUNK) {
        const long count = inputs - k < CHUNK ? divided_up(inputs - k, per_step) * per_step : CHUNK;
        for (long r = 0; r < rows.count; r++) {
            float values[CHUNK];
            uint16_t halves[CHUNK];
            const void* from = values;
            if (T::x_bytes == 2 * per_step && p.dtype == BFLOAT16 && k + count <= inputs) {
                from = (const uint16_t*)p.x + (row + r) * p.x_stride + k;
            } else {
                load_x(p, row + r, k, count, values);
                for (long i = 0; T::x_bytes == 2 * per_step && i < count; i++) halves[i] = to_bfloat16(values[i]);
                if (T::x_bytes == 2 * per_step) from = halves;
            }
            scatter(rows.begin(p, r, T::x_bytes) + k / per_step * stride, stride, from, count / per_step, T::x_bytes);
        }
    }
}

// The largest magnitude of `count` values (a multiple of LANES), and 0 times their sum: NaN if one is not finite.
inline float largest(const float* values, long count, float* poison) {
    Floats high = floats_zero(), zero = floats_zero();
    for (long i = 0; i < count; i += LANES) {
        const Floats v = floats_load(values + i);
        high = floats_max(floats_abs(v), high);
        zero = floats_fma(v, floats_zero(), zero);
    }
    *poison += floats_sum(zero);
    return floats_highest(high);
}

inline void to_bytes(const float* values, long count, float inverse, int8_t* out) {
    const Floats by = floats_all(inverse);
    for (long i = 0; i < count; i += LANES) floats_store_bytes(out + i, floats_mul(floats_load(values + i), by));
}

inline void prepare_int8(const Product& p, long tile) {
    const Rows rows = rows_of<Int8>(p, tile);
    const long row = rows.row, bytes = rows.bytes, stride = rows.stride;
    float inverse[MOST_TILE_ROWS];
    for (long r = 0; r < rows.count; r++) {
        float values[CHUNK], high = 0, poison = 0;
        for (long k = 0; k < bytes; k += CHUNK) {
            load_x(p, row + r, k, CHUNK, values);
            const float here = largest(values, CHUNK, &poison);
            high = here > high ? here : high;
        }
        inverse[r] = high > 0 ? 127.0f / high : 0.0f;
        p.factors[row + r] = high / 127.0f + poison;
    }
    for (long k = 0; k < bytes; k += CHUNK) {
        const long count = bytes - k < CHUNK ? bytes - k : CHUNK;
        for (long r = 0; r < rows.count; r++) {
            float values[CHUNK];
            int8_t quantized[CHUNK];
            load_x(p, row + r, k, CHUNK, values);
            to_bytes(values, CHUNK, inverse[r], quantized);
            if (Int8::x_unsigned)
                for (long i = 0; i < CHUNK; i++) quantized[i] = int8_t(quantized[i] ^ -128);
            scatter(rows.begin(p, r, 4) + k / 4 * stride, stride, quantized, count / 4, 4);
        }
    }
}

inline void prepare_int4(const Product& p, long tile) {
    const long row = p.first_row(tile), rows = p.first_row(tile + 1) - row, bytes = row_bytes<Int4>(p.weight);
    const long stride = rows * 4, group = p.weight.group, groups = bytes / group;
    for (long g = 0; g < groups; g++)
        for (long r = 0; r < rows; r++) {
            float values[CHUNK], poison = 0;
            int8_t quantized[CHUNK];
            load_x(p, row + r, g * group, group, values);
            const float high = largest(values, group, &poison);
            to_bytes(values, group, high > 0 ? 127.0f / high : 0.0f, quantized);
            int32_t sum = 0;
            for (long i = 0; i < group; i++) sum += quantized[i];
            p.factors[row * groups + g * rows + r] = high / 127.0f + poison;
            p.starts[row * groups + g * rows + r] = -8 * sum;
            uint8_t* to = p.prepared + row * bytes + r * 4;
            scatter(to + g * (group / 4) * stride, stride, quantized, group / 4, 4);
        }
}

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
        default: return prepare_int4(p, tile);
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
        default: return multiply_tiles<Int4>(p, first, last, tile, last_tile);
    }
}

}  // namespace

extern const LinearTable linear_table;
const LinearTable linear_table{tile_rows_of, prepared_bytes, prepare, multiply};

}  // namespace QCPU_ISA
}  // namespace qcpu
