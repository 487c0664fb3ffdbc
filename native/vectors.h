// The vectors of the instruction set that a kernel source is compiled for, in its namespace (see isa.h): `Floats` with
// LANES lanes and what can be done with them, and the parts that products are made of.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif

namespace qcpu {
namespace QCPU_ISA {
namespace {
#if defined(__AVX512F__)
#include "vectors/avx512.h"
#elif defined(__AVX2__)
#include "vectors/avx2.h"
#else
#include "vectors/neon.h"
#endif
}  // namespace
}  // namespace QCPU_ISA
}  // namespace qcpu
