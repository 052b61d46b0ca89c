// Runs the passes of a rule that reduces (passes.py) over many parameters, in tiles that stay in the first cache.
//
// What is summed does not depend on the number of threads: an array is cut into parts by its size alone, each part has a sum
// of its own, in double, and the sums are added in the order of the parts.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

// shared.h and runtime.h stand before this file: kernels.py joins them.
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

// ---- tiles ----

// A smaller operand's value for each of n elements, run by run. A memcpy or fill_n of three values takes longer than the three.
template <class T> void spread_runs(const T* data, const Operand& o, int64_t axes, Cursor cursor, int64_t n, T* tile) {
  const bool varies = o.axes & last_axis(axes), row_by_row = o.axes == (axes & ~last_axis(axes));
  const T* from = data + cursor.place(o.axes);
  for (int64_t i = 0, m; i < n; i += m) {
    m = std::min(cursor.left(), n - i);
    if (varies)
      for (int64_t j = 0; j < m; ++j) tile[i + j] = from[j];
    else
      for (int64_t j = 0; j < m; ++j) tile[i + j] = *from;
    cursor.move(m);
    from = row_by_row ? from + 1 : data + cursor.place(o.axes);
  }
}

// The n values that a pass reads of a smaller operand, from the cursor on: as they are, or copied into the tile.
char* spread(char* data, const Operand& o, const Pass& pass, Cursor cursor, int64_t n, char* tile) {
  if (o.axes & last_axis(pass.axes) && n <= cursor.left()) return data + cursor.place(o.axes) * o.bytes;
  const auto run = [&](auto type) {
    using T = decltype(type);
    spread_runs(reinterpret_cast<const T*>(data), o, pass.axes, cursor, n, reinterpret_cast<T*>(tile));
  };
  if (o.bytes == 2) run(uint16_t());
  else if (o.bytes == 4) run(uint32_t());
  else run(uint64_t());
  return tile;
}

template <class A> A larger(A a, A b) { return !(a <= b) & !(b != b) ? a : b; }
template <class A> A smaller(A a, A b) { return !(a >= b) & !(b != b) ? a : b; }

// Many at once so that the compiler vectorizes them; few to each, so that float32 does not round the small away.
template <int64_t lanes, class T, class F> double folded_by(const T* values, int64_t n, T start, F join) {
  T sums[lanes];
  std::fill_n(sums, lanes, start);
  const int64_t whole = n / lanes * lanes;
  for (int64_t i = 0; i < whole; i += lanes)
    for (int64_t j = 0; j < lanes; ++j) sums[j] = join(sums[j], values[i + j]);
  for (int64_t i = whole; i < n; ++i) sums[i - whole] = join(sums[i - whole], values[i]);
  for (int64_t width = lanes / 2; width >= 4; width /= 2)
    for (int64_t j = 0; j < width; ++j) sums[j] = join(sums[j], sums[j + width]);
  return join(join(double(sums[0]), double(sums[1])), join(double(sums[2]), double(sums[3])));
}

template <class T, class F> double folded(const T* values, int64_t n, T start, F join) {
  if (n >= 64) return folded_by<64>(values, n, start, join);
  if (n >= 16) return folded_by<16>(values, n, start, join);
  T total = start;
  for (int64_t i = 0; i < n; ++i) total = join(total, values[i]);
  return total;
}

template <class T, class F> void add_to(double* sums, const T* values, int64_t n, F join) {
  for (int64_t j = 0; j < n; ++j) sums[j] = join(sums[j], double(values[j]));
}

template <class T, class F> void flush(Window& window, int64_t columns, T start, F join) {
  T* const near = static_cast<T*>(window.near);
  if (window.rows > 0) add_to(window.sums + window.at, near, columns, join);
  std::fill_n(near, columns, start);
  window.rows = 0;
}

template <class T, class F>
void reduce(const T* values, const Reduction& r, Cursor cursor, int64_t n, Window& window, T start, F join) {
  const Shape& shape = *cursor.shape;
  double* const sums = window.sums - window.begin;
  const bool varies = r.axes & last_axis(cursor.axes);
  for (int64_t i = 0, m; i < n; i += m, cursor.move(m)) {
    m = r.axes ? std::min(cursor.left(), n - i) : n;
    if (!varies) {
      double& sum = sums[cursor.place(r.axes)];
      sum = join(sum, folded(values + i, m, start, join));
      continue;
    }
    if (shape.rows <= kNear) {  // so few that their doubles cost less than a detour
      add_to(sums + cursor.place(r.axes), values + i, m, join);
      continue;
    }
    if (window.rows == kNear || cursor.matrix != window.matrix) flush(window, shape.columns, start, join);
    window.matrix = cursor.matrix, window.at = cursor.matrix * shape.columns - window.begin;
    T* const near = static_cast<T*>(window.near) + cursor.column;
    for (int64_t j = 0; j < m; ++j) near[j] = join(near[j], values[i + j]);
    window.rows += cursor.column + m == shape.columns;
  }
}

double start_of(int64_t op) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  return op == kAmax ? -infinity : op == kAmin ? infinity : 0.0;
}

// Calls f(start, join) with the operation of a reduction of values of type T.
template <class T, class F> void with_op(int64_t op, F f) {
  if (op == kAmax) f(T(start_of(op)), [](auto a, auto b) { return larger(a, b); });
  else if (op == kAmin) f(T(start_of(op)), [](auto a, auto b) { return smaller(a, b); });
  else f(T(0), [](auto a, auto b) { return a + b; });
}

// ---- passes ----

// How many elements a tile has that begins at the cursor, element `at`, of those before `end`. Of rows that are no whole number of
// blocks it has several whole ones, or a part of one.
int64_t tile_length(const Pass& pass, const Shape& shape, const Cursor& cursor, int64_t at, int64_t end) {
  const int64_t most = pass.tile(), row = shape.row, into = pass.block ? at % row : 0;
  if (!pass.block) return std::min({most, end - at, shape.run(pass.axes) >= kLong ? cursor.left() : most});
  if (into || row > most || row > end - at) return std::min({most, row - into, end - at});
  return std::min(row >= kLong ? 1 : most / row, (end - at) / row) * row;
}

// Where element `at` of a parameter has its value.
char* value_at(char* data, const Operand& o, const Shape& shape, int64_t at) {
  if (!o.in_blocks()) return data + at * o.bytes;
  const auto before = [&](int64_t length) { return values_of(o.axes, o.size, length); };
  return data + (at / shape.row * before(shape.row) + before(at % shape.row)) * o.bytes;
}

struct Worker {
  Job& job;
  void* const* tensors;
  char* tiles;  // this thread's, one for each operand

  char* tile_of(size_t operand) const { return tiles + operand * job.rule.tile * 8; }

  void sweep(const Pass& pass, int64_t begin, int64_t end, Window* windows) const {
    const Shape& shape = job.shape;
    void* pointers[kMostOperands + 1];
    double columns[kMostOperands];
    for (size_t i = 0; i < pass.columns.size(); ++i) columns[i] = job.numbers[pass.columns[i]];
    Cursor cursor(shape, pass.axes, begin);
    for (int64_t at = begin, n; at < end; at += n) {
      n = tile_length(pass, shape, cursor, at, end);
      for (size_t i = 0; i < pass.operands.size(); ++i) {
        const Operand& o = pass.operands[i];
        char* const tile = tile_of(i);
        if (o.kind == kSlot) pointers[i] = &job.numbers[o.index];
        else if (o.kind == kTile) pointers[i] = tile;
        else {
          char* data = o.kind == kTensor ? static_cast<char*>(tensors[o.index]) : job.buffers[o.index];
          const bool whole = o.in_blocks() || shape.size(o.axes) == shape.size(pass.axes);
          pointers[i] = whole ? value_at(data, o, shape, at) : spread(data, o, pass, cursor, n, tile);
        }
      }
      Piece piece{static_cast<int32_t>(job.origin.offset + at), static_cast<int32_t>(job.origin.number), std::min(n, shape.row)};
      pointers[pass.operands.size()] = &piece;  // for kernels that read random numbers, or have blocks
      pass.run(pointers, columns, n);
      for (size_t i = 0; i < pass.reductions.size(); ++i) {
        const Reduction& r = pass.reductions[i];
        with_values(pass, r, [&](auto start, auto join) {
          using T = decltype(start);
          if (is_copy(pass, r, shape)) std::copy_n(static_cast<const T*>(pointers[r.source]), n, reinterpret_cast<T*>(job.buffers[r.index]) + at);
          else reduce(static_cast<const T*>(pointers[r.source]), r, cursor, n, windows[i], start, join);
        });
      }
      if (at + n < end) cursor = Cursor(shape, pass.axes, at + n);
    }
  }
  // Calls f(start, join) with the operation of a reduction of what a pass computes.
  template <class F> void with_values(const Pass& pass, const Reduction& r, F f) const {
    if (pass.axes == 0 || job.rule.wide == 8) with_op<double>(r.op, f);
    else with_op<float>(r.op, f);
  }

  void part(size_t p, int64_t k, int64_t parts) const {
    const Pass& pass = job.rule.passes[p];
    const int64_t begin = begin_of(pass, job.shape, k, parts), end = begin_of(pass, job.shape, k + 1, parts);
    Window* const windows = job.windows_of(p, k);
    for (size_t i = 0; i < pass.reductions.size(); ++i) {
      std::fill_n(windows[i].sums, windows[i].end - windows[i].begin, start_of(pass.reductions[i].op));
      windows[i].rows = 0, windows[i].matrix = -1;
    }
    sweep(pass, begin, end, windows);
    for (size_t i = 0; i < pass.reductions.size(); ++i)
      if (windows[i].matrix >= 0)
        with_values(pass, pass.reductions[i], [&](auto start, auto join) {
          windows[i].rows = 1;  // however little of it there is
          flush(windows[i], job.shape.columns, start, join);
        });
  }

  // Adds the parts of share `share` of `shares` of each reduction's target.
  void combine(size_t p, int64_t parts, int64_t share, int64_t shares) const {
    const Pass& pass = job.rule.passes[p];
    for (size_t i = 0; i < pass.reductions.size(); ++i) {
      const Reduction& r = pass.reductions[i];
      if (is_copy(pass, r, job.shape)) continue;
      const int64_t size = job.shape.size(r.axes), from = size * share / shares, to = size * (share + 1) / shares;
      const double count = r.op == kMean ? double(job.shape.size(pass.axes)) / double(size) : 1.0;
      double sums[512];
      for (int64_t begin = from; begin < to; begin += 512) {
        const int64_t end = std::min<int64_t>(begin + 512, to);
        std::fill_n(sums, end - begin, start_of(r.op));
        for (int64_t k = 0; k < parts; ++k) {
          const Window& w = job.windows_of(p, k)[i];
          const int64_t first = std::max(begin, w.begin), last = std::min(end, w.end);
          with_op<double>(r.op, [&](double, auto join) {
            for (int64_t j = first; j < last; ++j) sums[j - begin] = join(sums[j - begin], w.sums[j - w.begin]);
          });
        }
        for (int64_t j = begin; j < end; ++j) store(r, j, sums[j - begin] / count);
      }
    }
  }
  void store(const Reduction& r, int64_t at, double value) const {
    if (r.kind == kSlot) job.numbers[r.index] = value;
    else if (job.rule.wide == 8) reinterpret_cast<double*>(job.buffers[r.index])[at] = value;
    else reinterpret_cast<float*>(job.buffers[r.index])[at] = float(value);
  }

  // The parts [begin, end) of a pass.
  void parts(size_t p, int64_t begin, int64_t end, int64_t count) const {
    for (int64_t k = begin; k < end; ++k) part(p, job.rule.passes[p].backwards ? begin + end - 1 - k : k, count);
  }
  void alone() const {
    for (size_t p = 0; p < job.rule.passes.size(); ++p) whole(p);
  }
  void whole(size_t p) const {
    const int64_t count = parts_of(job.rule.passes[p], job.shape);
    parts(p, 0, count, count);
    combine(p, count, 0, 1);
  }
  // Every thread of a team calls this. Small passes, and sums of few numbers, are the first thread's. At least one barrier.
  void together(int64_t thread, int64_t threads) const {
    bool by_all = false, by_first = false, waited = false;  // what was written since the last barrier
    const auto wait = [&] {
      GOMP_barrier();
      by_all = by_first = false, waited = true;
    };
    for (size_t p = 0; p < job.rule.passes.size(); ++p) {
      const Pass& pass = job.rule.passes[p];
      const bool small = job.shape.size(pass.axes) < kWorkPerThread;
      if (by_all || (by_first && !small)) wait();
      if (small) {
        if (thread == 0) whole(p);
        by_first = true;
        continue;
      }
      const int64_t count = parts_of(pass, job.shape);
      parts(p, count * thread / threads, count * (thread + 1) / threads, count);
      by_all = pass.reductions.empty();
      if (by_all) continue;
      wait();
      by_all = sums_of(pass) >= kWorkPerThread;
      by_first = !by_all;
      if (by_all) combine(p, count, thread, threads);
      else if (thread == 0) combine(p, count, 0, 1);
    }
    if (!waited) wait();
  }
  int64_t sums_of(const Pass& pass) const {
    int64_t sums = 0;
    for (const auto& r : pass.reductions) sums += job.shape.size(r.axes) * parts_of(pass, job.shape);
    return sums;
  }
};

// The parameters of a step, and who runs which: small ones are a thread's own, large ones are everybody's, one by one.
struct Work {
  Rule rule;
  std::vector<Job> jobs;
  std::vector<int64_t> small, large;
  int64_t threads, tiles, each, shared = 0;  // bytes of a thread's tiles, of all that is its own, of a parameter that is everybody's

  Work(const int64_t* plan, int64_t count, const Shape* shapes, const Place* places, int64_t most_threads) : rule(plan) {
    int64_t total = 0, own = 0;
    size_t operands = 1;
    for (const auto& pass : rule.passes) operands = std::max(operands, pass.operands.size());
    for (int64_t i = 0; i < count; ++i) total += shapes[i].size(kElements);
    threads = std::max<int64_t>(1, std::min<int64_t>(total / kWorkPerThread, most_threads));
    jobs.reserve(count);
    for (int64_t i = 0; i < count; ++i) {
      jobs.emplace_back(rule, shapes[i], places[i]);
      const int64_t size = shapes[i].size(kElements);
      if (size == 0) continue;
      const bool all = threads > 1 && size >= kWorkPerThread;
      (all ? large : small).push_back(i);
      int64_t& most = all ? shared : own;
      most = std::max(most, jobs[i].bytes());
    }
    tiles = operands * rule.tile * 8;
    each = aligned(tiles + own);
  }
  Work(const Work&) = delete;  // the jobs know where the rule is

  int64_t bytes() const { return threads * each + (large.size() > 1 ? 2 : 1) * shared; }

  // Asks for no memory, and cannot fail. pointers: the tensors of each parameter; table: rows of `width` numbers, those known
  // before first; rows: whose is which.
  void run(void* const* pointers, const double* table, int64_t width, const int64_t* rows, char* memory) {
    const auto tensors_of = [&](int64_t i) { return pointers + i * rule.tensors; };
    const auto known_of = [&](int64_t i) { return table + rows[i] * width; };
    const auto own_of = [&](int64_t thread) { return memory + thread * each; };
    for (size_t i = 0; i < jobs.size(); ++i) std::copy_n(known_of(i), rule.columns, jobs[i].numbers.begin());
    // In turns, so that a thread may begin with one parameter while another is at the end of the one before: it cannot get
    // further ahead, since each has a barrier.
    for (size_t n = 0; n < large.size(); ++n) jobs[large[n]].settle(own_of(threads) + n % 2 * shared);
    std::atomic<size_t> next{0};
    in_team(threads, [&](int64_t thread, int64_t team) {
      char* const own = own_of(thread);
      for (size_t s = next++; s < small.size(); s = next++) {
        Job& job = jobs[small[s]];
        job.settle(own + tiles);
        Worker{job, tensors_of(small[s]), own}.alone();
      }
      for (int64_t i : large) Worker{jobs[i], tensors_of(i), own}.together(thread, team);
    });
  }
};

// No exception may cross into Python, which calls these through ctypes.
template <class F> Outcome guarded(F&& body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  } catch (...) {
    return kFailed;
  }
}

}  // namespace

// plan: the rule, as backends/cpp/reducing.py writes it; count: of the parameters; shapes, places: theirs; threads: at
// most; made: where the work goes, for passes_run as often as wanted, one at a time, and passes_free.
extern "C" Outcome passes_make(const int64_t* plan, int64_t count, const Shape* shapes, const Place* places, int64_t threads,
                               Work** made) {
  return guarded([&] {
    *made = std::make_unique<Work>(plan, count, shapes, places, threads).release();
    return kDone;
  });
}

// How many bytes passes_run needs besides, aligned to 64.
extern "C" int64_t passes_room(const Work* work) { return work->bytes(); }

extern "C" void passes_run(Work* work, void* const* pointers, const double* table, int64_t width, const int64_t* rows,
                           char* memory) {
  work->run(pointers, table, width, rows, memory);
}

extern "C" void passes_free(Work* work) { delete work; }

extern "C" void run() {}
