// The kernels of networks on a CPU, on vectors of 16 lanes, behind a plain C interface.
#include "depthwise.cuh"
#include "norm.cuh"

#include <vector>

typedef GPOE_STORAGE T;

// Vectors of a period; a few of them cost no allocation.
class Vectors {
 public:
  explicit Vectors(i64 count) : more_(count > FEW ? count : 0), first_(few_) {
    if (count > FEW) first_ = more_.data();
  }
  // One number for each channel, again and again.
  template <class Number>
  Vectors(i64 count, i64 channels, Number number) : Vectors(count) {
    for (i64 k = 0, c = 0; k < count * LANES; ++k, c = c + 1 < channels ? c + 1 : 0)
      lanes()[k] = number(c);
  }
  Vectors(const Vectors&) = delete;
  Float& operator[](i64 v) { return first_[v]; }
  const Float& operator[](i64 v) const { return first_[v]; }
  float* lanes() { return (float*)first_; }

 private:
  static const int FEW = 8;
  std::vector<Float> more_;
  Float few_[FEW];
  Float* first_;
};

// Elements of a stream have channels of a period: this many vectors, at least 8 for the processor
// to overlap their sums, begin with the first channel again.
static i64 vectors_of_period(i64 channels) {
  i64 elements = 8 * LANES;
  while (elements % channels) elements += 8 * LANES;
  return elements / LANES;
}

GPOE void put_lanes(float* p, Float x) { store_lanes(p, x); }
template <class Other>
GPOE void put_lanes(Other* p, Float x) {
  store_lanes(p, x);
}
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
GPOE void put_lanes(bfloat16* p, Float x) {  // in one instruction; what is below 2^-126 is 0
  Half h;
  asm("vcvtneps2bf16 %1, %0" : "=v"(h) : "v"(x));
  __builtin_memcpy(p, &h, sizeof h);
}
#endif
GPOE Float take(const T* p, i64 count) {
  return count == LANES ? load_lanes(p) : load_first(p, count);
}
GPOE void put(T* p, i64 count, Float x) {
  if (count == LANES)
    put_lanes(p, x);
  else
    store_first(p, count, x);
}

// Calls work(element, its vector in the period, how many elements) for all elements in turn.
template <class Work>
GPOE void for_each_vector(i64 from, i64 to, i64 vectors, Work work) {
  i64 i = from;
  for (; i + vectors * LANES <= to; i += vectors * LANES)
    for (i64 v = 0; v < vectors; ++v) work(i + v * LANES, v, (i64)LANES);
  for (i64 v = 0; i < to; ++v, i += LANES) work(i, v, to - i < LANES ? to - i : (i64)LANES);
}
#define EVERY_VECTOR [&](i64 i, i64 v, i64 count) __attribute__((always_inline))

// Sums two numbers of every element, for each channel: floats of a few periods, then doubles.
template <class Pair>
GPOE void sum_pairs(i64 from, i64 to, i64 channels, i64 vectors, Pair pair, double* sums) {
  const i64 period = vectors * LANES, piece = period > 8192 ? period : 8192 / period * period;
  Vectors first(vectors), second(vectors);
  std::vector<double> lanes(2 * period);
  for (i64 start = from; start < to; start += piece) {
    for (i64 v = 0; v < vectors; ++v) first[v] = second[v] = splat(0.f);
    const i64 stop = start + piece < to ? start + piece : to;
    for_each_vector(start, stop, vectors, EVERY_VECTOR {
      Float a, b;
      pair(i, v, count, &a, &b);
      first[v] = first[v] + (count < LANES ? first_lanes(a, count) : a);
      second[v] = second[v] + (count < LANES ? first_lanes(b, count) : b);
    });
    const float *a = first.lanes(), *b = second.lanes();
    for (i64 k = 0; k < period; ++k) {
      lanes[k] += a[k];
      lanes[period + k] += b[k];
    }
  }
  for (i64 c = 0; c < 2 * channels; ++c) sums[c] = 0;
  for (i64 k = 0, c = 0; k < period; ++k, c = c + 1 < channels ? c + 1 : 0) {
    sums[c] += lanes[k];
    sums[channels + c] += lanes[period + k];
  }
}

// The means of the first pixels of a segment, near which numbers are summed: a variance is then not
// the difference of two large ones.
static Vectors pivots(const T* x, i64 pixels, i64 channels, i64 vectors) {
  const i64 count = pixels < 64 ? pixels : 64;
  std::vector<float> mean(channels);
  for (i64 c = 0; c < channels; c += LANES) {
    Float sum = splat(0.f);
    for (i64 p = 0; p < count; ++p) sum = sum + load_first(x + p * channels + c, channels - c);
    for (i64 l = 0; l < LANES && c + l < channels; ++l) mean[c + l] = sum[l] / count;
  }
  return Vectors(vectors, channels, [&](i64 c) { return mean[c]; });
}

// Runs over all images: reduce(image, segment, two numbers of each channel) for their segments,
// combine(image, those of all segments), map(image, segment). The threads take images, or the
// segments of one if there are few. No sum depends on which.
template <class Reduce, class Combine, class Map>
static void run(const NormArguments& a, int threads, Reduce reduce, Combine combine, Map map) {
  const bool together = a.images < threads;
#pragma omp parallel for num_threads(threads) if (threads > 1 && !together) schedule(static)
  for (i64 image = 0; image < a.images; ++image) {
    std::vector<double> sums(2 * a.channels * a.segments);
#pragma omp parallel for num_threads(threads) if (threads > 1 && together) schedule(static)
    for (i64 s = 0; s < a.segments; ++s) reduce(image, s, &sums[2 * a.channels * s]);
    combine(image, sums.data());
#pragma omp parallel for num_threads(threads) if (threads > 1 && together) schedule(static)
    for (i64 s = 0; s < a.segments; ++s) map(image, s);
  }
}

template <bool SILU>
static void norm_forward_as(const NormArguments& a, int threads) {
  const i64 channels = a.channels, vectors = vectors_of_period(channels);
  const i64 size = channels * a.pixels;
  const double pixels = (double)a.pixels;
  run(
      a, threads,
      [&](i64 image, i64 s, double* sums) {  // the mean of a segment, and squares about it
        const i64 from = s * a.length * channels, to = last_pixel(a, s) * channels;
        const i64 length = last_pixel(a, s) - s * a.length;
        const T* x = (const T*)a.x + image * size;
        const Vectors pivot = pivots(x + from, length, channels, vectors);
        sum_pairs(from, to, channels, vectors,
                  [&](i64 i, i64 v, i64 count, Float* sum, Float* squares)
                      __attribute__((always_inline)) {
                        *sum = take(x + i, count) - pivot[v];
                        *squares = *sum * *sum;
                      },
                  sums);
        for (i64 c = 0; c < channels; ++c) {
          const double shift = sums[c] / length;
          sums[channels + c] -= shift * sums[c];
          sums[c] = pivot[c / LANES][c % LANES] + shift;
        }
      },
      [&](i64 image, const double* sums) {
        for (i64 c = 0; c < channels; ++c) {
          double mean = 0, squares = 0;
          for (i64 s = 0; s < a.segments; ++s)
            mean += sums[2 * channels * s + c] * (last_pixel(a, s) - s * a.length) / pixels;
          for (i64 s = 0; s < a.segments; ++s) {
            const double away = sums[2 * channels * s + c] - mean;
            squares += sums[2 * channels * s + channels + c];
            squares += away * away * (last_pixel(a, s) - s * a.length);
          }
          if (squares < 0) squares = 0;
          float* kept = a.statistics + 2 * (image * channels + c);
          kept[0] = (float)mean;
          kept[1] = (float)(1 / __builtin_sqrt(squares / pixels + a.epsilon));
        }
      },
      [&](i64 image, i64 s) {
        const float* kept = a.statistics + 2 * image * channels;
        const Vectors mean(vectors, channels, [&](i64 c) { return kept[2 * c]; });
        const Vectors scale(vectors, channels, [&](i64 c) { return kept[2 * c + 1]; });
        const T *x = (const T*)a.x + image * size, *other = (const T*)a.other + image * size;
        T* out = (T*)a.out + image * size;
        const i64 from = s * a.length * channels, to = last_pixel(a, s) * channels;
        const bool adds = a.other != nullptr;
        for_each_vector(from, to, vectors, EVERY_VECTOR {
          Float y = activate<SILU>(a, (take(x + i, count) - mean[v]) * scale[v]);
          if (adds) y = y + take(other + i, count);
          put(out + i, count, y);
        });
      });
}

template <bool SILU>
static void norm_backward_as(const NormArguments& a, int threads) {
  const i64 channels = a.channels, vectors = vectors_of_period(channels);
  const i64 size = channels * a.pixels;
  // the means, over all pixels, of the gradient of what is normalised and of its product with that
  std::vector<float> means(2 * a.images * channels);
  const auto mean_of = [&](i64 image) {
    const float* kept = a.statistics + 2 * image * channels;
    return Vectors(vectors, channels, [&](i64 c) { return kept[2 * c]; });
  };
  const auto scale_of = [&](i64 image) {
    const float* kept = a.statistics + 2 * image * channels;
    return Vectors(vectors, channels, [&](i64 c) { return kept[2 * c + 1]; });
  };
  run(
      a, threads,
      [&](i64 image, i64 s, double* sums) {
        const Vectors mean = mean_of(image), scale = scale_of(image);
        const T *x = (const T*)a.x + image * size, *g = (const T*)a.other + image * size;
        sum_pairs(s * a.length * channels, last_pixel(a, s) * channels, channels, vectors,
                  [&](i64 i, i64 v, i64 count, Float* sum, Float* product)
                      __attribute__((always_inline)) {
                        const Float h = (take(x + i, count) - mean[v]) * scale[v];
                        *sum = through<SILU>(a, h, take(g + i, count));
                        *product = *sum * h;
                      },
                  sums);
      },
      [&](i64 image, const double* sums) {
        for (i64 c = 0; c < 2 * channels; ++c) {
          double sum = 0;
          for (i64 s = 0; s < a.segments; ++s) sum += sums[2 * channels * s + c];
          means[2 * image * channels + c] = (float)(sum / a.pixels);
        }
      },
      [&](i64 image, i64 s) {
        const Vectors mean = mean_of(image), scale = scale_of(image);
        const float* of = &means[2 * image * channels];
        const Vectors sum(vectors, channels, [&](i64 c) { return of[c]; });
        const Vectors product(vectors, channels, [&](i64 c) { return of[channels + c]; });
        const T *x = (const T*)a.x + image * size, *g = (const T*)a.other + image * size;
        T* out = (T*)a.out + image * size;
        for_each_vector(
            s * a.length * channels, last_pixel(a, s) * channels, vectors, EVERY_VECTOR {
              const Float h = (take(x + i, count) - mean[v]) * scale[v];
              const Float u = through<SILU>(a, h, take(g + i, count));
              put(out + i, count, scale[v] * (u - sum[v] - h * product[v]));
            });
      });
}

extern "C" void norm_forward(const NormArguments* a, int threads) {
  a->silu ? norm_forward_as<true>(*a, threads) : norm_forward_as<false>(*a, threads);
}
extern "C" void norm_backward(const NormArguments* a, int threads) {
  a->silu ? norm_backward_as<true>(*a, threads) : norm_backward_as<false>(*a, threads);
}

// ---- Depthwise convolution ------------------------------------------------------------------

const int TILE = 4;  // pixels of a row whose gradients are in registers at once
const i64 STRIP = 1 << 17;  // bytes of the pixels of some rows, LANES channels of them

// Copies rows of LANES channels into a buffer that has zeros around them.
static void copy_rows(const T* from, i64 row, i64 rows, i64 height, i64 width, i64 channels,
                      i64 count, i64 before, i64 wide, Float* to) {
  for (i64 h = row; h < row + rows; ++h)
    for (i64 w = -before; w < wide - before; ++w, ++to) {
      const bool inside = 0 <= h && h < height && 0 <= w && w < width;
      *to = inside ? take(from + (h * width + w) * channels, count) : splat(0.f);
    }
}

// Adds the products of some rows of gradients and of the pixels around each.
static void add_products(const Float* x, const Float* g, i64 rows, i64 tiles, Float* sums) {
  const i64 wide = tiles * TILE, wider = wide + 2 * AROUND;
  Float total[TAPS];
  GPOE_UNROLL
  for (int k = 0; k < TAPS; ++k) total[k] = splat(0.f);
  for (i64 h = 0; h < rows; ++h)
    for (i64 w = 0; w < wide; w += TILE) {
      const Float *pixel = g + h * wide + w, *corner = x + h * wider + w;
      GPOE_UNROLL
      for (int r = 0; r < SIDE; ++r) {
        GPOE_UNROLL
        for (int c = 0; c < SIDE + TILE - 1; ++c) {
          const Float near = corner[r * wider + c];
          GPOE_UNROLL
          for (int t = 0; t < TILE; ++t)
            if (0 <= c - t && c - t < SIDE)
              total[r * SIDE + c - t] = total[r * SIDE + c - t] + pixel[t] * near;
        }
      }
    }
  for (int k = 0; k < TAPS; ++k) sums[k] = sums[k] + total[k];
  Float bias = splat(0.f);
  for (i64 i = 0; i < rows * wide; ++i) bias = bias + g[i];
  sums[TAPS] = sums[TAPS] + bias;
}

extern "C" void depthwise_gradient(const DepthwiseArguments* a, int threads) {
  const i64 height = a->height, width = a->width, channels = a->channels;
  const i64 tiles = (width + TILE - 1) / TILE, wide = tiles * TILE, wider = wide + 2 * AROUND;
  i64 most = STRIP / (wide * (i64)sizeof(Float));
  most = most < TILE ? TILE : most < height ? most : height;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (i64 c = 0; c < channels; c += LANES) {
    const i64 count = channels - c < LANES ? channels - c : (i64)LANES;
    std::vector<Float> x((most + 2 * AROUND) * wider), g(most * wide);
    Float sums[TAPS + 1];
    for (Float& sum : sums) sum = splat(0.f);
    for (i64 n = 0; n < a->images; ++n) {
      const i64 start = n * height * width * channels + c;
      const T *from = (const T*)a->x + start, *gradient = (const T*)a->gradient + start;
      for (i64 h = 0; h < height; h += most) {
        const i64 rows = height - h < most ? height - h : most;
        copy_rows(from, h - AROUND, rows + 2 * AROUND, height, width, channels, count, AROUND,
                  wider, x.data());
        copy_rows(gradient, h, rows, height, width, channels, count, 0, wide, g.data());
        add_products(x.data(), g.data(), rows, tiles, sums);
      }
    }
    for (int k = 0; k <= TAPS; ++k) store_first(a->out + k * channels + c, count, sums[k]);
  }
}
