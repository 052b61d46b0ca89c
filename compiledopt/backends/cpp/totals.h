// The sums of what `run_values` computes over one piece of a parameter: run({kReads operands, result, place}, columns, length),
// where place is (the first element's, the parameter's number). It writes kTotals values of type A for each element, into tiles
// that stay in the first cache. kBytes: of an element of each operand. Many sums at once so that the compiler vectorizes them,
// short ones so that float32 does not round the small away.
#include <algorithm>

static double folded(const A* values, int64_t length) {
  constexpr int64_t lanes = 64;
  const int64_t whole = length / lanes * lanes;
  A sums[lanes] = {};
  for (int64_t i = 0; i < whole; i += lanes)
    for (int64_t j = 0; j < lanes; ++j) sums[j] += values[i + j];
  for (int64_t i = whole; i < length; ++i) sums[i - whole] += values[i];
  // Halves onto each other: 64 additions one after the other took as long as a whole tensor of 1000.
  for (int64_t width = lanes / 2; width >= 4; width /= 2)
    for (int64_t j = 0; j < width; ++j) sums[j] += sums[j + width];
  return (double(sums[0]) + double(sums[1])) + (double(sums[2]) + double(sums[3]));
}

extern "C" void run(void* const* pointers, const double* columns, int64_t length) {
  constexpr int64_t stretch = 2048;
  alignas(64) A tiles[kTotals][stretch];
  double totals[kTotals] = {};
  for (int64_t begin = 0; begin < length; begin += stretch) {
    const int64_t count = std::min(stretch, length - begin);
    void* moved[kReads + kTotals + 1];
    for (int k = 0; k < kReads; ++k) moved[k] = static_cast<char*>(pointers[k]) + begin * kBytes[k];
    for (int t = 0; t < kTotals; ++t) moved[kReads + t] = tiles[t];
    const auto place = static_cast<const int32_t*>(pointers[kReads + 1]);
    int32_t at[] = {place[0] + static_cast<int32_t>(begin), place[1]};
    moved[kReads + kTotals] = at;
    run_values(moved, columns, count);
    for (int t = 0; t < kTotals; ++t) totals[t] += folded(tiles[t], count);
  }
  std::copy_n(totals, kTotals, static_cast<double*>(pointers[kReads]));
}
