// Checks the compiled kernels without Python: against loops that say the same in the plainest way, for every set of
// instructions that the processor has, on shapes drawn at random. Runs under sanitizers and under qemu-user. Products
// are checked here, the rest of a step in step_checks.cpp, weights with groups, draws and experts in files of theirs.
//
//     driver [rounds] [seed]      prints a line for each set and returns 1 where anything differs
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <thread>

#include "products.h"

using namespace qcpu;

extern "C" {
const char* qcpu_set_isa(const char*);
int qcpu_set_threads(int);
long qcpu_packed_bytes(const Matrix*);
void qcpu_put(const Matrix*, long, long, const void*, long, int);
void qcpu_get(const Matrix*, const int64_t*, long, void*, int);
void qcpu_linear(const Matrix*, const Operands*, const void*);
}

namespace {

const char* const SETS[] = {"avx2", "avx512", "avx512_bf16", "amx", "neon", "neon_dotprod"};
const char* const FORMATS[] = {"float32", "bfloat16", "int8", "int4", "int6", "codes"};

}  // namespace

void fail(const char* set, const Matrix& m, long rows, const char* what, double got, double want) {
    if (failures++ < 20)
        printf("%s %s [%ld, %ld] group %d, %ld rows: %s is %g, not %g\n", set, FORMATS[m.format], m.outputs, m.inputs,
               m.group, rows, what, got, want);
}

std::vector<uint8_t> memory_for(Matrix& m) {
    std::vector<uint8_t> memory(size_t(qcpu_packed_bytes(&m)) + 64);
    m.data = memory.data() + (64 - uintptr_t(memory.data()) % 64) % 64;
    return memory;
}

std::vector<float> values_of(const Matrix& m) {
    std::vector<int64_t> all;
    for (long n = 0; n < m.outputs; n++) all.push_back(n);
    std::vector<float> values(size_t(m.outputs * m.inputs));
    qcpu_get(&m, all.data(), m.outputs, values.data(), FLOAT32);
    return values;
}

std::vector<double> rounded(const Matrix& m, const Values& values, long at) {
    std::vector<float> x;
    for (long k = 0; k < m.inputs; k++) x.push_back(values.at(at + k));
    std::vector<double> made(x.begin(), x.end());
    if (m.format < INT8) return made;
    const long group = m.format == INT8 ? m.inputs : m.group;
    for (long g = 0; g < m.inputs; g += group) {
        float high = 0;
        for (long k = g; k < g + group && k < m.inputs; k++) high = fmaxf(high, fabsf(x[size_t(k)]));
        for (long k = g; k < g + group && k < m.inputs && high > 0; k++)
            made[size_t(k)] = nearbyintf(x[size_t(k)] * (127.0f / high)) * (high / 127.0f);
    }
    return made;
}

// The product of `m`, whose values are `kept`, against sums in double.
void check_product(const char* set, const Matrix& m, const std::vector<float>& kept, int dtype) {
    const long rows = next() % 3 ? between(1, 14) : between(1, 60), stride = m.inputs + between(0, 5);
    const long out_stride = m.outputs + between(0, 3);
    const Values x(dtype, rows * stride), bias(dtype, m.outputs);
    Values out(dtype, rows * out_stride);
    const bool biased = next() % 2;
    const Operands operands{x.data, stride, rows, out.data, out_stride, dtype};
    qcpu_linear(&m, &operands, biased ? bias.data : nullptr);
    for (long r = 0; r < rows; r++) {
        const std::vector<double> row = rounded(m, x, r * stride);
        for (long n = 0; n < m.outputs; n++) {
            double sum = biased ? bias.at(n) : 0, size = fabs(sum);
            for (long k = 0; k < m.inputs; k++) {
                const double product = row[size_t(k)] * kept[size_t(n * m.inputs + k)];
                sum += product;
                size += fabs(product);
            }
            const double got = out.at(r * out_stride + n);
            // Quantized values may fall to either side of a tie.
            const double slack = (m.format < INT8 ? 1e-5 : 2e-3) * size + (dtype ? fabs(sum) / 128 : 0) + 1e-6;
            if (!(fabs(got - sum) <= slack)) fail(set, m, rows, "an output", got, sum);
        }
    }
}

namespace {

void check(const char* set, int format) {
    const int groups[] = {32, 64, 128};
    Matrix m{nullptr, between(1, 150), between(1, 300), format, groups[next() % 3], FLOATS, 0, 8};
    const int dtype = format == BFLOAT16 ? 1 : format == FLOAT32 ? 0 : int(next() % 2);
    const std::vector<uint8_t> memory = memory_for(m);
    const Values weight(dtype, m.outputs * m.inputs);
    // In two goes, the second half first.
    const long half = between(0, m.outputs - 1);
    qcpu_put(&m, half, m.outputs - half, weight.from(half * m.inputs), m.inputs, dtype);
    qcpu_put(&m, 0, half, weight.data, m.inputs, dtype);

    const std::vector<float> kept = values_of(m);
    for (long n = 0; n < m.outputs; n++) {
        float high = 0;
        for (long k = 0; k < m.inputs; k++) high = fmaxf(high, fabsf(weight.at(n * m.inputs + k)));
        const float slack = format < INT8 ? 0 : format == INT8 ? high / 253 : high / 3.9f;
        for (long k = 0; k < m.inputs; k++) {
            const long i = n * m.inputs + k;
            const float got = kept[size_t(i)], want = weight.at(i);
            if (!(fabsf(got - want) <= slack)) fail(set, m, 0, "a kept value", got, want);
        }
    }
    check_product(set, m, kept, dtype);
}

// Two threads call at once while the pool grows and shrinks.
void race() {
    std::thread other([] {
        for (int i = 0; i < 200; i++) check("race", i % 4);
    });
    for (int i = 0; i < 50; i++) qcpu_set_threads(1 + i % 4);
    other.join();
}

}  // namespace

// In files of their own.
void check_groups(const char* set, int format);
void check_step(const char* set, long rounds);
void check_draws(const char* set, long rounds);
void check_edits(const char* set, long rounds);
void check_experts(const char* set, long rounds);

int main(int count, char** words) {
    const int rounds = count > 1 ? atoi(words[1]) : 100;
    state = count > 2 ? uint64_t(atoi(words[2])) : 1;
    int sets = 0;
    for (const char* set : SETS) {
        if (!qcpu_set_isa(set)) continue;
        sets++;
        const int before = failures;
        for (int i = 0; i < rounds; i++) {
            qcpu_set_threads(1 + i % 3);
            for (int format = FLOAT32; format <= INT4; format++) check(set, format);
            for (int format = INT4; format <= CODES; format++) check_groups(set, format);
        }
        qcpu_set_threads(3);
        check_step(set, 1 + rounds / 4);
        check_draws(set, 1 + rounds / 4);
        check_edits(set, 1 + rounds / 4);
        check_experts(set, 1 + rounds / 4);
        printf("%s: %d shapes of each format, %d wrong\n", set, rounds, failures - before);
    }
    race();
    if (!sets) printf("this processor has none of the instruction sets\n");
    return failures || !sets;
}
