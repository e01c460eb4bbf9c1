// The gradient of the weights of a depthwise convolution, 5 x 5 pixels, without a stride, of images
// in the layout channels_last.
#pragma once
#include "lanes.cuh"

struct DepthwiseArguments {
  const void* x;
  const void* gradient;  // of the output, which is as large as x
  float* out;  // gradients of the weights of each channel, row by row, then those of the biases
  i64 images, height, width, channels;
};
static_assert(
    sizeof(DepthwiseArguments) == DEPTHWISE_ARGUMENTS_SIZE, "mmpoe.kernels._cells differs");

const int SIDE = 5, AROUND = SIDE / 2, TAPS = SIDE * SIDE;
