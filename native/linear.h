// Products with weights, and how the weights lie in memory. One layout per format serves any number of rows.
//
// A weight [outputs, inputs] is cut into panels of neighbouring outputs; within a panel the inputs follow each other, a
// few at a time, and of each the outputs, so that one vector register holds as many outputs as it has lanes. What is
// missing in the last panel and behind the last input is zero.
//
//   FLOAT32   panels of 32: [inputs][32]
//   BFLOAT16  panels of 32: [inputs / 2][32][2]
//   INT8      panels of 16: scale float [16], -128 times the sum of the values int32 [16], [inputs / 4][16][4] int8
//   INT4      panels of 16, of groups of `group` inputs: scale float [16], [group / 8][16][4] bytes; the low half of a
//             byte belongs to the first four inputs of eight, the high half to the others, both hold value + 8
#pragma once

#include <stdint.h>

namespace qcpu {

enum Format { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3 };

// As kernels/cpu/packed.py declares it for ctypes.
struct Matrix {
    uint8_t* data;
    long outputs, inputs;
    int format, group;
};

static const long INT8_HEAD = 128, INT4_HEAD = 64;

static inline long divided_up(long n, long by) { return (n + by - 1) / by; }

static inline long panel_outputs(const Matrix& m) { return m.format >= INT8 ? 16 : 32; }

static inline long group_bytes(const Matrix& m) { return INT4_HEAD + m.group * 8; }

static inline long panel_bytes(const Matrix& m) {
    switch (m.format) {
        case FLOAT32: return m.inputs * 128;
        case BFLOAT16: return divided_up(m.inputs, 2) * 128;
        case INT8: return INT8_HEAD + divided_up(m.inputs, 4) * 64;
        default: return divided_up(m.inputs, m.group) * group_bytes(m);
    }
}

static inline long panels(const Matrix& m) { return divided_up(m.outputs, panel_outputs(m)); }

// A product: out[rows, outputs] = x[rows, inputs] @ weight.T + bias. x, bias and out are float (0) or bfloat16 (1).
// Rows are taken in tiles: tile t of `tiles` has rows t * rows / tiles to (t + 1) * rows / tiles. `prepared` is the
// rows as the kernels want them (see kernels/linear.cpp), `factors` what they must be multiplied by (INT8, INT4), and
// `starts` what sums start from (INT4).
struct Product {
    Matrix weight;
    const uint8_t *x, *bias;
    uint8_t* out;
    long x_stride, out_stride, rows, tiles;
    int dtype;
    uint8_t* prepared;
    float* factors;
    int32_t* starts;

    long first_row(long tile) const { return tile * rows / tiles; }
};

// out[rows, outputs] = x[rows, inputs] @ weight.T + bias. x has rows x_stride values apart, out is contiguous; bias may
// be null. All are float (0) or bfloat16 (1) by `dtype`; sums are float. Within a Turn.
void linear(const Matrix& m, const void* x, long x_stride, long rows, const void* bias, void* out, int dtype);

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

struct PackTable {
    // Take rows [first, first + rows) of the weight from float (0) or bfloat16 (1) values, quantized where the format
    // wants that. Other rows are left alone, so several threads may fill one weight.
    void (*put)(const Matrix&, long first, long rows, const void* values, long stride, int dtype);
    // The same from quantized values: INT8 [rows, inputs] int8 and scales [rows]; INT4 [rows, inputs / 2] bytes, the
    // even input in the low half, value + 8, and scales [rows, groups].
    void (*put_quantized)(const Matrix&, long first, long rows, const uint8_t* values, const float* scales);
    // Row `row` as float (0) or bfloat16 (1).
    void (*get)(const Matrix&, long row, void* out, int dtype);
};

}  // namespace qcpu
