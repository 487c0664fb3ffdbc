// NEON: four lanes, thirty-two registers.

typedef float32x4_t Floats;
static const int LANES = 4;

static inline Floats floats_zero() { return vdupq_n_f32(0); }
static inline Floats floats_all(float f) { return vdupq_n_f32(f); }
static inline Floats floats_load(const float* p) { return vld1q_f32(p); }
static inline void floats_store(float* p, Floats v) { vst1q_f32(p, v); }
static inline Floats floats_load_bfloat16(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
static inline void floats_store_bfloat16(uint16_t* p, Floats v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    vst1_u16(p, vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet), 16));
}
static inline Floats floats_add(Floats a, Floats b) { return vaddq_f32(a, b); }
static inline Floats floats_mul(Floats a, Floats b) { return vmulq_f32(a, b); }
static inline Floats floats_div(Floats a, Floats b) { return vdivq_f32(a, b); }
static inline Floats floats_min(Floats a, Floats b) { return vminq_f32(a, b); }
static inline Floats floats_round(Floats a) { return vrndnq_f32(a); }
static inline Floats floats_fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
static inline Floats floats_abs(Floats a) { return vabsq_f32(a); }
static inline Floats floats_max(Floats a, Floats b) { return vmaxq_f32(a, b); }
static inline float floats_highest(Floats a) { return vmaxvq_f32(a); }
static inline float floats_sum(Floats a) { return vaddvq_f32(a); }
// LANES values, rounded to nearest even, as signed bytes.
static inline void floats_store_bytes(int8_t* p, Floats v) {
    const int16x4_t words = vqmovn_s32(vcvtnq_s32_f32(v));
    const int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
    vst1_lane_s32((int32_t*)p, vreinterpret_s32_s8(bytes), 0);
}
static inline Floats floats_from(int32x4_t v) { return vcvtq_f32_s32(v); }
static inline Floats floats_load_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline Floats floats_load_bytes(const int8_t* p) {
    int32_t four;
    memcpy(&four, p, 4);
    const int16x8_t words = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return floats_from(vmovl_s16(vget_low_s16(words)));
}

static inline void fetch(const uint8_t* p) { __builtin_prefetch(p, 0, 2); }

// See avx512.h.
struct Tiles {
    static const int tile_rows = 6;
    static constexpr int columns(int rows) { return rows <= 2 ? 8 : rows <= 4 ? 4 : 2; }
};

struct Float32 : Tiles {
    typedef float32x4_t Sum, Weight, X;
    static const int step_bytes = 128, vector_bytes = 16, x_bytes = 4;
    static Sum zero() { return vdupq_n_f32(0); }
    static Weight load(const uint8_t* p) { return vld1q_f32((const float*)p); }
    static X spread(const uint8_t* p) { return vld1q_dup_f32((const float*)p); }
    static Sum dot(Sum s, Weight w, X x) { return vfmaq_f32(s, w, x); }
};

struct Bfloat16 : Tiles {
    typedef float32x4_t Sum;
    struct Weight { float32x4_t even, odd; };
    typedef Weight X;
    static const int step_bytes = 128, vector_bytes = 16, x_bytes = 8;
    static Sum zero() { return vdupq_n_f32(0); }
    static Weight load(const uint8_t* p) {
        const uint32x4_t pairs = vld1q_u32((const uint32_t*)p);
        return {vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16)),
                vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)))};
    }
    static X spread(const uint8_t* p) { return {vld1q_dup_f32((const float*)p), vld1q_dup_f32((const float*)p + 1)}; }
    static Sum dot(Sum s, Weight w, X x) { return vfmaq_f32(vfmaq_f32(s, w.even, x.even), w.odd, x.odd); }
};

// Sums of four products of bytes, one for each lane.
static inline int32x4_t bytes_dot(int32x4_t s, int8x16_t a, int8x16_t b) {
#ifdef __ARM_FEATURE_DOTPROD
    return vdotq_s32(s, a, b);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
    return vpadalq_s16(s, vpaddq_s16(low, high));
#endif
}

struct Int8 : Tiles {
    typedef int32x4_t Sum;
    typedef int8x16_t Weight, X;
    static const int step_bytes = 64, vector_bytes = 16, x_bytes = 4;
    static const bool x_unsigned = false;
    static Sum zero() { return vdupq_n_s32(0); }
    static Sum load_sum(const int32_t* p) { return vld1q_s32(p); }
    static Weight load(const uint8_t* p) { return vld1q_s8((const int8_t*)p); }
    static X spread(const uint8_t* p) { return vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t*)p)); }
    static Sum dot(Sum s, Weight w, X x) { return bytes_dot(s, w, x); }
};

struct Int4 : Tiles {
    typedef int32x4_t Sum;
    static const int fours = 2, raised = 0;
    struct Weight { int8x16_t low, high; };
    typedef Weight X;
    static const int step_bytes = 64, vector_bytes = 16, x_bytes = 4;
    static Sum start(const int32_t* p) { return vld1q_dup_s32(p); }
    static Weight load(const uint8_t* p) {
        const uint8x16_t both = vld1q_u8(p);
        return {vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15))), vreinterpretq_s8_u8(vshrq_n_u8(both, 4))};
    }
    static X spread(const uint8_t* p, long next) {
        return {vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t*)p)),
                vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t*)(p + next)))};
    }
    static Sum dot(Sum s, Weight w, X x) { return bytes_dot(bytes_dot(s, w.low, x.low), w.high, x.high); }
};

struct Int6 : Tiles {
    typedef int32x4_t Sum;
    struct Weight { int8x16_t part[4]; };
    typedef Weight X;
    static const int fours = 4, raised = 0;
    static const int step_bytes = 192, vector_bytes = 16, x_bytes = 4;
    static Sum start(const int32_t* p) { return vld1q_dup_s32(p); }
    static Weight load(const uint8_t* p) {
        const uint8x16_t a = vld1q_u8(p), b = vld1q_u8(p + 64), c = vld1q_u8(p + 128);
        const auto joined = [](uint8x16_t half, uint8x16_t bits) {
            return vreinterpretq_s8_u8(vorrq_u8(half, vandq_u8(bits, vdupq_n_u8(48))));
        };
        const uint8x16_t low = vdupq_n_u8(15);
        return {{joined(vandq_u8(a, low), vshlq_n_u8(c, 4)), joined(vshrq_n_u8(a, 4), vshlq_n_u8(c, 2)),
                 joined(vandq_u8(b, low), c), joined(vshrq_n_u8(b, 4), vshrq_n_u8(c, 2))}};
    }
    static X spread(const uint8_t* p, long next) {
        X x;
        for (int i = 0; i < 4; i++) x.part[i] = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t*)(p + i * next)));
        return x;
    }
    static Sum dot(Sum s, Weight w, X x) {
        for (int i = 0; i < 4; i++) s = bytes_dot(s, w.part[i], x.part[i]);
        return s;
    }
};

struct Codes : Tiles {
    typedef int32x4_t Sum;
    typedef int8x16_t Weight, X;
    static const int fours = 1, raised = 128;
    static const int step_bytes = 64, vector_bytes = 16, x_bytes = 4;
    static Sum start(const int32_t* p) { return vld1q_dup_s32(p); }
    static Weight load(const uint8_t* p) { return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p), vdupq_n_u8(128))); }
    static X spread(const uint8_t* p, long) { return vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t*)p)); }
    static Sum dot(Sum s, Weight w, X x) { return bytes_dot(s, w, x); }
};
