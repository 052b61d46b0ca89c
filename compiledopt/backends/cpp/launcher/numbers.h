// The scalar part of a rule (learning rates, bias corrections and the like) on float64, as rules/ops.py computes it on Python's
// floats, bit for bit: the same functions of libm, and infinities and NaNs where those stand in for what Python raises.
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

namespace numbers {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

inline double divide(double a, double b) {
  if (b != 0 || b != b) return a / b;
  return a == 0 || a != a ? kNaN : std::copysign(kInfinity, a) * std::copysign(1.0, b);
}
inline double power(double a, double b) {
  if (a == 0 && b < 0) return kInfinity;
  const double value = std::pow(a, b);
  return value != value && a == a && b == b ? kNaN : value;
}
inline double root(double a) { return a < 0 ? kNaN : std::sqrt(a); }
inline double floored(double a) { return std::isfinite(a) ? std::floor(a) + 0.0 : a; }  // + 0.0: no integer is -0
inline double logarithm(double a) { return a < 0 ? kNaN : std::log(a); }
inline double between(double a, double b, double weight) {
  return std::fabs(weight) < 0.5 ? a + weight * (b - a) : b - (b - a) * (1 - weight);
}

using Function = double (*)(double, double, double);
struct Operation {
  const char* name;  // in rules/ops.py
  Function function;
};

const Operation kOperations[] = {
    {"add", [](double a, double b, double) { return a + b; }},
    {"sub", [](double a, double b, double) { return a - b; }},
    {"mul", [](double a, double b, double) { return a * b; }},
    {"div", [](double a, double b, double) { return divide(a, b); }},
    {"pow", [](double a, double b, double) { return power(a, b); }},
    {"neg", [](double a, double, double) { return -a; }},
    {"abs", [](double a, double, double) { return std::fabs(a); }},
    {"sign", [](double a, double, double) { return double(a > 0) - double(a < 0); }},
    {"sqrt", [](double a, double, double) { return root(a); }},
    {"rsqrt", [](double a, double, double) { return divide(1.0, root(a)); }},
    {"reciprocal", [](double a, double, double) { return divide(1.0, a); }},
    {"square", [](double a, double, double) { return a * a; }},
    {"exp", [](double a, double, double) { return std::exp(a); }},
    {"log", [](double a, double, double) { return logarithm(a); }},
    {"tanh", [](double a, double, double) { return std::tanh(a); }},
    {"sin", [](double a, double, double) { return std::isinf(a) ? kNaN : std::sin(a); }},
    {"cos", [](double a, double, double) { return std::isinf(a) ? kNaN : std::cos(a); }},
    {"floor", [](double a, double, double) { return floored(a); }},
    {"maximum", [](double a, double b, double) { return a != a || a >= b ? a : b; }},
    {"minimum", [](double a, double b, double) { return a != a || a <= b ? a : b; }},
    {"lerp", [](double a, double b, double c) { return between(a, b, c); }},
    {"where", [](double a, double b, double c) { return a != 0 ? b : c; }},
    {"gt", [](double a, double b, double) { return double(a > b); }},
    {"ge", [](double a, double b, double) { return double(a >= b); }},
    {"lt", [](double a, double b, double) { return double(a < b); }},
    {"le", [](double a, double b, double) { return double(a <= b); }},
    {"eq", [](double a, double b, double) { return double(a == b); }},
    {"ne", [](double a, double b, double) { return double(a != b); }},
    {"logical_and", [](double a, double b, double) { return double(a != 0 && b != 0); }},
    {"logical_or", [](double a, double b, double) { return double(a != 0 || b != 0); }},
    {"logical_not", [](double a, double, double) { return double(a == 0); }},
    {"logical_xor", [](double a, double b, double) { return double((a != 0) != (b != 0)); }},
    {"isfinite", [](double a, double, double) { return double(std::isfinite(a)); }},
    {"isinf", [](double a, double, double) { return double(std::isinf(a)); }},
    {"isnan", [](double a, double, double) { return double(a != a); }},
};

// Null for one that is not there.
inline Function function_of(const char* name) {
  for (const Operation& operation : kOperations)
    if (std::strcmp(operation.name, name) == 0) return operation.function;
  return nullptr;
}

}  // namespace numbers

// A scalar part. Its values are the inputs, the constants, and one result for each line.
struct ScalarPart {
  struct Line {
    numbers::Function function;
    std::array<int32_t, 3> from;  // values
  };
  int64_t inputs = 0;
  std::vector<double> values;
  std::vector<Line> lines;
  std::vector<int32_t> columns;  // what the kernel reads
  std::vector<int32_t> states;   // the new 0-dim states

  // Of the inputs, which stand in `values` already.
  void evaluate() {
    double* result = values.data() + values.size() - lines.size();
    for (const Line& line : lines)
      *result++ = line.function(values[line.from[0]], values[line.from[1]], values[line.from[2]]);
  }
};

}  // namespace
