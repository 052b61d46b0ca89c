// Neighbours in vectors: what the functions that Inductor writes for one element call on as many at once. The compiler is not
// left to find them: g++ 12 made vectors of 2 floats of a loop over 32, and gave away half of the time of a step.
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace lanes {

#define INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__
constexpr int kCount = 16;
#else
constexpr int kCount = 8;
#endif
typedef float Floats __attribute__((vector_size(kCount * 4)));
typedef int32_t Ints __attribute__((vector_size(kCount * 4)));

// Truths, floats and integers.
struct M;
struct F {
  Floats v;
  F() = default;
  __attribute__((always_inline)) F(Floats values) : v(values) {}
  __attribute__((always_inline)) F(float value) : v(value - Floats{}) {}
};
struct I {
  Ints v;
  I() = default;
  __attribute__((always_inline)) I(Ints values) : v(values) {}
  __attribute__((always_inline)) I(int32_t value) : v(value - Ints{}) {}
};
// What is stored as a T, with its value or its bits in `v`.
template <class T> struct Stored { Ints v; };

INLINE F operator+(F a, F b) { return a.v + b.v; }
INLINE F operator-(F a, F b) { return a.v - b.v; }
INLINE F operator*(F a, F b) { return a.v * b.v; }
INLINE F operator/(F a, F b) { return a.v / b.v; }
INLINE F operator-(F a) { return -a.v; }
INLINE I operator+(I a, I b) { return a.v + b.v; }
INLINE I operator-(I a, I b) { return a.v - b.v; }
INLINE I operator*(I a, I b) { return a.v * b.v; }
INLINE I operator&(I a, I b) { return a.v & b.v; }
INLINE I operator|(I a, I b) { return a.v | b.v; }
INLINE I operator^(I a, I b) { return a.v ^ b.v; }
INLINE I operator>>(I a, int32_t by) { return a.v >> by; }
INLINE I operator-(I a) { return -a.v; }
INLINE Floats floats(Ints bits) { return bits_of<Floats>(bits); }
INLINE Ints ints(Floats values) { return bits_of<Ints>(values); }
INLINE Ints whole(Floats values) { return __builtin_convertvector(values, Ints); }
INLINE Floats numbers(Ints values) { return __builtin_convertvector(values, Floats); }

#ifdef __AVX512F__
struct M {
  __mmask16 v;
  M() = default;
  __attribute__((always_inline)) M(__mmask16 mask) : v(mask) {}
  __attribute__((always_inline)) M(bool all) : v(all ? 0xffff : 0) {}
};
INLINE M operator!(M a) { return __mmask16(~a.v); }
INLINE M operator&(M a, M b) { return __mmask16(a.v & b.v); }
INLINE M operator|(M a, M b) { return __mmask16(a.v | b.v); }
INLINE M operator^(M a, M b) { return __mmask16(a.v ^ b.v); }
#define COMPARED(sign, of_floats, of_ints)                                                           \
  INLINE M operator sign(F a, F b) { return _mm512_cmp_ps_mask((__m512)a.v, (__m512)b.v, of_floats); } \
  INLINE M operator sign(I a, I b) { return _mm512_cmp_epi32_mask((__m512i)a.v, (__m512i)b.v, of_ints); }
COMPARED(==, _CMP_EQ_OQ, _MM_CMPINT_EQ)
COMPARED(!=, _CMP_NEQ_UQ, _MM_CMPINT_NE)
COMPARED(<, _CMP_LT_OQ, _MM_CMPINT_LT)
COMPARED(<=, _CMP_LE_OQ, _MM_CMPINT_LE)
COMPARED(>, _CMP_GT_OQ, _MM_CMPINT_NLE)
COMPARED(>=, _CMP_GE_OQ, _MM_CMPINT_NLT)
INLINE F chosen(M m, F a, F b) { return (Floats)_mm512_mask_blend_ps(m.v, (__m512)b.v, (__m512)a.v); }
INLINE I chosen(M m, I a, I b) { return (Ints)_mm512_mask_blend_epi32(m.v, (__m512i)b.v, (__m512i)a.v); }
INLINE F fma(F a, F b, F c) { return (Floats)_mm512_fmadd_ps((__m512)a.v, (__m512)b.v, (__m512)c.v); }
INLINE F sqrt(F a) { return (Floats)_mm512_sqrt_ps((__m512)a.v); }
INLINE F nearbyint(F a) { return (Floats)_mm512_roundscale_ps((__m512)a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE F floor(F a) { return (Floats)_mm512_roundscale_ps((__m512)a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
INLINE F ceil(F a) { return (Floats)_mm512_roundscale_ps((__m512)a.v, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }
INLINE F trunc(F a) { return (Floats)_mm512_roundscale_ps((__m512)a.v, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }
// The second operand where one is NaN, so that it is the one that may be.
INLINE F smaller(F a, F b) { return (Floats)_mm512_min_ps((__m512)a.v, (__m512)b.v); }
INLINE F larger(F a, F b) { return (Floats)_mm512_max_ps((__m512)a.v, (__m512)b.v); }
INLINE Ints most_of(Ints a, Ints b) { return (Ints)_mm512_max_epi32((__m512i)a, (__m512i)b); }
INLINE int32_t largest(Ints a) { return _mm512_reduce_max_epi32((__m512i)a); }
INLINE Ints read(const int8_t* at) { return (Ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)at)); }
INLINE Ints read(const uint8_t* at) { return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)at)); }
INLINE Ints read(const int16_t* at) { return (Ints)_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i*)at)); }
INLINE Ints read(const uint16_t* at) { return (Ints)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)at)); }
INLINE void write(int8_t* at, Ints a) { _mm_storeu_si128((__m128i*)at, _mm512_cvtepi32_epi8((__m512i)a)); }
INLINE void write(int16_t* at, Ints a) { _mm256_storeu_si256((__m256i*)at, _mm512_cvtepi32_epi16((__m512i)a)); }
INLINE Floats of_half(Ints bits) { return (Floats)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)bits)); }
INLINE Ints to_half(Floats a) { return (Ints)_mm512_cvtepu16_epi32(_mm512_cvtps_ph((__m512)a, _MM_FROUND_TO_NEAREST_INT)); }
#else
struct M {
  Ints v;
  M() = default;
  __attribute__((always_inline)) M(Ints mask) : v(mask) {}
  __attribute__((always_inline)) M(bool all) : v((all ? -1 : 0) - Ints{}) {}
};
INLINE M operator!(M a) { return ~a.v; }
INLINE M operator&(M a, M b) { return a.v & b.v; }
INLINE M operator|(M a, M b) { return a.v | b.v; }
INLINE M operator^(M a, M b) { return a.v ^ b.v; }
#define COMPARED(sign)                                           \
  INLINE M operator sign(F a, F b) { return Ints(a.v sign b.v); } \
  INLINE M operator sign(I a, I b) { return Ints(a.v sign b.v); }
COMPARED(==) COMPARED(!=) COMPARED(<) COMPARED(<=) COMPARED(>) COMPARED(>=)
#define EACH(name)                                               \
  INLINE F name(F a) {                                           \
    for (int i = 0; i < kCount; ++i) a.v[i] = std::name(a.v[i]); \
    return a;                                                    \
  }
#ifdef __AVX2__
INLINE F sqrt(F a) { return (Floats)_mm256_sqrt_ps((__m256)a.v); }
INLINE F nearbyint(F a) { return (Floats)_mm256_round_ps((__m256)a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE F chosen(M m, F a, F b) { return (Floats)_mm256_blendv_ps((__m256)b.v, (__m256)a.v, (__m256)m.v); }
INLINE I chosen(M m, I a, I b) { return ints(chosen(m, F(floats(a.v)), F(floats(b.v))).v); }
#else
EACH(sqrt) EACH(nearbyint)
INLINE I chosen(M m, I a, I b) { return (m.v & a.v) | (~m.v & b.v); }
INLINE F chosen(M m, F a, F b) { return floats((m.v & ints(a.v)) | (~m.v & ints(b.v))); }
#endif
EACH(floor) EACH(ceil) EACH(trunc)
INLINE F fma(F a, F b, F c) {
#ifdef __FMA__
  return (Floats)_mm256_fmadd_ps((__m256)a.v, (__m256)b.v, (__m256)c.v);
#else
  for (int i = 0; i < kCount; ++i) a.v[i] = std::fma(a.v[i], b.v[i], c.v[i]);
  return a;
#endif
}
INLINE F smaller(F a, F b) { return chosen(a < b, a, b); }
INLINE F larger(F a, F b) { return chosen(a > b, a, b); }
INLINE Ints most_of(Ints a, Ints b) { return chosen(I(a) > I(b), I(a), I(b)).v; }
INLINE int32_t largest(Ints a) {
  int32_t most = a[0];
  for (int i = 1; i < kCount; ++i) most = most < a[i] ? a[i] : most;
  return most;
}
#ifdef __AVX2__
INLINE Ints read(const int8_t* at) { return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)at)); }
INLINE Ints read(const uint8_t* at) { return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)at)); }
INLINE Ints read(const int16_t* at) { return (Ints)_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)at)); }
INLINE Ints read(const uint16_t* at) { return (Ints)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)at)); }
// The lower bits of each, next to each other.
INLINE void write(int8_t* at, Ints a) {
  const __m256i first = _mm256_setr_epi32(0x0c080400, -1, -1, -1, 0x0c080400, -1, -1, -1);
  const __m256i bytes = _mm256_shuffle_epi8((__m256i)a, first);
  _mm_storel_epi64((__m128i*)at, _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}
INLINE void write(int16_t* at, Ints a) {
  const __m256i first = _mm256_setr_epi32(0x05040100, 0x0d0c0908, -1, -1, 0x05040100, 0x0d0c0908, -1, -1);
  const __m256i words = _mm256_shuffle_epi8((__m256i)a, first);
  _mm_storeu_si128((__m128i*)at, _mm_unpacklo_epi64(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
#else
template <class T> struct Memory { typedef T Values __attribute__((vector_size(kCount * sizeof(T)))); };
template <class T> INLINE Ints read(const T* at) {
  typename Memory<T>::Values values;
  std::memcpy(&values, at, sizeof values);
  return __builtin_convertvector(values, Ints);
}
template <class T> INLINE void write(T* at, Ints a) {
  const auto values = __builtin_convertvector(a, typename Memory<T>::Values);
  std::memcpy(at, &values, sizeof values);
}
#endif
INLINE Floats of_half(Ints bits) {
  Floats a{};
  for (int i = 0; i < kCount; ++i) a[i] = float(at::Half{uint16_t(bits[i])});
  return a;
}
INLINE Ints to_half(Floats a) {
  Ints bits{};
  for (int i = 0; i < kCount; ++i) bits[i] = at::Half::from(a[i]).x;
  return bits;
}
#endif

// ---- memory ----

INLINE F load(const float* at) {
  Floats values;
  std::memcpy(&values, at, sizeof values);
  return values;
}
INLINE I load(const int32_t* at) {
  Ints values;
  std::memcpy(&values, at, sizeof values);
  return values;
}
INLINE Stored<int8_t> load(const int8_t* at) { return {read(at)}; }
INLINE Stored<uint8_t> load(const uint8_t* at) { return {read(at)}; }
INLINE Stored<int16_t> load(const int16_t* at) { return {read(at)}; }
INLINE Stored<at::BFloat16> load(const at::BFloat16* at) { return {read((const uint16_t*)at)}; }
INLINE Stored<at::Half> load(const at::Half* at) { return {read((const uint16_t*)at)}; }
INLINE void store(float* at, F a) { std::memcpy(at, &a.v, sizeof a.v); }
INLINE void store(int32_t* at, I a) { std::memcpy(at, &a.v, sizeof a.v); }
INLINE void store(int8_t* at, Stored<int8_t> a) { write(at, a.v); }
INLINE void store(uint8_t* at, Stored<uint8_t> a) { write((int8_t*)at, a.v); }
INLINE void store(int16_t* at, Stored<int16_t> a) { write(at, a.v); }
INLINE void store(at::BFloat16* at, Stored<at::BFloat16> a) { write((int16_t*)at, a.v); }
INLINE void store(at::Half* at, Stored<at::Half> a) { write((int16_t*)at, a.v); }
// Of a number that is every element's.
template <class T> INLINE void store(T* at, T a) {
  for (int i = 0; i < kCount; ++i) at[i] = a;
}

// ---- conversions: to<T>(a) is static_cast<T>(a) of each, bits<T>(a) has the same bits ----

template <class T> struct To {
  template <class A> INLINE T of(A a) { return c10::convert<T>(a); }
  INLINE Stored<T> of(I a) { return {a.v}; }
  INLINE Stored<T> of(F a) { return {whole(a.v)}; }
  INLINE Stored<T> of(Stored<T> a) { return a; }
};
template <> struct To<float> {
  template <class A> INLINE float of(A a) { return c10::convert<float>(a); }
  INLINE F of(F a) { return a; }
  INLINE F of(I a) { return numbers(a.v); }
  INLINE F of(M a) { return chosen(a, F(1.0f), F(0.0f)); }
  template <class T> INLINE F of(Stored<T> a) { return numbers(a.v); }
  INLINE F of(Stored<at::BFloat16> a) { return floats(a.v << 16); }
  INLINE F of(Stored<at::Half> a) { return of_half(a.v); }
};
template <> struct To<int32_t> {
  template <class A> INLINE int32_t of(A a) { return c10::convert<int32_t>(a); }
  INLINE I of(I a) { return a; }
  INLINE I of(F a) { return whole(a.v); }
  INLINE I of(Stored<int8_t> a) { return a.v; }
  INLINE I of(Stored<uint8_t> a) { return a.v; }
  INLINE I of(Stored<int16_t> a) { return a.v; }
};
template <> struct To<at::BFloat16> {
  template <class A> INLINE at::BFloat16 of(A a) { return c10::convert<at::BFloat16>(a); }
  INLINE Stored<at::BFloat16> of(F a) {
    const Ints bits = ints(a.v), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return {chosen(a == a, I(rounded), I(0x7fc0)).v};
  }
};
template <> struct To<at::Half> {
  template <class A> INLINE at::Half of(A a) { return c10::convert<at::Half>(a); }
  INLINE Stored<at::Half> of(F a) { return {to_half(a.v)}; }
};
template <class T, class A> INLINE auto to(A a) { return To<T>::of(a); }
template <class T, class A> INLINE T bits(A a) { return c10::bit_cast<T>(a); }
template <class T> INLINE auto bits(F a) { return I(ints(a.v)); }
template <class T> INLINE auto bits(I a) { return F(floats(a.v)); }

// ---- functions ----

using std::abs;
using std::ceil;
using std::floor;
using std::fma;
using std::nearbyint;
using std::sqrt;
using std::trunc;
using std::copysign;
using ::max_propagate_nan;
using ::min_propagate_nan;

INLINE F abs(F a) { return floats(ints(a.v) & 0x7fffffff); }
INLINE F copysign(F a, F b) { return floats((ints(a.v) & 0x7fffffff) | (ints(b.v) & INT32_MIN)); }
INLINE F sign(F a) { return chosen(a > F(0.0f), F(1.0f), F(0.0f)) - chosen(a < F(0.0f), F(1.0f), F(0.0f)); }
INLINE float sign(float a) { return float(a > 0) - float(a < 0); }
INLINE F max_propagate_nan(F a, F b) { return chosen(a == a, larger(a, b), a); }
INLINE F min_propagate_nan(F a, F b) { return chosen(a == a, smaller(a, b), a); }
INLINE I shifted(I a, int32_t by) { return a.v >> by; }
INLINE int32_t shifted(int32_t a, int32_t by) { return a >> by; }

template <class A> INLINE A select(bool condition, A a, A b) { return condition ? a : b; }
INLINE F select(bool condition, F a, float b) { return condition ? a : F(b); }
INLINE F select(bool condition, float a, F b) { return condition ? F(a) : b; }
INLINE F select(M condition, F a, F b) { return chosen(condition, a, b); }
INLINE F select(M condition, float a, float b) { return chosen(condition, F(a), F(b)); }
INLINE I select(M condition, I a, I b) { return chosen(condition, a, b); }
INLINE M select(M condition, M a, M b) { return (condition & a) | (!condition & b); }

// a > b ? a : b and a < b ? a : b.
#define EXTREME(name, sign, of_floats)                                                                       \
  template <class A, class B> INLINE auto name(A a, B b) { return select(a sign b, a, b); } \
  INLINE F name(F a, F b) { return of_floats(a, b); }                                                        \
  INLINE F name(F a, float b) { return of_floats(a, F(b)); }                                                 \
  INLINE F name(float a, F b) { return of_floats(F(a), b); }
EXTREME(larger_of, >, larger)
EXTREME(smaller_of, <, smaller)

// Where a value stands among n growing edges, and what stands there in a row (lookups.py). A value that is no number is below all.
// octave_among: edges that are powers of two, one after the other, where rows are turned by the exponent below the first.
// place_among: others, with what is in each octave: the edge inside, if there is one, and how many are at its beginning or below.
#ifdef __AVX512F__
template <int n> INLINE I octave_of(F x, const float (&edges)[n]) {
  const Ints first = ints(F(edges[0]).v) - (1 << 23), last = ints(F(edges[n - 1]).v);
  return ints(smaller(larger(x, floats(first)), floats(last)).v) >> 23;
}
template <int n> INLINE I octave_among(F x, const float (&edges)[n]) { return octave_of(x, edges); }
template <int n> INLINE I place_among(F x, const float (&edges)[n], const float (&inside)[32], const int32_t (&below)[32]) {
  const int32_t exponents = 0x7f800000;
  const Ints low = ints(F(edges[0]).v) & exponents, high = (ints(F(edges[n - 1]).v) & exponents) + (1 << 23);
  const __m512i octave = (__m512i)(ints(smaller(larger(x, floats(low)), floats(high)).v) >> 23);
  const __m512 edge = _mm512_permutex2var_ps(_mm512_load_ps(inside), octave, _mm512_load_ps(inside + 16));
  const __m512i place = _mm512_permutex2var_epi32(_mm512_load_si512(below), octave, _mm512_load_si512(below + 16));
  const __mmask16 above = _mm512_cmp_ps_mask((__m512)x.v, edge, _CMP_GE_OQ);
  return (Ints)_mm512_mask_add_epi32(place, above, place, _mm512_set1_epi32(1));
}
template <int n, int turned> INLINE F at(I place, const float (&row)[16]) {
  return (Floats)_mm512_permutexvar_ps((__m512i)place.v, _mm512_load_ps(row));
}
#else
template <int n> struct Among {
  F x;
  const float* edges;
};
template <int n> INLINE Among<n> octave_among(F x, const float (&edges)[n]) { return {x, edges}; }
template <int n> INLINE Among<n> place_among(F x, const float (&edges)[n], const float (&)[32], const int32_t (&)[32]) { return {x, edges}; }
template <int n, int turned> INLINE F at(Among<n> among, const float (&row)[16]) {
  F found = row[turned];
  for (int i = 0; i < n; ++i) found = chosen(among.x >= F(among.edges[i]), F(row[(i + 1 + turned) % 16]), found);
  return found;
}
#endif

// Of functions.h, where that stands before, element by element: loops that the compiler makes vectors of again, by itself.
#ifdef EACH_OF_ONE
#define OF_ONE_LANE(name)                                              \
  INLINE float name(float a) { return name##_of(a); }                  \
  INLINE F name(F a) {                                                 \
    alignas(64) float values[kCount];                                  \
    store(values, a);                                                  \
    for (int i = 0; i < kCount; ++i) values[i] = name##_of(values[i]); \
    return load(values);                                               \
  }
#define OF_TWO_LANES(name)                                                        \
  INLINE float name(float a, float b) { return name##_of(a, b); }                 \
  template <class A, class B> INLINE F name(A a, B b) {                           \
    alignas(64) float values[kCount], others[kCount];                             \
    store(values, F(a)), store(others, F(b));                                     \
    for (int i = 0; i < kCount; ++i) values[i] = name##_of(values[i], others[i]); \
    return load(values);                                                          \
  }
EACH_OF_ONE(OF_ONE_LANE)
EACH_OF_TWO(OF_TWO_LANES)
#endif

// Of a block, the largest finite size among the first `count`. Sizes are in the order of their bits; what is not finite is left
// out where there is any, and the result has a minus there if it is to be marked.
template <int n, bool marked = false> INLINE float largest_finite(const float* values, int count) {
  Ints sizes{}, place{};
  for (int i = 0; i < kCount; ++i) place[i] = i;
  for (int i = 0; i < n; i += kCount) {
    Ints size = ints(load(values + i).v) & 0x7fffffff;
    if (count < n) size = chosen(I(place + i) < I(count), I(size), I(0)).v;
    sizes = most_of(sizes, size);
  }
  int32_t most = largest(sizes);
  if (__builtin_expect(most >= 0x7f800000, 0)) {
    most = 0;
    for (int i = 0; i < count; ++i) {
      const int32_t size = bits_of<int32_t>(values[i]) & 0x7fffffff;
      most = size < 0x7f800000 && size > most ? size : most;
    }
    if (marked) most |= INT32_MIN;
  }
  return bits_of<float>(most);
}

}  // namespace lanes
