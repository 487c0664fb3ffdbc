// Checks weights whose groups have scales: put in from codes and numbers drawn at random, read again, and multiplied with.
#include <stdint.h>

#include "products.h"

using namespace qcpu;

extern "C" void qcpu_put_groups(const Matrix*, long, long, const Groups*);

namespace {

// A number of few bits, so that products with codes are exact, as float16 (1 / 512 to 63 / 512) or as it is.
float small_number() { return float(between(1, 63)) / 512; }
uint16_t as_half(float v) {
    int exponent = 15;
    for (; v < 1; v *= 2) exponent--;
    return uint16_t(exponent << 10 | int((v - 1) * 1024));
}

// Scales or shifts of every group, as the head has them, and their units.
struct Drawn {
    std::vector<float> values, floats;
    std::vector<uint16_t> halves, units;
    std::vector<int8_t> steps;

    Drawn(const Matrix& m) {
        const long groups = divided_up(m.inputs, m.group), blocks = divided_up(m.inputs, span(m));
        for (long n = 0; n < m.outputs; n++) {
            std::vector<float> unit;
            for (long b = 0; b < blocks; b++) unit.push_back(small_number()), units.push_back(as_half(unit.back()));
            for (long g = 0; g < groups; g++) {
                floats.push_back(small_number());
                halves.push_back(as_half(floats.back()));
                steps.push_back(int8_t(between(-128, 127)));
                values.push_back(m.scales == STEPS ? steps.back() * unit[size_t(g * m.group / span(m))] : floats.back());
            }
        }
    }
    const uint8_t* data(const Matrix& m) const {
        const void* const all[] = {floats.data(), halves.data(), steps.data()};
        return (const uint8_t*)all[m.scales];
    }
};

}  // namespace

void check_groups(const char* set, int format) {
    const int groups[] = {16, 32, 64, 128, 256}, most = format == INT4 ? 15 : format == INT6 ? 63 : 255;
    const int scales = int(next() % 3), shifted = int(next() % 2);
    Matrix m{nullptr, between(1, 80), between(1, 600), format, groups[next() % 5], scales, shifted, int(between(0, most))};
    const std::vector<uint8_t> memory = memory_for(m);
    std::vector<uint8_t> codes;
    for (long i = 0; i < m.outputs * m.inputs; i++) codes.push_back(uint8_t(between(0, most)));
    const Drawn scale(m), shift(m);
    const auto put = [&](long first, long rows) {
        const long each = divided_up(m.inputs, m.group) * (scales == FLOATS ? 4 : scales == HALVES ? 2 : 1);
        const long blocks = divided_up(m.inputs, span(m)), at = first * each;
        const Groups from{codes.data() + first * m.inputs, scale.data(m) + at, shift.data(m) + at,
                          (const uint8_t*)(scale.units.data() + first * blocks),
                          (const uint8_t*)(shift.units.data() + first * blocks)};
        qcpu_put_groups(&m, first, rows, &from);
    };
    // In two goes, the second half first.
    const long half = between(0, m.outputs - 1);
    put(half, m.outputs - half);
    put(0, half);

    const std::vector<float> kept = values_of(m);
    for (size_t i = 0; i < kept.size(); i++) {
        const size_t at = i / size_t(m.inputs) * size_t(divided_up(m.inputs, m.group)) + i % size_t(m.inputs) / size_t(m.group);
        const float want = float(codes[i] - m.zero) * scale.values[at] + (shifted ? shift.values[at] : 0.0f);
        if (kept[i] != want) fail(set, m, 0, "a kept value", kept[i], want);
    }
    check_product(set, m, kept, int(next() % 2));
}
