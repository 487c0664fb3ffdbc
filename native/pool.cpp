// The pool of threads; see pool.h.
#include "pool.h"

#include <atomic>
#include <mutex>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "isa.h"

namespace qcpu {
namespace {

const int MAX_THREADS = 256;
const long SPIN_NANOSECONDS = 50'000, AWAKE_NANOSECONDS = 300'000;

// The parts that a thread has left, in one word, so that seeing whose they are and taking one is one step:
// number of the job (32 bits), end (16), next (16).
struct alignas(64) Run {
    std::atomic<uint64_t> word{0};
};

struct Pool {
    // What the job is: written by the master while no part is left, read before a part is taken.
    std::atomic<PartFunction> run{nullptr};
    std::atomic<const void*> job{nullptr};
    std::atomic<int> width{1};
    // Raised when a job is published; workers sleep on it.
    alignas(64) std::atomic<uint32_t> number{0};
    std::atomic<int> sleepers{0};
    // Parts that are not done yet; the master sleeps on it.
    alignas(64) std::atomic<uint32_t> left{0};
    std::atomic<bool> master_sleeps{false};
    Run runs[MAX_THREADS];
    std::mutex turn;
    int wanted = 1;            // threads, the master included
    int started = 1;           // of them running
    pthread_t workers[MAX_THREADS];
    void* slots[SLOTS] = {};
    long sizes[SLOTS] = {};
};

// Never destroyed: workers outlive the destructors of static objects.
Pool* pool = new Pool;

long now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1'000'000'000L + t.tv_nsec;
}

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

#if defined(__linux__)
void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}
void wake(std::atomic<uint32_t>& word) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, 0x7fffffff, nullptr, nullptr, 0);
}
#else
void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
    const timespec brief{0, SPIN_NANOSECONDS};
    if (word.load() == value) nanosleep(&brief, nullptr);
}
void wake(std::atomic<uint32_t>&) {}
#endif

// Waits for `done`, but no longer than threads stay awake; whether it came. After a while whoever else wants the core may
// have it, but to be woken takes longer than most waits between two jobs.
template <class F>
bool spin(const F& done) {
    const long begin = now();
    for (long passed = 0; passed < AWAKE_NANOSECONDS; passed = now() - begin) {
        if (passed > SPIN_NANOSECONDS) sched_yield();
        for (int i = 0; i < 32; i++) {
            if (done()) return true;
            relax();
        }
    }
    return done();
}

// A part of job `number` out of `run`, or -1. A word that has parts left vouches for what was read about its job
// before: the master changes that only when every part of every thread is done.
long take(Run& run, uint32_t number) {
    uint64_t word = run.word.load(std::memory_order_acquire);
    while (uint32_t(word >> 32) == number && uint16_t(word) < uint16_t(word >> 16))
        if (run.word.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel)) return uint16_t(word);
    return -1;
}

// Works on job `number` until no part of it is left to take.
void work(uint32_t number, int self) {
    const PartFunction run = pool->run.load(std::memory_order_acquire);
    const void* job = pool->job.load(std::memory_order_acquire);
    const int width = pool->width.load(std::memory_order_acquire);
    if (self >= width) return;
    for (int i = 0; i < width; i++) {
        Run& from = pool->runs[(self + i) % width];
        for (long part; (part = take(from, number)) >= 0;) {
            run(job, part, self);
            if (pool->left.fetch_sub(1) == 1 && pool->master_sleeps.load()) wake(pool->left);
        }
    }
}

void* worker(void* argument) {
    const int self = int(reinterpret_cast<intptr_t>(argument));
    Pool* const mine = pool;
    uint32_t seen = 0;
    for (;;) {
        const auto news = [&] { return mine->number.load() != seen; };
        if (!spin(news)) {
            mine->sleepers.fetch_add(1);
            while (!news()) sleep_while(mine->number, seen);
            mine->sleepers.fetch_sub(1);
        }
        seen = mine->number.load();
        work(seen, self);
    }
}

void start_threads() {
    for (; pool->started < pool->wanted; pool->started++) {
        void* const self = reinterpret_cast<void*>(intptr_t(pool->started));
        if (pthread_create(&pool->workers[pool->started], nullptr, worker, self)) {
            // A machine that gives no more threads computes with those it gave.
            pool->wanted = pool->started;
            return;
        }
        pthread_detach(pool->workers[pool->started]);
    }
}

// A forked child has no workers: it begins with a pool of its own.
void after_fork() {
    const int wanted = pool->wanted;
    pool = new Pool;
    pool->wanted = wanted;
}
const int registered = pthread_atfork(nullptr, nullptr, after_fork);

}  // namespace

Turn::Turn() { pool->turn.lock(); }
Turn::~Turn() { pool->turn.unlock(); }

int threads() { return pool->wanted; }

void run_parts(long parts, PartFunction run, const void* job) {
    if (pool->started < pool->wanted) start_threads();
    const int width = parts < pool->wanted ? int(parts) : pool->wanted;
    if (width < 2) {
        for (long part = 0; part < parts; part++) run(job, part, 0);
        return;
    }
    Pool& p = *pool;
    const uint32_t number = p.number.load() + 1;
    p.run.store(run, std::memory_order_release);
    p.job.store(job, std::memory_order_release);
    p.width.store(width, std::memory_order_release);
    p.left.store(uint32_t(parts));
    for (long i = 0; i < width; i++) {
        const uint64_t first = parts * i / width, end = parts * (i + 1) / width;
        p.runs[i].word.store(uint64_t(number) << 32 | end << 16 | first, std::memory_order_release);
    }
    p.number.store(number);
    if (p.sleepers.load()) wake(p.number);
    work(number, 0);
    if (spin([&] { return p.left.load() == 0; })) return;
    p.master_sleeps.store(true);
    for (uint32_t left; (left = p.left.load()) != 0;) sleep_while(p.left, left);
    p.master_sleeps.store(false);
}

void* scratch(Slot slot, long bytes) {
    if (bytes > pool->sizes[slot]) {
        free(pool->slots[slot]);
        const long rounded = (bytes + bytes / 4 + 4095) / 4096 * 4096;
        pool->slots[slot] = aligned_alloc(64, size_t(rounded));
        pool->sizes[slot] = pool->slots[slot] ? rounded : 0;
        if (!pool->slots[slot]) abort();
    }
    return pool->slots[slot];
}

}  // namespace qcpu

// How many threads compute, the caller included; returns what it will be (1 to 256).
QCPU_API int qcpu_set_threads(int count) {
    qcpu::Turn turn;
    const int most = qcpu::MAX_THREADS;
    return qcpu::pool->wanted = count < 1 ? 1 : count > most ? most : count;
}

// Lets thread `thread` of the pool (1 to threads - 1) run on these processors only. Returns 0, or -1 where that cannot
// be had.
QCPU_API int qcpu_bind_thread(int thread, const int* cpus, int count) {
#if defined(__linux__)
    qcpu::Turn turn;
    qcpu::start_threads();
    if (thread < 1 || thread >= qcpu::pool->started) return -1;
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int i = 0; i < count; i++) CPU_SET(cpus[i], &set);
    return pthread_setaffinity_np(qcpu::pool->workers[thread], sizeof set, &set) ? -1 : 0;
#else
    return -1;
#endif
}
