// One pass after the other, of each parameter or of all of them together.
namespace {

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
