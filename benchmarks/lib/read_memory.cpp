// How fast this machine reads memory: each thread sums its share from eight streams at once, prefetched.
#include <cstdint>
#include <omp.h>

typedef uint64_t line __attribute__((vector_size(64)));

extern "C" uint64_t read_memory(const char* data, long bytes, int threads) {
    uint64_t total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        const long share = bytes / threads / 65536 * 65536;
        const char* mine = data + omp_get_thread_num() * share;
        line sums[8] = {};
        for (long block = 0; block < share; block += 16384)
            for (long i = 0; i < 2048; i += 64)
                for (int s = 0; s < 8; s++) {
                    const char* p = mine + block + s * 2048 + i;
                    __builtin_prefetch(p + 16384, 0, 2);
                    sums[s] += *(const line*)p;
                }
        for (int s = 0; s < 8; s++)
            for (int i = 0; i < 8; i++) total += sums[s][i];
    }
    return total;
}
