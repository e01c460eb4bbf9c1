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
  float* partial;      // on a GPU, two sums of each channel of each segment of an image
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

#if defined(__CUDACC__) || defined(GPOE_SIMULATE)

// ---- On a GPU -------------------------------------------------------------------------------
//
// Blocks work on segments of images. A first kernel sums over the pixels of each, a second one adds
// up the segments of its image and computes the elements of its own. Sums are in an order that is
// always the same.

typedef GPOE_STORAGE Stored;

struct Segment {
  i64 image, from, to;  // pixels
  const Stored *x, *other;  // of the image
  Stored* out;
};
GPOE Segment this_segment(const NormArguments& a) {
  const i64 image = blockIdx.x / a.segments, s = blockIdx.x - image * a.segments;
  const i64 first = image * a.channels * a.pixels;
  const Segment segment = {
      image,
      s * a.length,
      last_pixel(a, s),
      (const Stored*)a.x + first,
      a.other ? (const Stored*)a.other + first : nullptr,
      (Stored*)a.out + first};
  return segment;
}

// The threads of a block side by side are those of channels, in as many rows as there is room for.
struct Place {
  i64 channel;
  int width, rows, row;
  bool inside;
};
GPOE Place this_place(const NormArguments& a, i64 first) {
  const int threads = (int)blockDim.x, t = (int)threadIdx.x;
  const int width = a.channels - first < threads ? (int)(a.channels - first) : threads;
  const int rows = threads / width;
  const Place place = {first + t % width, width, rows, t / width, t < width * rows};
  return place;
}

// The sum over the rows of threads of a channel, which each of them gets.
GPOE float sum_rows(const Place& at, float x, float* shared) {
  __syncthreads();
  shared[threadIdx.x] = x;
  __syncthreads();
  float total = 0.f;
  for (int row = 0; row < at.rows; ++row) total += shared[row * at.width + threadIdx.x % at.width];
  return total;
}

// Calls work(element) for the pixels of a segment that are this thread's, of its channel.
template <class Work>
GPOE void for_each_pixel(const NormArguments& a, const Segment& s, const Place& at, Work work) {
  if (!at.inside) return;
  for (i64 p = s.from + at.row; p < s.to; p += at.rows) work(p * a.channels + at.channel);
}

GPOE float* partial_of(const NormArguments& a) {
  return a.partial + (i64)blockIdx.x * 2 * a.channels;
}

// The mean of each channel of a segment, and the squares about it.
template <bool SILU>
GPOE void forward_sums(const NormArguments& a, float* shared) {
  const Segment s = this_segment(a);
  for (i64 first = 0; first < a.channels; first += blockDim.x) {
    const Place at = this_place(a, first);
    float sum = 0.f, squares = 0.f;
    for_each_pixel(a, s, at, [&](i64 i) { sum += load_one(s.x + i); });
    const float mean = sum_rows(at, sum, shared) / (float)(s.to - s.from);
    for_each_pixel(a, s, at, [&](i64 i) {
      const float away = load_one(s.x + i) - mean;
      squares += away * away;
    });
    squares = sum_rows(at, squares, shared);
    if (!at.inside || at.row) continue;
    partial_of(a)[at.channel] = mean;
    partial_of(a)[a.channels + at.channel] = squares;
  }
}

// The sums of each channel of a segment that the gradient of x needs.
template <bool SILU>
GPOE void backward_sums(const NormArguments& a, float* shared) {
  const Segment s = this_segment(a);
  for (i64 first = 0; first < a.channels; first += blockDim.x) {
    const Place at = this_place(a, first);
    const float* kept = a.statistics + 2 * (s.image * a.channels + at.channel);
    float sum = 0.f, product = 0.f;
    for_each_pixel(a, s, at, [&](i64 i) {
      const float h = (load_one(s.x + i) - kept[0]) * kept[1];
      const float u = through<SILU>(a, h, load_one(s.other + i));
      sum += u;
      product += u * h;
    });
    sum = sum_rows(at, sum, shared);
    product = sum_rows(at, product, shared);
    if (!at.inside || at.row) continue;
    partial_of(a)[at.channel] = sum;
    partial_of(a)[a.channels + at.channel] = product;
  }
}

// The mean and 1 / the standard deviation of each channel of an image, from those of segments.
GPOE void combine_statistics(const NormArguments& a, const Segment& s, float* shared) {
  const float* partial = a.partial + s.image * a.segments * 2 * a.channels;
  for (i64 c = threadIdx.x; c < a.channels; c += blockDim.x) {
    float mean = 0.f, squares = 0.f;
    for (i64 k = 0; k < a.segments; ++k) {
      const float share = (float)(last_pixel(a, k) - k * a.length) / (float)a.pixels;
      mean += partial[2 * a.channels * k + c] * share;
    }
    for (i64 k = 0; k < a.segments; ++k) {
      const float away = partial[2 * a.channels * k + c] - mean;
      squares += partial[2 * a.channels * k + a.channels + c];
      squares += away * away * (float)(last_pixel(a, k) - k * a.length);
    }
    shared[2 * c] = mean;
    shared[2 * c + 1] = 1.f / sqrtf(squares / (float)a.pixels + a.epsilon);
    if (s.from) continue;  // one block writes them
    a.statistics[2 * (s.image * a.channels + c)] = shared[2 * c];
    a.statistics[2 * (s.image * a.channels + c) + 1] = shared[2 * c + 1];
  }
  __syncthreads();
}

// Calls work(element, its channel) for the elements of a segment that are this thread's.
template <class Work>
GPOE void for_each_element(const NormArguments& a, const Segment& s, Work work) {
  for (i64 i = s.from * a.channels + threadIdx.x; i < s.to * a.channels; i += blockDim.x)
    work(i, (int)((u32)(i - s.from * a.channels) % (u32)a.channels));
}

template <bool SILU>
GPOE void forward_map(const NormArguments& a, float* shared) {
  const Segment s = this_segment(a);
  combine_statistics(a, s, shared);
  for_each_element(a, s, [&](i64 i, int c) {
    float y = activate<SILU>(a, (load_one(s.x + i) - shared[2 * c]) * shared[2 * c + 1]);
    if (s.other) y += load_one(s.other + i);
    store_one(s.out + i, y);
  });
}

template <bool SILU>
GPOE void backward_map(const NormArguments& a, float* shared) {
  const Segment s = this_segment(a);
  const float* partial = a.partial + s.image * a.segments * 2 * a.channels;
  for (i64 c = threadIdx.x; c < 2 * a.channels; c += blockDim.x) {
    float total = 0.f;
    for (i64 k = 0; k < a.segments; ++k) total += partial[2 * a.channels * k + c];
    shared[c] = total / (float)a.pixels;
  }
  __syncthreads();
  const float* kept = a.statistics + 2 * s.image * a.channels;
  for_each_element(a, s, [&](i64 i, int c) {
    const float h = (load_one(s.x + i) - kept[2 * c]) * kept[2 * c + 1];
    const float u = through<SILU>(a, h, load_one(s.other + i));
    store_one(s.out + i, kept[2 * c + 1] * (u - shared[c] - h * shared[a.channels + c]));
  });
}

#endif

#if defined(__CUDACC__)  // one kernel and one activation per compilation
extern __shared__ float norm_shared[];
extern "C" __global__ void __launch_bounds__(128)
    NORM_NAME(const __grid_constant__ NormArguments a) {
  NORM_KERNEL<NORM_SILU>(a, norm_shared);
}
#endif
