// Changes logits before a token is chosen: bias, penalties, bans and masks. See quire/ops/edit.py, the definition.
#pragma once

#include <stdint.h>

namespace qcpu {

// The tables of all rows; null where there are none of a kind.
struct EditTables {
    const float* numbers;  // (max_rows, 6), with the penalties
    const float* offsets;  // (slots, vocab)
    const int64_t* offset_slots;  // (max_rows); slot 0 is zeros
    const int32_t* counts;  // (slots, vocab)
    const int64_t* count_slots;
    const uint32_t* masks;  // (max_rows, words)
    // Bans of a row are entries first[row] to first[row + 1].
    const int64_t *first, *token, *until, *length;
    const int64_t* prefix;  // (entries, width)
    const int32_t* history;  // (max_rows, max_len)
    const int32_t* known;  // (max_rows)
    int64_t width, max_len;
};

// A row; null where nothing of a kind is for it.
struct EditLine {
    const void* logits;
    float* edited;
    const float* offsets;
    const int32_t* counts;
    const uint32_t* mask;
    float repetition, frequency, presence;
    int dtype;
};

// Bit of a count that says: this token is in the prompt. The bits below count occurrences in the output.
constexpr int32_t IN_PROMPT = 1 << 30;

struct EditTable {
    // All but bans, of tokens `first`, a multiple of 32, to `last`.
    void (*edit)(const EditLine&, long first, long last);
};

}  // namespace qcpu
