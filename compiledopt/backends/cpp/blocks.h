// For kernels that keep values in blocks.

// The largest finite size: sizes in the order of their bits, so that the compiler vectorizes it.
static inline __attribute__((always_inline)) float largest_finite(const float* values, int64_t n) {
  int32_t most = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t bits = bits_of<int32_t>(values[i]) & 0x7fffffff, finite = bits < 0x7f800000 ? bits : 0;
    most = most < finite ? finite : most;
  }
  return bits_of<float>(most);
}
static inline __attribute__((always_inline)) double largest_finite(const double* values, int64_t n) {
  double most = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double size = std::fabs(values[i]);
    most = size > most && size <= std::numeric_limits<double>::max() ? size : most;
  }
  return most;
}
static inline __attribute__((always_inline)) void ask_for(const void* data, int64_t from, int64_t bytes, int64_t end) {
  const char* const at = static_cast<const char*>(data);
  for (int64_t i = from; i < from + bytes && i < end; i += 64) __builtin_prefetch(at + i);
}
