// Functions of libm without branches, so that the compiler makes vectors of them: a call for each element took DiffGrad three
// times as long as all else, and AdamAtan2 twenty times. Those of float32 are computed in float64 and rounded once, within 0.53
// units in the last place, with C's values for zeros, infinities and NaN; of float64 they are libm's.
#include <cmath>
#include <cstdint>
#include <cstring>

#define EVERYWHERE static inline __attribute__((always_inline))
// Where a processor has no such instruction, a function of libm would be called.
#if defined(__FMA__) || defined(__aarch64__)
#define MULTIPLY_ADD(a, b, c) __builtin_fma(a, b, c)
#else
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#endif

static inline float power_of_two(int32_t n) {
  const int32_t bits = (n + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return power;
}

static inline double exp_of(double x) { return std::exp(x); }

// e^x = 2^n·e^r with |r| ≤ ln 2 / 2, whose series is Cephes's expf; one unit in the last place. What 2^n overflows for is taken
// in two halves. NaN stays NaN.
static inline float exp_of(float x) {
  const float within = x < -104.0f ? -104.0f : x > 89.0f ? 89.0f : x;
  const float n = std::rint(within * 1.44269504f);
  const float r = (within - n * 0.693359375f) - n * -2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const int32_t whole = int32_t(n), half = whole >> 1;
  return y * power_of_two(half) * power_of_two(whole - half);
}

// ---- float64 with the accuracy of float32 and some bits more: polynomials are minimax ----

constexpr double kInfinite = HUGE_VAL, kNoNumber = __builtin_nan("");
constexpr double kWhole = 4503599627370496.0;  // 2^52: the lower bits of what is as large are a whole number

EVERYWHERE uint64_t bits_of_double(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
EVERYWHERE double double_of(uint64_t bits) {
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Of x > 0 that is finite and normal, as each float32 is: x = 2^e·m with √½ ≤ m < √2, and log m is a series of (m − 1) / (m + 1).
EVERYWHERE double log2_within(double x) {
  const uint64_t bits = bits_of_double(x), above = bits - 0x3fe6a09e667f3bcd;  // √½
  const double m = double_of(bits - (above & 0xfff0000000000000));
  const double e = double_of(((above + 0x4000000000000000) >> 52) | 0x4330000000000000) - (kWhole + 1024.0);
  const double s = (m - 1.0) / (m + 1.0), z = s * s;
  double p = 0.3407301768542071913;
  p = MULTIPLY_ADD(p, z, 0.4116727148603131195);
  p = MULTIPLY_ADD(p, z, 0.5770835850374719690);
  p = MULTIPLY_ADD(p, z, 0.9617966733414772393);
  p = MULTIPLY_ADD(p, z, 2.8853900817900859270);
  return MULTIPLY_ADD(s, p, e);
}
EVERYWHERE double log2_any(double x) {
  double y = log2_within(x);
  y = x < kInfinite ? y : x;
  y = x == 0.0 ? -kInfinite : y;
  return x < 0.0 ? kNoNumber : y;
}

// 2^t = 2^n·(1 + p) with |t − n| ≤ ½.
struct Power {
  double p;
  uint64_t n;  // in the place of an exponent
};
EVERYWHERE Power power_of(double t) {
  t = t < -200.0 ? -200.0 : t;
  t = t > 200.0 ? 200.0 : t;
  const double moved = t + 1.5 * kWhole, f = t - (moved - 1.5 * kWhole);
  double p = 1.531002969549904333e-5;
  p = MULTIPLY_ADD(p, f, 1.546144704218981898e-4);
  p = MULTIPLY_ADD(p, f, 1.333345474012638356e-3);
  p = MULTIPLY_ADD(p, f, 9.618056671315627248e-3);
  p = MULTIPLY_ADD(p, f, 5.550410928589450673e-2);
  p = MULTIPLY_ADD(p, f, 2.402265092233653969e-1);
  p = MULTIPLY_ADD(p, f, 6.931471805537341156e-1);
  return {p * f, bits_of_double(moved) << 52};
}
EVERYWHERE double exp2_any(double t) {
  const Power power = power_of(t);
  return double_of(bits_of_double(1.0 + power.p) + power.n);
}
EVERYWHERE double expm1_any(double x) {
  const Power power = power_of(x * 1.4426950408889634);
  const double scale = double_of(0x3ff0000000000000 + power.n);
  return MULTIPLY_ADD(scale, power.p, scale - 1.0);
}
EVERYWHERE double log1p_any(double x) {
  const double few = MULTIPLY_ADD(MULTIPLY_ADD(1.0 / 3.0, x, -0.5) * x, x, x);
  return std::fabs(x) < 0x1p-12 ? few : 0.6931471805599453 * log2_any(1.0 + x);
}
// The angle of (x, y): of the quotient of the smaller and the larger, or of that angle and 45°.
EVERYWHERE double atan2_any(double y, double x) {
  double a = std::fabs(y), b = std::fabs(x);
  a = a > 1e300 ? 1e300 : a;  // infinities have a quotient, and so have zeros
  b = b > 1e300 ? 1e300 : b;
  const double large = a > b ? a : b, small = a > b ? b : a;
  const bool wide = small > 0.41421356 * large;  // tan 22.5°
  const double s = (small - (wide ? large : 0.0)) / (large + (wide ? small : 0.0) + 1e-300), z = s * s;
  double p = -0.06034305199418035231;
  p = MULTIPLY_ADD(p, z, 0.1057329148001986331);
  p = MULTIPLY_ADD(p, z, -0.1424005769035650991);
  p = MULTIPLY_ADD(p, z, 0.1999821557669775416);
  p = MULTIPLY_ADD(p, z, -0.3333330760042228101);
  p = MULTIPLY_ADD(p, z, 0.9999999993960473591);
  double angle = MULTIPLY_ADD(s, p, wide ? 0.7853981633974483 : 0.0);
  angle = a > b ? 1.5707963267948966 - angle : angle;
  angle = bits_of_double(x) >> 63 ? 3.141592653589793 - angle : angle;
  return std::copysign(angle, y);
}

// ---- as C has them ----

#define OF_ONE(name, value)                                             \
  static inline double name##_of(double x) { return std::name(x); }     \
  EVERYWHERE float name##_of(float of) {                                \
    const double x = of;                                                \
    return float(value);                                                \
  }
#define OF_TWO(name, first, second, value)                                                        \
  static inline double name##_of(double first, double second) { return std::name(first, second); } \
  EVERYWHERE float name##_of(float of_##first, float of_##second) {                               \
    const double first = of_##first, second = of_##second;                                        \
    return float(value);                                                                          \
  }

OF_ONE(exp2, exp2_any(x))
OF_ONE(expm1, std::copysign(expm1_any(x), x))
OF_ONE(log, 0.6931471805599453 * log2_any(x))
OF_ONE(log2, log2_any(x))
OF_ONE(log10, 0.3010299956639812 * log2_any(x))
OF_ONE(log1p, log1p_any(x))
EVERYWHERE double tanh_any(double x) {
  const double size = std::fabs(x), e = expm1_any(2.0 * (size > 20.0 ? 20.0 : size));
  return std::copysign(e / (e + 2.0), x);
}
OF_ONE(tanh, tanh_any(x))
EVERYWHERE double sinh_any(double x) {
  const double e = expm1_any(std::fabs(x));
  return std::copysign(0.5 * (e + e / (e + 1.0)), x);
}
OF_ONE(sinh, sinh_any(x))
EVERYWHERE double cosh_any(double x) {
  const double e = expm1_any(std::fabs(x)) + 1.0;
  return 0.5 * (e + 1.0 / e);
}
OF_ONE(cosh, cosh_any(x))
OF_ONE(atan, atan2_any(x, 1.0))
OF_TWO(atan2, y, x, atan2_any(y, x))
OF_ONE(asin, atan2_any(x, std::sqrt((1.0 - x) * (1.0 + x))))
OF_ONE(acos, atan2_any(std::sqrt((1.0 - x) * (1.0 + x)), x))
EVERYWHERE double asinh_any(double x) {
  const double size = std::fabs(x), y = log1p_any(size + size * size / (1.0 + std::sqrt(1.0 + size * size)));
  return std::copysign(size < kInfinite ? y : size, x);
}
OF_ONE(asinh, asinh_any(x))
EVERYWHERE double acosh_any(double x) {
  const double y = log1p_any(x - 1.0 + std::sqrt((x - 1.0) * (x + 1.0)));
  return x < 1.0 ? kNoNumber : y;
}
OF_ONE(acosh, acosh_any(x))
EVERYWHERE double atanh_any(double x) {
  const double size = std::fabs(x);
  return std::copysign(0.5 * log1p_any(2.0 * size / (1.0 - size)), x);
}
OF_ONE(atanh, atanh_any(x))
EVERYWHERE double hypot_any(double x, double y) {
  const double a = std::fabs(x), b = std::fabs(y), root = std::sqrt(a * a + b * b);
  return (a == kInfinite) | (b == kInfinite) ? kInfinite : root;
}
OF_TWO(hypot, x, y, hypot_any(x, y))

// Of x in quarters of a turn: what is left of the whole number `n` next to it, and n mod 4. 2/π in pieces of 26 bits, whose products
// with a float32 are exact, and of each no more than fours are left out: so it is right for the largest of them too.
struct Turned {
  double rest;
  uint64_t n;
};
EVERYWHERE Turned turned(double x) {
  constexpr double pieces[] = {0x28be60dp-26,  0x2e4e441p-52, 0x14a7f09p-78,  0x357d1f5p-104,
                               0xd37703p-130, 0x1b62959p-156, 0x24f10e4p-182, 0x41fe51p-208};
  double parts[8], sum = 0.0;
  for (int i = 7; i >= 0; --i) {
    const double product = x * pieces[i];
    parts[i] = product - 4.0 * std::rint(0.25 * product);
    sum += parts[i];
  }
  const double moved = sum + 1.5 * kWhole;
  double rest = -(moved - 1.5 * kWhole);
  for (int i = 0; i < 8; ++i) rest += parts[i];
  return {rest, bits_of_double(moved) & 3};
}
EVERYWHERE double sine_of(double rest) {
  const double t = 1.5707963267948966 * rest, z = t * t;
  double p = -1.0 / 39916800.0;
  p = MULTIPLY_ADD(p, z, 1.0 / 362880.0);
  p = MULTIPLY_ADD(p, z, -1.0 / 5040.0);
  p = MULTIPLY_ADD(p, z, 1.0 / 120.0);
  p = MULTIPLY_ADD(p, z, -1.0 / 6.0);
  return MULTIPLY_ADD(p * z, t, t);
}
EVERYWHERE double cosine_of(double rest) {
  const double t = 1.5707963267948966 * rest, z = t * t;
  double p = 1.0 / 479001600.0;
  p = MULTIPLY_ADD(p, z, -1.0 / 3628800.0);
  p = MULTIPLY_ADD(p, z, 1.0 / 40320.0);
  p = MULTIPLY_ADD(p, z, -1.0 / 720.0);
  p = MULTIPLY_ADD(p, z, 1.0 / 24.0);
  p = MULTIPLY_ADD(p, z, -0.5);
  return MULTIPLY_ADD(p, z, 1.0);
}
EVERYWHERE double sin_any(double x) {
  const Turned at = turned(x);
  const double y = at.n & 1 ? cosine_of(at.rest) : sine_of(at.rest);
  return x == 0.0 ? x : double_of(bits_of_double(y) ^ (at.n & 2) << 62);
}
OF_ONE(sin, sin_any(x))
EVERYWHERE double cos_any(double x) {
  const Turned at = turned(x);
  const double y = at.n & 1 ? sine_of(at.rest) : cosine_of(at.rest);
  return double_of(bits_of_double(y) ^ ((at.n + 1) & 2) << 62);
}
OF_ONE(cos, cos_any(x))
EVERYWHERE double tan_any(double x) {
  const Turned at = turned(x);
  const double sine = sine_of(at.rest), cosine = cosine_of(at.rest);
  const double y = (at.n & 1 ? -cosine : sine) / (at.n & 1 ? sine : cosine);
  return x == 0.0 ? x : y;
}
OF_ONE(tan, tan_any(x))

// erfc x = e^(−x²)·(a series of t = 2 / (2 + x))·t from ½ on, and erf x is x and a series of x² before that.
EVERYWHERE double erfc_beyond(double x) {
  const double t = 2.0 / (2.0 + x);
  double p = 0.0627023442657338515;
  p = MULTIPLY_ADD(p, t, -0.3286954469955569999);
  p = MULTIPLY_ADD(p, t, 0.6899046588148822172);
  p = MULTIPLY_ADD(p, t, -0.6877956602766315218);
  p = MULTIPLY_ADD(p, t, 0.3051413540083877507);
  p = MULTIPLY_ADD(p, t, -0.1428197117192218415);
  p = MULTIPLY_ADD(p, t, 0.1199541198962918730);
  p = MULTIPLY_ADD(p, t, 0.1699060535067600302);
  p = MULTIPLY_ADD(p, t, 0.2475648517229851295);
  p = MULTIPLY_ADD(p, t, 0.2820460406932760598);
  p = MULTIPLY_ADD(p, t, 0.2820962265610466658);
  return exp2_any(-1.4426950408889634 * x * x) * p * t;
}
EVERYWHERE double erf_within(double x) {
  const double z = x * x;
  double p = 0.004717795888909139198;
  p = MULTIPLY_ADD(p, z, -0.02675709871591364998);
  p = MULTIPLY_ADD(p, z, 0.1128282165333438263);
  p = MULTIPLY_ADD(p, z, -0.3761260852410647358);
  return x * MULTIPLY_ADD(p, z, 1.128379165564409167);
}
EVERYWHERE double erf_any(double x) {
  const double size = std::fabs(x), beyond = 1.0 - erfc_beyond(size > 20.0 ? 20.0 : size);
  return size < 0.5 ? erf_within(x) : std::copysign(beyond, x);
}
OF_ONE(erf, erf_any(x))
EVERYWHERE double erfc_any(double x) {
  const double size = std::fabs(x), beyond = erfc_beyond(size > 20.0 ? 20.0 : size);
  return size < 0.5 ? 1.0 - erf_within(x) : x < 0.0 ? 2.0 - beyond : beyond;
}
OF_ONE(erfc, erfc_any(x))

// What depends on the exponent alone, which is most often one number for all elements, is numbers and not truths: g++ 12 makes no
// vectors of a loop with truths that do not change.
EVERYWHERE double pow_any(double x, double y) {
  const double size = std::fabs(x), half = y * 0.5;
  const double unless_whole = std::floor(y) == y ? 0.0 : kNoNumber;
  const uint64_t odd = (unless_whole == 0.0) & (std::floor(half) != half) ? 0x8000000000000000 : 0;
  double log = log2_within(size);
  log = size < kInfinite ? log : size;
  log = size == 0.0 ? -kInfinite : log;
  double t = y * log;
  t = size == 1.0 ? 0.0 : t;
  double power = exp2_any(t);
  power = (x < 0.0) & (x > -kInfinite) ? power + unless_whole : power;
  power = double_of(bits_of_double(power) | (bits_of_double(x) & odd));
  power = x == 1.0 ? 1.0 : power;
  return y == 0.0 ? 1.0 : power;
}
OF_TWO(pow, x, y, pow_any(x, y))

// x^y where y may be known: to be ½ for every element, as torch takes it, or not.
template <bool is_half, class T> EVERYWHERE T raised(T x, T y) { return is_half ? std::sqrt(x) : pow_of(x, y); }

// Those above by their names in std, for lanes.h and functions.py.
#define EACH_OF_ONE(DO)                                                                                                  \
  DO(exp) DO(exp2) DO(expm1) DO(log) DO(log2) DO(log10) DO(log1p) DO(tanh) DO(sinh) DO(cosh) DO(atan) DO(asin) DO(acos)   \
  DO(asinh) DO(acosh) DO(atanh) DO(sin) DO(cos) DO(tan) DO(erf) DO(erfc)
#define EACH_OF_TWO(DO) DO(atan2) DO(hypot) DO(pow)
