// Finds the instruction set to use, and lets callers choose another.
#include "isa.h"

#include <string.h>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace qcpu {
namespace {

struct Set {
    const char* name;
    bool (*there)();
};

#if defined(__x86_64__)
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
bool has_amx() {
#if defined(QCPU_EMULATE_AMX)
    return has_avx512_bf16();
#elif defined(__linux__)
    // The compiler's list may lack AMX; leaf 7 of CPUID has it, and the kernel must grant the tiles' state.
    unsigned a = 7, b = 0, c = 0, d = 0;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    const unsigned wanted = 1u << 22 | 1u << 24 | 1u << 25;  // amx-bf16, amx-tile, amx-int8
    if (!has_avx512_bf16() || (d & wanted) != wanted) return false;
    const int ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
#else
    return false;
#endif
}
const Set SETS[] = {
    {"avx2", has_avx2}, {"avx512", has_avx512}, {"avx512_bf16", has_avx512_bf16}, {"amx", has_amx}};
#else
bool always() { return true; }
const Set SETS[] = {{"neon", always}};
#endif
const int COUNT = sizeof SETS / sizeof *SETS;

int best() {
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    for (int i = COUNT; i-- > 0;)
        if (SETS[i].there()) return i;
    return -1;
}
int chosen = best();

}  // namespace

int isa() { return chosen; }
}  // namespace qcpu

// Raised with every change of a signature; the caller refuses another.
QCPU_API int qcpu_abi() { return 9; }

// Use the instruction set called `wanted`, or the best with a null pointer. Returns its name, or null and changes
// nothing if the processor lacks it (or every one). Not while a kernel runs.
QCPU_API const char* qcpu_set_isa(const char* wanted) {
    using namespace qcpu;
    int found = wanted ? -1 : best();
    for (int i = 0; wanted && i < COUNT; i++)
        if (!strcmp(wanted, SETS[i].name) && SETS[i].there()) found = i;
    if (found < 0) return nullptr;
    chosen = found;
    return SETS[found].name;
}
