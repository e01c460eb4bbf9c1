// The numbers that the kernels compute with, and how they are read and written.
//
// A GPU thread holds plain floats. On a CPU every Float is a vector of 16 of them (the vector
// extension of GCC and Clang), so that one source, written as if for one number, serves both.
// A thread works on WIDTH Floats at a time: WIDTH * LANES consecutive elements.
//
// Compiled by NVRTC, by a C++ compiler for the CPU, and by one with GPOE_SIMULATE defined, where
// threads of a GPU are simulated: there a Float is one number too.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#if defined(__CUDACC__)
#define GPOE __device__ __forceinline__
#define GPOE_UNROLL _Pragma("unroll")
#define GPOE_ROLLED _Pragma("unroll 1")
#else
#define GPOE inline __attribute__((always_inline))
#define GPOE_UNROLL _Pragma("GCC unroll 32")
#define GPOE_ROLLED
#endif

// An audit of instructions compiles what usually runs alone, and one instruction for each test of
// whether it may.
#if defined(GPOE_USUAL_PATH)
GPOE bool usually(bool condition) {
  if (!condition) asm volatile("pmevent 1;");
  return true;
}
#define GPOE_USUALLY(condition) usually(condition)
#define GPOE_RARELY(condition) (!usually(!(condition)))
#else
#define GPOE_USUALLY(condition) (condition)
#define GPOE_RARELY(condition) (condition)
#endif

#if defined(__CUDACC__) || defined(GPOE_SIMULATE)
const int LANES = 1;
typedef float Float;
typedef int Int;
typedef u32 Word;
typedef u64 Wide;  // a 64-bit product of two Words
typedef bool Mask;
#else
const int LANES = 16;
typedef float Float __attribute__((vector_size(64)));
typedef int Int __attribute__((vector_size(64)));
typedef u32 Word __attribute__((vector_size(64)));
typedef u64 Wide __attribute__((vector_size(64)));  // 8 of them: one for every other lane
typedef Int Mask;
typedef u16 Half __attribute__((vector_size(32)));
#if defined(__AVX512F__)
#define GPOE_AVX512
#endif
#endif

// ---- Bits and selections --------------------------------------------------------------------

#if defined(__CUDACC__)
GPOE Word as_word(Float x) { return __float_as_uint(x); }
GPOE Float as_float(Word x) { return __uint_as_float(x); }
#else
GPOE Word as_word(Float x) {
  Word y;
  __builtin_memcpy(&y, &x, sizeof y);
  return y;
}
GPOE Float as_float(Word x) {
  Float y;
  __builtin_memcpy(&y, &x, sizeof y);
  return y;
}
#endif

GPOE Float splat(float x) { return x + Float(); }
GPOE Float select(Mask m, Float a, Float b) { return m ? a : b; }
GPOE Word select(Mask m, Word a, Word b) { return m ? a : b; }
// If x is no number, so is minimum(c, x); maximum(x, c) is c.
#if defined(__CUDACC__)
GPOE Float maximum(Float a, Float b) { return fmaxf(a, b); }
GPOE Float minimum(Float a, Float b) { return a < b ? a : b; }
#elif defined(GPOE_AVX512)
GPOE Float maximum(Float a, Float b) {
  asm("vmaxps %1, %0, %0" : "+v"(a) : "v"(b));
  return a;
}
GPOE Float minimum(Float a, Float b) {
  asm("vminps %1, %0, %0" : "+v"(a) : "v"(b));
  return a;
}
#else
GPOE Float maximum(Float a, Float b) { return select(a > b, a, b); }
GPOE Float minimum(Float a, Float b) { return select(a < b, a, b); }
#endif
#if defined(__CUDACC__)
GPOE Float magnitude(Float x) { return fabsf(x); }
#else
GPOE Float magnitude(Float x) { return as_float(as_word(x) & 0x7fffffffu); }
#endif

#if defined(__CUDACC__)
GPOE Float fused(Float a, Float b, Float c) { return __fmaf_rn(a, b, c); }  // a b + c, rounded once
#elif defined(GPOE_SIMULATE)
GPOE Float fused(Float a, Float b, Float c) { return __builtin_fmaf(a, b, c); }
#endif

#if defined(__CUDACC__) || defined(GPOE_SIMULATE)
GPOE Float to_float(Word x) { return (float)(int)x; }  // of a Word below 2^31
GPOE Float signed_to_float(Int x) { return (float)x; }
GPOE bool any(Mask m) { return m; }
GPOE float sum(Float x) { return x; }
GPOE Float first_lanes(Float x, i64 count) { return count > 0 ? x : 0.f; }
#else
GPOE Float to_float(Word x) { return __builtin_convertvector((Int)x, Float); }
GPOE Float signed_to_float(Int x) { return __builtin_convertvector(x, Float); }
GPOE bool any(Mask m) {
  const Wide w = (Wide)m;
  u64 bits = 0;
  for (int l = 0; l < 8; ++l) bits |= w[l];
  return bits != 0;
}
GPOE float sum(Float x) {
  double total = 0;
  for (int l = 0; l < LANES; ++l) total += x[l];
  return (float)total;
}
GPOE Float first_lanes(Float x, i64 count) {  // zero beyond the first `count`
  const Int lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return select(lane < (int)(count < LANES ? count : LANES), x, Float());
}
#endif

const float FAR = 60.f;  // the largest exponents that are near

// ---- Elementary functions -------------------------------------------------------------------
//
// A compiler may round a product and a sum once, together. Which of two products it takes, and
// whether one that is used elsewhere too, depends on the code around. So that all kernels get the same
// bits, sums here and in a forward pass leave it no choice.
//
// On a CPU, branch-free polynomials with less than 2 ulp of error; the coefficients of log, sine and
// cosine are those of the Cephes library (S. L. Moshier), single precision, those of exp a fit of
// least largest error.
//
// On a GPU, what rarely runs calls CUDA's functions. What usually runs is built on the instructions
// of the special-function units (`unit_*`), one each, with these largest errors (PTX ISA, CUDA C++
// Programming Guide); numbers below 2^-126 count as 0:
//
//   2^x        relative 2^-22                  1 / x, sqrt x   relative 2^-23
//   log2 x     absolute 2^-22 from 1/2 to 2, relative 2^-22 elsewhere
//   sin, cos   absolute 2^-20.5 from -pi to pi
//
// A simulation brings units of its own, which err by as much.

#if defined(__CUDACC__)
#define GPOE_UNIT(name, instruction)                \
  GPOE float unit_##name(float x) {                 \
    float y;                                        \
    asm(instruction " %0, %1;" : "=f"(y) : "f"(x)); \
    return y;                                       \
  }
GPOE_UNIT(exp2, "ex2.approx.ftz.f32")
GPOE_UNIT(log2, "lg2.approx.ftz.f32")
GPOE_UNIT(reciprocal, "rcp.approx.ftz.f32")
GPOE_UNIT(square_root, "sqrt.approx.ftz.f32")
GPOE_UNIT(sine, "sin.approx.ftz.f32")
GPOE_UNIT(cosine, "cos.approx.ftz.f32")
#endif

#if defined(__CUDACC__)
GPOE Float exponential(Float x) { return expf(x); }
GPOE Float logarithm(Float x) { return logf(x); }
GPOE Float hyperbolic_tangent(Float x) { return tanhf(x); }
#else
GPOE Float exponential(Float x) {  // 0 below -87, never more than e^88
  x = minimum(splat(88.f), x);
  const Float shifted = x * 1.44269504088896341f + 12582912.f;  // rounded in its last bits
  const Float n = shifted - 12582912.f;
  const Float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Float p = splat(1.38145e-3f);
  p = p * r + 8.36875e-3f;
  p = p * r + 4.166839e-2f;
  p = p * r + 1.6666521e-1f;
  p = p * r + 0.49999994f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  const Word scaled = as_word(p) + (as_word(shifted) << 23);  // times 2^n
  return select(x < -87.f, splat(0.f), as_float(scaled));
}
GPOE Float logarithm(Float x) {  // of a positive normal number
  const Word u = as_word(x) - 0x3f3504f3u;  // bits of sqrt(1/2)
  const Float e = signed_to_float((Int)u >> 23);
  const Float m = as_float((u & 0x7fffffu) + 0x3f3504f3u) - 1.f;  // from sqrt(1/2) to sqrt(2)
  const Float z = m * m;
  Float p = splat(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  return ((m - e * 2.12194440e-4f) + z * (m * p - 0.5f)) + e * 0.693359375f;
}
GPOE Float hyperbolic_tangent(Float x) {
  const Float a = magnitude(x), z = x * x;
  Float series = splat(-1.4558343870e-3f);
  series = series * z + 3.5921280366e-3f;
  series = series * z - 8.8632355299e-3f;
  series = series * z + 2.1869488536e-2f;
  series = series * z - 5.3968253968e-2f;
  series = series * z + 1.3333333333e-1f;
  series = series * z - 3.3333333333e-1f;
  const Float far = 1.f - 2.f / (exponential(2.f * a) + 1.f);
  return select(a < 0.4f, x + x * (z * series), select(x < 0.f, -far, far));
}
#endif

#if defined(__CUDACC__) || defined(GPOE_SIMULATE)
GPOE Float square_root(Float x) { return unit_square_root(x); }
GPOE Float reciprocal(Float x) { return unit_reciprocal(x); }
GPOE Float divide(Float a, Float b) { return a * reciprocal(b); }

// e^x for |x| up to 60: 2^y with y = x / ln 2 rounded, times 1 + (x - y ln 2). The error of ln 2 is
// 2^-28.4 of it, and the square left out is below 2^-35: relative 2^-22 + 2^-24 + 2^-28.4 |x|, less
// than 5e-7.
GPOE Float near_exponential(Float x) {
  const Float y = x * 1.44269504f, power = unit_exp2(y);
  return fused(power, fused(y, -0.693147181f, x), power);
}
const bool NEAR_IS_ALL = false;  // whether it is e^x for any x
// e^x for any x, given what it is if x is near.
GPOE Float mend(Float near, Float x) {
  return select(magnitude(x) > FAR, exponential(x), near);
}
// e^(x - shift) for any x, given what it is if there is no shift.
GPOE Float shifted_exponential(Float x, Float shift, Float near) {
  return select(shift == 0.f, near, exponential(x - shift));
}
// log x for x from 1: absolute 2^-22.5 up to 2, relative 2^-22 beyond.
GPOE Float near_logarithm(Float x) { return 0.693147181f * unit_log2(x); }

// Of the noise: sqrt(-2 log u) for u in (0, 1], where the logarithm may end above 0.
GPOE Float rayleigh(Float u) {
  return square_root(magnitude(1.386294361f * unit_log2(u)));
}
// The sine and cosine of 2 pi (x / 2^24 - 1/2) for x up to 2^24.
GPOE void turn(Float x, Float* sine, Float* cosine) {
  const Float angle = x * 3.74507028e-7f - 3.14159265f;
  *sine = unit_sine(angle);
  *cosine = unit_cosine(angle);
}
#else
GPOE Float square_root(Float x) {
  Float y;
  for (int l = 0; l < LANES; ++l) y[l] = __builtin_sqrtf(x[l]);
  return y;
}
GPOE Float reciprocal(Float x) { return 1.f / x; }
GPOE Float divide(Float a, Float b) { return a / b; }
GPOE Float near_exponential(Float x) { return exponential(x); }
const bool NEAR_IS_ALL = true;
GPOE Float mend(Float near, Float) { return near; }
GPOE Float shifted_exponential(Float x, Float shift, Float) { return exponential(x - shift); }
GPOE Float near_logarithm(Float x) { return logarithm(x); }
GPOE Float rayleigh(Float u) { return square_root(-2.f * logarithm(u)); }
GPOE void turn(Float x, Float* sine, Float* cosine) {
  x = x * 5.9604644775390625e-08f - 0.5f;
  const Float shifted = x * 4.f + 12582912.f;  // the quarter turn is in its last bits
  const Word quarter = as_word(shifted);
  const Float r = (x - (shifted - 12582912.f) * 0.25f) * 6.283185307f;
  const Float z = r * r;
  Float s = splat(-1.9515295891e-4f);
  s = s * z + 8.3321608736e-3f;
  s = s * z - 1.6666654611e-1f;
  s = r + r * (z * s);
  Float c = splat(2.443315711809948e-5f);
  c = c * z - 1.388731625493765e-3f;
  c = c * z + 4.166664568298827e-2f;
  c = (c * z) * z + (1.f - 0.5f * z);
  const Mask odd = (quarter & 1u) != 0u;
  const Word sine_sign = (quarter & 2u) << 30, cosine_sign = ((quarter + 1u) & 2u) << 30;
  *sine = as_float(as_word(select(odd, c, s)) ^ sine_sign);
  *cosine = as_float(as_word(select(odd, s, c)) ^ cosine_sign);
}
#endif

// -log(1 - w) - w for 0 <= w < 1, given -log(1 - w): a fit of least largest error, relative 2^-23,
// up to 9/16, since the difference cancels near 0. Beyond, an error of 2^-22 in the logarithm is one
// of less than 2^-20.3 here.
GPOE Float log_excess(Float w, Float log) {
  Float p = splat(2.682154417f);
  p = p * w - 4.716591835f;
  p = p * w + 4.097271919f;
  p = p * w - 1.707687140f;
  p = p * w + 6.421248317e-1f;
  p = p * w + 8.601410687e-2f;
  p = p * w + 2.073530257e-1f;
  p = p * w + 2.496638745e-1f;
  p = p * w + 3.333392441e-1f;
  p = p * w + 0.5f;
  return select(w < 0.5625f, w * (w * p), log - w);
}

GPOE Float infinity() { return as_float(as_word(splat(0.f)) | 0x7f800000u); }
GPOE Float exponential_or_infinite(Float x) { return select(x > 88.f, infinity(), exponential(x)); }

// e^-v - 1 + v, given 1 - e^-v, without the cancellation near 0
GPOE Float exp_minus_tangent(Float v, Float growth) {
  Float p = splat(-1.f / 2520.f);
  p = p * v + 1.f / 360.f;
  p = p * v - 1.f / 60.f;
  p = p * v + 1.f / 12.f;
  p = p * v - 1.f / 3.f;
  p = p * v + 1.f;
  return select(magnitude(v) < 0.25f, 0.5f * v * v * p, v - growth);
}

// ---- Normal noise ---------------------------------------------------------------------------
//
// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw (2011): the counter
// holds the row and the element divided by 4, the key is the seed. Four words make four normals by
// the transform of Box and Muller. A draw depends on the seed, row and element alone: not on the
// device, the number of threads or the width of a vector.

// A counter has four of these. On a CPU only the low half of each Wide counts.
#if defined(__CUDACC__) || defined(GPOE_SIMULATE)
typedef Word Counter;
GPOE void multiply(Counter a, u32 b, Counter* high, Counter* low) {
  const Wide product = (Wide)a * b;
  *high = (Counter)(product >> 32);
  *low = (Counter)product;
}
#else
typedef Wide Counter;
GPOE void multiply(Counter a, u32 b, Counter* high, Counter* low) {
#if defined(GPOE_AVX512)
  const Wide factor = b + Wide();  // GCC has no pattern for the product of low halves
  asm("vpmuludq %2, %1, %0" : "=v"(*low) : "v"(a), "v"(factor));
#else
  *low = (a & 0xffffffffull) * (u64)b;
#endif
  *high = *low >> 32;
}
#endif

// Of COUNT counters side by side, whose chains of ten rounds a CPU overlaps.
template <int COUNT>
GPOE void philox(Counter (*c)[4], u64 seed) {
  u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
  GPOE_UNROLL
  for (int round = 0; round < 10; ++round) {
    GPOE_UNROLL
    for (int n = 0; n < COUNT; ++n) {
      Counter high[2], low[2];
      multiply(c[n][0], 0xD2511F53u, high, low);
      multiply(c[n][2], 0xCD9E8D57u, high + 1, low + 1);
      c[n][0] = high[1] ^ c[n][1] ^ k0;
      c[n][1] = low[1];
      c[n][2] = high[0] ^ c[n][3] ^ k1;
      c[n][3] = low[0];
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// Two words to two normals.
GPOE void box_muller(Word a, Word b, Float* x, Float* y) {
  const Float u = to_float(a >> 8) * 5.9604644775390625e-08f + 2.98023223876953125e-08f;  // (0, 1]
  const Float radius = rayleigh(u);
  Float sine, cosine;
  turn(to_float(b >> 8), &sine, &cosine);
  *x = radius * cosine;
  *y = radius * sine;
}

#if defined(__CUDACC__) || defined(GPOE_SIMULATE)
GPOE void random_words(u64 seed, u64 row, u64 quad, Word w[4]) {
  Counter c[1][4] = {{(u32)quad, (u32)(quad >> 32), (u32)row, (u32)(row >> 32)}};
  philox<1>(c, seed);
  GPOE_UNROLL
  for (int k = 0; k < 4; ++k) w[k] = c[0][k];
}
template <int WIDTH>
GPOE void normals(u64 seed, u64 row, i64 element, Float* out) {
  Word w[4];
  if (WIDTH >= 4) {
    GPOE_UNROLL
    for (int v = 0; v < WIDTH; v += 4) {
      random_words(seed, row, (u64)(element + v) >> 2, w);
      box_muller(w[0], w[1], out + v, out + v + 1);
      box_muller(w[2], w[3], out + v + 2, out + v + 3);
    }
  } else {
    Float pair[2];
    random_words(seed, row, (u64)element >> 2, w);
    const bool second = (element & 2) != 0;
    box_muller(second ? w[2] : w[0], second ? w[3] : w[1], pair, pair + 1);
    if (WIDTH == 2) {
      out[0] = pair[0];
      out[1] = pair[1];
    } else {
      out[0] = (element & 1) ? pair[1] : pair[0];
    }
  }
}
#else
#if defined(__clang__)
#define GPOE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define GPOE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (const Word){__VA_ARGS__})
#endif
// a0 b0 a1 b1 ... of the low and high half of the lanes
GPOE void interleave(Float* a, Float* b) {
  const Word x = as_word(*a), y = as_word(*b);
  *a = as_float(GPOE_SHUFFLE(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
  *b = as_float(GPOE_SHUFFLE(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
}
// Lane l of out[v] is the normal of element + 16 v + l: four words for sixteen lanes are four
// vectors, of which a narrow kernel, that of rows of no more elements, takes the first.
template <int WIDTH>
GPOE void normals(u64 seed, u64 row, i64 element, Float* first) {
  Float out[4];
  const u64 quad = (u64)element >> 2;
  const Wide even = {0, 2, 4, 6, 8, 10, 12, 14};
  Counter c[2][4];
  Word w[4];
  for (int odd = 0; odd < 2; ++odd) {
    const Wide q = even + (quad + odd), high = (quad >> 32) + Wide();
    const Wide counter[4] = {q, high, (u64)(u32)row + Wide(), (row >> 32) + Wide()};
    for (int k = 0; k < 4; ++k) c[odd][k] = counter[k];
  }
  philox<2>(c, seed);
  for (int k = 0; k < 4; ++k) w[k] = (Word)((c[0][k] & 0xffffffffull) | (c[1][k] << 32));
  box_muller(w[0], w[1], out, out + 1);
  box_muller(w[2], w[3], out + 2, out + 3);
  // word k of lane l belongs to element 4 l + k
  interleave(out, out + 2);
  interleave(out + 1, out + 3);
  interleave(out, out + 1);
  interleave(out + 2, out + 3);
  for (int v = 0; v < WIDTH; ++v) first[v] = out[v];
}
#endif

// ---- Storage: float32, bfloat16, float16 ----------------------------------------------------

struct bfloat16 {
  u16 bits;
};
struct float16 {
  u16 bits;
};

GPOE Word bfloat16_bits(Float x) {  // rounded to nearest even, in the low half
  const Word u = as_word(x);
  const Word rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return select((u & 0x7fffffffu) > 0x7f800000u, rounded * 0u + 0x7fc0u, rounded);
}

#if defined(__CUDACC__)
GPOE Word float16_bits(Float x) {
  u16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
  return h;
}
GPOE Float from_float16(Word h) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"((u16)h));
  return x;
}
#else
GPOE Word float16_bits(Float x) {
  const Word u = as_word(x), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  const Word normal = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13;
  // below 2^-14 the sum with 1/2 rounds to the spacing of subnormals
  const Word small = as_word(as_float(a) + 0.5f) - 0x3f000000u;
  Word h = select(a < 0x38800000u, small, normal);
  h = select(a >= 0x477ff000u, h * 0u + 0x7c00u, h);
  h = select(a > 0x7f800000u, h * 0u + 0x7e00u, h);
  return sign | h;
}
GPOE Float from_float16(Word h) {
  const Word sign = (h & 0x8000u) << 16, a = h & 0x7fffu;
  const Float scaled = as_float(a << 13) * 5.192296858534828e+33f;  // 2^112
  const Word special = (a << 13) | 0x7f800000u;
  return as_float(sign | select(a >= 0x7c00u, special, as_word(scaled)));
}
#endif

GPOE Float widen(const float*, Word bits) { return as_float(bits); }
GPOE Float widen(const bfloat16*, Word bits) { return as_float(bits << 16); }
GPOE Float widen(const float16*, Word bits) { return from_float16(bits); }
GPOE Word narrow(const float*, Float x) { return as_word(x); }
GPOE Word narrow(const bfloat16*, Float x) { return bfloat16_bits(x); }
GPOE Word narrow(const float16*, Float x) { return float16_bits(x); }

#if defined(__CUDACC__) || defined(GPOE_SIMULATE)

// A packet is moved by one instruction: up to 128 bits, aligned to its size. In assembly, since a
// compiler may split a plain store of 128 bits to merge it with the code for unaligned rows.
#if defined(__CUDACC__)
template <int BYTES>
struct Packet;
template <>
struct Packet<16> {
  static GPOE void read(const void* p, u32* w) {
    asm("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];"
        : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
        : "l"(__cvta_generic_to_global(p)));
  }
  static GPOE void write(void* p, const u32* w) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)),
                 "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
                 : "memory");
  }
};
template <>
struct Packet<8> {
  static GPOE void read(const void* p, u32* w) {
    asm("ld.global.nc.v2.b32 {%0, %1}, [%2];"
        : "=r"(w[0]), "=r"(w[1])
        : "l"(__cvta_generic_to_global(p)));
  }
  static GPOE void write(void* p, const u32* w) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)), "r"(w[0]),
                 "r"(w[1])
                 : "memory");
  }
};
template <>
struct Packet<4> {
  static GPOE void read(const void* p, u32* w) {
    asm("ld.global.nc.b32 %0, [%1];" : "=r"(w[0]) : "l"(__cvta_generic_to_global(p)));
  }
  static GPOE void write(void* p, const u32* w) {
    asm volatile("st.global.b32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(w[0])
                 : "memory");
  }
};
#endif  // a simulation brings its own, which checks alignment

GPOE Float load_one(const float* p) { return *p; }
GPOE Float load_one(const bfloat16* p) { return widen(p, p->bits); }
GPOE Float load_one(const float16* p) { return widen(p, p->bits); }
GPOE void store_one(float* p, Float x) { *p = x; }
GPOE void store_one(bfloat16* p, Float x) { p->bits = (u16)narrow(p, x); }
GPOE void store_one(float16* p, Float x) { p->bits = (u16)narrow(p, x); }

GPOE void unpack(const float*, const u32* w, Float* x, int width) {
  GPOE_UNROLL
  for (int v = 0; v < width; ++v) x[v] = as_float(w[v]);
}
template <class T>
GPOE void unpack(const T* p, const u32* w, Float* x, int width) {
  GPOE_UNROLL
  for (int v = 0; v < width; v += 2) {
    x[v] = widen(p, w[v / 2] & 0xffffu);
    x[v + 1] = widen(p, w[v / 2] >> 16);
  }
}
GPOE void pack(const float*, const Float* x, u32* w, int width) {
  GPOE_UNROLL
  for (int v = 0; v < width; ++v) w[v] = as_word(x[v]);
}
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 800
GPOE void pack(const bfloat16*, const Float* x, u32* w, int width) {
  GPOE_UNROLL
  for (int v = 0; v < width; v += 2)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w[v / 2]) : "f"(x[v + 1]), "f"(x[v]));
}
#endif
template <class T>
GPOE void pack(const T* p, const Float* x, u32* w, int width) {
  GPOE_UNROLL
  for (int v = 0; v < width; v += 2) w[v / 2] = narrow(p, x[v]) | narrow(p, x[v + 1]) << 16;
}

template <class T, int WIDTH, int BYTES = WIDTH * sizeof(T)>
struct Access {
  static const int PACKET = BYTES < 16 ? BYTES : 16;
  static GPOE void load(const T* p, Float* x) {
    u32 w[BYTES / 4];
    GPOE_UNROLL
    for (int k = 0; k < BYTES; k += PACKET)
      Packet<PACKET>::read((const char*)p + k, w + k / 4);
    unpack(p, w, x, WIDTH);
  }
  static GPOE void store(T* p, const Float* x) {
    u32 w[BYTES / 4];
    pack(p, x, w, WIDTH);
    GPOE_UNROLL
    for (int k = 0; k < BYTES; k += PACKET) Packet<PACKET>::write((char*)p + k, w + k / 4);
  }
};
template <class T, int WIDTH>
struct Access<T, WIDTH, 2> {  // one number of 16 bits
  static GPOE void load(const T* p, Float* x) { x[0] = load_one(p); }
  static GPOE void store(T* p, const Float* x) { store_one(p, x[0]); }
};

// Reads `count` elements, or WIDTH of them as packets if `aligned` holds; 0 beyond.
template <class T, int WIDTH>
GPOE void load(const void* from, i64 offset, i64 count, bool aligned, Float* x) {
  const T* p = (const T*)from + offset;
  if (GPOE_USUALLY(aligned)) {
    Access<T, WIDTH>::load(p, x);
  } else {
    GPOE_UNROLL
    for (int v = 0; v < WIDTH; ++v) x[v] = v < count ? load_one(p + v) : 0.f;
  }
}
template <class T, int WIDTH>
GPOE void store(void* to, i64 offset, i64 count, bool aligned, const Float* x) {
  T* p = (T*)to + offset;
  if (GPOE_USUALLY(aligned)) {
    Access<T, WIDTH>::store(p, x);
  } else {
    GPOE_UNROLL
    for (int v = 0; v < WIDTH; ++v)
      if (v < count) store_one(p + v, x[v]);
  }
}

#else

GPOE Float load_lanes(const float* p) {
  Float x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
template <class T>
GPOE Float load_lanes(const T* p) {
  Half h;
  __builtin_memcpy(&h, p, sizeof h);
  return widen(p, __builtin_convertvector(h, Word));
}
GPOE Float stored(const float*, Float x) { return x; }
template <class T>
GPOE Half stored(const T* p, Float x) {
  return __builtin_convertvector(narrow(p, x), Half);
}
template <class T>
GPOE void store_lanes(T* p, Float x) {
  const auto y = stored(p, x);
  __builtin_memcpy(p, &y, sizeof y);
}
#if defined(GPOE_AVX512)
// Past the caches: what is written is not read from memory first. The address is aligned.
GPOE void stream_lanes(float* p, Float x) {
  asm volatile("vmovntps %1, %0" : "=m"(*(Float*)p) : "v"(x));
}
template <class T>
GPOE void stream_lanes(T* p, Float x) {
  asm volatile("vmovntdq %1, %0" : "=m"(*(Half*)p) : "v"(stored(p, x)));
}
#else
template <class T>
GPOE void stream_lanes(T* p, Float x) {
  store_lanes(p, x);
}
#endif

// The first `count` lanes, of any number; 0 beyond.
template <class T>
GPOE Float load_first(const T* p, i64 count) {
  if (count >= LANES) return load_lanes(p);
  T part[LANES] = {};
  if (count > 0) __builtin_memcpy(part, p, count * sizeof(T));
  return load_lanes(part);
}
template <class T>
GPOE void store_first(T* p, i64 count, Float x) {
  if (count >= LANES) return store_lanes(p, x);
  T part[LANES];
  store_lanes(part, x);
  if (count > 0) __builtin_memcpy(p, part, count * sizeof(T));
}
#if defined(GPOE_AVX512)
GPOE u16 first_bits(i64 count) {
  return count >= LANES ? 0xffffu : count > 0 ? (u16)((1u << count) - 1) : 0u;
}
GPOE Float load_first(const float* p, i64 count) {
  Float x;
  asm("vmovups %1, %0%{%2%}%{z%}" : "=v"(x) : "m"(*(const Float*)p), "Yk"(first_bits(count)));
  return x;
}
GPOE void store_first(float* p, i64 count, Float x) {
  asm("vmovups %1, %0%{%2%}" : "+m"(*(Float*)p) : "v"(x), "Yk"(first_bits(count)));
}
#endif

// Reads `count` elements, at most WIDTH * LANES of them; 0 beyond.
template <class T, int WIDTH>
GPOE void load(const void* from, i64 offset, i64 count, bool, Float* x) {
  const T* p = (const T*)from + offset;
  if (count < WIDTH * LANES) {
    GPOE_UNROLL
    for (int v = 0; v < WIDTH; ++v) x[v] = load_first(p + v * LANES, count - v * LANES);
    return;
  }
  // Too many streams for the processor to foresee; beyond the end a prefetch does no harm.
  for (int k = 0; k < WIDTH * LANES; k += 64 / sizeof(T))
    __builtin_prefetch(p + 2 * WIDTH * LANES + k);
  for (int v = 0; v < WIDTH; ++v) x[v] = load_lanes(p + v * LANES);
}
template <class T, int WIDTH>
GPOE void store(void* to, i64 offset, i64 count, bool aligned, const Float* x) {
  T* p = (T*)to + offset;
  if (count < WIDTH * LANES) {
    GPOE_UNROLL
    for (int v = 0; v < WIDTH; ++v) store_first(p + v * LANES, count - v * LANES, x[v]);
  } else if (aligned) {
    for (int v = 0; v < WIDTH; ++v) stream_lanes(p + v * LANES, x[v]);
  } else {
    for (int v = 0; v < WIDTH; ++v) store_lanes(p + v * LANES, x[v]);
  }
}

#endif
