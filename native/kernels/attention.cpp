// Attention over pages, for one instruction set.
//
// A sequence that computes one token reads each key once, at the speed of memory. Prompts, and several sequences that
// read the same pages, pack a chunk of keys and values into tiles first and then work on many queries at once
// (Dao et al., "FlashAttention", 2022, on the caches of a CPU).
#include "../attention.h"

#include "../tiles.h"

namespace qcpu {
namespace QCPU_ISA {
extern const AttentionTable attention_table;
namespace {

template <int N>
struct Number {
    static constexpr int value = N;
};

constexpr long SHARERS = 6;  // queries from which packing a chunk pays

// T: how numbers lie in the pools and the result. P: how tiles are multiplied.
template <class T, class P>
struct Attend {
    using elem = typename T::elem;
    using quer = typename P::elem;  // queries and weights, as tiles want them
    using pack = typename P::pack;

    const AttentionJob& job;
    quer* const queries;
    const long dim, group, padded, key_stride;

    explicit Attend(const AttentionJob& j)
        : job(j), queries((quer*)j.queries), dim(j.shape.head_dim), group(j.group()), padded(j.padded()),
          key_stride(j.shape.kv_heads * dim) {}

    const elem* row_of(const void* pool, long sequence, long position, long head) const {
        const long page = job.step.pages[sequence * job.step.table_stride + position / job.step.page_size];
        const long slot = page * job.step.page_size + position % job.step.page_size;
        return (const elem*)pool + slot * key_stride + head * dim;
    }

    // ---- preparing: norm and rotate heads, write pages

    void norm(float* x, const void* weight) const {
        vf squares{};
        for (long i = 0; i < dim; i += LANES) {
            vf v = read_as<vf>(x + i);
            squares += v * v;
        }
        const float scale = 1.0f / sqrtf(sum(squares) / dim + (float)job.shape.norm_eps);
        for (long i = 0; i < dim; i += LANES) {
            vf w = load_upto<T>((const elem*)weight + i, dim - i);
            write_as(x + i, read_as<vf>(x + i) * scale * w);
        }
    }

    void rotate(float* x, const float* table) const {
        const long half = job.shape.rotary_dim / 2;
        long i = 0;
        for (; i + LANES <= half; i += LANES) {
            vf a = read_as<vf>(x + i), b = read_as<vf>(x + half + i);
            vf cosine = read_as<vf>(table + i), sine = read_as<vf>(table + half + i);
            write_as(x + i, a * cosine - b * sine);
            write_as(x + half + i, b * cosine + a * sine);
        }
        for (; i < half; i++) {
            const float a = x[i], b = x[half + i];
            x[i] = a * table[i] - b * table[half + i];
            x[half + i] = b * table[i] + a * table[half + i];
        }
    }

    void prepare(long token) const {
        alignas(64) float x[MAX_HEAD_DIM + LANES];
        const long heads = job.shape.heads, kv_heads = job.shape.kv_heads;
        const elem* from = (const elem*)job.qkv + token * (heads + 2 * kv_heads) * dim;
        elem* key = (elem*)job.k_pool + job.step.slots[token] * key_stride;
        elem* value = (elem*)job.v_pool + job.step.slots[token] * key_stride;
        const float* table = job.table + job.step.positions[token] * job.shape.rotary_dim;
        for (long head = 0; head < heads + kv_heads; head++) {
            for (long i = 0; i < dim; i += LANES) write_as(x + i, load_upto<T>(from + head * dim + i, dim - i));
            if (job.shape.has_norm) norm(x, head < heads ? job.q_norm : job.k_norm);
            rotate(x, table);
            if (head < heads) {
                quer* to = queries + (token * heads + head) * dim;
                if constexpr (P::depth == 1) memcpy(to, x, dim * sizeof(float));
                else
                    for (long i = 0; i < dim; i += LANES) store_upto<T>(to + i, read_as<vf>(x + i), dim - i);
            } else {
                elem* to = key + (head - heads) * dim;
                for (long i = 0; i < dim; i += LANES) store_upto<T>(to + i, read_as<vf>(x + i), dim - i);
            }
        }
        memcpy(value, from + (heads + kv_heads) * dim, key_stride * sizeof(elem));
    }

    // ---- scores to weights

    // Scores s[0, n) of the keys [low, high) become weights, e to the (bounded score - maximum), and zeros elsewhere.
    // `most` is the maximum so far, in powers of two, and grows; returns the sum of the weights.
    template <class W>
    float weigh(float* s, long n, long low, long high, float& most, typename W::elem* weights) const {
        const float scale = job.shape.scale, cap = job.shape.soft_cap;
        const float unit = (cap == 0 ? scale : cap) * 1.44269504f;
        if (cap != 0)
            for (long k = 0; k < n; k += LANES) write_as(s + k, hyperbolic_tangent(read_as<vf>(s + k) * (scale / cap)));
        // Only the ends can hold keys that are not seen.
        for (long k = 0; k < n; k += LANES) {
            if (k >= low && k + LANES <= high) continue;
            const vi at = ramp() + (int32_t)k;
            write_as(s + k, pick((at >= (int32_t)low) & (at < (int32_t)high), read_as<vf>(s + k), splat(-INFINITY)));
        }
        vf top = splat(-INFINITY);
        for (long k = 0; k < n; k += LANES) top = larger(read_as<vf>(s + k), top);
        const float found = largest(top) * unit;
        if (found > most) most = found;
        const float base = most == -INFINITY ? 0.0f : most;
        vf total{};
        for (long k = 0; k < n; k += LANES) {
            const vf w = power_of_two(read_as<vf>(s + k) * unit - base);
            total += w;
            W::put(weights + k, w);
        }
        return sum(total);
    }

    // ---- one query of one sequence against one chunk: keys and values as they lie, in the order of memory

    // Scores of LANES / G keys from rows[k] on, for G queries of a KV head, dim apart; rows beyond n repeat the last.
    template <int G>
    void dots(const elem* const* rows, long k, long n, long head, const quer* q, float (*s)[CHUNK]) const {
        constexpr int KEYS = LANES / G;
        vf acc[LANES];
        const elem* key[KEYS];
#pragma GCC unroll 16
        for (int j = 0; j < KEYS; j++) {
            key[j] = rows[k + j < n ? k + j : n - 1] + head * dim;
            prefetch(rows[k + j + AHEAD < n ? k + j + AHEAD : n - 1] + head * dim);
        }
#pragma GCC unroll 16
        for (int j = 0; j < LANES; j++) acc[j] = vf{};
        for (long i = 0; i < dim; i += LANES * P::depth) {
            vf query[G];
#pragma GCC unroll 4
            for (int g = 0; g < G; g++) query[g] = P::some(q + g * dim + i, dim - i);
#pragma GCC unroll 16
            for (int j = 0; j < KEYS; j++) {
                const vf v = keys_at(key[j] + i, dim - i);
#pragma GCC unroll 4
                for (int g = 0; g < G; g++) acc[g * KEYS + j] = P::dot(acc[g * KEYS + j], v, query[g]);
            }
        }
        float sums[LANES];
        write_as(sums, sums_of(acc));
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) memcpy(s[g] + k, sums + g * KEYS, KEYS * sizeof(float));
    }

    // Depth numbers per lane of a key, zeros beyond the n that there are.
    static vf keys_at(const elem* p, long n) {
        if constexpr (P::depth == 2) return P::some(p, n);
        else return load_upto<T>(p, n);
    }

    // Adds ROWS weighted values to the sums of G queries, (G, padded).
    template <int G>
    void add(const elem* const* rows, long k, long n, long head, const quer* weights, float* sums) const {
        constexpr int ROWS = 8;
        const elem* value[ROWS];
#pragma GCC unroll 8
        for (int j = 0; j < ROWS; j++) {
            value[j] = rows[k + j < n ? k + j : n - 1] + head * dim;
            prefetch(rows[k + j + AHEAD < n ? k + j + AHEAD : n - 1] + head * dim);
        }
        constexpr int V = P::depth;
        for (long i = 0; i < dim; i += LANES * V) {
            vf acc[G][V];
#pragma GCC unroll 4
            for (int g = 0; g < G; g++)
#pragma GCC unroll 2
                for (int v = 0; v < V; v++) acc[g][v] = read_as<vf>(sums + g * stride() + i + v * LANES);
#pragma GCC unroll 8
            for (int j = 0; j < ROWS; j += V) {
                vf column[V];
                if constexpr (V == 2) P::interleave(value[j] + i, value[j + 1] + i, dim - i, column);
                else column[0] = load_upto<T>(value[j] + i, dim - i);
#pragma GCC unroll 4
                for (int g = 0; g < G; g++) {
                    const vf share = P::spread(weights + g * CHUNK + k + j);
#pragma GCC unroll 2
                    for (int v = 0; v < V; v++) acc[g][v] = P::dot(acc[g][v], share, column[v]);
                }
            }
#pragma GCC unroll 4
            for (int g = 0; g < G; g++)
#pragma GCC unroll 2
                for (int v = 0; v < V; v++) write_as(sums + g * stride() + i + v * LANES, acc[g][v]);
        }
    }

    static constexpr long AHEAD = 8;  // keys

    // Sums of a query of a sequence that computes one token are so far apart.
    long stride() const { return (dim + 31) / 32 * 32; }

    void prefetch(const elem* p) const {
        for (long i = 0; i < dim; i += 64 / (long)sizeof(elem)) __builtin_prefetch(p + i, 0, 2);
    }

    // All queries of a KV head are worked on four, two or one at a time: f(count as a constant, first query).
    template <class F>
    void by_fours(const F& f) const {
        long g = 0;
        for (; g + 4 <= group; g += 4) f(Number<4>(), g);
        for (; g + 2 <= group; g += 2) f(Number<2>(), g);
        for (; g < group; g++) f(Number<1>(), g);
    }

    // Heads [begin, end) of a sequence that computes one token.
    void decode_one(long sequence, long chunk, long begin, long end, char* scratch) const {
        const long length = job.step.lengths[sequence], token = job.step.query_start[sequence];
        long from = chunk * CHUNK, to = from + CHUNK < length ? from + CHUNK : length;
        const long first = job.first_key(length - 1);
        if (from < first) from = first;
        const elem* rows[CHUNK];
        const long n = to - from, heads = (end - begin) * group;
        for (long k = 0; k < n; k++) rows[k] = row_of(job.k_pool, sequence, from + k, 0);
        float (*s)[CHUNK] = (float (*)[CHUNK])scratch;
        quer* weights = (quer*)(s + heads);
        float *sums = (float*)(weights + heads * CHUNK), *most = sums + heads * stride(), *total = most + heads;
        const quer* q = queries + (token * job.shape.heads + begin * group) * dim;
        for (long k = 0; k < n; k += LANES / 4)
            for (long head = begin; head < end; head++)
                by_fours([&](auto count, long g) {
                    constexpr int G = decltype(count)::value;
                    const long h = (head - begin) * group + g;
                    if (k % (LANES / G) == 0) dots<G>(rows, k, n, head, q + h * dim, s + h);
                });
        for (long h = 0; h < heads; h++) {
            most[h] = -INFINITY;
            // Values are added 8 at a time: what is missing has weights of 0.
            total[h] = weigh<P>(s[h], (n + 15) / 16 * 16, 0, n, most[h], weights + h * CHUNK);
            for (long i = 0; i < stride(); i += LANES) write_as(sums + h * stride() + i, vf{});
        }
        const long shift = (const elem*)job.v_pool - (const elem*)job.k_pool;
        for (long k = 0; k < n; k++) rows[k] += shift;
        for (long k = 0; k < n; k += 8)
            for (long head = begin; head < end; head++)
                by_fours([&](auto count, long g) {
                    const long h = (head - begin) * group + g;
                    add<decltype(count)::value>(rows, k, n, head, weights + h * CHUNK, sums + h * stride());
                });
        for (long h = 0; h < heads; h++) {
            if constexpr (P::depth == 2) P::put_in_order(sums + h * stride(), stride());
            keep(sequence, chunk, begin * group + h, sums + h * stride(), most[h], total[h]);
        }
    }

    // A chunk's sums: the result itself where there is no other chunk, else a part of it.
    void keep(long sequence, long chunk, long head, const float* sums, float most, float weight) const {
        if (job.first_part[sequence] < 0) {
            finish(job.step.query_start[sequence], head, sums, weight);
            return;
        }
        const long part = job.first_part[sequence] + chunk - job.first_chunk[sequence];
        float* to = job.parts + (part * job.shape.heads + head) * (padded + 2);
        memcpy(to, sums, padded * sizeof(float));
        to[padded] = most;
        to[padded + 1] = weight;
    }

    void finish(long token, long head, const float* sums, float weight) const {
        elem* to = (elem*)job.out + (token * job.shape.heads + head) * dim;
        const float scale = weight > 0 || weight != weight ? 1.0f / weight : 0.0f;
        for (long i = 0; i < dim; i += LANES) store_upto<T>(to + i, read_as<vf>(sums + i) * scale, dim - i);
    }

    // All chunks of a KV head of a sequence are there: add them up, in their order.
    void merge(long sequence, long kv_head) const {
        alignas(64) float sums[MAX_HEAD_DIM + LANES];
        const long count = job.chunks[sequence], stride = job.shape.heads * (padded + 2);
        for (long head = kv_head * group; head < (kv_head + 1) * group; head++) {
            const float* part = job.parts + (job.first_part[sequence] * job.shape.heads + head) * (padded + 2);
            float most = -INFINITY, weight = 0;
            for (long c = 0; c < count; c++)
                if (part[c * stride + padded] > most) most = part[c * stride + padded];
            for (long i = 0; i < padded; i += LANES) write_as(sums + i, vf{});
            for (long c = 0; c < count; c++) {
                const float* p = part + c * stride;
                const float share = exp2f(p[padded] - most);
                weight += share * p[padded + 1];
                for (long i = 0; i < padded; i += LANES)
                    write_as(sums + i, read_as<vf>(sums + i) + read_as<vf>(p + i) * share);
            }
            finish(job.step.query_start[sequence], head, sums, weight);
        }
    }

    // ---- many queries against packed chunks

    struct Packed {
        pack* keys;    // [head_dim / depth][CHUNK]
        pack* values;  // [CHUNK / depth][padded]
        float* scores;  // [TILE][CHUNK]
        quer* weights;  // [TILE][CHUNK]
        float* sums;    // [queries][padded]
        float *most, *total;
    };

    // LANES neighbouring packs of a key, from column `at` on.
    vi key_packs(const elem* key, long at) const {
        if constexpr (P::depth == 2) {
            if (at + 2 * LANES <= dim) return read_as<vi>(key + at);
            vi v{};
            memcpy(&v, key + at, (dim - at) * sizeof(elem));
            return v;
        } else {
            return (vi)load_upto<T>(key + at, dim - at);
        }
    }

    // Keys [from, to) of a chunk that begins at `base`, transposed; values of [from, to), zeros before and up to `n`.
    void pack_chunk(const Packed& to_, long sequence, long head, long base, long from, long to, long n) const {
        const elem* rows[CHUNK];
        for (long k = 0; k < n; k++)
            rows[k] = base + k >= from && base + k < to ? row_of(job.k_pool, sequence, base + k, head) : nullptr;
        const long packs = dim / P::depth, shift = (const elem*)job.v_pool - (const elem*)job.k_pool;
        for (long k = 0; k < n; k += LANES) {
            // Rows lie apart: the next keys, and the values of these, are fetched meanwhile.
            for (long j = k; j < k + LANES; j++) {
                if (j + LANES < n && rows[j + LANES]) prefetch(rows[j + LANES]);
                if (rows[j]) prefetch(rows[j] + shift);
            }
            for (long i = 0; i < packs; i += LANES) {
                vi v[LANES];
                for (int j = 0; j < LANES; j++) v[j] = rows[k + j] ? key_packs(rows[k + j], i * P::depth) : vi{};
                transpose(v);
                for (int j = 0; j < LANES && i + j < packs; j++) write_as(to_.keys + (i + j) * CHUNK + k, v[j]);
            }
        }
        for (long k = 0; k < n; k += P::depth)
            for (long i = 0; i < dim; i += LANES) {
                pack* at = to_.values + k / P::depth * padded + i;
                if constexpr (P::depth == 2) {
                    const vu low = rows[k] ? (vu)load_upto<T>(rows[k] + shift + i, dim - i) >> 16 : vu{};
                    const vu high = rows[k + 1] ? (vu)load_upto<T>(rows[k + 1] + shift + i, dim - i) : vu{};
                    write_as(at, low | high);
                } else {
                    write_as(at, rows[k] ? load_upto<T>(rows[k] + shift + i, dim - i) : vf{});
                }
            }
    }

    // A tile of queries against a packed chunk of n keys; query r sees keys [low[r], high[r]) of it. Sums, maxima and
    // weights are those of all chunks so far.
    void attend_tile(const Packed& p, const quer* const* q, long rows, long n, const long* low, const long* high,
                     float* sums, float* most, float* total) const {
        float alpha[TILE];
        const quer* weights[TILE];
        product<P>(q, rows, p.keys, n / LANES, CHUNK, dim / P::depth, p.scores, CHUNK, nullptr);
        for (long r = 0; r < rows; r++) {
            const float before = most[r];
            const float added = weigh<P>(p.scores + r * CHUNK, n, low[r], high[r], most[r], p.weights + r * CHUNK);
            alpha[r] = before == -INFINITY ? 0.0f : exp2f(before - most[r]);
            total[r] = total[r] * alpha[r] + added;
            weights[r] = p.weights + r * CHUNK;
        }
        product<P>(weights, rows, p.values, padded / LANES, padded, n / P::depth, sums, padded, alpha);
    }

    static long whole(long n) { return (n + LANES - 1) / LANES * LANES; }

    void prompt(const Packed& p, const AttentionPiece& item, long head) const {
        const long sequence = item.where, begin = job.step.query_start[sequence];
        const long count = job.step.query_start[sequence + 1] - begin, past = job.step.lengths[sequence] - count;
        const long tokens = TILE / group < 1 ? 1 : TILE / group, queries_ = item.count * group;
        for (long i = 0; i < queries_ * padded; i += LANES) write_as(p.sums + i, vf{});
        for (long i = 0; i < queries_; i++) p.most[i] = -INFINITY, p.total[i] = 0;
        const long first = past + item.first, last = first + item.count;  // positions of the queries
        const long start = job.first_key(first);
        for (long base = start / CHUNK * CHUNK; base < last; base += CHUNK) {
            const long to = base + CHUNK < last ? base + CHUNK : last, n = whole(to - base);
            pack_chunk(p, sequence, head, base, start, to, n);
            for (long t = 0; t < item.count; t += tokens)
                prompt_tile(p, item, head, base, n, t, t + tokens < item.count ? t + tokens : item.count);
        }
        for (long i = 0; i < queries_; i++)
            finish(begin + item.first + i / group, head * group + i % group, p.sums + i * padded, p.total[i]);
    }

    void prompt_tile(const Packed& p, const AttentionPiece& item, long head, long base, long n, long t,
                     long end) const {
        const long sequence = item.where, begin = job.step.query_start[sequence] + item.first;
        const long past = job.step.lengths[sequence] - (job.step.query_start[sequence + 1] - begin);
        if (past + end <= base) return;
        for (long from = t * group; from < end * group; from += TILE) {
            const quer* q[TILE];
            long low[TILE], high[TILE], rows = 0, most = 0;
            for (long i = from; i < end * group && rows < TILE; i++, rows++) {
                const long position = past + i / group;
                q[rows] = queries + ((begin + i / group) * job.shape.heads + head * group + i % group) * dim;
                low[rows] = job.first_key(position) - base;
                high[rows] = position + 1 - base < n ? position + 1 - base : n;
                if (high[rows] > most) most = high[rows];
            }
            if (most <= 0 || low[0] >= n) continue;
            attend_tile(p, q, rows, whole(most), low, high, p.sums + from * padded, p.most + from, p.total + from);
        }
    }

    // Sequences that compute one token each and read the same chunk, all of it.
    void decode_shared(const Packed& p, const AttentionPiece& item, long head) const {
        const int32_t* rows = job.readers + item.first;
        const long base = item.where * CHUNK;
        pack_chunk(p, rows[0], head, base, base, base + CHUNK, CHUNK);
        const long total = item.count * group;
        for (long from = 0; from < total; from += TILE) {
            const quer* q[TILE];
            long low[TILE], high[TILE], n = 0;
            for (long i = from; i < total && n < TILE; i++, n++) {
                q[n] = queries + (job.step.query_start[rows[i / group]] * job.shape.heads + head * group + i % group) * dim;
                low[n] = 0, high[n] = CHUNK;
                p.most[n] = -INFINITY, p.total[n] = 0;
            }
            for (long i = 0; i < n * padded; i += LANES) write_as(p.sums + i, vf{});
            attend_tile(p, q, n, CHUNK, low, high, p.sums, p.most, p.total);
            for (long i = 0; i < n; i++)
                keep(rows[(from + i) / group], item.where, head * group + (from + i) % group, p.sums + i * padded,
                     p.most[i], p.total[i]);
        }
    }

    Packed packed(char* scratch, long count) const {
        Packed p;
        const auto take = [&](auto*& field, long n) {
            field = (decltype(+field))scratch;
            scratch += (n * sizeof *field + 63) / 64 * 64;
        };
        take(p.keys, (dim + LANES) / P::depth * CHUNK);
        take(p.values, CHUNK / P::depth * padded);
        take(p.scores, TILE * CHUNK);
        take(p.weights, TILE * CHUNK);
        take(p.sums, count * padded);
        take(p.most, count);
        take(p.total, count);
        return p;
    }

    void piece(long index, char* scratch) const {
        const long prompts = job.prompt_count * job.shape.kv_heads;
        if (index < prompts) {
            const AttentionPiece& item = job.pieces[index / job.shape.kv_heads];
            prompt(packed(scratch, item.count * group), item, index % job.shape.kv_heads);
            return;
        }
        index -= prompts;
        const long parts = job.shape.kv_heads / job.heads_at_once, begin = index % parts * job.heads_at_once;
        decode(job.pieces[job.prompt_count + index / parts], begin, begin + job.heads_at_once, scratch);
    }

    void decode(const AttentionPiece& item, long begin, long end, char* scratch) const {
        const int32_t* readers = job.readers + item.first;
        if (item.count > 1 && item.count * group >= SHARERS)
            for (long head = begin; head < end; head++) decode_shared(packed(scratch, TILE), item, head);
        else
            for (long i = 0; i < item.count; i++) decode_one(readers[i], item.where, begin, end, scratch);
        for (long i = 0; i < item.count; i++)
            for (long head = begin; head < end && job.first_part[readers[i]] >= 0; head++) {
                int32_t* done = job.done + readers[i] * job.shape.kv_heads + head;
                if (__atomic_add_fetch(done, 1, __ATOMIC_ACQ_REL) == job.chunks[readers[i]]) merge(readers[i], head);
            }
    }
};

#ifdef WITH_PAIRS
using Bf16 = Attend<Halves, TwoByTwo>;
#else
using Bf16 = Attend<Halves, OneByOne>;
#endif
using F32 = Attend<Floats, OneByOne>;

template <class A>
void prepare_tokens(const AttentionJob& job, long first, long last) {
    const A all(job);
    for (long token = first; token < last; token++) all.prepare(token);
}

void prepare(const AttentionJob& job, long first, long last) {
    if (job.shape.dtype) prepare_tokens<Bf16>(job, first, last);
    else prepare_tokens<F32>(job, first, last);
}

void piece(const AttentionJob& job, long index, char* scratch) {
    if (job.shape.dtype) Bf16(job).piece(index, scratch);
    else F32(job).piece(index, scratch);
}

}  // namespace

const AttentionTable attention_table{prepare, piece};

}  // namespace QCPU_ISA
}  // namespace qcpu
