// Rows of x as products want them; see linear.cpp. Included by it, within its namespace.

// Values [first, first + count) of a row of x as floats, zero behind its end.
inline void load_x(const Product& p, long row, long first, long count, float* out) {
    const long there = p.weight.inputs - first < count ? p.weight.inputs - first : count;
    long i = 0;
    if (p.dtype == FLOAT32) {
        const float* x = (const float*)p.x + row * p.x_stride + first;
        for (; i + LANES <= there; i += LANES) floats_store(out + i, floats_load(x + i));
        for (; i < there; i++) out[i] = x[i];
    } else {
        const uint16_t* x = (const uint16_t*)p.x + row * p.x_stride + first;
        for (; i + LANES <= there; i += LANES) floats_store(out + i, floats_load_bfloat16(x + i));
        for (; i < there; i++) out[i] = from_bfloat16(x[i]);
    }
    for (; i < count; i++) out[i] = 0;
}

// Elements of `bytes` bytes, one each `stride` bytes.
inline void scatter(uint8_t* to, long stride, const void* from, long count, long bytes) {
    if (stride == bytes) {
        memcpy(to, from, size_t(count * bytes));
    } else if (bytes == 4) {
        for (long i = 0; i < count; i++) memcpy(to + i * stride, (const uint8_t*)from + i * 4, 4);
    } else {
        for (long i = 0; i < count; i++) memcpy(to + i * stride, (const uint8_t*)from + i * 8, 8);
    }
}

// Rows that are scattered at once: vectors of four elements turn into four vectors of neighbours.
const long TOGETHER = 4;

// The elements of `rows` rows, which lie side by side in each step, one of `stride` bytes.
inline void scatter_rows(uint8_t* to, long stride, const void* const* from, long rows, long count, long bytes) {
    typedef uint32_t Four __attribute__((vector_size(16)));
    long i = 0;
    if (rows == TOGETHER && bytes == 4)
        for (; i + 4 <= count; i += 4) {
            Four v[4];
            for (int r = 0; r < 4; r++) memcpy(&v[r], (const uint8_t*)from[r] + i * 4, 16);
            const Four low = {0, 4, 1, 5}, high = {2, 6, 3, 7};
            const Four a = __builtin_shuffle(v[0], v[2], low), b = __builtin_shuffle(v[1], v[3], low);
            const Four c = __builtin_shuffle(v[0], v[2], high), d = __builtin_shuffle(v[1], v[3], high);
            const Four steps[] = {__builtin_shuffle(a, b, low), __builtin_shuffle(a, b, high),
                                  __builtin_shuffle(c, d, low), __builtin_shuffle(c, d, high)};
            for (int s = 0; s < 4; s++) memcpy(to + (i + s) * stride, &steps[s], 16);
        }
    for (long r = 0; r < rows; r++)
        scatter(to + i * stride + r * bytes, stride, (const uint8_t*)from[r] + i * bytes, count - i, bytes);
}

// How the prepared rows of a tile lie: bytes of one of them, and from a step of one to the next.
struct Rows {
    long row, count, bytes, stride;
    bool in_steps;

    uint8_t* begin(const Product& p, long r, long element) const {
        return p.prepared + row * bytes + r * (in_steps ? element : bytes);
    }
};

// Rows of a tile side by side in each step, or (for AMX) one after another.
template <class T>
Rows rows_of(const Product& p, long tile) {
    const long row = p.first_row(tile), count = p.first_row(tile + 1) - row;
#ifdef QCPU_AMX
    if (by_tiles(p.weight)) return {row, count, amx_row_bytes(p.weight), T::x_bytes, false};
#endif
    return {row, count, row_bytes<T>(p.weight), count * T::x_bytes, true};
}

// Values [k, k + count) of a row as a product of floats takes them, in `room` unless they lie so in x.
template <class T>
const void* floats_of(const Product& p, long row, long k, long count, float* room) {
    const long per_step = p.weight.format == BFLOAT16 ? 2 : 1;
    if (T::x_bytes != 2 * per_step) {
        load_x(p, row, k, count, room);
        return room;
    }
    if (p.dtype == BFLOAT16 && k + count <= p.weight.inputs) return (const uint16_t*)p.x + row * p.x_stride + k;
    float values[CHUNK];
    load_x(p, row, k, count, values);
    for (long i = 0; i < count; i++) ((uint16_t*)room)[i] = to_bfloat16(values[i]);
    return room;
}

// Chunk by chunk, so that what the rows of a tile write side by side stays in the first cache.
template <class T>
void prepare_floats(const Product& p, long tile) {
    const Rows rows = rows_of<T>(p, tile);
    const long inputs = p.weight.inputs, per_step = p.weight.format == BFLOAT16 ? 2 : 1, stride = rows.stride;
    for (long r = 0; r < rows.count && !rows.in_steps; r++) memset(rows.begin(p, r, T::x_bytes) + rows.bytes - 64, 0, 64);
    const long together = rows.in_steps ? TOGETHER : 1;
    for (long k = 0; k < inputs; k += CHUNK) {
        const long count = inputs - k < CHUNK ? divided_up(inputs - k, per_step) * per_step : CHUNK;
        for (long r = 0; r < rows.count; r += together) {
            float room[TOGETHER][CHUNK];
            const void* from[TOGETHER];
            const long some = rows.count - r < together ? rows.count - r : together;
            for (long i = 0; i < some; i++) from[i] = floats_of<T>(p, rows.row + r + i, k, count, room[i]);
            scatter_rows(rows.begin(p, r, T::x_bytes) + k / per_step * stride, stride, from, some, count / per_step, T::x_bytes);
        }
    }
}

// The largest magnitude of `count` values (a multiple of LANES), and 0 times their sum: NaN if one is not finite.
inline float largest(const float* values, long count, float* poison) {
    Floats high = floats_zero(), zero = floats_zero();
    for (long i = 0; i < count; i += LANES) {
        const Floats v = floats_load(values + i);
        high = floats_max(floats_abs(v), high);
        zero = floats_fma(v, floats_zero(), zero);
    }
    *poison += floats_sum(zero);
    return floats_highest(high);
}

inline void to_bytes(const float* values, long count, float inverse, int8_t* out) {
    const Floats by = floats_all(inverse);
    for (long i = 0; i < count; i += LANES) floats_store_bytes(out + i, floats_mul(floats_load(values + i), by));
}

inline void prepare_int8(const Product& p, long tile) {
    const Rows rows = rows_of<Int8>(p, tile);
    const long row = rows.row, bytes = rows.bytes, stride = rows.stride, together = rows.in_steps ? TOGETHER : 1;
    float inverse[MOST_TILE_ROWS];
    for (long r = 0; r < rows.count; r++) {
        float values[CHUNK], high = 0, poison = 0;
        for (long k = 0; k < bytes; k += CHUNK) {
            load_x(p, row + r, k, CHUNK, values);
            const float here = largest(values, CHUNK, &poison);
            high = here > high ? here : high;
        }
        inverse[r] = high > 0 ? 127.0f / high : 0.0f;
        p.factors[row + r] = high / 127.0f + poison;
    }
    for (long k = 0; k < bytes; k += CHUNK) {
        const long count = bytes - k < CHUNK ? bytes - k : CHUNK;
        for (long r = 0; r < rows.count; r += together) {
            int8_t quantized[TOGETHER][CHUNK];
            const void* from[TOGETHER];
            const long some = rows.count - r < together ? rows.count - r : together;
            for (long j = 0; j < some; j++) {
                float values[CHUNK];
                load_x(p, row + r + j, k, CHUNK, values);
                to_bytes(values, CHUNK, inverse[r + j], quantized[j]);
                if (Int8::x_unsigned)
                    for (long i = 0; i < CHUNK; i++) quantized[j][i] = int8_t(quantized[j][i] ^ -128);
                from[j] = quantized[j];
            }
            scatter_rows(rows.begin(p, r, 4) + k / 4 * stride, stride, from, some, count / 4, 4);
        }
    }
}

// Group g of row r of those of a tile as signed bytes; its factor, start and total as well.
template <class T>
void quantize_group(const Product& p, long row, long rows, long r, long g, int8_t* quantized) {
    const long group = p.weight.group, groups = row_bytes<T>(p.weight) / group, at = row * groups + g * rows + r;
    float values[CHUNK], poison = 0;
    load_x(p, row + r, g * group, group, values);
    const float high = largest(values, group, &poison);
    to_bytes(values, group, high > 0 ? 127.0f / high : 0.0f, quantized);
    int32_t sum = 0;
    for (long i = 0; i < group; i++) sum += quantized[i];
    p.factors[at] = high / 127.0f + poison;
    p.starts[at] = (T::raised - p.weight.zero) * sum;
    p.totals[at] = p.factors[at] * float(sum);
}

template <class T>
void prepare_groups(const Product& p, long tile) {
    const long row = p.first_row(tile), rows = p.first_row(tile + 1) - row, bytes = row_bytes<T>(p.weight);
    const long stride = rows * 4, group = p.weight.group, groups = bytes / group;
    for (long g = 0; g < groups; g++)
        for (long r = 0; r < rows; r += TOGETHER) {
            int8_t quantized[TOGETHER][CHUNK];
            const void* from[TOGETHER];
            const long some = rows - r < TOGETHER ? rows - r : TOGETHER;
            for (long j = 0; j < some; j++) {
                quantize_group<T>(p, row, rows, r + j, g, quantized[j]);
                from[j] = quantized[j];
            }
            uint8_t* to = p.prepared + row * bytes + r * 4;
            scatter_rows(to + g * (group / 4) * stride, stride, from, some, group / 4, 4);
        }
}
