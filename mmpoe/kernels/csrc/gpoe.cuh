// A Gaussian prior times the experts given, a sample and the divergence from the prior, and the
// gradients of all that, for many subsets of the experts in one pass that reads every expert once.
//
// With x = -power * log_scale, everything is relative to the prior: r_m = x_m - x_p.
//
//   R = sum of e^r_m over the experts given     D = 1 + gamma R (1 without common noise)
//   delta = log(1 + R / D)                      w_m = e^r_m / (D + R)
//   loc = loc_p + sum w_m (loc_m - loc_p)       log_scale = log_scale_p - delta / power
//   kl = [e^-v - 1 + v + ((loc - loc_p) / scale_p)^2] / 2,   v = 2 delta / power
//
// so that nothing given is the prior to the bit with a divergence of 0. What is not given is never
// loaded. The sums are in linear space as long as no e^r_m exceeds e^60; a subset with a sharper
// expert ("far") is shifted by its largest r_m, lane by lane.
//
// Where the prior is no factor of the product, w_m = e^r_m / R and delta = log R: as above with 0
// for the 1 in the sum that the prior is. Experts below e^-60 are far then, too.
#pragma once
#include "lanes.cuh"

const float LARGEST = 3.4028235e38f;

// The arguments of one call, as `mmpoe.kernels._arguments` lays them out: 8 bytes a field. A null
// pointer means: not asked for, or a standard normal prior. Strides count elements from one sample
// to the next; what has no stride is dense. R pairs of a sample and a subset, B samples, N elements
// each: what comes out has a row for each pair, noise and gradients of what comes out too; experts
// and prior have one for each sample, read once for all its pairs. Sample b has the pairs number
// offsets[b] to offsets[b + 1] of `order`, which is 0, 1, 2, ... if null; without offsets it has
// pairs b, B + b, 2 B + b, ..., one in each of S subsets.
struct Expert {
  const void *loc, *log_scale;
  i64 loc_stride, log_scale_stride;
  void *grad_loc, *grad_log_scale;
};

template <int EXPERTS>
struct Arguments {
  const void *prior_loc, *prior_log_scale;
  i64 prior_loc_stride, prior_log_scale_stride;
  void *grad_prior_loc, *grad_prior_log_scale;
  const float* common_noise;  // gamma, (channels)
  float* grad_common_noise;   // (B, N), summed by the caller
  const u8* given;            // (R, experts)
  const i64 *offsets, *order;  // (B + 1), (R)
  const void* noise;          // (R, N), or else
  const u64* seed;            // one number, or else z is loc
  void *z, *fused_loc, *fused_log_scale;                       // (R, N)
  float* kl;                                                   // (R, chunks)
  const void *grad_z, *grad_fused_loc, *grad_fused_log_scale;  // (R, N)
  const float* grad_kl;                                        // (R)
  i64 experts, subsets, samples, size, channel_size;
  i64 chunks, length;  // of each sample, and the elements of a chunk
  i64 slots;     // on a GPU: the pairs that shared memory has room for at once
  i64 prior_in;  // the products that the prior is a factor of: ALWAYS, FULL (and of nothing), NEVER
  i64 aligned;  // all addresses are multiples of a packet; on a CPU: worth writing past the caches
  float power, inverse_power, clamp, temperature;  // a clamp of 0 is none
  Expert expert[EXPERTS];
};

const i64 ALWAYS = 0, FULL = 1;

static_assert(sizeof(Arguments<1>) == GPOE_ARGUMENTS_SIZE, "mmpoe.kernels._arguments differs");

// A kernel is compiled for a storage type, a largest number of experts, a number of Floats, and
// with or without what is rarely used. A plain one knows the prior as a factor of every product, and
// no expert that is far: it leaves those that find_far looks for to another.
template <class T_, int EXPERTS_, int WIDTH_, bool CLAMP_, bool COMMON_NOISE_, bool PLAIN_ = false>
struct Specialisation {
  typedef T_ T;
  static const int EXPERTS = EXPERTS_, WIDTH = WIDTH_, ELEMENTS = WIDTH_ * LANES;
  static const bool CLAMP = CLAMP_, COMMON_NOISE = COMMON_NOISE_, PLAIN = PLAIN_;
  // Whether experts are loaded before one is used: a CPU reorders by itself and has fewer registers.
  static const bool AHEAD = LANES == 1 && EXPERTS <= 8;
  typedef Arguments<EXPERTS> A;
  typedef Specialisation<T_, EXPERTS_, WIDTH_, CLAMP_, COMMON_NOISE_> Careful;  // what is not plain
};

#define GPOE_LANES(v) GPOE_UNROLL for (int v = 0; v < C::WIDTH; ++v)
// What a loop over experts indexes stays in registers if the loop is unrolled. On a CPU, which has few
// of them, a loop over more than four experts goes from bit to bit: a branch for each that is not
// given would often be guessed wrong.
#if defined(__CUDACC__) || defined(GPOE_SIMULATE)
#define GPOE_EXPERTS_IN(m, bits) \
  GPOE_UNROLL for (int m = 0; m < C::EXPERTS; ++m) if (((bits) >> m) & 1u)
#else
#define GPOE_EXPERTS_IN(m, bits)                                                     \
  _Pragma("GCC unroll 4") for (u32 m = next_expert<C>(bits, 0); m < C::EXPERTS;      \
                               m = next_expert<C>(bits, m + 1)) if (((bits) >> m) & 1u)
template <class C>
GPOE u32 next_expert(u32 bits, u32 from) {
  if (C::EXPERTS <= 4 || from > 31) return from;
  const u32 left = bits >> from << from;
  return left ? (u32)__builtin_ctz(left) : 32u;
}
#endif

// The elements of one thread: `count` of them from `element` of sample `b`. On a GPU, `aligned` says
// that packets may be moved; on a CPU, that it is worth writing past the caches.
struct Site {
  i64 b, element, count;
  bool aligned;
  // Where they are, with a stride from one sample to the next.
  GPOE i64 in(i64 stride) const { return b * stride + element; }
  // The same elements, whose addresses a GPU computes anew: those of many experts, kept for what
  // rarely runs, would need more registers than there are.
#if defined(__CUDACC__)
  GPOE Site anew() const {
    Site s = *this;
    asm volatile("" : "+l"(s.b));
    return s;
  }
#else
  GPOE const Site& anew() const { return *this; }
#endif
};

// Some pairs of one sample: pairs[k] is the row of the k-th of them.
struct Pairs {
  i64 first, step;
  const i64* order;
  int count;
  GPOE i64 operator[](int k) const {
    const i64 at = first + k * step;
    return order ? order[at] : at;
  }
  GPOE Pairs part(int from, int most) const {
    const int left = count - from;
    const Pairs some = {first + from * step, step, order, left < most ? left : most};
    return some;
  }
};

template <class C>
GPOE Pairs pairs_of(const typename C::A& a, i64 b) {
  Pairs pairs = {b, a.samples, a.order, (int)a.subsets};
  if (a.offsets) {
    pairs.first = a.offsets[b];
    pairs.count = (int)(a.offsets[b + 1] - pairs.first);
    pairs.step = 1;
  }
  return pairs;
}

// Bit m says if expert m is given in a pair.
template <class C>
GPOE u32 given_bits(const typename C::A& a, i64 pair) {
  const u8* row = a.given + pair * a.experts;
  u32 bits = 0;
  GPOE_ROLLED
  for (int m = 0; m < (int)a.experts; ++m) bits |= row[m] ? 1u << m : 0u;
  return bits;
}

template <class C>
GPOE void load(const void* from, i64 offset, const Site& at, Float* x) {
  load<typename C::T, C::WIDTH>(from, offset, at.count, at.aligned, x);
}
template <class C>
GPOE void store(void* to, i64 offset, const Site& at, const Float* x) {
  store<typename C::T, C::WIDTH>(to, offset, at.count, at.aligned, x);
}

template <class C>
GPOE void soft_clamp(const typename C::A& a, Float* x) {
  if (C::CLAMP && a.clamp > 0.f) {
    const float inverse = 1.f / a.clamp;
    GPOE_LANES(v) x[v] = a.clamp * hyperbolic_tangent(x[v] * inverse);
  }
}

// Multiplies a gradient by the derivative of the soft clamp, 1 / cosh^2, at the raw value.
template <class C>
GPOE void soft_clamp_backward(
    const typename C::A& a, const void* from, i64 offset, const Site& at, Float* gradient) {
  if (C::CLAMP && a.clamp > 0.f) {
    const float inverse = 1.f / a.clamp;
    Float x[C::WIDTH];
    load<C>(from, offset, at, x);
    GPOE_LANES(v) {
      const Float e = exponential(-2.f * magnitude(x[v] * inverse));
      gradient[v] = gradient[v] * divide(4.f * e, (1.f + e) * (1.f + e));
    }
  }
}

// ---- The factors of the product, read once --------------------------------------------------

template <class C>
struct Factors {
  Float offset[C::EXPERTS][C::WIDTH];  // loc_m - loc_p
  Float ratio[C::EXPERTS][C::WIDTH];   // e^r_m
  Float prior_loc[C::WIDTH], prior_log_scale[C::WIDTH], prior_scale[C::WIDTH];
  Float sharpness[C::WIDTH];  // 1 / scale_p, but finite: 0 times it is 0
  Float gamma[C::WIDTH];
  u32 far;  // the experts that are somewhere sharper than the prior by e^60, or that much wider
            // where that matters
};

template <class C>
GPOE void to_log_ratio(const typename C::A& a, const Factors<C>& f, Float* r) {
  soft_clamp<C>(a, r);
  GPOE_LANES(v) r[v] = a.power * (f.prior_log_scale[v] - r[v]);
}
// r_m of the expert; -infinity without information, where log_scale is infinite
template <class C>
GPOE void log_ratio(
    const typename C::A& a, const Site& at, const Factors<C>& f, int m, Float* r) {
  load<C>(a.expert[m].log_scale, at.anew().in(a.expert[m].log_scale_stride), at, r);
  to_log_ratio<C>(a, f, r);
}

// Finds the experts that are somewhere too sharp for linear space, and those without information,
// whose mean does not matter, whatever it is. Mends the exponentials of what is not near.
template <class C>
GPOE void find_far(const typename C::A& a, const Site& at, u32 wanted, Factors<C>& f) {
  GPOE_LANES(v) {
    if (NEAR_IS_ALL) continue;
    f.sharpness[v] = minimum(splat(LARGEST), mend(f.sharpness[v], -f.prior_log_scale[v]));
    f.prior_scale[v] = mend(f.prior_scale[v], f.prior_log_scale[v]);
  }
  GPOE_EXPERTS_IN(m, wanted) {
    Float r[C::WIDTH];
    log_ratio<C>(a, at, f, m, r);
    GPOE_LANES(v) {
      if (any((a.prior_in == ALWAYS ? r[v] : magnitude(r[v])) > FAR)) f.far |= 1u << m;
      f.ratio[m][v] = mend(f.ratio[m][v], r[v]);
      f.offset[m][v] = select(r[v] < -LARGEST, splat(0.f), f.offset[m][v]);
    }
  }
}

template <class C>
GPOE void load_common_noise(const typename C::A& a, const Site& at, Float* gamma) {
  GPOE_LANES(v) gamma[v] = splat(0.f);
  if (!C::COMMON_NOISE || !a.common_noise || at.count <= 0) return;
  const i64 first = at.element / a.channel_size;
  if (first == (at.element + C::ELEMENTS - 1) / a.channel_size) {
    GPOE_LANES(v) gamma[v] = splat(a.common_noise[first]);
  } else {
    float each[C::ELEMENTS];
    GPOE_UNROLL
    for (int k = 0; k < C::ELEMENTS; ++k)
      each[k] = k < at.count ? a.common_noise[(at.element + k) / a.channel_size] : 0.f;
#if defined(__CUDACC__) || defined(GPOE_SIMULATE)
    GPOE_LANES(v) gamma[v] = each[v];
#else
    GPOE_LANES(v) gamma[v] = load_lanes(each + v * LANES);
#endif
  }
}

template <class C>
GPOE void load_expert(
    const typename C::A& a, const Site& at, int m, Float* log_scale, Float* loc) {
  load<C>(a.expert[m].log_scale, at.in(a.expert[m].log_scale_stride), at, log_scale);
  load<C>(a.expert[m].loc, at.in(a.expert[m].loc_stride), at, loc);
}

// Loads the prior, and before it the experts if AHEAD: all loads are under way at once.
template <class C>
GPOE void load_ahead(const typename C::A& a, const Site& at, u32 wanted, Factors<C>& f) {
  if (C::AHEAD) GPOE_EXPERTS_IN(m, wanted) load_expert<C>(a, at, m, f.ratio[m], f.offset[m]);
  GPOE_LANES(v) f.prior_loc[v] = f.prior_log_scale[v] = splat(0.f);
  if (a.prior_loc) {
    load<C>(a.prior_log_scale, at.in(a.prior_log_scale_stride), at, f.prior_log_scale);
    load<C>(a.prior_loc, at.in(a.prior_loc_stride), at, f.prior_loc);
    soft_clamp<C>(a, f.prior_loc);
    soft_clamp<C>(a, f.prior_log_scale);
  }
}

// Returns whether the kernel can go on: a plain one cannot if an expert may be far.
template <class C>
GPOE bool load_factors(const typename C::A& a, const Site& at, u32 wanted, Factors<C>& f) {
  if (C::AHEAD && GPOE_USUALLY(at.aligned)) {
    const Site whole = {at.b, at.element, at.count, true};  // one test for all loads
    load_ahead<C>(a, whole, wanted, f);
  } else {
    load_ahead<C>(a, at, wanted, f);
  }
  Float widest = splat(0.f);
  GPOE_LANES(v) {
    if (!NEAR_IS_ALL) widest = maximum(magnitude(f.prior_log_scale[v]), widest);
    f.sharpness[v] = near_exponential(-f.prior_log_scale[v]);
    f.prior_scale[v] = reciprocal(f.sharpness[v]);
  }
  load_common_noise<C>(a, at, f.gamma);

  GPOE_EXPERTS_IN(m, wanted) {
    Float r[C::WIDTH];
    if (C::AHEAD)
      GPOE_LANES(v) r[v] = f.ratio[m][v];
    else
      load_expert<C>(a, at, m, r, f.offset[m]);
    to_log_ratio<C>(a, f, r);
    soft_clamp<C>(a, f.offset[m]);
    GPOE_LANES(v) {
      widest = maximum(magnitude(r[v]), widest);
      f.ratio[m][v] = near_exponential(r[v]);
      f.offset[m][v] = f.offset[m][v] - f.prior_loc[v];
    }
  }
  f.far = 0;
  if (GPOE_RARELY(any(widest > FAR))) {
    if (C::PLAIN) return false;
    find_far<C>(a, at, wanted, f);
  }
  return true;
}

// ---- The product of one subset --------------------------------------------------------------

template <class C>
struct Fused {
  Float shift[C::WIDTH];         // loc - loc_p
  Float delta[C::WIDTH];         // power * (log_scale_p - log_scale)
  Float drop[C::WIDTH];          // 1 - e^-delta
  Float excess[C::WIDTH];        // e^-delta - 1 + delta
  Float prior_weight[C::WIDTH];  // e^-delta: 1 minus the sum of the weights, if the prior joins
  Float evidence[C::WIDTH];      // the sum of the weights
  Float inverse[C::WIDTH];       // 1 / (D + R), 1 / R without the prior
  Float discount[C::WIDTH];      // D
  Float exponent[C::WIDTH];      // if far: what R and D were divided by, as a logarithm, or 0
  float joins;                   // 1 if the prior is a factor, else 0: there is no common noise
  bool far;
  bool alone;  // the product is one expert by itself
};

template <class C, bool DELTA>
GPOE void fuse_near(const typename C::A& a, const Factors<C>& f, u32 given, Fused<C>& q) {
  Float total[C::WIDTH], moment[C::WIDTH];
  GPOE_LANES(v) total[v] = moment[v] = splat(0.f);
  GPOE_EXPERTS_IN(m, given) {
    GPOE_LANES(v) {
      total[v] = total[v] + f.ratio[m][v];
      moment[v] = moment[v] + f.ratio[m][v] * f.offset[m][v];
    }
  }
  GPOE_LANES(v) {
    Float odds = total[v];  // R / D
    q.discount[v] = splat(1.f);
    if (C::COMMON_NOISE && a.common_noise) {
      q.discount[v] = 1.f + f.gamma[v] * total[v];
      odds = divide(total[v], q.discount[v]);
    }
    q.inverse[v] = reciprocal(q.joins * q.discount[v] + total[v]);
    q.prior_weight[v] = q.discount[v] * q.inverse[v];
    q.evidence[v] = total[v] * q.inverse[v];
    q.shift[v] = moment[v] * q.inverse[v];
    q.drop[v] = q.evidence[v];
    if (DELTA) {
      q.excess[v] = log_excess(q.evidence[v], near_logarithm(1.f + odds));
      q.delta[v] = q.evidence[v] + q.excess[v];
    }
  }
  if (GPOE_RARELY(q.joins == 0.f)) {
    GPOE_LANES(v) q.drop[v] = 1.f - q.prior_weight[v];
    if (DELTA) GPOE_LANES(v) {
      q.delta[v] = logarithm(total[v]);
      q.excess[v] = exp_minus_tangent(q.delta[v], q.drop[v]);
    }
  }
}

// As above, where some expert is far: sums of e^(r_m - exponent). Lanes that are not far have an
// exponent of 0 and keep every bit of what they had. An expert alone has its own r_m as exponent.
template <class C>
GPOE void fuse_far(
    const typename C::A& a, const Site& at, const Factors<C>& f, u32 given, Fused<C>& q) {
  Float total[C::WIDTH], moment[C::WIDTH], r[C::WIDTH];
  GPOE_LANES(v) q.exponent[v] = splat(q.joins > 0.f ? FAR : -LARGEST);
  GPOE_EXPERTS_IN(m, given) {
    log_ratio<C>(a, at, f, m, r);
    GPOE_LANES(v) q.exponent[v] = maximum(r[v], q.exponent[v]);
  }
  GPOE_LANES(v) {
    const Float bound = splat(q.alone ? 0.f : FAR);
    q.exponent[v] = select(magnitude(q.exponent[v]) > bound, q.exponent[v], splat(0.f));
    total[v] = moment[v] = splat(0.f);
  }
  GPOE_EXPERTS_IN(m, given) {
    log_ratio<C>(a, at, f, m, r);
    GPOE_LANES(v) {
      const Float e = shifted_exponential(r[v], q.exponent[v], f.ratio[m][v]);
      total[v] = total[v] + e;
      moment[v] = moment[v] + e * f.offset[m][v];
    }
  }
  GPOE_LANES(v) {
    const Mask far = q.exponent[v] != 0.f;
    const Float prior = q.joins > 0.f ? exponential(-q.exponent[v]) : splat(0.f);
    const Float common = f.gamma[v] * total[v];
    q.discount[v] = prior + common;
    const Float whole = q.discount[v] + total[v];
    const Mask nothing = whole == 0.f;  // no prior, and experts without information
    q.inverse[v] = reciprocal(select(nothing, splat(1.f), whole));
    q.evidence[v] = total[v] * q.inverse[v];
    q.shift[v] = moment[v] * q.inverse[v];

    Float odds = total[v];
    if (C::COMMON_NOISE && a.common_noise) odds = divide(total[v], q.discount[v]);
    const Float near_weight = (q.joins > 0.f ? q.discount[v] : splat(1.f)) * q.inverse[v];
    odds = select(far, splat(1.f), odds);
    const Float near = q.joins > 0.f ? near_logarithm(1.f + odds) : logarithm(odds);

    // log D = log(e^-exponent + gamma R), where both may underflow
    const Float log_common =
        logarithm(select(common > 0.f, maximum(f.gamma[v], splat(1e-37f)), splat(1.f))) +
        logarithm(select(far, total[v], splat(1.f)));
    const Float gap = select(common > 0.f, log_common + q.exponent[v], splat(-104.f));
    const Float log_discount =
        maximum(gap, splat(0.f)) + logarithm(1.f + exponential(-magnitude(gap))) - q.exponent[v];
    const Float beyond = logarithm(select(far, whole, splat(1.f))) - log_discount;
    const Float log = select(nothing, -infinity(), select(far, beyond + 0.f * total[v], near));
    q.excess[v] = log_excess(q.evidence[v], log);
    q.delta[v] = q.joins > 0.f ? q.evidence[v] + q.excess[v] : log;
    q.prior_weight[v] = select(far, exponential_or_infinite(-q.delta[v]), near_weight);
    q.drop[v] = q.joins > 0.f ? q.evidence[v] : 1.f - q.prior_weight[v];
    if (q.joins == 0.f) q.excess[v] = exp_minus_tangent(log, q.drop[v]);
  }
}

// DELTA: whether delta and its excess are needed where no expert is far.
template <class C, bool DELTA>
GPOE void fuse(
    const typename C::A& a, const Site& at, const Factors<C>& f, u32 given, Fused<C>& q) {
  if (C::PLAIN) {
    q.joins = 1.f;
    q.alone = q.far = false;
    return fuse_near<C, DELTA>(a, f, given, q);
  }
  const bool all = a.prior_in == FULL && given == ~0u >> (32 - (int)a.experts);
  q.joins = a.prior_in == ALWAYS || given == 0 || all ? 1.f : 0.f;
  q.alone = GPOE_RARELY(q.joins == 0.f && (given & (given - 1)) == 0);
  q.far = GPOE_RARELY(q.alone || (given & f.far) != 0);
  if (q.far)
    fuse_far<C>(a, at, f, given, q);
  else
    fuse_near<C, DELTA>(a, f, given, q);
}

// ---- Forward --------------------------------------------------------------------------------

// The mean and log standard deviation; those of an expert alone as they are, to the bit.
template <class C>
GPOE void parameters(
    const typename C::A& a, const Site& at, const Factors<C>& f, u32 given, const Fused<C>& q,
    Float* loc, Float* log_scale) {
  GPOE_LANES(v) {
    loc[v] = f.prior_loc[v] + q.shift[v];
    log_scale[v] = f.prior_log_scale[v] - a.inverse_power * q.delta[v];
  }
  if (!q.alone) return;
  int m = 0;
  while (((given >> m) & 1u) == 0) ++m;
  Float own[C::WIDTH];
  load<C>(a.expert[m].log_scale, at.in(a.expert[m].log_scale_stride), at, log_scale);
  load<C>(a.expert[m].loc, at.in(a.expert[m].loc_stride), at, own);
  soft_clamp<C>(a, log_scale);
  soft_clamp<C>(a, own);
  GPOE_LANES(v) loc[v] = select(log_scale[v] > LARGEST, loc[v], own[v]);
}

// temperature * scale * noise of a pair
template <class C>
GPOE void scaled_noise(
    const typename C::A& a, const Site& at, i64 row, const Factors<C>& f, const Fused<C>& q,
    Float* x) {
  GPOE_LANES(v) x[v] = splat(0.f);
  if (a.noise)
    load<C>(a.noise, row * a.size + at.element, at, x);
  else if (a.seed)
    normals<C::WIDTH>(*a.seed, (u64)row, at.element, x);
  GPOE_LANES(v) {
    // e^(-delta / power) of the scale of the prior
    const Float w = q.prior_weight[v];
    Float scale = (a.power == 2.f ? square_root(w) : w) * f.prior_scale[v];
    if (q.far) {
      const Float exact = exponential(f.prior_log_scale[v] - q.delta[v] * a.inverse_power);
      scale = select(q.exponent[v] != 0.f, exact, scale);
    }
    x[v] = a.temperature * scale * x[v];
  }
}

// 1 - e^-v with v = 2 delta / power
template <class C>
GPOE Float growth(const typename C::A& a, const Fused<C>& q, int v) {
  return a.power == 2.f ? q.drop[v] : q.drop[v] * (1.f + q.prior_weight[v]);
}

// e^-v - 1 + v
template <class C>
GPOE Float tangent(const typename C::A& a, const Fused<C>& q, int v) {
  return a.power == 2.f ? q.excess[v] : q.drop[v] * q.drop[v] + (q.excess[v] + q.excess[v]);
}

// `given` has the experts of each pair as bits, `wanted` their union; `sum` takes the divergences.
template <class C, class Sum>
GPOE bool forward(
    const typename C::A& a, const Site& at, const Pairs& pairs, const u32* given, u32 wanted,
    Sum& sum) {
  Factors<C> f;
  if (!load_factors<C>(a, at, wanted, f)) return false;
  for (int k = 0; k < pairs.count; ++k) {
    const i64 row = pairs[k], offset = row * a.size + at.element;
    Fused<C> q;
    fuse<C, true>(a, at, f, given[k], q);
    Float loc[C::WIDTH], log_scale[C::WIDTH];
    parameters<C>(a, at, f, given[k], q, loc, log_scale);
    if (a.fused_loc) store<C>(a.fused_loc, offset, at, loc);
    if (a.fused_log_scale) store<C>(a.fused_log_scale, offset, at, log_scale);
    if (a.kl) {
      Float each[C::WIDTH], kl = splat(0.f);
      GPOE_LANES(v) {
        const Float distance = q.shift[v] * f.sharpness[v];
        each[v] = tangent<C>(a, q, v) + distance * distance;
      }
      if (at.count < C::ELEMENTS) GPOE_LANES(v) each[v] = first_lanes(each[v], at.count - v * LANES);
      GPOE_LANES(v) kl = kl + each[v];
      sum.add(k, 0.5f * kl);
    }
    if (a.z) {
      Float z[C::WIDTH];
      scaled_noise<C>(a, at, row, f, q, z);
      GPOE_LANES(v) z[v] = loc[v] + z[v];
      store<C>(a.z, offset, at, z);
    }
  }
  return true;
}

// ---- Backward -------------------------------------------------------------------------------

// The gradients of one pair with respect to shift, delta, loc_p and log_scale_p.
template <class C>
struct Gradients {
  Float shift[C::WIDTH], delta[C::WIDTH], loc[C::WIDTH], log_scale[C::WIDTH];
};

template <class C>
GPOE void gradients_of_pair(
    const typename C::A& a, const Site& at, i64 row, const Factors<C>& f, const Fused<C>& q,
    Gradients<C>& g) {
  const i64 offset = row * a.size + at.element;
  Float x[C::WIDTH];
  GPOE_LANES(v) g.loc[v] = g.log_scale[v] = splat(0.f);
  if (a.grad_z) {
    load<C>(a.grad_z, offset, at, g.loc);
    scaled_noise<C>(a, at, row, f, q, x);
    GPOE_LANES(v) g.log_scale[v] = g.loc[v] * x[v];
  }
  if (a.grad_fused_loc) {
    load<C>(a.grad_fused_loc, offset, at, x);
    GPOE_LANES(v) g.loc[v] = g.loc[v] + x[v];
  }
  if (a.grad_fused_log_scale) {
    load<C>(a.grad_fused_log_scale, offset, at, x);
    GPOE_LANES(v) g.log_scale[v] = g.log_scale[v] + x[v];
  }
  GPOE_LANES(v) {
    g.shift[v] = g.loc[v];
    g.delta[v] = -a.inverse_power * g.log_scale[v];
  }
  const float kl = a.grad_kl ? a.grad_kl[row] : 0.f;
  if (kl == 0.f) return;  // a divergence may be infinite
  GPOE_LANES(v) {
    const Float distance = q.shift[v] * f.sharpness[v];
    g.shift[v] = g.shift[v] + kl * distance * f.sharpness[v];
    g.delta[v] = g.delta[v] + a.inverse_power * (kl * growth<C>(a, q, v));
    g.log_scale[v] = g.log_scale[v] - kl * distance * distance;
  }
}

template <class C>
struct Accumulated {
  Float loc[C::EXPERTS][C::WIDTH], log_scale[C::EXPERTS][C::WIDTH];
  Float prior_loc[C::WIDTH], prior_log_scale[C::WIDTH], gamma[C::WIDTH];
};

template <class C>
GPOE void add_gradients(
    const typename C::A& a, const Site& at, const Factors<C>& f, u32 given, const Fused<C>& q,
    const Gradients<C>& g, Accumulated<C>& sums) {
  // common noise lowers every r_m by log D: what all of them feel
  Float felt[C::WIDTH];
  GPOE_LANES(v) {
    const Float rest = q.joins > 0.f ? q.prior_weight[v] : splat(0.f);  // 1 minus the weights
    const Float all = q.evidence[v] * g.delta[v] + g.shift[v] * q.shift[v] * rest;
    Float kept = all;
    felt[v] = splat(0.f);
    if (C::COMMON_NOISE && a.common_noise) {
      const Float per = select(f.gamma[v] > 0.f, divide(f.gamma[v], q.discount[v]), splat(0.f));
      felt[v] = all * per;
      kept = all - felt[v] * divide(q.evidence[v], q.inverse[v]);
      // without noise yet, what would overflow counts as 0
      const Mask over = (f.gamma[v] == 0.f) & (q.prior_weight[v] < 8.7565108e-27f);  // e^-60
      const Float odds = select(over, splat(0.f), divide(q.evidence[v], q.prior_weight[v]));
      sums.gamma[v] = sums.gamma[v] - all * odds;
    }
    sums.prior_loc[v] = sums.prior_loc[v] + (g.loc[v] - q.evidence[v] * g.shift[v]);
    sums.prior_log_scale[v] = sums.prior_log_scale[v] + (g.log_scale[v] + a.power * kept);
  }
  GPOE_EXPERTS_IN(m, given) {
    Float e[C::WIDTH];
    if (q.far) {
      log_ratio<C>(a, at, f, m, e);
      GPOE_LANES(v)
        e[v] = shifted_exponential(e[v], q.exponent[v], f.ratio[m][v]);
    } else {
      GPOE_LANES(v) e[v] = f.ratio[m][v];
    }
    GPOE_LANES(v) {
      const Float w = e[v] * q.inverse[v];
      const Float r = w * (g.delta[v] + g.shift[v] * (f.offset[m][v] - q.shift[v]));
      sums.loc[m][v] = sums.loc[m][v] + w * g.shift[v];
      sums.log_scale[m][v] = sums.log_scale[m][v] - a.power * (r - felt[v] * e[v]);
    }
  }
}

template <class C>
GPOE void clear(const typename C::A& a, Accumulated<C>& sums) {
  const u32 all = ~0u >> (32 - (int)a.experts);
  GPOE_EXPERTS_IN(m, all)
    GPOE_LANES(v) sums.loc[m][v] = sums.log_scale[m][v] = splat(0.f);
  GPOE_LANES(v) sums.prior_loc[v] = sums.prior_log_scale[v] = sums.gamma[v] = splat(0.f);
}

// Adds the gradients of some pairs.
template <class C>
GPOE bool backward(
    const typename C::A& a, const Site& at, const Pairs& pairs, const u32* given, u32 wanted,
    Accumulated<C>& sums) {
  Factors<C> f;
  if (!load_factors<C>(a, at, wanted, f)) return false;
  for (int k = 0; k < pairs.count; ++k) {
    Fused<C> q;
    Gradients<C> g;
    fuse<C, false>(a, at, f, given[k], q);
    gradients_of_pair<C>(a, at, pairs[k], f, q, g);
    add_gradients<C>(a, at, f, given[k], q, g, sums);
  }
  return true;
}

// Writes the gradients of a sample, of whose experts some pair was given the `wanted`.
template <class C>
GPOE void finish(const typename C::A& a, const Site& at, u32 wanted, Accumulated<C>& sums) {
  const u32 all = ~0u >> (32 - (int)a.experts);
  const i64 dense = at.in(a.size);
  GPOE_EXPERTS_IN(m, all) {
    const bool loaded = (wanted >> m) & 1u;
    if (a.expert[m].grad_loc) {
      if (loaded)
        soft_clamp_backward<C>(a, a.expert[m].loc, at.in(a.expert[m].loc_stride), at, sums.loc[m]);
      store<C>(a.expert[m].grad_loc, dense, at, sums.loc[m]);
    }
    if (a.expert[m].grad_log_scale) {
      if (loaded)
        soft_clamp_backward<C>(
            a, a.expert[m].log_scale, at.in(a.expert[m].log_scale_stride), at, sums.log_scale[m]);
      store<C>(a.expert[m].grad_log_scale, dense, at, sums.log_scale[m]);
    }
  }
  if (a.grad_prior_loc) {
    soft_clamp_backward<C>(a, a.prior_loc, at.in(a.prior_loc_stride), at, sums.prior_loc);
    store<C>(a.grad_prior_loc, dense, at, sums.prior_loc);
  }
  if (a.grad_prior_log_scale) {
    soft_clamp_backward<C>(
        a, a.prior_log_scale, at.in(a.prior_log_scale_stride), at, sums.prior_log_scale);
    store<C>(a.grad_prior_log_scale, dense, at, sums.prior_log_scale);
  }
  if (C::COMMON_NOISE && a.grad_common_noise)
    store<float, C::WIDTH>(
        a.grad_common_noise, dense, at.count, at.aligned, sums.gamma);
}

// ---- The grid of a GPU ----------------------------------------------------------------------
//
// Block b * chunks + c works on chunk c of sample b, in all its pairs: threads stride over its
// elements, WIDTH neighbours at a time, all of them equally often, so that every warp is whole at
// every shuffle. Shared memory has room for some pairs at once, as many as there are slots: for the
// experts of each as bits, (slots), and one partial divergence for each pair and warp, (slots,
// warps). No block reads what another wrote: the chunks of a divergence are summed by the caller,
// and nothing is atomic.

#if defined(__CUDACC__) || defined(GPOE_SIMULATE)

struct WarpSums {
  float* sums;  // (slots, warps)
  int warps;
  GPOE void add(int k, Float x) {
    GPOE_UNROLL
    for (int d = 16; d > 0; d /= 2) x += __shfl_down_sync(0xffffffffu, x, d);
    if ((threadIdx.x & 31u) == 0) sums[k * warps + (threadIdx.x >> 5)] += x;
  }
};

// The chunk that a block works on, of sample b.
struct Block {
  u32 b, chunk;
};

template <class C>
GPOE Block this_block(const typename C::A& a) {
  const u32 b = blockIdx.x / (u32)a.chunks;
  const Block block = {b, blockIdx.x - b * (u32)a.chunks};
  return block;
}

// Calls work(site) for every element of this thread; `count` is 0 beyond the end of the chunk.
template <class C, class Work>
GPOE void for_each_site(const typename C::A& a, const Block& block, Work work) {
  Site at;
  at.b = block.b;
  const i64 step = (i64)blockDim.x * C::WIDTH, chunk = block.chunk;
  const i64 end = (chunk + 1) * a.length < a.size ? (chunk + 1) * a.length : a.size;
  GPOE_ROLLED
  for (i64 start = chunk * a.length; start < end; start += step) {
    at.element = start + threadIdx.x * C::WIDTH;
    at.count = end - at.element;
    if (at.count < 0) at.count = 0;
    if (at.count > C::WIDTH) at.count = C::WIDTH;
    at.aligned = a.aligned && start + step <= end;  // for all threads alike
    work(at);
  }
}

// Fills the bits of some pairs; returns their union.
template <class C>
GPOE u32 gather_bits(const typename C::A& a, const Pairs& pairs, u32* bits) {
  GPOE_ROLLED
  for (int k = threadIdx.x; k < pairs.count; k += blockDim.x) bits[k] = given_bits<C>(a, pairs[k]);
  __syncthreads();
  u32 wanted = 0;
  GPOE_ROLLED
  for (int k = 0; k < pairs.count; ++k) wanted |= bits[k];
  return wanted;
}

template <class C>
GPOE void forward_kernel(const typename C::A& a, u32* shared) {
  WarpSums sums;
  sums.sums = (float*)(shared + a.slots);
  sums.warps = (int)(blockDim.x / 32);
  const Block block = this_block<C>(a);
  const int slots = (int)a.slots;
  const Pairs all = pairs_of<C>(a, block.b);
  GPOE_ROLLED
  for (int from = 0; from < all.count; from += slots) {
    const Pairs pairs = all.part(from, slots);
    if (from) __syncthreads();  // the slots are free again
    GPOE_ROLLED
    for (int k = threadIdx.x; k < pairs.count * sums.warps; k += blockDim.x) sums.sums[k] = 0.f;
    const u32 wanted = gather_bits<C>(a, pairs, shared);

    for_each_site<C>(
        a, block, [&](const Site& at) { forward<C>(a, at, pairs, shared, wanted, sums); });

    if (!a.kl) continue;
    __syncthreads();
    GPOE_ROLLED
    for (int k = threadIdx.x; k < pairs.count; k += blockDim.x) {
      float total = 0.f;
      GPOE_ROLLED
      for (int w = 0; w < sums.warps; ++w) total += sums.sums[k * sums.warps + w];
      a.kl[pairs[k] * a.chunks + block.chunk] = total;
    }
  }
}

template <class C>
GPOE void backward_kernel(const typename C::A& a, u32* shared) {
  const Block block = this_block<C>(a);
  const int slots = (int)a.slots;
  const Pairs all = pairs_of<C>(a, block.b);
  u32 bits = 0;
  bool gathered = false;
  for_each_site<C>(a, block, [&](const Site& at) {
    Accumulated<C> sums;
    u32 wanted = 0;
    clear<C>(a, sums);
    GPOE_ROLLED
    for (int from = 0; from < all.count; from += slots) {
      const Pairs pairs = all.part(from, slots);
      if (!gathered) {
        __syncthreads();  // the slots are free again
        bits = gather_bits<C>(a, pairs, shared);
        gathered = all.count <= slots;
      }
      backward<C>(a, at, pairs, shared, bits, sums);
      wanted |= bits;
    }
    finish<C>(a, at, wanted, sums);
  });
}

#endif

#if defined(__CUDACC__)  // one specialisation and one direction per compilation
typedef Specialisation<
    GPOE_STORAGE, GPOE_EXPERTS, GPOE_WIDTH, GPOE_CLAMP, GPOE_COMMON_NOISE> Chosen;
extern __shared__ u32 gpoe_shared[];
extern "C" __global__ void __launch_bounds__(128, GPOE_BLOCKS)
    GPOE_NAME(const __grid_constant__ Chosen::A a) {
  GPOE_KERNEL<Chosen>(a, gpoe_shared);
}
#endif
