// Functions of libm without branches, so that the compiler makes vectors of them: a call for each element took DiffGrad three
// times as long as all else.
#include <cmath>
#include <cstdint>
#include <cstring>

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
