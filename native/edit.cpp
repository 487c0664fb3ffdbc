// Deals the rows whose logits are edited out to the threads, and looks through their bans. See edit.h.
#include "edit.h"

#include <math.h>

#include <algorithm>

#include "draw.h"
#include "isa.h"
#include "pool.h"

QCPU_TABLES(EditTable, edit_table)

namespace qcpu {
namespace {

// Tokens that are edited together, logits that are worth another thread, parts that the pool can deal out.
const long BLOCK = 16384, WORTH = 32768, PARTS = 60000;

// The entries of a row's slot, or null where it has none.
template <class T>
const T* slot_of(const T* table, const int64_t* slots, int64_t row, long vocab) {
    return table && slots[row] ? table + slots[row] * vocab : nullptr;
}

EditLine line_of(const EditTables& tables, int64_t row, long vocab) {
    const float* number = tables.numbers + row * NUMBERS;
    EditLine line{};
    line.offsets = slot_of(tables.offsets, tables.offset_slots, row, vocab);
    line.counts = slot_of(tables.counts, tables.count_slots, row, vocab);
    line.mask = tables.masks ? tables.masks + row * ((vocab + 31) / 32) : nullptr;
    line.repetition = number[REPETITION];
    line.frequency = number[FREQUENCY];
    line.presence = number[PRESENCE];
    return line;
}

// Whether the row's last tokens are the prefix of an entry, and it is not over.
bool is_banned(const EditTables& tables, int64_t row, int64_t entry) {
    const int64_t known = tables.known[row], length = tables.length[entry];
    if (known >= tables.until[entry] || known < length) return false;
    const int64_t* prefix = tables.prefix + (entry + 1) * tables.width - length;
    return std::equal(prefix, prefix + length, tables.history + row * tables.max_len + known - length);
}

void ban(const EditTables& tables, int64_t row, float* edited) {
    for (int64_t entry = tables.first[row]; entry < tables.first[row + 1]; entry++)
        // NaN stays.
        if (is_banned(tables, row, entry)) edited[tables.token[entry]] -= INFINITY;
}

}  // namespace
}  // namespace qcpu

// `count` rows of logits, `stride` values apart, to edited (count, vocab). `rows` are their lines in the tables.
QCPU_API void qcpu_edit(const void* logits, long count, long vocab, long stride, int dtype, const int64_t* rows,
                        const qcpu::EditTables* tables, float* edited) {
    using namespace qcpu;
    Turn turn;
    const auto run = the_edit_table().edit;
    const long blocks = (vocab + BLOCK - 1) / BLOCK, all = count * blocks;
    const long parts = count * vocab < WORTH ? 1 : std::min(all, PARTS);
    parallel_for(parts, [&](long part, int) {
        for (long i = all * part / parts; i < all * (part + 1) / parts; i++) {
            const long row = i / blocks, first = i % blocks * BLOCK;
            EditLine line = line_of(*tables, rows[row], vocab);
            line.logits = (const char*)logits + row * stride * (dtype ? 2 : 4);
            line.edited = edited + row * vocab;
            line.dtype = dtype;
            run(line, first, std::min(first + BLOCK, vocab));
        }
    });
    for (long i = 0; tables->first && i < count; i++) ban(*tables, rows[i], edited + i * vocab);
}
