// Instruction sets: which there are, and how one source becomes a kernel for each.
//
// native/kernels/*.cpp are compiled once per instruction set by setup.py, with its compiler flags and QCPU_ISA as the
// name of the namespace to write into (avx2, avx512, avx512_bf16, amx; neon). native/*.cpp are compiled once, for the
// plainest processor. A family of kernels hands out one table of functions, and its plain source calls through it:
//
//   norm.h             struct NormTable { void (*run)(const NormJob&, long first, long last); };
//   kernels/norm.cpp   namespace qcpu::QCPU_ISA { ... extern const NormTable norm_table; const NormTable norm_table{...}; }
//   norm.cpp           QCPU_TABLES(NormTable, norm_table)    // defines qcpu::the_norm_table()
//                      QCPU_API void qcpu_norm(...) { qcpu::the_norm_table().run(...); }
//
// Whatever a kernel source includes must have internal linkage (static, or a template over a type of its namespace):
// of an inline function the linker keeps one copy, which may be the one with registers that this processor lacks.
// `make check-extras` scans the library for that. No C++ library and no exceptions: <math.h> and <string.h> at most.
#pragma once

#define QCPU_API extern "C" __attribute__((visibility("default")))

// From the plainest to the best; isa() counts in this order.
#if defined(__x86_64__)
#define QCPU_TABLES(Type, table)                                     \
    namespace qcpu {                                                 \
    namespace avx2 { extern const Type table; }                      \
    namespace avx512 { extern const Type table; }                    \
    namespace avx512_bf16 { extern const Type table; }               \
    namespace amx { extern const Type table; }                       \
    static const Type& the_##table() {                               \
        static const Type* const all[] = {&avx2::table, &avx512::table, &avx512_bf16::table, &amx::table}; \
        return *all[isa()];                                          \
    }                                                                \
    }
#elif defined(__aarch64__)
#define QCPU_TABLES(Type, table)                                     \
    namespace qcpu {                                                 \
    namespace neon { extern const Type table; }                      \
    static const Type& the_##table() { return neon::table; }         \
    }
#else
#error "the kernels are written for x86-64 and AArch64"
#endif

namespace qcpu {
// Number of the instruction set in use: the best that the processor has, unless qcpu_set_isa chose another.
int isa();
}  // namespace qcpu
