// Attention over pages, for one instruction set.
//
// A sequence that computes one token reads each key once, at the speed of memory. Prompts, and several sequences that
// read the same pages, pack a chunk of keys and values into tiles first and then work on many queries at once
// (Dao et al., "FlashAttention", 2022, on the caches of a CPU).
#include "attention_single.h"

namespace qcpu {
namespace QCPU_ISA {
extern const AttentionTable attention_table;
namespace {

constexpr long SHARERS = 6;  // queries from which packing a chunk pays

template <class T, class P>
struct Attend : Single<T, P> {
    using Base = Single<T, P>;
    using typename Base::elem;
    using typename Base::quer;
    using pack = typename P::pack;
    using Base::Base, Base::decode_one, Base::dim, Base::finish, Base::group, Base::job, Base::keep, Base::merge;
    using Base::padded, Base::prefetch, Base::queries, Base::row_of, Base::weigh;

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
            const float added = weigh(p.scores + r * CHUNK, n, low[r], high[r], most[r], p.weights + r * CHUNK);
            alpha[r] = before == -INFINITY ? 0.0f : exp2f(before - most[r]);
            total[r] = total[r] * alpha[r] + added;
            weights[r] = p.weights + r * CHUNK;
        }
        product<P>(weights, rows, p.values, padded / LANES, padded, n / P::depth, sums, padded, alpha);
    }

    static long whole(long n) { return (n + LANES - 1) / LANES * LANES; }

    void prompt(const Packed& p, const AttentionPiece& item, long head) const {
        const long sequence = item.where, begin = job.first_row(sequence);
        const long count = job.first_row(sequence + 1) - begin, past = job.step.lengths[sequence] - count;
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
        const long sequence = item.where, begin = job.first_row(sequence) + item.first;
        const long past = job.step.lengths[sequence] - (job.first_row(sequence + 1) - begin);
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
                q[n] = queries + (job.first_row(rows[i / group]) * job.shape.heads + head * group + i % group) * dim;
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
