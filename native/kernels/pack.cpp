// Rows of weights into panels and back, for one instruction set. See linear.h for the layouts,
// quire/quantization/online.py for how quantized values are chosen.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "bfloat16.h"
#include "linear.h"
#include "vectors.h"

namespace qcpu {
namespace QCPU_ISA {
namespace {

const long CHUNK = 256;
const int CANDIDATES = 9;

// Where a row's lane begins in its panel: behind the head, its own entry of the first step.
struct Lane {
    uint8_t* panel;
    long lane;
};

Lane lane_of(const Matrix& m, long row) {
    const long outputs = panel_outputs(m);
    return {m.data + row / outputs * panel_bytes(m), row % outputs};
}

// Values [first, first + CHUNK) of a row, zero behind its end.
void load(const Matrix& m, const void* row, int dtype, long first, float* out) {
    const long there = m.inputs - first < CHUNK ? m.inputs - first : CHUNK;
    if (dtype == FLOAT32) {
        memcpy(out, (const float*)row + first, size_t(there) * 4);
    } else {
        const uint16_t* from = (const uint16_t*)row + first;
        long i = 0;
        for (; i + LANES <= there; i += LANES) floats_store(out + i, floats_load_bfloat16(from + i));
        for (; i < there; i++) out[i] = from_bfloat16(from[i]);
    }
    for (long i = there; i < CHUNK; i++) out[i] = 0;
}

void put_float32(const Matrix& m, Lane at, const void* row, int dtype) {
    float values[CHUNK];
    for (long k = 0; k < m.inputs; k += CHUNK) {
        load(m, row, dtype, k, values);
        float* to = (float*)at.panel + k * 32 + at.lane;
        for (long i = 0; i < CHUNK && k + i < m.inputs; i++) to[i * 32] = values[i];
    }
}

void put_bfloat16(const Matrix& m, Lane at, const void* row, int dtype) {
    float values[CHUNK];
    uint16_t halves[CHUNK];
    for (long k = 0; k < m.inputs; k += CHUNK) {
        load(m, row, dtype, k, values);
        for (long i = 0; i < CHUNK; i++) halves[i] = to_bfloat16(values[i]);
        uint8_t* to = at.panel + k / 2 * 128 + at.lane * 4;
        for (long i = 0; i < CHUNK && k + i < m.inputs; i += 2) memcpy(to + i / 2 * 128, halves + i, 4);
    }
}

// Rows of bfloat16 as they are, up to the end of their panel: a few steps of all, so that these stay in the cache.
long copy_bfloat16(const Matrix& m, long first, long rows, const uint8_t* values, long stride) {
    const Lane at = lane_of(m, first);
    const long count = rows < 32 - at.lane ? rows : 32 - at.lane, steps = divided_up(m.inputs, 2), few = 64;
    for (long step = 0; step < steps; step += few) {
        const long last = steps - step < few ? steps : step + few;
        for (long r = 0; r < count; r++) {
            const uint8_t* from = values + r * stride * 2;
            uint8_t* to = at.panel + (at.lane + r) * 4;
            const long whole = last * 2 <= m.inputs ? last : last - 1;
            for (long i = step; i < whole; i++) memcpy(to + i * 128, from + i * 4, 4);
            if (whole < last) memcpy(to + whole * 128, from + whole * 4, 2);
        }
    }
    return count;
}

// `count` bytes (a multiple of 4) into their steps.
void put_bytes(const Matrix& m, Lane at, long first, const int8_t* values, long count) {
    uint8_t* to = at.panel + INT8_HEAD + first / 4 * 64 + at.lane * 4;
    const long steps = divided_up(m.inputs - first < count ? m.inputs - first : count, 4);
    for (long i = 0; i < steps; i++) memcpy(to + i * 64, values + i * 4, 4);
}

void put_int8_head(Lane at, float scale, int32_t sum) {
    ((float*)at.panel)[at.lane] = scale;
    ((int32_t*)(at.panel + 64))[at.lane] = -128 * sum;
}

float largest_magnitude(const float* values, long count) {
    Floats high = floats_zero();
    for (long i = 0; i < count; i += LANES) high = floats_max(high, floats_abs(floats_load(values + i)));
    return floats_highest(high);
}

void put_int8(const Matrix& m, Lane at, const void* row, int dtype) {
    float values[CHUNK], high = 0;
    for (long k = 0; k < m.inputs; k += CHUNK) {
        load(m, row, dtype, k, values);
        const float here = largest_magnitude(values, CHUNK);
        high = here > high ? here : high;
    }
    const float scale = high / 127.0f;
    const Floats by = floats_all(scale > 0 ? scale : 1.0f), most = floats_all(127.0f), least = floats_all(-127.0f);
    int32_t sum = 0;
    for (long k = 0; k < m.inputs; k += CHUNK) {
        int8_t quantized[CHUNK];
        load(m, row, dtype, k, values);
        for (long i = 0; i < CHUNK; i += LANES) {
            const Floats steps = floats_div(floats_load(values + i), by);
            floats_store_bytes(quantized + i, floats_max(floats_min(steps, most), least));
        }
        for (long i = 0; i < CHUNK; i++) sum += quantized[i];
        put_bytes(m, at, k, quantized, CHUNK);
    }
    put_int8_head(at, scale, sum);
}

Floats clipped(Floats value) {
    return floats_max(floats_min(floats_round(value), floats_all(7.0f)), floats_all(-8.0f));
}

// The scale of a group that loses least, of a few that put its largest value at -8 or near it. `count` is a multiple of
// 32.
float best_scale(const float* values, long count) {
    const float magnitude = largest_magnitude(values, count);
    if (magnitude == 0) return 0;
    long i = 0;
    while (i + 1 < count && fabsf(values[i]) != magnitude) i++;
    float best = -1, chosen = 0;
    for (int c = 0; c < CANDIDATES; c++) {
        const Floats inverse = floats_all(-(7.0f + 0.25f * float(c)) / values[i]);
        Floats both = floats_zero(), square = floats_zero();
        for (long k = 0; k < count; k += LANES) {
            const Floats v = floats_load(values + k), q = clipped(floats_mul(v, inverse));
            both = floats_fma(q, v, both);
            square = floats_fma(q, q, square);
        }
        const float product = floats_sum(both), squares = floats_sum(square);
        if (squares > 0 && product * product > best * squares) {
            best = product * product / squares;
            chosen = product / squares;
        }
    }
    return chosen;
}

// Eight codes of four bits, of the inputs of one step.
void put_halves(uint8_t* step, long lane, const uint8_t* q) {
    uint32_t first, last;
    memcpy(&first, q, 4);
    memcpy(&last, q + 4, 4);
    first = (first & 0x0f0f0f0f) | (last & 0x0f0f0f0f) << 4;
    memcpy(step + lane * 4, &first, 4);
}

// Codes of the first inputs of a block, as many as CHUNK has of whole steps, from where the block's codes begin.
void put_codes(const Matrix& m, uint8_t* codes, long lane, const uint8_t* q, long count) {
    switch (m.format) {
        case INT4:
            for (long k = 0; k < count; k += 8) put_halves(codes + k * 8, lane, q + k);
            return;
        case INT6:
            for (long k = 0; k < count; k += 16) {
                uint8_t* step = codes + k * 12;
                put_halves(step, lane, q + k);
                put_halves(step + 64, lane, q + k + 8);
                for (long i = 0; i < 4; i++) {
                    uint8_t high = 0;
                    for (long part = 0; part < 4; part++) high |= uint8_t(q[k + part * 4 + i] >> 4 << 2 * part);
                    step[128 + lane * 4 + i] = high;
                }
            }
            return;
        default:
            for (long k = 0; k < count; k += 4) memcpy(codes + k * 16 + lane * 4, q + k, 4);
    }
}

void put_int4(const Matrix& m, Lane at, const void* row, int dtype) {
    float values[CHUNK];
    const long groups = divided_up(m.inputs, m.group);
    for (long g = 0; g < groups; g++) {
        uint8_t* group = at.panel + g * block_bytes(m);
        load(m, row, dtype, g * m.group, values);
        // Behind the last input there are zeros, which change no sum.
        const float scale = best_scale(values, m.group);
        ((float*)group)[at.lane] = scale;
        const Floats by = floats_all(scale != 0 ? scale : 1.0f);
        int8_t quantized[CHUNK];
        for (long i = 0; i < m.group; i += LANES) {
            const Floats q = clipped(floats_div(floats_load(values + i), by));
            floats_store_bytes(quantized + i, floats_add(q, floats_all(8.0f)));
        }
        put_codes(m, group + head_bytes(m), at.lane, (const uint8_t*)quantized, m.group);
    }
}

void put(const Matrix& m, long first, long rows, const void* values, long stride, int dtype) {
    const long item = dtype == FLOAT32 ? 4 : 2;
    long r = 0;
    while (m.format == BFLOAT16 && dtype == BFLOAT16 && r < rows)
        r += copy_bfloat16(m, first + r, rows - r, (const uint8_t*)values + r * stride * item, stride);
    for (; r < rows; r++) {
        const void* row = (const uint8_t*)values + r * stride * item;
        const Lane at = lane_of(m, first + r);
        switch (m.format) {
            case FLOAT32: put_float32(m, at, row, dtype); break;
            case BFLOAT16: put_bfloat16(m, at, row, dtype); break;
            case INT8: put_int8(m, at, row, dtype); break;
            default: put_int4(m, at, row, dtype);
        }
    }
}

void put_quantized_int8(const Matrix& m, Lane at, const int8_t* values, float scale) {
    int32_t sum = 0;
    for (long k = 0; k < m.inputs; k += CHUNK) {
        const long count = m.inputs - k < CHUNK ? m.inputs - k : CHUNK;
        int8_t padded[CHUNK] = {};
        memcpy(padded, values + k, size_t(count));
        for (long i = 0; i < count; i++) sum += padded[i];
        put_bytes(m, at, k, padded, CHUNK);
    }
    put_int8_head(at, scale, sum);
}

void put_quantized(const Matrix& m, long first, long rows, const int8_t* values, const float* scales) {
    for (long r = 0; r < rows; r++) put_quantized_int8(m, lane_of(m, first + r), values + r * m.inputs, scales[r]);
}

// Where the numbers of a group lie in its block: scale (or its units) and shift.
struct Numbers {
    uint8_t *scale, *shift;
    long bytes;
};

Numbers numbers_of(const Matrix& m, uint8_t* block, long group, long lane) {
    const long parts = m.shifted ? 2 : 1, bytes = m.scales == FLOATS ? 4 : m.scales == HALVES ? 2 : 1;
    uint8_t* at = block + (m.scales == STEPS ? 64 : 0) + group * parts * 16 * bytes + lane * bytes;
    return {at, at + 16 * bytes, bytes};
}

void put_row(const Matrix& m, Lane at, long row, const Groups& from) {
    const long groups = divided_up(m.inputs, m.group), blocks = divided_up(m.inputs, span(m)), each = span(m) / m.group;
    for (long b = 0; b < blocks; b++) {
        uint8_t *block = at.panel + b * block_bytes(m), *codes = block + head_bytes(m);
        if (m.scales == STEPS) {
            memcpy(block + at.lane * 2, from.units + (row * blocks + b) * 2, 2);
            if (m.shifted) memcpy(block + 32 + at.lane * 2, from.shift_units + (row * blocks + b) * 2, 2);
        }
        for (long g = b * each; g < (b + 1) * each && g < groups; g++) {
            const Numbers to = numbers_of(m, block, g % each, at.lane);
            const long number = (row * groups + g) * to.bytes, there = m.inputs - g * m.group;
            memcpy(to.scale, from.scales + number, size_t(to.bytes));
            if (m.shifted) memcpy(to.shift, from.shifts + number, size_t(to.bytes));
            uint8_t padded[CHUNK] = {};
            memcpy(padded, from.codes + row * m.inputs + g * m.group, size_t(there < m.group ? there : m.group));
            put_codes(m, codes + g % each * m.group * (block_bytes(m) - head_bytes(m)) / span(m), at.lane, padded, m.group);
        }
    }
}

void put_groups(const Matrix& m, long first, long rows, const Groups& from) {
    for (long r = 0; r < rows; r++) put_row(m, lane_of(m, first + r), r, from);
}

float half(const uint8_t* p) {
    uint16_t all[LANES] = {};
    float wide[LANES];
    memcpy(all, p, 2);
    floats_store(wide, floats_load_half(all));
    return wide[0];
}

// A number of a group; its unit, of STEPS, is at `unit`.
float number(const Matrix& m, const uint8_t* p, const uint8_t* unit) {
    float wide;
    if (m.scales == STEPS) return float(*(const int8_t*)p) * half(unit);
    if (m.scales == HALVES) return half(p);
    memcpy(&wide, p, 4);
    return wide;
}

// Code k of a block.
int code_at(const Matrix& m, const uint8_t* codes, long lane, long k) {
    if (m.format == CODES) return codes[k / 4 * 64 + lane * 4 + k % 4];
    const long step = m.format == INT4 ? k / 8 * 64 : k / 16 * 192 + k % 16 / 8 * 64;
    const uint8_t both = codes[step + lane * 4 + k % 4];
    const int low = (k % 8 < 4 ? both : both >> 4) & 15;
    if (m.format == INT4) return low;
    return low | (codes[k / 16 * 192 + 128 + lane * 4 + k % 4] >> k % 16 / 4 * 2 & 3) << 4;
}

// store(k, value) for every input k of a row in groups, whose scale and shift are read once a group.
template <class F>
void get_groups(const Matrix& m, Lane at, const F& store) {
    for (long first = 0; first < m.inputs; first += m.group) {
        uint8_t* block = at.panel + first / span(m) * block_bytes(m);
        const uint8_t* codes = block + head_bytes(m);
        const long start = first % span(m), left = m.inputs - first, count = left < m.group ? left : m.group;
        const Numbers by = numbers_of(m, block, start / m.group, at.lane);
        const float scale = number(m, by.scale, block + at.lane * 2);
        const float shift = m.shifted ? number(m, by.shift, block + 32 + at.lane * 2) : 0;
        for (long i = 0; i < count; i++) {
            // Rounded before the shift is added, as formats say.
            const volatile float value = float(code_at(m, codes, at.lane, start + i) - m.zero) * scale;
            store(first + i, m.shifted ? value + shift : value);
        }
    }
}

float value_at(const Matrix& m, Lane at, long k) {
    switch (m.format) {
        case FLOAT32: return ((const float*)at.panel)[k * 32 + at.lane];
        case BFLOAT16: return from_bfloat16(((const uint16_t*)at.panel)[k / 2 * 64 + at.lane * 2 + k % 2]);
        default: {
            const int8_t q = ((const int8_t*)at.panel)[INT8_HEAD + k / 4 * 64 + at.lane * 4 + k % 4];
            return float(q) * ((const float*)at.panel)[at.lane];
        }
    }
}

void get(const Matrix& m, long row, void* out, int dtype) {
    const Lane at = lane_of(m, row);
    const auto store = [&](long k, float value) {
        if (dtype == FLOAT32) ((float*)out)[k] = value;
        else ((uint16_t*)out)[k] = to_bfloat16(value);
    };
    if (in_groups(m)) return get_groups(m, at, store);
    for (long k = 0; k < m.inputs; k++) store(k, value_at(m, at, k));
}

}  // namespace

extern const PackTable pack_table;
const PackTable pack_table{put, put_quantized, put_groups, get};

}  // namespace QCPU_ISA
}  // namespace qcpu
