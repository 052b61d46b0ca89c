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
template <int size> static inline void give(char* to, const char* own, int bytes);
template <> inline void give<0>(char*, const char*, int) {}
template <int size> static inline __attribute__((always_inline)) void give(char* to, const char* own, int bytes) {
  constexpr int width = size < 64 ? size : 64;
  if (bytes >= width) {
    for (int i = 0; i + width < bytes; i += width) std::memcpy(to + i, own + i, width);
    std::memcpy(to + bytes - width, own + bytes - width, width);
  } else {
    give<width / 2>(to, own, bytes);
  }
}

// The largest finite size among the first `count` of n: sizes in the order of their bits, so that the compiler vectorizes it.
// marked: with a minus where one of the values is not finite.
#define LARGEST_OF(T) \
  template <int n, bool marked = false> static inline __attribute__((always_inline)) T plain_largest_finite(const T* values, int count)
LARGEST_OF(float) {
  int32_t most = 0, all = 0;
  for (int64_t i = 0; i < (count < n ? count : n); ++i) {
    const int32_t bits = c10::bit_cast<int32_t>(values[i]) & 0x7fffffff, finite = bits < 0x7f800000 ? bits : 0;
    most = most < finite ? finite : most;
    all = all < bits ? bits : all;
  }
  return c10::bit_cast<float>(marked && all >= 0x7f800000 ? most | INT32_MIN : most);
}
LARGEST_OF(double) {
  double most = 0;
  bool finite = true;
  for (int64_t i = 0; i < (count < n ? count : n); ++i) {
    const double size = std::fabs(values[i]);
    most = size > most && size <= std::numeric_limits<double>::max() ? size : most;
    finite &= size <= std::numeric_limits<double>::max();
  }
  return marked && !finite ? -most : most;
}
// Codes of 4 bits of `count` of n elements, in blocks of `size`: a byte holds one of the first half of its block and one of the
// second. Of elements that there are not, the codes are 0.
template <int n, int size> static inline __attribute__((always_inline)) void unpack(const uint8_t* packed, uint8_t* codes, int count) {
  if (count < n) std::memset(codes, 0, n);
  for (int s = 0; s < count; s += size) {
    const int length = count - s < size ? count - s : size, half = (length + 1) / 2;
    for (int i = 0; i < half; ++i) codes[s + i] = packed[s / 2 + i] & 15;
    for (int i = 0; i < length / 2; ++i) codes[s + half + i] = packed[s / 2 + i] >> 4;
  }
}
template <int n, int size> static inline __attribute__((always_inline)) void pack(uint8_t* packed, const uint8_t* codes, int count) {
  for (int s = 0; s < count; s += size) {
    const int length = count - s < size ? count - s : size, half = (length + 1) / 2;
    for (int i = 0; i < length / 2; ++i) packed[s / 2 + i] = codes[s + i] | codes[s + half + i] << 4;
    if (length % 2) packed[s / 2 + half - 1] = codes[s + half - 1];
  }
}
