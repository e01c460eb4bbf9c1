// One kernel of gpoe.cuh or norm.cuh, run by simulated threads.
#define GPOE_SIMULATE
#include "threads.h"

static std::vector<unsigned> shared_memory;

#if defined(NORM_KERNEL)
#include "norm.cuh"

static NormArguments arguments;

static void work() { NORM_KERNEL<NORM_SILU>(arguments, (float*)shared_memory.data()); }
#else
#include "gpoe.cuh"

typedef Specialisation<
    GPOE_STORAGE, GPOE_EXPERTS, GPOE_WIDTH, GPOE_CLAMP, GPOE_COMMON_NOISE> Chosen;

static Chosen::A arguments;

static void work() { GPOE_KERNEL<Chosen>(arguments, shared_memory.data()); }
#endif

// Shared memory is filled with a pattern first, and followed by one that must survive.
extern "C" int simulate(
    const void* packed, unsigned blocks, unsigned threads, unsigned shared, unsigned order,
    unsigned errors) {
  const u32 pattern = 0x7fc0dead;  // as a float: not a number
  simulation::errors = errors;
  memcpy(&arguments, packed, sizeof arguments);
  shared_memory.assign(shared / 4 + 16, pattern);
  const int result = simulation::launch(blocks, threads, order, work);
  for (unsigned k = shared / 4; k < shared_memory.size(); ++k)
    if (shared_memory[k] != pattern) return simulation::OUT_OF_SHARED;
  return result;
}
