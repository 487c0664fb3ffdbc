// The products of linear.h behind a plain C interface: memory for prepared rows, and work for the threads.
#include "linear.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "isa.h"
#include "pool.h"

QCPU_TABLES(LinearTable, linear_table)
QCPU_TABLES(PackTable, pack_table)

namespace qcpu {
namespace {

// Rows that are prepared at once; their memory stays in the outer caches.
const long MOST_ROWS = 1024;
// Outputs that a thread takes at once, and the bytes of weights that stay in its second-level cache for all rows.
const long OUTPUTS = 128, CACHED = 512 << 10;
// Values below which it takes longer to share the work than to do it.
const long FEW_VALUES = 1 << 15, FEW_PRODUCTS = 1 << 17;

// Pieces of a thread's share where there are many rows, and the tiles of rows that such a piece has at least.
const long PIECES = 32, PIECE_TILES = 8;

long most(long a, long b) { return a > b ? a : b; }
long least(long a, long b) { return a < b ? a : b; }

// Work in pieces of `unit` panels by `block` tiles.
void multiply(const Product& p, const LinearTable& table) {
    const long count = panels(p.weight);
    long unit = OUTPUTS / panel_outputs(p.weight);
    while (p.tiles > 1 && unit > 1 && unit * panel_bytes(p.weight) > CACHED) unit /= 2;
    unit = most(unit, divided_up(count, 60'000));
    const long columns = divided_up(count, unit);
    // Many threads and few outputs: rows are shared out as well. Many rows: in small pieces, so that none ends late.
    const auto shared = [&](long each, long tiles) { return least(divided_up(each * threads(), columns), tiles); };
    const long bands = most(shared(2, p.tiles), shared(PIECES, p.tiles / PIECE_TILES));
    if (threads() == 1 || p.rows * p.weight.outputs * p.weight.inputs < FEW_PRODUCTS) {
        for (long i = 0; i < columns; i++)
            table.multiply(p, i * unit, i * unit + unit < count ? i * unit + unit : count, 0, p.tiles);
        return;
    }
    parallel_for(columns * bands, [&](long part, int) {
        const long column = part / bands * unit, band = part % bands;
        table.multiply(p, column, column + unit < count ? column + unit : count, p.tiles * band / bands,
                       p.tiles * (band + 1) / bands);
    });
}

void prepare(const Product& p, const LinearTable& table) {
    if (p.rows * p.weight.inputs < FEW_VALUES || threads() == 1) {
        for (long t = 0; t < p.tiles; t++) table.prepare(p, t);
    } else {
        parallel_for(p.tiles, [&](long tile, int) { table.prepare(p, tile); });
    }
}

}  // namespace
}  // namespace qcpu

// Bytes of a weight: `data` is not looked at.
QCPU_API long qcpu_packed_bytes(const qcpu::Matrix* m) { return qcpu::panels(*m) * qcpu::panel_bytes(*m); }

// Asks the system to back this memory, which nobody has touched yet, by huge pages.
QCPU_API void qcpu_use_huge_pages(void* data, long bytes) {
#if defined(__linux__)
    // Where it cannot be had, small pages do.
    (void)madvise(data, size_t(bytes), MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

// See PackTable. Several threads may call these at once, for rows of their own; `data` is zero where nothing was put.
QCPU_API void qcpu_put(const qcpu::Matrix* m, long first, long rows, const void* values, long stride, int dtype) {
    qcpu::the_pack_table().put(*m, first, rows, values, stride, dtype);
}
QCPU_API void qcpu_put_quantized(const qcpu::Matrix* m, long first, long rows, const int8_t* values,
                                 const float* scales) {
    qcpu::the_pack_table().put_quantized(*m, first, rows, values, scales);
}
QCPU_API void qcpu_put_groups(const qcpu::Matrix* m, long first, long rows, const qcpu::Groups* groups) {
    qcpu::the_pack_table().put_groups(*m, first, rows, *groups);
}

// out[i] = row rows[i] of the weight, for `count` rows; out is contiguous, of float (0) or bfloat16 (1).
QCPU_API void qcpu_get(const qcpu::Matrix* m, const int64_t* rows, long count, void* out, int dtype) {
    using namespace qcpu;
    Turn turn;
    const PackTable& table = the_pack_table();
    const long bytes = m->inputs * (dtype == FLOAT32 ? 4 : 2), piece = divided_up(count, 60'000);
    const auto get = [&](long part, int) {
        for (long i = part * piece; i < (part + 1) * piece && i < count; i++)
            table.get(*m, rows[i], static_cast<uint8_t*>(out) + i * bytes, dtype);
    };
    if (count < 4) {
        for (long i = 0; i < count; i++) get(i, 0);
    } else {
        parallel_for(divided_up(count, piece), get);
    }
}

namespace qcpu {

void linear(const Matrix& m, const Operands& all, const void* bias) {
    const LinearTable& table = the_linear_table();
    const long item = all.dtype == FLOAT32 ? 4 : 2, prepared = table.prepared_bytes(m);
    const long groups = in_groups(m) ? prepared / m.group : 1;
    for (long row = 0; row < all.rows; row += MOST_ROWS) {
        Product p{};
        p.weight = m;
        p.x = static_cast<const uint8_t*>(all.x) + row * all.x_stride * item;
        p.bias = static_cast<const uint8_t*>(bias);
        p.out = static_cast<uint8_t*>(all.out) + row * all.out_stride * item;
        p.x_stride = all.x_stride;
        p.out_stride = all.out_stride;
        p.rows = all.rows - row < MOST_ROWS ? all.rows - row : MOST_ROWS;
        p.tiles = divided_up(p.rows, table.tile_rows(m.format));
        p.dtype = all.dtype;
        p.prepared = static_cast<uint8_t*>(scratch(LINEAR_INPUT, p.rows * prepared));
        p.factors = static_cast<float*>(scratch(LINEAR_SUMS, p.rows * groups * 12));
        p.totals = p.factors + p.rows * groups;
        p.starts = reinterpret_cast<int32_t*>(p.totals + p.rows * groups);
        prepare(p, table);
        multiply(p, table);
    }
}

}  // namespace qcpu

// See linear.h.
QCPU_API void qcpu_linear(const qcpu::Matrix* m, const qcpu::Operands* x, const void* bias) {
    qcpu::Turn turn;
    qcpu::linear(*m, *x, bias);
}
