// Values drawn at random, and where differences are counted, for the checks of the compiled kernels.
#pragma once

#include <stdint.h>
#include <stdlib.h>

#include "bfloat16.h"

inline int failures = 0;
inline uint64_t state = 1;

inline uint64_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 33;
}
inline long between(long low, long high) { return low + long(next() % uint64_t(high - low + 1)); }
inline float normal() {
    float sum = 0;
    for (int i = 0; i < 4; i++) sum += float(next() % 65536) / 32768.0f - 1.0f;
    return sum * 0.866f;
}

// Floats (0) or bfloat16s (1), in memory that ends where they do.
struct Values {
    const int dtype;
    uint8_t* const data;
    Values(int dtype, long count) : dtype(dtype), data((uint8_t*)malloc(size_t(count * (dtype ? 2 : 4)) + 1)) {
        for (long i = 0; i < count; i++) set(i, normal());
    }
    Values(const Values&) = delete;
    ~Values() { free(data); }
    void set(long i, float value) {
        if (dtype) ((uint16_t*)data)[i] = qcpu::to_bfloat16(value);
        else ((float*)data)[i] = value;
    }
    float at(long i) const { return dtype ? qcpu::from_bfloat16(((uint16_t*)data)[i]) : ((float*)data)[i]; }
    const void* from(long i) const { return data + i * (dtype ? 2 : 4); }
};
