// For kernels that keep values in blocks.

// The largest finite size: sizes in the order of their bits, so that the compiler vectorizes it.
template <int n> static inline __attribute__((always_inline)) float plain_largest_finite(const float* values) {
  int32_t most = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t bits = c10::bit_cast<int32_t>(values[i]) & 0x7fffffff, finite = bits < 0x7f800000 ? bits : 0;
    most = most < finite ? finite : most;
  }
  return c10::bit_cast<float>(most);
}
template <int n> static inline __attribute__((always_inline)) double plain_largest_finite(const double* values) {
  double most = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double size = std::fabs(values[i]);
    most = size > most && size <= std::numeric_limits<double>::max() ? size : most;
  }
  return most;
}
