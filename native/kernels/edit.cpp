// Bias, penalties and masks in one pass over the logits of a row, for one instruction set; see edit.h.
#include "../edit.h"

#include "../simd.h"

namespace qcpu {
namespace QCPU_ISA {
extern const EditTable edit_table;
namespace {

const float LARGEST = 3.4028234663852886e38f;

// A product that is rounded before something is added to it, as torch rounds it: never half of a fused instruction.
INLINE vf rounded(vf product) {
#if defined(__x86_64__)
    __asm__("" : "+v"(product));
#else
    __asm__("" : "+w"(product));
#endif
    return product;
}

INLINE vi counts_upto(const int32_t* p, long n) {
    if (n >= LANES) return read_as<vi>(p);
    vi some{};
    memcpy(&some, p, n * sizeof *p);
    return some;
}

INLINE vf penalized(const EditLine& by, vf x, vi counts) {
    const vf generated = __builtin_convertvector(counts & (IN_PROMPT - 1), vf);
    const vf once = generated < 1.0f ? generated : splat(1.0f);
    const vf divided = pick(x > 0.0f, x / by.repetition, rounded(x * by.repetition));
    x = pick(counts > 0, divided, x) - rounded(generated * by.frequency);
    return x - rounded(once * by.presence);
}

template <class T>
void edit_row(EditLine by, long first, long last) {
    const auto* logits = (const typename T::elem*)by.logits;
    for (long i = first; i < last; i += LANES) {
        vf x = load_upto<T>(logits + i, last - i);
        if (by.offsets) x += load_upto<Floats>(by.offsets + i, last - i);
        if (by.counts) {
            const vi counts = counts_upto(by.counts + i, last - i);
            if (any(counts != 0)) x = penalized(by, x, counts);
        }
        x = pick(x > LARGEST, splat(LARGEST), x);
        // NaN stays, as where -infinity is added.
        if (by.mask) x = pick((splat_int(by.mask[i / 32] >> i % 32) >> ramp() & 1) != 0, x, x - INFINITY);
        store_upto<Floats>(by.edited + i, x, last - i);
    }
}

void edit(const EditLine& by, long first, long last) {
    if (by.dtype) edit_row<Halves>(by, first, last);
    else edit_row<Floats>(by, first, last);
}

}  // namespace

const EditTable edit_table{edit};

}  // namespace QCPU_ISA
}  // namespace qcpu
