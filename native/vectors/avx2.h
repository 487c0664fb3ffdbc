// AVX2 with FMA: eight lanes, sixteen registers.

typedef __m256 Floats;
static const int LANES = 8;

static inline Floats floats_zero() { return _mm256_setzero_ps(); }
static inline Floats floats_all(float f) { return _mm256_set1_ps(f); }
static inline Floats floats_load(const float* p) { return _mm256_loadu_ps(p); }
static inline void floats_store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
static inline Floats floats_load_bfloat16(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
static inline void floats_store_bfloat16(uint16_t* p, Floats v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i kept = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1)));
}
static inline Floats floats_add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
static inline Floats floats_mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
static inline Floats floats_div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
static inline Floats floats_min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
static inline Floats floats_round(Floats a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline Floats floats_fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
static inline Floats floats_abs(Floats a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline Floats floats_max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
static inline float floats_highest(Floats a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
static inline float floats_sum(Floats a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
// LANES values, rounded to nearest even, as signed bytes.
static inline void floats_store_bytes(int8_t* p, Floats v) {
    const __m256i whole = _mm256_cvtps_epi32(v);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(words, words));
}
static inline Floats floats_from(__m256i v) { return _mm256_cvtepi32_ps(v); }
static inline Floats floats_load_half(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
static inline Floats floats_load_bytes(const int8_t* p) {
    return floats_from(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}

static inline void fetch(const uint8_t* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }

// See avx512.h.
struct Float32 {
    typedef __m256 Sum, Weight, X;
    static const int step_bytes = 128, vector_bytes = 32, x_bytes = 4, tile_rows = 6;
    static constexpr int columns(int rows) { return rows == 1 ? 8 : rows <= 3 ? 4 : 2; }
    static Sum zero() { return _mm256_setzero_ps(); }
    static Weight load(const uint8_t* p) { return _mm256_loadu_ps((const float*)p); }
    static X spread(const uint8_t* p) { return _mm256_broadcast_ss((const float*)p); }
    static Sum dot(Sum s, Weight w, X x) { return _mm256_fmadd_ps(w, x, s); }
};

struct NarrowTiles {
    static const int tile_rows = 4;
    static constexpr int columns(int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : 2; }
};

struct Bfloat16 : NarrowTiles {
    typedef __m256 Sum;
    struct Weight { __m256 even, odd; };
    typedef Weight X;
    static const int step_bytes = 128, vector_bytes = 32, x_bytes = 8;
    static Sum zero() { return _mm256_setzero_ps(); }
    static Weight load(const uint8_t* p) {
        const __m256i pairs = _mm256_loadu_si256((const __m256i*)p);
        return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)),
                _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000u)))};
    }
    static X spread(const uint8_t* p) {
        return {_mm256_broadcast_ss((const float*)p), _mm256_broadcast_ss((const float*)p + 1)};
    }
    static Sum dot(Sum s, Weight w, X x) { return _mm256_fmadd_ps(w.odd, x.odd, _mm256_fmadd_ps(w.even, x.even, s)); }
};

// Products of unsigned and signed bytes saturate in pairs; of values below 128 in magnitude they do not.
struct Int8 : NarrowTiles {
    typedef __m256i Sum, X;
    struct Weight { __m256i value, magnitude; };
    static const int step_bytes = 64, vector_bytes = 32, x_bytes = 4;
    static const bool x_unsigned = false;
    static Sum zero() { return _mm256_setzero_si256(); }
    static Sum load_sum(const int32_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
    static Weight load(const uint8_t* p) {
        const __m256i w = _mm256_loadu_si256((const __m256i*)p);
        return {w, _mm256_abs_epi8(w)};
    }
    static X spread(const uint8_t* p) { return _mm256_set1_epi32(*(const int32_t*)p); }
    static Sum dot(Sum s, Weight w, X x) {
        const __m256i pairs = _mm256_maddubs_epi16(w.magnitude, _mm256_sign_epi8(x, w.value));
        return _mm256_add_epi32(s, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
};

struct Int4 : NarrowTiles {
    typedef __m256i Sum;
    static const int fours = 2, raised = 0;
    struct Weight { __m256i low, high; };
    typedef Weight X;
    static const int step_bytes = 64, vector_bytes = 32, x_bytes = 4;
    static Sum start(const int32_t* p) { return _mm256_set1_epi32(*p); }
    static Weight load(const uint8_t* p) {
        const __m256i both = _mm256_loadu_si256((const __m256i*)p), mask = _mm256_set1_epi8(15);
        return {_mm256_and_si256(both, mask), _mm256_and_si256(_mm256_srli_epi16(both, 4), mask)};
    }
    static X spread(const uint8_t* p, long next) {
        return {_mm256_set1_epi32(*(const int32_t*)p), _mm256_set1_epi32(*(const int32_t*)(p + next))};
    }
    static Sum dot(Sum s, Weight w, X x) {
        const __m256i pairs =
            _mm256_add_epi16(_mm256_maddubs_epi16(w.low, x.low), _mm256_maddubs_epi16(w.high, x.high));
        return _mm256_add_epi32(s, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
};

struct Int6 : NarrowTiles {
    typedef __m256i Sum;
    struct Weight { __m256i part[4]; };
    typedef Weight X;
    static const int fours = 4, raised = 0;
    static const int step_bytes = 192, vector_bytes = 32, x_bytes = 4;
    static Sum start(const int32_t* p) { return _mm256_set1_epi32(*p); }
    static Weight load(const uint8_t* p) {
        const __m256i low = _mm256_set1_epi8(15), high = _mm256_set1_epi8(48);
        const auto at = [&](int plane) { return _mm256_loadu_si256((const __m256i*)(p + plane * 64)); };
        const __m256i a = at(0), b = at(1), c = at(2);
        const auto joined = [&](__m256i half, __m256i bits) {
            return _mm256_or_si256(_mm256_and_si256(half, low), _mm256_and_si256(bits, high));
        };
        return {{joined(a, _mm256_slli_epi16(c, 4)), joined(_mm256_srli_epi16(a, 4), _mm256_slli_epi16(c, 2)),
                 joined(b, c), joined(_mm256_srli_epi16(b, 4), _mm256_srli_epi16(c, 2))}};
    }
    static X spread(const uint8_t* p, long next) {
        X x;
        for (int i = 0; i < 4; i++) x.part[i] = _mm256_set1_epi32(*(const int32_t*)(p + i * next));
        return x;
    }
    // Two products of codes below 64 fit words of 16 bits.
    static Sum dot(Sum s, Weight w, X x) {
        for (int i = 0; i < 4; i += 2) {
            const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(w.part[i], x.part[i]),
                                                   _mm256_maddubs_epi16(w.part[i + 1], x.part[i + 1]));
            s = _mm256_add_epi32(s, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
        return s;
    }
};

struct Codes : NarrowTiles {
    typedef __m256i Sum, X;
    typedef Int8::Weight Weight;
    static const int fours = 1, raised = 128;
    static const int step_bytes = 64, vector_bytes = 32, x_bytes = 4;
    static Sum start(const int32_t* p) { return _mm256_set1_epi32(*p); }
    static Weight load(const uint8_t* p) {
        const __m256i w = _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)p), _mm256_set1_epi8(-128));
        return {w, _mm256_abs_epi8(w)};
    }
    static X spread(const uint8_t* p, long) { return _mm256_set1_epi32(*(const int32_t*)p); }
    static Sum dot(Sum s, Weight w, X x) { return Int8::dot(s, w, x); }
};
