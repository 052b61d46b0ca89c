// Runs the passes of a rule that reduces (reducing.py) over many parameters, in tiles that stay in the first cache.
//
// What is summed does not depend on the number of threads: an array is cut into parts by its size alone, each part has a sum
// of its own, in double, and the sums are added in the order of the parts. kernels.py joins the files of this folder, in the order that stands there.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

namespace {

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

constexpr int64_t kTileLength = 2048;         // elements: a handful of tiles lie in the first cache
constexpr int64_t kLong = 256;                // a row of this length or more is not mixed with the next in a tile
constexpr int64_t kPart = 1 << 15;            // elements of a part, at least
constexpr int64_t kParts = 64;                // parts, at most
constexpr int64_t kRowsPerPart = 32;          // where columns are summed: each part has a sum for each column
constexpr int64_t kNear = 16;                 // rows: summed in float32 before they are added to the sums in double

using Run = void (*)(void* const*, const double*, int64_t);

struct Operand {
  int64_t kind, index, axes, bytes, size;  // size: elements of a block, of scales and of what is packed

  bool in_blocks() const { return axes >= kBlocks; }
};
struct Reduction { int64_t op, source, kind, index, axes; };
struct Pass {
  Run run;
  int64_t axes;
  std::vector<Operand> operands;
  std::vector<int64_t> columns;
  std::vector<Reduction> reductions;
  int64_t block = 0;       // elements that share a scale, where it reads or writes such values: the largest of the sizes
  bool backwards = false;  // every other one over elements is: what the one before read last is in the caches still

  // Elements of a tile: whole blocks.
  int64_t tile() const { return block ? std::max(kTileLength / block, int64_t{1}) * block : kTileLength; }
};

// Where an element of an array over `axes` is; it moves by at most a run.
struct Cursor {
  const Shape* shape;
  int64_t axes, matrix, row, column;

  Cursor(const Shape& shape, int64_t axes, int64_t i) : shape(&shape), axes(axes) {
    column = axes & kColumns ? i % shape.columns : 0;
    const int64_t above = axes & kColumns ? i / shape.columns : i;
    row = axes & kRows ? above % shape.rows : 0;
    matrix = axes & kRows ? above / shape.rows : above;
  }
  // How many neighbours follow it that differ in the last axis alone, with itself.
  int64_t left() const {
    return axes & kColumns ? shape->columns - column : axes & kRows ? shape->rows - row : axes ? shape->matrices - matrix : 1;
  }
  void move(int64_t n) {
    if (axes & kColumns) {
      if ((column += n) < shape->columns) return;
      column = 0;
      axes & kRows ? ++row : ++matrix;
    } else if (axes & kRows) {
      row += n;
    } else {
      matrix += n;
    }
    if (row == shape->rows) row = 0, ++matrix;
  }
  // Where it finds its value in an array over `to`.
  int64_t place(int64_t to) const {
    if (to == 0) return 0;
    int64_t at = matrix;
    if (to & kRows) at = at * shape->rows + row;
    return to & kColumns ? at * shape->columns + column : at;
  }
};

int64_t last_axis(int64_t axes) { return axes & kColumns ? kColumns : axes & kRows ? kRows : axes & kMatrices; }

struct Rule {
  int64_t wide;  // bytes of what is kept: 4 or 8
  int64_t tensors, columns, numbers, tile = kTileLength;
  std::vector<int64_t> buffers;
  std::vector<Pass> passes;

  explicit Rule(const int64_t* plan) {
    auto next = [&] { return *plan++; };
    wide = next(), tensors = next(), columns = next(), numbers = next();
    buffers.resize(next());
    for (auto& axes : buffers) axes = next();
    passes.resize(next());
    bool backwards = true;
    for (auto& pass : passes) {
      pass.run = reinterpret_cast<Run>(next());
      pass.axes = next();
      pass.operands.resize(next());
      for (auto& o : pass.operands) {
        o = {plan[0], plan[1], plan[2], plan[3], plan[4]}, plan += 5;
        pass.block = std::max(pass.block, o.size);
      }
      pass.columns.resize(next());
      for (auto& column : pass.columns) column = next();
      pass.reductions.resize(next());
      for (auto& r : pass.reductions) r = {plan[0], plan[1], plan[2], plan[3], plan[4]}, plan += 5;
      tile = std::max(tile, pass.tile());
      if (pass.axes == kElements) pass.backwards = backwards = !backwards;
    }
  }
};

int64_t parts_of(const Pass& pass, const Shape& shape) {
  int64_t parts = std::max<int64_t>(1, std::min<int64_t>(shape.size(pass.axes) / kPart, kParts));
  for (const auto& r : pass.reductions)
    if (r.axes & kColumns) parts = std::min(parts, std::max<int64_t>(1, shape.matrices * shape.rows / kRowsPerPart));
  return parts;
}

// The first element of part k of `parts`: where blocks are, one of a row begins there.
int64_t begin_of(const Pass& pass, const Shape& shape, int64_t k, int64_t parts) {
  const int64_t at = shape.size(pass.axes) * k / parts;
  return pass.block ? block_edge(at, shape.row, pass.block) : at;
}

// The sums of one part: of the elements `begin` to `end` of a reduction's target. near: where columns are summed, the sums of
// `rows` rows of one matrix, which begins at `at`, in the dtype of the values: adding to doubles takes three times as long.
struct Window {
  int64_t begin, end;
  double* sums;
  void* near;
  int64_t rows, matrix, at;
  int64_t columns;  // that are summed, of a row

  int64_t bytes() const { return aligned((end - begin) * 8); }
  int64_t all_bytes(int64_t wide) const { return bytes() + aligned(columns * wide); }
};

// Whether nothing is added up: a parameter of one column has its elements for the sums of its rows.
bool is_copy(const Pass& pass, const Reduction& r, const Shape& shape) {
  return r.kind == kBuffer && shape.size(r.axes) == shape.size(pass.axes);
}

Window window_of(const Pass& pass, const Reduction& r, const Shape& shape, int64_t begin, int64_t end) {
  if (is_copy(pass, r, shape)) return {0, 0};
  const Cursor first(shape, pass.axes, begin), last(shape, pass.axes, end - 1);
  Window window{first.place(r.axes), last.place(r.axes) + 1};
  if (r.axes & kColumns) {
    window.begin = first.matrix * shape.columns, window.end = (last.matrix + 1) * shape.columns;
    window.columns = shape.rows > kNear ? shape.columns : 0;
  }
  return window;
}

// One parameter's buffers, numbers and windows, laid out in one block of memory.
struct Job {
  const Rule& rule;
  Shape shape;
  Place origin;
  std::vector<char*> buffers;
  std::vector<double> numbers;
  std::vector<std::vector<Window>> windows;  // for each pass, part by part, reduction by reduction

  Job(const Rule& rule, const Shape& shape, const Place& origin)
      : rule(rule), shape(shape), origin(origin), buffers(rule.buffers.size()), numbers(rule.numbers), windows(rule.passes.size()) {
    if (shape.size(kElements) == 0) return;
    for (size_t p = 0; p < rule.passes.size(); ++p) {
      const Pass& pass = rule.passes[p];
      const int64_t parts = pass.reductions.empty() ? 0 : parts_of(pass, shape);
      for (int64_t k = 0; k < parts; ++k)
        for (const auto& r : pass.reductions)
          windows[p].push_back(window_of(pass, r, shape, begin_of(pass, shape, k, parts), begin_of(pass, shape, k + 1, parts)));
    }
  }
  Window* windows_of(size_t p, int64_t part) { return windows[p].data() + part * rule.passes[p].reductions.size(); }
  int64_t bytes() const {
    int64_t total = 0, most = 0;
    for (int64_t axes : rule.buffers) total += aligned(shape.size(axes) * rule.wide);
    for (const auto& windows_of_pass : windows) {
      int64_t sums = 0;
      for (const auto& w : windows_of_pass) sums += w.all_bytes(rule.wide);
      most = std::max(most, sums);  // one pass's at a time
    }
    return total + most;
  }
  void settle(char* memory) {
    for (size_t b = 0; b < buffers.size(); ++b) buffers[b] = memory, memory += aligned(shape.size(rule.buffers[b]) * rule.wide);
    for (auto& windows_of_pass : windows) {
      char* at = memory;
      for (auto& w : windows_of_pass) {
        w.sums = reinterpret_cast<double*>(at), w.near = at + w.bytes();
        at += w.all_bytes(rule.wide);
      }
    }
  }
};

}  // namespace
