// Products with weights, and how the weights lie in memory. One layout per format serves any number of rows.
//
// A weight [outputs, inputs] is cut into panels of neighbouring outputs; within a panel the inputs follow each other, a
// few at a time, and of each the outputs, so that one vector register holds as many outputs as it has lanes. What is
// missing in the last panel and behind the last input is zero.
//
//   FLOAT32   panels of 32: [inputs][32]
//   BFLOAT16  panels of 32: [inputs / 2][32][2]
//   INT8      panels of 16: scale float [16], -128 times the sum of the values int32 [16], [inputs / 4][16][4] int8
//
// Formats of groups: panels of 16, of blocks: a head, then the codes of `span` inputs. A value is (code - zero) * scale,
// and where the matrix is `shifted` a shift more, scale and shift being those of its group of `group` inputs.
//   INT4      [span / 8][16][4] bytes; the low half of a byte belongs to the first four inputs of eight, the high half to
//             the others
//   INT6      [span / 16] of two such steps with the codes' low halves, then [16][4] bytes: the two high bits of a code
//             of the first four inputs of sixteen are the lowest of a byte
//   CODES     [span / 4][16][4] bytes
// By `scales`, a head is, the shifts' part only where there are any, but for the units of STEPS' shifts, whose room is
// always there:
//   FLOATS    of one group: float [16], shifts float [16]
//   HALVES    of two groups, each: half [16], shifts half [16]
//   STEPS     of 256 inputs: units half [16], units of shifts half [16], of each group: int8 [16] units, shifts' int8 [16]
#pragma once

#include <stdint.h>

namespace qcpu {

enum Format { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3, INT6 = 4, CODES = 5 };
enum Scales { FLOATS = 0, HALVES = 1, STEPS = 2 };

// As kernels/cpu/linear.py declares it for ctypes. What is behind `format` is of formats of groups.
struct Matrix {
    uint8_t* data;
    long outputs, inputs;
    int format, group, scales, shifted, zero;
};

static const long INT8_HEAD = 128;

static inline long divided_up(long n, long by) { return (n + by - 1) / by; }

static inline long panel_outputs(const Matrix& m) { return m.format >= INT8 ? 16 : 32; }

static inline bool in_groups(const Matrix& m) { return m.format >= INT4; }

// Inputs of a block, its head's bytes, and all of it.
static inline long span(const Matrix& m) { return m.scales == FLOATS ? m.group : m.scales == HALVES ? 2 * m.group : 256; }
static inline long head_bytes(const Matrix& m) {
    const long parts = m.shifted ? 2 : 1;
    return m.scales == STEPS ? 64 + span(m) / m.group * 16 * parts : 64 * parts;
}
static inline long block_bytes(const Matrix& m) {
    return head_bytes(m) + span(m) * (m.format == INT4 ? 8 : m.format == INT6 ? 12 : 16);
}

static inline long panel_bytes(const Matrix& m) {
    switch (m.format) {
        case FLOAT32: return m.inputs * 128;
        case BFLOAT16: return divided_up(m.inputs, 2) * 128;
        case INT8: return INT8_HEAD + divided_up(m.inputs, 4) * 64;
        default: return divided_up(m.inputs, span(m)) * block_bytes(m);
    }
}

static inline long panels(const Matrix& m) { return divided_up(m.outputs, panel_outputs(m)); }

// A product: out[rows, outputs] = x[rows, inputs] @ weight.T + bias. x, bias and out are float (0) or bfloat16 (1).
// Rows are taken in tiles: tile t of `tiles` has rows t * rows / tiles to (t + 1) * rows / tiles. `prepared` is the
// rows as the kernels want them (see kernels/linear.cpp), `factors` what they must be multiplied by (INT8, groups), and of
// groups `starts` what sums start from and `totals` what shifts are multiplied by.
struct Product {
    Matrix weight;
    const uint8_t *x, *bias;
    uint8_t* out;
    long x_stride, out_stride, rows, tiles;
    int dtype;
    uint8_t* prepared;
    float *factors, *totals;
    int32_t* starts;

    long first_row(long tile) const { return tile * rows / tiles; }
};

// out[rows, outputs] = x[rows, inputs] @ weight.T + bias. Rows of x and of out are so many values apart; bias may be null.
// All are float (0) or bfloat16 (1) by `dtype`; sums are float. Within a Turn.
struct Operands {
    const void* x;
    long x_stride, rows;
    void* out;
    long out_stride;
    int dtype;
};
void linear(const Matrix& m, const Operands& x, const void* bias);

struct LinearTable {
    // Rows of the largest tile.
    int (*tile_rows)(int format);
    // Bytes of one prepared row.
    long (*prepared_bytes)(const Matrix&);
    // Prepare the rows of a tile.
    void (*prepare)(const Product&, long tile);
    // The outputs of panels [first, last) for the rows of tiles [tile, last_tile).
    void (*multiply)(const Product&, long first, long last, long tile, long last_tile);
};

// Rows of formats of groups: codes [rows, inputs], one in a byte; scales and shifts [rows, groups] of the head's type; and
// of STEPS the units of both, half [rows, blocks].
struct Groups {
    const uint8_t *codes, *scales, *shifts, *units, *shift_units;
};

struct PackTable {
    // Take rows [first, first + rows) of the weight from float (0) or bfloat16 (1) values, quantized where the format
    // wants that. Other rows are left alone, so several threads may fill one weight.
    void (*put)(const Matrix&, long first, long rows, const void* values, long stride, int dtype);
    // The same of INT8 from quantized values [rows, inputs] and scales [rows].
    void (*put_quantized)(const Matrix&, long first, long rows, const int8_t* values, const float* scales);
    // The same of formats of groups.
    void (*put_groups)(const Matrix&, long first, long rows, const Groups&);
    // Row `row` as float (0) or bfloat16 (1).
    void (*get)(const Matrix&, long row, void* out, int dtype);
};

}  // namespace qcpu
