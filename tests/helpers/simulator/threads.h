// Threads of a GPU, simulated: every thread of a block is a fibre, which runs until it waits for
// others at a barrier or a shuffle. What only works by luck of timing fails: fibres run one after
// the other, in an order that the caller chooses, and none goes on before all it waits for came.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

struct Index {
  unsigned x;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace simulation {

enum State { READY, AT_BARRIER, AT_SHUFFLE, DONE };
enum Result { FINE = 0, DIVERGENT = 1, MISALIGNED = 2, OUT_OF_SHARED = 3, BAD_MASK = 4 };

struct Fibre {
  ucontext_t context;
  State state;
  float value[2];  // of this shuffle and the one before: nobody gets two ahead
  unsigned shuffles;
  std::unique_ptr<char[]> stack;
};

static const size_t STACK = 128 * 1024;
static std::vector<Fibre> fibres;
static ucontext_t scheduler;
static unsigned current;
static Result result;
static void (*body)();

static void start() {
  body();
  fibres[current].state = DONE;
  swapcontext(&fibres[current].context, &scheduler);
}

static void wait_as(State state) {
  const unsigned me = current;
  fibres[me].state = state;
  swapcontext(&fibres[me].context, &scheduler);
}

// Lets everybody go on who waits with all the others: a block at a barrier, a warp at a shuffle.
static bool release(unsigned first, unsigned last, State state) {
  for (unsigned t = first; t < last; ++t)
    if (fibres[t].state != state) return false;
  for (unsigned t = first; t < last; ++t) fibres[t].state = READY;
  return true;
}

// order: 0 first to last, 1 last to first, else by a pseudo-random permutation
static unsigned permuted(unsigned k, unsigned n, unsigned order) {
  if (order == 0) return k;
  if (order == 1) return n - 1 - k;
  return (k * 37u + order * 11u) % n;  // 37 has no factor in common with a multiple of 32
}

static void run_block(unsigned order) {
  const unsigned n = blockDim.x;
  if (fibres.size() < n) fibres.resize(n);
  for (unsigned t = 0; t < n; ++t) {
    Fibre& f = fibres[t];
    if (!f.stack) f.stack.reset(new char[STACK]);
    f.state = READY;
    f.shuffles = 0;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = &scheduler;
    makecontext(&f.context, start, 0);
  }
  while (result == FINE) {
    for (unsigned k = 0; k < n; ++k) {
      const unsigned t = permuted(k, n, order);
      if (fibres[t].state != READY) continue;
      current = t;
      threadIdx.x = t;
      swapcontext(&scheduler, &fibres[t].context);
    }
    unsigned done = 0;
    for (unsigned t = 0; t < n; ++t) done += fibres[t].state == DONE;
    if (done == n) return;
    bool released = release(0, n, AT_BARRIER);
    for (unsigned warp = 0; warp < n; warp += 32) released |= release(warp, warp + 32, AT_SHUFFLE);
    if (!released) result = DIVERGENT;
  }
}

static int launch(unsigned blocks, unsigned threads, unsigned order, void (*work)()) {
  result = FINE;
  body = work;
  gridDim.x = blocks;
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks && result == FINE; ++blockIdx.x) run_block(order);
  return result;
}

}  // namespace simulation

// The special-function units. They may err by as much as NVIDIA says that those of a GPU do: up,
// down, or either as the bits of the argument fall.
namespace simulation {

enum Errors { NONE = 0, UP = 1, DOWN = 2, EITHER = 3 };
static unsigned errors;

static float flushed(float x) { return fabsf(x) < 0x1p-126f ? 0.f : x; }

static float erring(float x, double exact, double relative, double absolute) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const bool up = errors == UP || (errors == EITHER && (bits * 2654435761u) >> 31);
  const double error = errors == NONE ? 0 : relative * fabs(exact) + absolute;
  return flushed((float)(up ? exact + error : exact - error));
}

}  // namespace simulation

static inline float unit_exp2(float x) {
  return simulation::erring(x, exp2((double)x), 0x1p-22, 0);
}
static inline float unit_log2(float x) {
  const double y = log2((double)simulation::flushed(x));
  const bool near = x > 0.5f && x < 2.f;
  return simulation::erring(x, y, near ? 0 : 0x1p-22, near ? 0x1p-22 : 0);
}
static inline float unit_reciprocal(float x) {
  return simulation::erring(x, 1 / (double)simulation::flushed(x), 0x1p-23, 0);
}
static inline float unit_square_root(float x) {
  return simulation::erring(x, sqrt((double)simulation::flushed(x)), 0x1p-23, 0);
}
static inline float unit_sine(float x) {
  return simulation::erring(x, sin((double)x), 0, exp2(-20.5));
}
static inline float unit_cosine(float x) {
  return simulation::erring(x, cos((double)x), 0, exp2(-20.5));
}

static inline void __syncthreads() { simulation::wait_as(simulation::AT_BARRIER); }

static inline float __shfl_down_sync(unsigned mask, float value, unsigned delta) {
  using namespace simulation;
  const unsigned me = current, side = fibres[me].shuffles++ & 1u;
  if (mask != 0xffffffffu) result = BAD_MASK;
  fibres[me].value[side] = value;
  wait_as(AT_SHUFFLE);
  return (me & 31u) + delta < 32u ? fibres[me + delta].value[side] : value;
}

template <int BYTES>
struct Packet {
  static void check(const void* p) {
    if ((uintptr_t)p % BYTES) simulation::result = simulation::MISALIGNED;
  }
  static void read(const void* p, unsigned* w) {
    check(p);
    memcpy(w, p, BYTES);
  }
  static void write(void* p, const unsigned* w) {
    check(p);
    memcpy(p, w, BYTES);
  }
};
