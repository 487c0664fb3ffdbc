// Attention over pages: what it is told, how a step is cut into pieces, and the table of its kernels.
#pragma once

#include <stdint.h>

namespace qcpu {

// A layer's shapes. This struct and the next are mirrored in quire/kernels/cpu/attention.py.
struct AttentionShape {
    int64_t heads, kv_heads, head_dim, rotary_dim;
    int64_t window;  // tokens that a query sees; 0: all
    int64_t has_norm, dtype;
    int64_t batch_invariant;  // one token is computed as a prompt is: with several, its sums are added up otherwise
    double scale, soft_cap, norm_eps;  // soft_cap 0: none
};

// The arrays of a step.
struct AttentionStep {
    const int64_t* positions;    // (tokens)
    const int64_t* slots;        // (tokens)
    const int32_t* query_start;  // (sequences + 1)
    const int32_t* lengths;      // (sequences)
    const int32_t* pages;        // (sequences, table_stride)
    int64_t tokens, sequences, table_stride, page_size;
};

// Keys are worked off in chunks that begin at multiples of CHUNK tokens, so that a sequence's sums do not depend on how
// its steps were cut.
constexpr long CHUNK = 256;
constexpr long TILE = 60;  // queries of a KV head worked on at once, where there are many
constexpr long MAX_HEAD_DIM = 512;

// A piece of work, for one KV head or, of sequences that compute one token, for several.
struct AttentionPiece {
    int32_t is_prompt;
    int32_t first, count;  // a prompt's tokens from `first` on; else a run of AttentionJob::readers
    int32_t where;         // a prompt's sequence; else the chunk
};

struct AttentionJob {
    AttentionShape shape;
    AttentionStep step;
    const void* qkv;      // (tokens, (heads + 2 kv_heads) head_dim)
    const float* table;   // (positions, rotary_dim): cosines, then sines
    const void *q_norm, *k_norm;
    void *k_pool, *v_pool;  // (pages, page_size, kv_heads, head_dim)
    bool last;              // keys and values of all tokens are written, and each sequence's last one alone attends
    void* out;              // (tokens, heads head_dim), or with `last` (sequences, heads head_dim)

    AttentionPiece* pieces;
    int32_t* readers;      // sequences that compute one token, in runs that read the same chunk
    int32_t* first_chunk;  // by sequence, of those that compute one token
    int32_t* chunks;
    int64_t* first_part;  // where its partial results begin; -1 where it has one chunk
    int32_t* done;        // (sequences, kv_heads): chunks that are done
    int32_t* rows;         // with `last`, by token: the row of its query, or -1
    float* queries;        // (rows, heads, head_dim), normed and rotated; floats, or what tiles want
    float* parts;         // per part and head: head_dim sums (padded), their maximum, their weight
    char* scratch;        // per thread
    long scratch_bytes;   // of a thread
    long piece_count, part_count;
    long prompt_count;   // how many of the pieces are prompts: the first
    long heads_at_once;  // KV heads that a piece of decoding covers

    long group() const { return shape.heads / shape.kv_heads; }
    // Queries and results of sequence i are rows [first_row(i), first_row(i + 1)).
    long first_row(long i) const { return last ? i : step.query_start[i]; }
    long padded() const { return (shape.head_dim + 15) / 16 * 16; }
    // The first key that a query at `position` sees.
    long first_key(long position) const {
        return shape.window && position + 1 > shape.window ? position + 1 - shape.window : 0;
    }
};

// Works off a job of which everything up to `out` is set. Within a Turn.
void attend(AttentionJob& job);

struct AttentionTable {
    // Norm and rotate the heads of tokens [first, last), and write their pages.
    void (*prepare)(const AttentionJob&, long first, long last);
    // Prompts: piece `index / kv_heads` for head `index % kv_heads`. Then the others, by runs of `heads_at_once`.
    void (*piece)(const AttentionJob&, long index, char* scratch);
};

}  // namespace qcpu
