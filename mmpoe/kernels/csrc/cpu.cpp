// The kernels on a CPU: the bodies of gpoe.cuh on vectors of 16 lanes, behind a plain C interface.
#include "gpoe.cuh"

#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

// A few experts without what is rarely used have kernels of their own, which store far less, and so
// have short rows. Of a few, what usually runs has one too.
typedef Specialisation<GPOE_STORAGE, 4, 4, false, false, true> Usual;
typedef Usual::Careful Few;
typedef Specialisation<GPOE_STORAGE, 32, 2, true, true> Narrow;
typedef Specialisation<GPOE_STORAGE, 32, 4, true, true> General;

// Calls run with the specialisation for the arguments.
template <class Run>
static void choose(const General::A& a, Run run) {
  if (a.size <= Narrow::ELEMENTS)
    run(Narrow());
  else if (a.experts > Few::EXPERTS || a.clamp > 0.f || a.common_noise)
    run(General());
  else if (a.prior_in == ALWAYS)
    run(Usual());
  else
    run(Few());
}

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

// Compute a piece, or return false if a plain kernel cannot.
template <class C>
GPOE bool forward_piece(
    const typename C::A& a, const Site& at, const Given& given, LaneSums& sums) {
  return forward<C>(a, at, given.pairs, given.bits, given.wanted, sums);
}
template <class C>
GPOE bool backward_piece(const typename C::A& a, const Site& at, const Given& given) {
  Accumulated<C> sums;
  clear<C>(a, sums);
  if (!backward<C>(a, at, given.pairs, given.bits, given.wanted, sums)) return false;
  finish<C>(a, at, given.wanted, sums);
  return true;
}

// The same in functions of their own: what rarely runs would take registers from what usually does.
template <class C>
__attribute__((noinline)) static void forward_apart(
    const typename C::A& a, const Site& at, const Given& given, LaneSums& sums) {
  forward_piece<C>(a, at, given, sums);
}
template <class C>
__attribute__((noinline)) static void backward_apart(
    const typename C::A& a, const Site& at, const Given& given) {
  backward_piece<C>(a, at, given);
}

// Whether a plain kernel may try a piece, which then has a length that the compiler knows.
template <class C>
GPOE bool is_whole(const Site& at) {
  return C::PLAIN && at.count == C::ELEMENTS;
}
template <class C>
GPOE Site whole(const Site& at) {
  const Site site = {at.b, at.element, C::ELEMENTS, at.aligned};
  return site;
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
        if (!is_whole<C>(at) || !forward_piece<C>(a, whole<C>(at), given, sums))
          forward_apart<typename C::Careful>(a, at, given, sums);
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
        if (!is_whole<C>(at) || !backward_piece<C>(a, whole<C>(at), given))
          backward_apart<typename C::Careful>(a, at, given);
      },
      [](const Given&, i64, const Float*) {});
}

extern "C" void forward(const General::A* a, int threads) {
  choose(*a, [&](auto c) { forward_as<decltype(c)>(a, threads); });
}

extern "C" void backward(const General::A* a, int threads) {
  choose(*a, [&](auto c) { backward_as<decltype(c)>(a, threads); });
}
