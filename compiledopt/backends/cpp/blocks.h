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
// The same, and with a minus where one of the values is not finite.
template <class T> static inline __attribute__((always_inline)) T marked_largest(const T* values, int64_t n) {
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) finite &= std::fabs(values[i]) <= std::numeric_limits<T>::max();
  const T most = largest_finite(values, n);
  return finite ? most : -most;
}
// Calls f(first, length) for each `size` of n elements, the last of which may be fewer; lengths are constants where n is one.
template <int64_t size, class N, class F> static inline __attribute__((always_inline)) void each(N n, F&& f) {
  int64_t s = 0;
  for (; s + size <= n; s += size) f(s, std::integral_constant<int64_t, size>());
  if (s < n) f(s, n - s);
}
// Codes of 4 bits: a byte holds one of the first half of its block, and one of the second.
template <int64_t size, class N> static inline __attribute__((always_inline)) void unpack(const uint8_t* packed, uint8_t* codes, N n) {
  each<size>(n, [&](int64_t s, auto m) __attribute__((always_inline)) {
    const int64_t half = (m + 1) / 2;
    for (int64_t i = 0; i < half; ++i) codes[s + i] = packed[s / 2 + i] & 15;
    for (int64_t i = 0; i < m / 2; ++i) codes[s + half + i] = packed[s / 2 + i] >> 4;
  });
}
template <int64_t size, class N> static inline __attribute__((always_inline)) void pack(uint8_t* packed, const uint8_t* codes, N n) {
  each<size>(n, [&](int64_t s, auto m) __attribute__((always_inline)) {
    const int64_t half = (m + 1) / 2;
    for (int64_t i = 0; i < m / 2; ++i) packed[s / 2 + i] = codes[s + i] | codes[s + half + i] << 4;
    if (m % 2) packed[s / 2 + half - 1] = codes[s + half - 1];
  });
}
static inline __attribute__((always_inline)) void ask_for(const void* data, int64_t from, int64_t bytes, int64_t end) {
  const char* const at = static_cast<const char*>(data);
  for (int64_t i = from; i < from + bytes && i < end; i += 64) __builtin_prefetch(at + i);
}
