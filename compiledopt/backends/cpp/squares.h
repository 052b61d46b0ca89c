// The sum of squares of one piece of a gradient: run({data, result}, unused, length), with T its dtype and A the dtype of the
// sums. Many sums at once so that the compiler vectorizes them, short ones so that float32 does not round the small away.
#include <algorithm>

extern "C" void run(void* const* pointers, const double*, int64_t length) {
  constexpr int64_t lanes = 64, stretch = 4096;
  const T* data = static_cast<const T*>(pointers[0]);
  double total = 0;
  for (int64_t begin = 0; begin < length; begin += stretch) {
    const T* piece = data + begin;
    const int64_t count = std::min(stretch, length - begin), whole = count / lanes * lanes;
    A sums[lanes] = {};
    for (int64_t i = 0; i < whole; i += lanes)
      for (int64_t j = 0; j < lanes; ++j) sums[j] += A(piece[i + j]) * A(piece[i + j]);
    for (int64_t i = whole; i < count; ++i) sums[i - whole] += A(piece[i]) * A(piece[i]);
    // Halves onto each other: 64 additions one after the other took as long as a whole tensor of 1000.
    for (int64_t width = lanes / 2; width >= 4; width /= 2)
      for (int64_t j = 0; j < width; ++j) sums[j] += sums[j + width];
    total += (double(sums[0]) + double(sums[1])) + (double(sums[2]) + double(sums[3]));
  }
  *static_cast<double*>(pointers[1]) = total;
}
