// The kernels on a CPU: the bodies of gpoe.cuh on vectors of 16 lanes, behind a plain C interface.
#include "gpoe.cuh"

#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

// A few experts without what is rarely used have kernels of their own, which store far less, and so
// have short rows.
typedef Specialisation<GPOE_STORAGE, 4, 4, false, false> Usual;
typedef Specialisation<GPOE_STORAGE, 32, 2, true, true> Narrow;
typedef Specialisation<GPOE_STORAGE, 32, 4, true, true> General;

static bool is_usual(const General::A& a) {
  return a.experts <= Usual::EXPERTS && a.clamp == 0.f && !a.common_noise;
}
static bool is_narrow(const General::A& a) { return a.size <= Narrow::ELEMENTS; }

struct LaneSums {
  Float* sums;  // one for each pair
  GPOE void add(int k, Float x) { sums[k] = sums[k] + x; }
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

// The pairs of a sample, the experts of each as bits, and their union.
struct Given {
  Pairs pairs;
  const u32* bits;
  u32 wanted;
};

// Calls begin(given, sums), work(site, given, sums) for its pieces and end(given, chunk, sums) for
// every chunk of every sample. A thread takes whole chunks, so that sums do not depend on their
// number; a piece is what one call computes, WIDTH vectors of LANES elements. `sums` has a vector of
// partial divergences for each pair.
template <class C, class Begin, class Work, class End>
static void for_each_chunk(
    const typename C::A& a, int threads, Begin begin, Work work, End end) {
  const i64 piece = C::ELEMENTS;
  int most = 0;
  for (i64 b = 0; b < a.samples; ++b) {
    const int count = pairs_of<C>(a, b).count;
    if (count > most) most = count;
  }
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<u32> bits(most);
    std::vector<float> memory((most + 1) * LANES);
    Float* sums = (Float*)(((u64)memory.data() + 63) & ~(u64)63);
#pragma omp for schedule(static)
    for (i64 k = 0; k < a.samples * a.chunks; ++k) {
      const i64 b = k / a.chunks, chunk = k % a.chunks;
      Given given = {pairs_of<C>(a, b), bits.data(), 0};
      for (int p = 0; p < given.pairs.count; ++p)
        given.wanted |= bits[p] = given_bits<C>(a, given.pairs[p]);
      const i64 stop = (chunk + 1) * a.length < a.size ? (chunk + 1) * a.length : a.size;
      begin(given, sums);
      for (i64 i = chunk * a.length; i < stop; i += piece) {
        const Site at = {b, i, stop - i < piece ? stop - i : piece, a.aligned != 0};
        work(at, given, sums);
      }
      end(given, chunk, sums);
    }
#if defined(__AVX512F__)
    asm volatile("sfence" ::: "memory");  // what was streamed is written before others read it
#endif
  }
}

template <class C>
static void forward_as(const void* arguments, int threads) {
  const typename C::A& a = *(const typename C::A*)arguments;
  const i64 rows = a.offsets ? a.offsets[a.samples] : a.subsets * a.samples;
  prefer_large_pages(a.z, rows * a.size);
  prefer_large_pages(a.fused_loc, rows * a.size);
  prefer_large_pages(a.fused_log_scale, rows * a.size);
  for_each_chunk<C>(
      a, threads,
      [&](const Given& given, Float* sums) {
        for (int k = 0; k < given.pairs.count; ++k) sums[k] = splat(0.f);
      },
      [&](const Site& at, const Given& given, Float* lanes) {
        LaneSums sums = {lanes};
        forward<C>(a, at, given.pairs, given.bits, given.wanted, sums);
      },
      [&](const Given& given, i64 chunk, const Float* sums) {
        if (!a.kl) return;
        for (int k = 0; k < given.pairs.count; ++k)
          a.kl[given.pairs[k] * a.chunks + chunk] = sum(sums[k]);
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
      a, threads, [](const Given&, Float*) {},
      [&](const Site& at, const Given& given, Float*) {
        Accumulated<C> sums;
        clear<C>(a, sums);
        backward<C>(a, at, given.pairs, given.bits, given.wanted, sums);
        finish<C>(a, at, given.wanted, sums);
      },
      [](const Given&, i64, const Float*) {});
}

extern "C" void forward(const General::A* a, int threads) {
  if (is_narrow(*a))
    forward_as<Narrow>(a, threads);
  else if (is_usual(*a))
    forward_as<Usual>(a, threads);
  else
    forward_as<General>(a, threads);
}

extern "C" void backward(const General::A* a, int threads) {
  if (is_narrow(*a))
    backward_as<Narrow>(a, threads);
  else if (is_usual(*a))
    backward_as<Usual>(a, threads);
  else
    backward_as<General>(a, threads);
}
