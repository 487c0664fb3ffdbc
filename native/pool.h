// One pool of threads for all kernels. The thread that calls is its master and works too; threads that wait stay awake for
// at most 300 us and then sleep, so an idle engine costs nothing.
//
// Parts of a job are dealt out in one run of neighbours per thread; who has finished his own takes from the others, so
// a core that is busy elsewhere delays nobody, while memory stays with the thread (and the NUMA node) that touched it
// first.
#pragma once

namespace qcpu {

// Every function of the C interface that uses threads or scratch memory holds a Turn from its first line to its last:
// calls that come from several threads at once wait for each other.
struct Turn {
    Turn();
    ~Turn();
    Turn(const Turn&) = delete;
};

// Threads that a job may use, the master included: at least 1.
int threads();

typedef void (*PartFunction)(const void* job, long part, int thread);

// Calls run(job, part, thread) for each part in [0, parts), parts < 65536, and returns when all are done. `thread` is
// below threads(), for scratch memory of its own; the master's is 0. Jobs do not nest.
void run_parts(long parts, PartFunction run, const void* job);

// parallel_for(parts, [&](long part, int thread) { ... })
template <class F>
static inline void parallel_for(long parts, const F& body) {
    run_parts(parts, [](const void* job, long part, int thread) { (*static_cast<const F*>(job))(part, thread); }, &body);
}

// Scratch memory, at least `bytes`, aligned to 64, undefined at first; valid until the same slot is asked for again.
// Only the master asks, outside of jobs.
enum Slot { LINEAR_INPUT, LINEAR_SUMS, ATTENTION, ROWS, EXPERTS, SAMPLING, SLOTS };
void* scratch(Slot slot, long bytes);

}  // namespace qcpu
