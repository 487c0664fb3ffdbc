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

// Eight halves of bytes, q + 8 each, of inputs 8 * step to 8 * step + 7.
void put_halves(uint8_t* group, long lane, long step, const uint8_t* q) {
    uint32_t first, last;
    memcpy(&first, q, 4);
    memcpy(&last, q + 4, 4);
    first |= last << 4;
    memcpy(group + INT4_HEAD + step * 64 + lane * 4, &first, 4);
}

void put_int4(const Matrix& m, Lane at, const void* row, int dtype) {
    float values[CHUNK];
    const long groups = divided_up(m.inputs, m.group);
    for (long g = 0; g < groups; g++) {
        uint8_t* group = at.panel + g * group_bytes(m);
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
        for (long s = 0; s < m.group / 8; s++) put_halves(group, at.lane, s, (const uint8_t*)quantized + s * 8);
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

void put_quantized_int4(const Matrix& m, Lane at, const uint8_t* values, const float* scales) {
    const long groups = divided_up(m.inputs, m.group);
    for (long g = 0; g < groups; g++) {
        uint8_t* group = at.panel + g * group_bytes(m);
        ((float*)group)[at.lane] = scales[g];
        for (long s = 0; s < m.group / 8; s++) {
            uint8_t q[8];
            for (long i = 0; i < 8; i++) {
                const long k = g * m.group + s * 8 + i;
                q[i] = k < m.inputs ? (values[k / 2] >> (k % 2 * 4)) & 15 : 8;
            }
            put_halves(group, at.lane, s, q);
        }
    }
}

void put_quantized(const Matrix& m, long first, long rows, const uint8_t* values, const float* scales) {
    const long groups = m.format == INT4 ? divided_up(m.inputs, m.group) : 1;
    for (long r = 0; r < rows; r++) {
        const Lane at = lane_of(m, first + r);
        if (m.format == INT8) put_quantized_int8(m, at, (const int8_t*)values + r * m.inputs, scales[r]);
        else put_quantized_int4(m, at, values + r * divided_up(m.inputs, 2), scales + r * groups);
    }
}

float value_at(const Matrix& m, Lane at, long k) {
    switch (m.format) {
        case FLOAT32: return ((const float*)at.panel)[k * 32 + at.lane];
        case BFLOAT16: return from_bfloat16(((const uint16_t*)at.panel)[k / 2 * 64 + at.lane * 2 + k % 2]);
        case INT8: {
            const int8_t q = ((const int8_t*)at.panel)[INT8_HEAD + k / 4 * 64 + at.lane * 4 + k % 4];
            return float(q) * ((const float*)at.panel)[at.lane];
        }
        default: {
            const uint8_t* group = at.panel + k / m.group * group_bytes(m);
            const long i = k % m.group;
            const uint8_t both = group[INT4_HEAD + i / 8 * 64 + at.lane * 4 + i % 4];
            return float(((i % 8 < 4 ? both : both >> 4) & 15) - 8) * ((const float*)group)[at.lane];
        }
    }
}

void get(const Matrix& m, long row, void* out, int dtype) {
    const Lane at = lane_of(m, row);
    for (long k = 0; k < m.inputs; k++) {
        if (dtype == FLOAT32) ((float*)out)[k] = value_at(m, at, k);
        else ((uint16_t*)out)[k] = to_bfloat16(value_at(m, at, k));
    }
}

}  // namespace

extern const PackTable pack_table;
const PackTable pack_table{put, put_quantized, get};

}  // namespace QCPU_ISA
}  // namespace qcpu
