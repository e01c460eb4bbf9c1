// The kernels on a CPU: the bodies of gpoe.cuh on vectors of 16 lanes, behind a plain C interface.
#include "gpoe.cuh"

#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

// A few experts without what is rarely used have kernels of their own, which store far less.
typedef Specialisation<GPOE_STORAGE, 4, 4, false, false> Usual;
typedef Specialisation<GPOE_STORAGE, 32, 4, true, true> General;

static bool is_usual(const General::A& a) {
  return a.experts <= Usual::EXPERTS && a.clamp == 0.f && !a.common_noise;
}

struct LaneSums {
  Float* sums;  // (S)
  GPOE void add(i64 s, Float x) { sums[s] = sums[s] + x; }
};

// Asks for large pages for what will be written, before its first touch.
static void prefer_large_pages(void* p, i64 elements) {
#if defined(__linux__)
  const i64 page = 1 << 21, bytes = elements * (i64)sizeof(GPOE_STORAGE);
  if (!p || bytes < 2 * page) return;
  const u64 mask = ~(u64)(page - 1), first = (u64)p;
  const u64 start = (first + page - 1) & mask, end = (first + bytes) & mask;
  if (end > start) madvise((void*)start, end - start, MADV_HUGEPAGE);
#endif
}

// Calls work(site, bits, union, sums) for the pieces of every chunk of every sample. A thread takes
// whole chunks, so that sums do not depend on their number; a piece is what one call computes,
// WIDTH vectors of LANES elements. `bits` has the experts of each subset, (S), `sums` a vector of
// partial divergences for each, (S, LANES).
template <class C, class Begin, class Work, class End>
static void for_each_chunk(
    const typename C::A& a, int threads, Begin begin, Work work, End finish) {
  const i64 piece = C::ELEMENTS;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<u32> bits(a.subsets);
    std::vector<float> memory((a.subsets + 1) * LANES);
    Float* sums = (Float*)(((u64)memory.data() + 63) & ~(u64)63);
#pragma omp for schedule(static)
    for (i64 k = 0; k < a.samples * a.chunks; ++k) {
      const i64 b = k / a.chunks, chunk = k % a.chunks;
      u32 wanted = 0;
      for (i64 s = 0; s < a.subsets; ++s) wanted |= bits[s] = given_bits<C>(a, s, b);
      const i64 end = (chunk + 1) * a.length < a.size ? (chunk + 1) * a.length : a.size;
      begin(sums);
      for (i64 i = chunk * a.length; i < end; i += piece) {
        const Site at = {b, i, end - i < piece ? end - i : piece, a.aligned != 0};
        work(at, bits.data(), wanted, sums);
      }
      finish(b, chunk, sums);
    }
#if defined(__AVX512F__)
    asm volatile("sfence" ::: "memory");  // what was streamed is written before others read it
#endif
  }
}

template <class C>
static void forward_as(const void* arguments, int threads) {
  const typename C::A& a = *(const typename C::A*)arguments;
  const i64 elements = a.subsets * a.samples * a.size;
  prefer_large_pages(a.z, elements);
  prefer_large_pages(a.fused_loc, elements);
  prefer_large_pages(a.fused_log_scale, elements);
  for_each_chunk<C>(
      a, threads,
      [&](Float* sums) {
        for (i64 s = 0; s < a.subsets; ++s) sums[s] = splat(0.f);
      },
      [&](const Site& at, const u32* bits, u32 wanted, Float* lanes) {
        LaneSums sums = {lanes};
        forward<C>(a, at, bits, wanted, sums);
      },
      [&](i64 b, i64 chunk, const Float* sums) {
        if (!a.kl) return;
        for (i64 s = 0; s < a.subsets; ++s)
          a.kl[(s * a.samples + b) * a.chunks + chunk] = sum(sums[s]);
      });
}

template <class C>
static void backward_as(const void* arguments, int threads) {
  const typename C::A& a = *(const typename C::A*)arguments;
  const i64 elements = a.samples * a.size;
  for (i64 m = 0; m < a.experts; ++m) {
    prefer_large_pages(a.expert[m].grad_loc, elements);
    prefer_large_pages(a.expert[m].grad_log_scale, elements);
  }
  prefer_large_pages(a.grad_prior_loc, elements);
  prefer_large_pages(a.grad_prior_log_scale, elements);
  for_each_chunk<C>(
      a, threads, [](Float*) {},
      [&](const Site& at, const u32* bits, u32 wanted, Float*) {
        backward<C>(a, at, bits, wanted);
      },
      [](i64, i64, const Float*) {});
}

extern "C" void forward(const General::A* a, int threads) {
  if (is_usual(*a))
    forward_as<Usual>(a, threads);
  else
    forward_as<General>(a, threads);
}

extern "C" void backward(const General::A* a, int threads) {
  if (is_usual(*a))
    backward_as<Usual>(a, threads);
  else
    backward_as<General>(a, threads);
}
