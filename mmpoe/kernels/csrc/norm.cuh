// Instance normalisation and an activation, forward and backward.
//
// An image is a stream of elements, channel by channel within a pixel, as the layout channels_last
// has it. In the other layout every channel is an image of its own, with one channel. One kernel
// serves both.
#pragma once
#include "lanes.cuh"

struct NormArguments {
  const void* x;
  const void* other;   // forward: added to the output, or null; backward: the gradient of the output
  void* out;           // the output, or the gradient of x
  float* statistics;   // of each channel of each image, its mean and 1 / its standard deviation
  i64 images, channels, pixels;
  i64 segments, length;  // of an image, and their pixels; the last one may have fewer
  i64 silu;              // whether the activation is that; else it scales what is negative
  float slope;           // by this
  float epsilon;         // added to the variance
};
static_assert(sizeof(NormArguments) == NORM_ARGUMENTS_SIZE, "mmpoe.kernels._cells differs");

GPOE i64 last_pixel(const NormArguments& a, i64 segment) {
  const i64 last = (segment + 1) * a.length;
  return last < a.pixels ? last : a.pixels;
}

#if defined(GPOE_AVX512)
GPOE Float sigmoid(Float h) {  // a division of vectors takes as long as the exponential
  const Float d = 1.f + exponential(-h);
  Float q;
  asm("vrcp14ps %1, %0" : "=v"(q) : "v"(d));
  return q + q * (1.f - d * q);  // nearly rounded, from a relative error of 2^-14
}
#else
GPOE Float sigmoid(Float h) { return divide(splat(1.f), 1.f + exponential(-h)); }
#endif

template <bool SILU>
GPOE Float activate(const NormArguments& a, Float h) {
  return SILU ? h * sigmoid(h) : select(h > 0.f, h, a.slope * h);
}
// The gradient of h, given that of its activation: as in PyTorch, where relu is 0 nothing of a
// gradient is left, be it not a number.
template <bool SILU>
GPOE Float through(const NormArguments& a, Float h, Float gradient) {
  if (!SILU)
    return select(h > 0.f, gradient, a.slope == 0.f ? splat(0.f) : a.slope * gradient);
  const Float s = sigmoid(h);
  return gradient * (s * (1.f + h * (1.f - s)));
}
