// Cuts a step of attention into pieces and has them worked off.
//
// Sequences that share pages, because they have a prefix in common, are found by their page tables: a chunk of keys that
// several of them read is read once, for all of them.
#include "attention.h"

#include <algorithm>
#include <string.h>
#include <utility>

#include "isa.h"
#include "pool.h"

QCPU_TABLES(AttentionTable, attention_table)

namespace qcpu {
namespace {

typedef std::pair<int32_t, int32_t> Reader;  // first page of a chunk, or -1; sequence

long queries_of(const AttentionJob& job, long i) { return job.first_row(i + 1) - job.first_row(i); }
long rows_of(const AttentionJob& job) { return job.first_row(job.step.sequences); }

bool decodes(const AttentionJob& job, long i) {
    return !job.shape.batch_invariant && job.step.lengths[i] && queries_of(job, i) == 1;
}

// Most tokens of a prompt that make a piece: few enough that all threads have work.
long piece_tokens(const AttentionJob& job) {
    long most = std::max(1024 / job.group(), 32L);
    while (most > 64 && rows_of(job) / most * job.shape.kv_heads < 4 * threads()) most /= 2;
    return most;
}

// Bounds of what `cut_prompts` and `cut_decodes` will write.
struct Sizes {
    long pieces = 0, readers = 0, longest = 0;
};

Sizes sizes(const AttentionJob& job) {
    Sizes found;
    const long most = piece_tokens(job);
    for (long i = 0; i < job.step.sequences; i++) {
        const long count = queries_of(job, i);
        if (decodes(job, i)) found.readers += job.step.lengths[i] / CHUNK + 1;
        else found.pieces += (count + most - 1) / most, found.longest = std::max(found.longest, std::min(count, most));
    }
    found.pieces += found.readers;
    return found;
}

// Pieces of prompts, the last first: they see most keys.
void cut_prompts(AttentionJob& job) {
    const long most = piece_tokens(job);
    for (long i = 0; i < job.step.sequences; i++) {
        const long count = queries_of(job, i);
        if (!count || !job.step.lengths[i] || decodes(job, i)) continue;
        const long parts = (count + most - 1) / most, size = (count + parts - 1) / parts;
        for (long first = (count - 1) / size * size; first >= 0; first -= size)
            job.pieces[job.piece_count++] = {1, (int32_t)first, (int32_t)std::min(size, count - first), (int32_t)i};
    }
    job.prompt_count = job.piece_count;
}

bool same_pages(const AttentionStep& step, int32_t a, int32_t b, long chunk) {
    const long first = chunk * CHUNK / step.page_size, last = ((chunk + 1) * CHUNK - 1) / step.page_size;
    return !memcmp(step.pages + a * step.table_stride + first, step.pages + b * step.table_stride + first,
                   (last - first + 1) * sizeof(int32_t));
}

void count_chunks(AttentionJob& job) {
    for (long i = 0; i < job.step.sequences; i++) {
        const long length = job.step.lengths[i];
        job.first_chunk[i] = job.chunks[i] = 0;
        job.first_part[i] = -1;
        if (!decodes(job, i)) continue;
        job.first_chunk[i] = job.first_key(length - 1) / CHUNK;
        job.chunks[i] = (length - 1) / CHUNK + 1 - job.first_chunk[i];
        if (job.chunks[i] < 2) continue;
        job.first_part[i] = job.part_count;
        job.part_count += job.chunks[i];
    }
}

void cut_decodes(AttentionJob& job, Reader* sharing) {
    const AttentionStep& step = job.step;
    long last = 0, readers = 0;
    for (long i = 0; i < step.sequences; i++) last = std::max<long>(last, job.first_chunk[i] + job.chunks[i]);
    for (long chunk = 0; chunk < last; chunk++) {
        Reader* end = sharing;
        for (long i = 0; i < step.sequences; i++) {
            if (chunk < job.first_chunk[i] || chunk >= job.first_chunk[i] + job.chunks[i]) continue;
            const bool whole = step.lengths[i] >= (chunk + 1) * CHUNK && !job.shape.window;
            *end++ = {whole ? step.pages[i * step.table_stride + chunk * CHUNK / step.page_size] : -1, (int32_t)i};
        }
        std::sort(sharing, end);
        for (Reader* at = sharing; at < end;) {
            const Reader first = *at;
            const long from = readers;
            do job.readers[readers++] = at++->second;
            while (at < end && first.first >= 0 && at->first == first.first &&
                   same_pages(step, first.second, at->second, chunk));
            job.pieces[job.piece_count++] = {0, (int32_t)from, (int32_t)(readers - from), (int32_t)chunk};
        }
    }
}

// One piece of scratch memory after another; counts without memory at first.
struct Carver {
    char* base;
    long used = 0;

    template <class T>
    void take(T*& field, long count) {
        field = reinterpret_cast<T*>(base + used);
        used += (count * (long)sizeof(T) + 63) / 64 * 64;
    }
};

long thread_scratch(const AttentionJob& job, const Sizes& most) {
    const long dim = job.padded(), queries = std::max(most.longest * job.group(), TILE);
    const long many = 4 * (CHUNK * (2 * dim + 16) + 2 * TILE * CHUNK + queries * (dim + 2)) + 1024;
    const long one = 4 * job.shape.heads * (2 * CHUNK + dim + 32 + 2);
    return std::max(many, one);
}

void carve(AttentionJob& job, Reader*& sharing) {
    const Sizes most = sizes(job);
    const long n = job.step.sequences, heads = job.shape.heads;
    job.scratch_bytes = thread_scratch(job, most);
    char* base = nullptr;
    for (int pass = 0; pass < 2; pass++) {
        Carver carver{base};
        carver.take(job.pieces, most.pieces);
        carver.take(job.readers, most.readers);
        carver.take(job.first_chunk, n);
        carver.take(job.chunks, n);
        carver.take(job.first_part, n);
        carver.take(job.done, n * job.shape.kv_heads);
        carver.take(sharing, n);
        carver.take(job.rows, job.last ? job.step.tokens : 0);
        carver.take(job.queries, rows_of(job) * heads * job.shape.head_dim + 16);
        carver.take(job.parts, most.readers * heads * (job.padded() + 2));
        carver.take(job.scratch, job.scratch_bytes * threads());
        if (!pass) base = (char*)scratch(ATTENTION, carver.used);
    }
    memset(job.done, 0, n * job.shape.kv_heads * sizeof *job.done);
}

// Pieces of prompts become smaller, and threads take runs of neighbours: each run gets some of all sizes.
long dealt(const AttentionJob& job, long part) {
    const long each = job.prompt_count * job.shape.kv_heads / threads();
    return part < each * threads() ? part % each * threads() + part / each : part;
}

void find_last(const AttentionJob& job) {
    if (!job.last) return;
    std::fill_n(job.rows, job.step.tokens, -1);
    const int32_t* start = job.step.query_start;
    for (long i = 0; i < job.step.sequences; i++)
        if (start[i] < start[i + 1]) job.rows[start[i + 1] - 1] = (int32_t)i;
}

// Sequences of length 0 pad a batch: their results are zeros.
void clear_padding(const AttentionJob& job) {
    const long row = job.shape.heads * job.shape.head_dim * (job.shape.dtype ? 2 : 4);
    for (long i = 0; i < job.step.sequences; i++)
        if (!job.step.lengths[i])
            memset((char*)job.out + job.first_row(i) * row, 0, queries_of(job, i) * row);
}

}  // namespace

void attend(AttentionJob& job) {
    const AttentionTable& table = the_attention_table();
    Reader* sharing;
    carve(job, sharing);
    find_last(job);
    cut_prompts(job);
    count_chunks(job);
    cut_decodes(job, sharing);
    const long width = (job.shape.heads + 2 * job.shape.kv_heads) * job.shape.head_dim, tokens = job.step.tokens;
    const long block = std::max(8192 / width, tokens / 4096) + 1, blocks = (tokens + block - 1) / block;
    if (blocks < 3) table.prepare(job, 0, tokens);
    else parallel_for(blocks, [&](long i, int) { table.prepare(job, i * block, std::min((i + 1) * block, tokens)); });
    const long decodes = job.piece_count - job.prompt_count;
    // Few: all threads have work. Many: keys are read in the order in which they lie.
    long at_once = job.shape.kv_heads;
    while (at_once % 2 == 0 && decodes * (job.shape.kv_heads / at_once) < 4 * threads()) at_once /= 2;
    job.heads_at_once = at_once;
    const long all = job.prompt_count * job.shape.kv_heads + decodes * (job.shape.kv_heads / at_once);
    const long run = all / 60000 + 1;
    parallel_for((all + run - 1) / run, [&](long part, int thread) {
        for (long i = part * run; i < std::min((part + 1) * run, all); i++)
            table.piece(job, dealt(job, i), job.scratch + thread * job.scratch_bytes);
    });
    clear_padding(job);
}

}  // namespace qcpu

// Norm and rotate queries and keys, write keys and values to pages, attend. See quire/ops/attention.py, `attend`.
QCPU_API void qcpu_attend(const qcpu::AttentionShape* shape, const qcpu::AttentionStep* step, const void* qkv,
                          const float* table, const void* q_norm, const void* k_norm, void* k_pool, void* v_pool,
                          void* out) {
    qcpu::Turn turn;
    qcpu::AttentionJob job{};
    job.shape = *shape;
    job.step = *step;
    job.qkv = qkv;
    job.table = table;
    job.q_norm = q_norm;
    job.k_norm = k_norm;
    job.k_pool = k_pool;
    job.v_pool = v_pool;
    job.out = out;
    qcpu::attend(job);
}
