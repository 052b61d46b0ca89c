// For kernels that keep values in blocks.
#ifdef __AVX512BW__
#include <immintrin.h>
#endif

// The first `bytes` of `size` into memory of one's own. memcpy of a number of bytes that is not known before takes as long as a
// block takes to be computed.
template <int size> static inline __attribute__((always_inline)) void take(char* own, const char* from, int bytes) {
#ifdef __AVX512BW__
  for (int i = 0; i < size; i += 64) {
    const int left = bytes - i;
    const __m512i values = _mm512_maskz_loadu_epi8(left >= 64 ? ~0ull : left > 0 ? (1ull << left) - 1 : 0, from + i);
    std::memcpy(own + i, &values, size < 64 ? size : 64);
  }
#else
  std::memset(own, 0, size);
  std::memcpy(own, from, bytes);
#endif
}
// And back, by pieces of which the last overlaps. A store under a mask would hold up the next row's loads, as if it wrote what it
// leaves out.
template <int size> static inline __attribute__((always_inline)) void give(char* to, const char* own, int bytes) {
  constexpr int width = size < 64 ? size : 64;
  if (bytes >= width) {
    for (int i = 0; i + width < bytes; i += width) std::memcpy(to + i, own + i, width);
    std::memcpy(to + bytes - width, own + bytes - width, width);
  } else if constexpr (width > 1) {
    give<width / 2>(to, own, bytes);
  }
}

// The largest finite size: sizes in the order of their bits, so that the compiler vectorizes it.
template <int n> static inline __attribute__((always_inline)) float plain_largest_finite(const float* values, int count) {
  int32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t bits = c10::bit_cast<int32_t>(values[i]) & 0x7fffffff, finite = bits < 0x7f800000 ? bits : 0;
    most = most < finite ? finite : most;
  }
  return c10::bit_cast<float>(most);
}
template <int n> static inline __attribute__((always_inline)) double plain_largest_finite(const double* values, int count) {
  double most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double size = std::fabs(values[i]);
    most = size > most && size <= std::numeric_limits<double>::max() ? size : most;
  }
  return most;
}
