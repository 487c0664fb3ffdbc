// AVX-512: sixteen lanes. With BF16, 32 products of bfloat16 are one instruction; with VNNI, 64 of bytes.

typedef __m512 Floats;
static const int LANES = 16;

static inline Floats floats_zero() { return _mm512_setzero_ps(); }
static inline Floats floats_all(float f) { return _mm512_set1_ps(f); }
static inline Floats floats_load(const float* p) { return _mm512_loadu_ps(p); }
static inline void floats_store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
static inline Floats floats_load_bfloat16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
static inline void floats_store_bfloat16(uint16_t* p, Floats v) {
#ifdef __AVX512BF16__
    _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v));
#else
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_mov_epi32(rounded, nan, quiet);
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
#endif
}
static inline Floats floats_add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
static inline Floats floats_mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
static inline Floats floats_div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
static inline Floats floats_min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
static inline Floats floats_round(Floats a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline Floats floats_fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
static inline Floats floats_abs(Floats a) { return _mm512_abs_ps(a); }
static inline Floats floats_max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
static inline float floats_highest(Floats a) { return _mm512_reduce_max_ps(a); }
static inline float floats_sum(Floats a) { return _mm512_reduce_add_ps(a); }
// LANES values, rounded to nearest even, as signed bytes.
static inline void floats_store_bytes(int8_t* p, Floats v) {
    _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
}

static inline Floats floats_load_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
static inline Floats floats_load_bytes(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}

// Sums of products of bytes. Not __m512i, which may alias anything and so is kept in memory beside the registers.
typedef int32_t Ints __attribute__((vector_size(64)));
static inline Floats floats_from(Ints v) { return _mm512_cvtepi32_ps((__m512i)v); }
static inline Ints ints_dot(Ints s, __m512i unsigned_bytes, __m512i bytes) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)s, unsigned_bytes, bytes);
}

static inline void fetch(const uint8_t* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }

// What a kind of product is made of. A vector of a panel holds LANES outputs; `Sum` is what is summed up in; x_bytes is
// one prepared element; columns(rows) says how many vectors a tile of so many rows computes side by side.
struct WideTiles {
    static const int tile_rows = 12;
    static constexpr int columns(int rows) { return rows <= 3 ? 8 : rows <= 6 ? 4 : 2; }
};

struct Float32 : WideTiles {
    typedef __m512 Sum, Weight, X;
    static const int step_bytes = 128, vector_bytes = 64, x_bytes = 4;
    static Sum zero() { return _mm512_setzero_ps(); }
    static Weight load(const uint8_t* p) { return _mm512_loadu_ps(p); }
    static X spread(const uint8_t* p) { return _mm512_set1_ps(*(const float*)p); }
    static Sum dot(Sum s, Weight w, X x) { return _mm512_fmadd_ps(w, x, s); }
};

#ifdef __AVX512BF16__
struct Bfloat16 : WideTiles {
    typedef __m512 Sum;
    typedef __m512bh Weight, X;
    static const int step_bytes = 128, vector_bytes = 64, x_bytes = 4;
    static Sum zero() { return _mm512_setzero_ps(); }
    static Weight load(const uint8_t* p) { return (Weight)_mm512_loadu_si512(p); }
    static X spread(const uint8_t* p) { return (X)_mm512_set1_epi32(*(const int32_t*)p); }
    static Sum dot(Sum s, Weight w, X x) { return _mm512_dpbf16_ps(s, w, x); }
};
#else
struct Bfloat16 : WideTiles {
    typedef __m512 Sum;
    struct Weight { __m512 even, odd; };
    typedef Weight X;
    static const int step_bytes = 128, vector_bytes = 64, x_bytes = 8;
    static Sum zero() { return _mm512_setzero_ps(); }
    static Weight load(const uint8_t* p) {
        const __m512i pairs = _mm512_loadu_si512(p);
        return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)),
                _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000u)))};
    }
    static X spread(const uint8_t* p) { return {_mm512_set1_ps(((const float*)p)[0]), _mm512_set1_ps(((const float*)p)[1])}; }
    static Sum dot(Sum s, Weight w, X x) { return _mm512_fmadd_ps(w.odd, x.odd, _mm512_fmadd_ps(w.even, x.even, s)); }
};
#endif

// The instruction multiplies unsigned bytes with signed ones: x is stored + 128, which the start of the sums
// takes off again.
struct Int8 : WideTiles {
    typedef Ints Sum;
    typedef __m512i Weight, X;
    static const int step_bytes = 64, vector_bytes = 64, x_bytes = 4;
    static const bool x_unsigned = true;
    static Sum zero() { return Ints{}; }
    static Sum load_sum(const int32_t* p) { return (Ints)_mm512_loadu_si512(p); }
    static Weight load(const uint8_t* p) { return _mm512_loadu_si512(p); }
    static X spread(const uint8_t* p) { return _mm512_set1_epi32(*(const int32_t*)p); }
    static Sum dot(Sum s, Weight w, X x) { return ints_dot(s, x, w); }
};

// Codes are unsigned as they lie, so here x is the signed one. A step has so many times four inputs; what is summed up
// are products of codes less `raised`.
struct Int4 : WideTiles {
    typedef Ints Sum;
    static const int fours = 2, raised = 0;
    struct Weight { __m512i low, high; };
    typedef Weight X;
    static const int step_bytes = 64, vector_bytes = 64, x_bytes = 4;
    static Sum start(const int32_t* p) { return (Ints)_mm512_set1_epi32(*p); }
    static Weight load(const uint8_t* p) {
        const __m512i both = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
        return {_mm512_and_si512(both, mask), _mm512_and_si512(_mm512_srli_epi16(both, 4), mask)};
    }
    static X spread(const uint8_t* p, long next) {
        return {_mm512_set1_epi32(*(const int32_t*)p), _mm512_set1_epi32(*(const int32_t*)(p + next))};
    }
    static Sum dot(Sum s, Weight w, X x) {
        return ints_dot(ints_dot(s, w.low, x.low), w.high, x.high);
    }
};

struct Int6 : WideTiles {
    typedef Ints Sum;
    struct Weight { __m512i part[4]; };
    typedef Weight X;
    static const int fours = 4, raised = 0;
    static const int step_bytes = 192, vector_bytes = 64, x_bytes = 4;
    static Sum start(const int32_t* p) { return (Ints)_mm512_set1_epi32(*p); }
    static Weight load(const uint8_t* p) {
        const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8(48);
        const __m512i a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + 64), c = _mm512_loadu_si512(p + 128);
        const auto joined = [&](__m512i half, __m512i bits) {
            // half & low | bits & high
            return _mm512_ternarylogic_epi32(_mm512_and_si512(half, low), bits, high, 0xf8);
        };
        return {{joined(a, _mm512_slli_epi16(c, 4)), joined(_mm512_srli_epi16(a, 4), _mm512_slli_epi16(c, 2)),
                 joined(b, c), joined(_mm512_srli_epi16(b, 4), _mm512_srli_epi16(c, 2))}};
    }
    static X spread(const uint8_t* p, long next) {
        X x;
        for (int i = 0; i < 4; i++) x.part[i] = _mm512_set1_epi32(*(const int32_t*)(p + i * next));
        return x;
    }
    static Sum dot(Sum s, Weight w, X x) {
        for (int i = 0; i < 4; i++) s = ints_dot(s, w.part[i], x.part[i]);
        return s;
    }
};

struct Codes : WideTiles {
    typedef Ints Sum;
    typedef __m512i Weight, X;
    static const int fours = 1, raised = 0;
    static const int step_bytes = 64, vector_bytes = 64, x_bytes = 4;
    static Sum start(const int32_t* p) { return (Ints)_mm512_set1_epi32(*p); }
    static Weight load(const uint8_t* p) { return _mm512_loadu_si512(p); }
    static X spread(const uint8_t* p, long) { return _mm512_set1_epi32(*(const int32_t*)p); }
    static Sum dot(Sum s, Weight w, X x) { return ints_dot(s, w, x); }
};
