// Checks edits of logits by the compiled kernels against a loop over all tokens, like driver.cpp, which calls this.
#include <math.h>
#include <stdint.h>
#include <stdio.h>

#include <vector>

#include "edit.h"
#include "values.h"

extern "C" void qcpu_edit(const void*, long, long, long, int, const int64_t*, const qcpu::EditTables*, float*);

namespace {

const long ROWS = 3, MAX_LEN = 4;

// Tables of three rows in memory that ends where they do, and what edits token `at` of row `row` in double.
struct Tables {
    const long vocab, words = (vocab + 31) / 32;
    std::vector<float> numbers, offsets;
    std::vector<int64_t> slots{0, 2, 1}, first{0, 0, 2, 4}, token, until{9, 2, 9, 9}, length{0, 1, 2, 1};
    std::vector<int64_t> prefix{-1, -1, -1, 7, 8, 9, -1, 5};
    std::vector<int32_t> counts, history{0, 0, 0, 0, 6, 7, 0, 0, 8, 9, 0, 0}, known{0, 2, 2};
    std::vector<uint32_t> masks;

    explicit Tables(long vocab) : vocab(vocab) {
        for (long row = 0; row < ROWS; row++)
            for (const float number : {1.0f, 1.0f, 0.0f, 1.25f, 0.5f, -0.75f}) numbers.push_back(number);
        for (long i = 0; i < ROWS * vocab; i++) {
            const bool seen = i >= vocab && next() % 8 == 0;
            offsets.push_back(seen ? normal() : 0);
            counts.push_back(seen ? int32_t(next() % 3) | (next() % 2 ? qcpu::IN_PROMPT : 0) : 0);
        }
        for (long i = 0; i < ROWS * words; i++) masks.push_back(uint32_t(next() << 8));
        for (int i = 0; i < 4; i++) token.push_back(between(0, vocab - 1));
    }

    qcpu::EditTables all() const {
        return {numbers.data(), offsets.data(), slots.data(), counts.data(), slots.data(),   masks.data(), first.data(),
                token.data(),   until.data(),   length.data(), prefix.data(), history.data(), known.data(), 2, MAX_LEN};
    }

    // Of the bans above the first and the third hold: the second is over, and the last waits for another token.
    bool banned(long row, long at) const { return (row == 1 && token[0] == at) || (row == 2 && token[2] == at); }

    double edited(long row, long at, double x) const {
        const long entry = slots[size_t(row)] * vocab + at;
        const int32_t count = counts[size_t(entry)], generated = count & (qcpu::IN_PROMPT - 1);
        x += offsets[size_t(entry)];
        if (count) x = x > 0 ? x / 1.25 : x * 1.25;
        x -= 0.5 * generated - (generated ? 0.75 : 0);
        const bool allowed = masks[size_t(row * words + at / 32)] >> at % 32 & 1;
        return allowed && !banned(row, at) ? x : -INFINITY;
    }
};

void check(const char* set, int dtype, long vocab) {
    const Tables tables(vocab);
    const long stride = vocab + between(0, 3);
    const Values logits(dtype, ROWS * stride);
    const int64_t rows[ROWS] = {2, 0, 1};
    std::vector<float> made(size_t(ROWS * vocab));
    const qcpu::EditTables all = tables.all();
    qcpu_edit(logits.data, ROWS, vocab, stride, dtype, rows, &all, made.data());
    for (long i = 0; i < ROWS * vocab; i++) {
        const double want = tables.edited(rows[i / vocab], i % vocab, logits.at(i / vocab * stride + i % vocab));
        const double got = made[size_t(i)];
        if (got == want || fabs(got - want) <= 1e-5 * (1 + fabs(want))) continue;
        if (failures++ < 20) printf("%s an edit of %ld, dtype %d: %g, not %g\n", set, vocab, dtype, got, want);
    }
}

}  // namespace

void check_edits(const char* set, long rounds) {
    for (long i = 0; i < rounds; i++)
        for (int dtype = 0; dtype < 2; dtype++) check(set, dtype, next() % 3 ? between(1, 300) : between(17000, 40000));
}
