// Adds the sums of what `run_values` computes over one piece of a parameter to what is there: run({kReads operands, result, place}, columns, length),
// where place is a Piece, which is a part of one row or whole rows. It writes kTotals values of type A for each element, into tiles
// of kStretch that stay in the first cache. kOperands: what is read, and how many of its values there are. Many sums at once so that the compiler vectorizes them,
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
  alignas(64) A tiles[kTotals][kStretch];
  double totals[kTotals] = {};
  const Piece& piece = *static_cast<const Piece*>(pointers[kReads + 1]);
  const int64_t row = std::min(piece.row, length);
  for (int64_t begin = 0, count; begin < length; begin += count) {
    // Of rows that are no whole number of blocks, several whole ones or a part of one.
    count = row > kStretch ? std::min(kStretch, row - begin % row) : std::min(kStretch / row * row, length - begin);
    void* moved[kReads + kTotals + 1];
    for (int k = 0; k < kReads; ++k) {
      const auto [bytes, axes, size] = kOperands[k];
      const int64_t before = begin / row * values_of(axes, size, row) + values_of(axes, size, begin % row);
      moved[k] = static_cast<char*>(pointers[k]) + before * bytes;
    }
    for (int t = 0; t < kTotals; ++t) moved[kReads + t] = tiles[t];
    Piece at{static_cast<int32_t>(piece.offset + begin), piece.number, std::min(row, count)};
    moved[kReads + kTotals] = &at;
    run_values(moved, columns, count);
    for (int t = 0; t < kTotals; ++t) totals[t] += folded(tiles[t], count);
  }
  for (int t = 0; t < kTotals; ++t) static_cast<double*>(pointers[kReads])[t] += totals[t];
}
