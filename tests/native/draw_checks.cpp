// Checks draws of the compiled kernels against a sort and the noise of every token, like driver.cpp, which calls this.
#include <math.h>
#include <stdint.h>
#include <stdio.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "values.h"

extern "C" void qcpu_draw(const void*, long, long, long, int, const int64_t*, const int32_t*, const float*,
                          const int64_t*, int64_t*);

namespace {

// Minus a Gumbel variate of token `id`; see quire/ops/noise.py.
double noise(uint64_t seed, int64_t position, uint32_t id) {
    uint64_t row = seed + uint64_t(position + 1) * 0x9E3779B97F4A7C15u;
    row = (row ^ row >> 30) * 0xBF58476D1CE4E5B9u;
    row = (row ^ row >> 27) * 0x94D049BB133111EBu;
    row ^= row >> 31;
    uint32_t bits = id ^ uint32_t(row);
    bits = (bits ^ bits >> 17) * 0xED5AD4BBu;
    bits = (bits ^ bits >> 11) * 0xAC4C1B51u;
    bits += uint32_t(row >> 32);
    bits = (bits ^ bits >> 15) * 0x31848BABu;
    bits = (bits ^ bits >> 14) & 0x7fffffff;
    return log(-log1p(-(bits + 0.5) * (1 - 1.0 / 16777216) / 2147483648.0));
}

// What may be drawn, and the largest sum of logit and noise among it.
struct Expected {
    double best = -INFINITY;
    std::vector<bool> kept;
};

// Where the nucleus holds `top_p` of all.
Expected expected(const Values& logits, long vocab, const float* numbers, const int64_t* integers, int64_t position,
                  double top_p) {
    std::vector<long> order(size_t(vocab), 0);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](long a, long b) { return logits.at(a) > logits.at(b); });
    const double top = logits.at(order[0]);
    const auto scaled = [&](long id) { return (logits.at(id) - top) / numbers[0]; };
    double total = 0, before = 0;
    for (long i = 0; i < integers[0]; i++) total += scaled(order[size_t(i)]) >= numbers[2] ? exp(scaled(order[size_t(i)])) : 0;
    Expected made;
    made.kept.assign(size_t(vocab), false);
    for (long i = 0; i < integers[0]; i++) {
        const long id = order[size_t(i)];
        if (scaled(id) < numbers[2] || (i && before >= top_p * total)) break;
        before += exp(scaled(id));
        made.kept[size_t(id)] = true;
        made.best = std::max(made.best, scaled(id) - noise(uint64_t(integers[1]), position, uint32_t(id)));
    }
    return made;
}

// Draws of one row of `count`, and of a second one that is lost. A row that is alone and long is drawn by all threads.
void check(const char* set, int dtype, long count, long vocab) {
    Values logits(dtype, count * vocab);
    const float width = next() % 2 ? 0.25f : 1;
    for (long i = 0; i < count * vocab; i++) logits.set(i, logits.at(i) * (next() % 2 ? 8 : 2) * width);
    if (count > 1) logits.set(vocab + between(0, vocab - 1), NAN);
    const float numbers[12] = {0.7f, next() % 2 ? 1.0f : 0.8f, next() % 2 ? -INFINITY : -6.0f, 0, 0, 0, 1, 1, -INFINITY};
    const int64_t integers[4] = {next() % 2 ? vocab : between(1, vocab), int64_t(next()), vocab, 1}, rows[2] = {0, 1};
    const int32_t known[2] = {int32_t(next() % 1000), 0};
    int64_t drawn[4];
    qcpu_draw(logits.data, count, vocab, vocab, dtype, rows, known, numbers, integers, drawn);
    // What lies at the end of a nucleus may be kept or not.
    const auto expect = [&](double share) {
        return expected(logits, vocab, numbers, integers, known[0], numbers[1] < 1 ? numbers[1] * share : INFINITY);
    };
    const Expected most = expect(1 + 1e-5), least = expect(1 - 1e-5);
    float top = -INFINITY;
    for (long i = 0; i < vocab; i++) top = std::max(top, logits.at(i));
    const long id = drawn[0];
    const bool there = id >= 0 && id < vocab && most.kept[size_t(id)];
    const double noisy = there ? (logits.at(id) - top) / numbers[0] - noise(uint64_t(integers[1]), known[0], uint32_t(id)) : 0;
    const bool told = drawn[count] == 0 && (count == 1 || (drawn[1] == 0 && drawn[3] == 1));
    if (there && told && noisy >= least.best - 1e-4) return;
    if (failures++ < 20)
        printf("%s a draw of %ld, dtype %d: token %ld at %g, not %g\n", set, vocab, dtype, id, noisy, least.best);
}

}  // namespace

void check_draws(const char* set, long rounds) {
    for (long i = 0; i < 4 * rounds; i++)
        for (int dtype = 0; dtype < 2; dtype++) {
            check(set, dtype, 2, next() % 3 ? between(1, 600) : between(5000, 20000));
            if (i % 4 == 0) check(set, dtype, 1, between(33000, 70000));
        }
}
