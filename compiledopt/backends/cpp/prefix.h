// What a kernel written by Inductor needs, and no more: torch's own prefix takes 4 s to compile, this one 0.1 s.
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

template <class T, class F> static inline T bits_of(F value) {
  T bits;
  static_assert(sizeof bits == sizeof value);
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

namespace at {
// Conversions without branches, so that the compiler vectorizes them; one rounding to nearest even, NaN stays NaN.
struct BFloat16 {
  uint16_t x;
  operator float() const { return bits_of<float>(uint32_t(x) << 16); }
  static BFloat16 from(float value) {
    const uint32_t bits = bits_of<uint32_t>(value);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return {uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded)};
  }
};
struct Half {
  uint16_t x;
  operator float() const {
    const uint32_t sign = uint32_t(x & 0x8000) << 16, magnitude = uint32_t(x & 0x7fff) << 13;
    const uint32_t normal = magnitude + (112u << 23), special = magnitude | 0x7f800000;
    // 0.5 + x·2^-24, less 0.5: a subnormal without float32 subnormals on the way, which may be flushed to zero.
    const uint32_t subnormal = bits_of<uint32_t>(bits_of<float>(0x3f000000 | uint32_t(x & 0x7fff)) - 0.5f);
    const uint32_t finite = magnitude < 0x00800000 ? subnormal : normal;
    return bits_of<float>(sign | (magnitude >= 0x0f800000 ? special : finite));
  }
  static Half from(float value) {
    const uint32_t bits = bits_of<uint32_t>(value), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    // Adding half a float16 ulp's worth of exponent makes the float unit round where a float16 would.
    const uint32_t normal = (magnitude + 0xc8000fff + ((magnitude >> 13) & 1)) >> 13;
    const float shifted = bits_of<float>(magnitude) + 0.5f;  // below 2^-14: the ulp of 0.5 is 2^-24, a subnormal's
    const uint32_t subnormal = bits_of<uint32_t>(shifted) - bits_of<uint32_t>(0.5f);
    uint32_t half = magnitude < 0x38800000 ? subnormal : normal;
    half = magnitude >= 0x477ff000 ? 0x7c00 : half;
    half = magnitude > 0x7f800000 ? 0x7e00 : half;
    return {uint16_t(sign | half)};
  }
};
}  // namespace at
namespace c10 {
using BFloat16 = at::BFloat16;
using Half = at::Half;
template <class T, class F> static inline T bit_cast(F value) { return bits_of<T>(value); }
template <class T> struct Converts {
  template <class F> static T from(F value) { return static_cast<T>(value); }
};
template <> struct Converts<Half> {
  template <class F> static Half from(F value) { return Half::from(float(value)); }
};
template <> struct Converts<BFloat16> {
  template <class F> static BFloat16 from(F value) { return BFloat16::from(float(value)); }
};
template <class T, class F> static inline T convert(F value) {
  return Converts<T>::from(value);
}
}  // namespace c10

// One condition, not a nest of them: g++ 12 gave up on a loop with two of the nested ones, and Rprop took 10 times as long.
template <class T> static inline T max_propagate_nan(T a, T b) { return !(a <= b) & !(b != b) ? a : b; }
template <class T> static inline T min_propagate_nan(T a, T b) { return !(a >= b) & !(b != b) ? a : b; }
static inline float mod(float a, float b) { return std::fmod(a, b); }
static inline double mod(double a, double b) { return std::fmod(a, b); }
