// bfloat16: the upper half of a float.
#pragma once

#include <stdint.h>
#include <string.h>

namespace qcpu {

static inline float from_bfloat16(uint16_t e) {
    const uint32_t bits = (uint32_t)e << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

// To the nearest, ties to even; NaN stays NaN.
static inline uint16_t to_bfloat16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

}  // namespace qcpu
