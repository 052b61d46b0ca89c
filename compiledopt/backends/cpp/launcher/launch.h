// Launch: the kernel runs over what gather found, by threads; sums over whole models; the GIL is let go where it is long.
namespace {

// The memory of a tensor, while kernels run on those before it: too short for the processor to see a stream.
void fetch_data(const Plan& plan, size_t i) {
  const int64_t length = std::min(plan.starts[i + 1] - plan.starts[i], kSmall);
  for (int k = 0; k < plan.operands; ++k) {
    const char* data = plan.data(i, k);
    for (int64_t offset = 0; offset < length * plan.itemsize[k]; offset += 64) __builtin_prefetch(data + offset);
  }
}

// What a kernel is given of a parameter whose values are kept in blocks, and how it is told of a piece.
template <class F> void run_piece(const Plan& plan, int64_t i, int64_t at, int64_t count, int64_t row, void** pointers, F&& kernel) {
  const Place& own = plan.places[i];
  Piece piece{static_cast<int32_t>(own.offset + at), static_cast<int32_t>(own.number), row};
  kernel(pointers, &piece, count);
}

// Where such an operand has element `at`, which begins a block.
void* block_at(const Plan& plan, int64_t i, int operand, int64_t at, int64_t row) {
  const auto before = [&](int64_t length) { return values_of(plan.axes[operand], plan.sizes[operand], length); };
  return plan.data(i, operand) + (at / row * before(row) + before(at % row)) * plan.itemsize[operand];
}

// The elements [begin, end) of a parameter that does not lie row after row, which begin and end at blocks: tile by tile in that
// order. operands: those that the kernel is given; room: of this thread.
template <class F>
void run_tiles(const Plan& plan, int64_t i, int64_t begin, int64_t end, const int* operands, int count, bool writes, int64_t* room, F&& kernel) {
  const TensorImpl* const param = plan.found(i).param();
  const Strides strides{param->sizes().data(), param->strides().data(), param->dim()};
  const int64_t row = row_of(param), rows = plan.tile_rows(param), columns = plan.tile_columns(rows, row), most = rows * columns;
  const auto own = [&](int k) { return reinterpret_cast<char*>(room + most * (1 + k)); };
  const auto is_own = [&](int k) { return plan.axes[operands[k]] == kElements; };
  int64_t first = -1, known = 0;  // the columns whose offsets are known: all rows have the same
  for_each_tile(begin, end, row, rows, columns, [&](const Tile& tile) {
    if (tile.first_column != first || tile.columns > known)
      offsets_in_row(strides, first = tile.first_column, known = tile.columns, room);
    const auto move = [&](int k, auto back) {
      if (is_own(k))
        move_tile<back.value>(tile, plan.data(i, operands[k]), own(k), plan.itemsize[operands[k]], strides.strides[0], room);
    };
    for (int k = 0; k < count; ++k) move(k, std::false_type());
    for (int64_t r = 0; r < tile.rows; ++r) {
      void* pointers[kMostTensors + 2];
      const int64_t at = (tile.first_row + r) * row + tile.first_column;
      for (int k = 0; k < count; ++k)
        pointers[k] = is_own(k) ? own(k) + r * tile.columns * plan.itemsize[operands[k]] : block_at(plan, i, operands[k], at, row);
      run_piece(plan, i, at, tile.columns, tile.columns, pointers, kernel);
    }
    for (int k = 0; k < count && writes; ++k)
      if (operands[k] != kGrad) move(k, std::true_type());
  });
}

// The elements [begin, end) of a parameter whose values are kept in blocks: each end is moved on to where whole blocks, or rows
// that are no whole number of blocks, begin; so the neighbouring share begins there.
void run_blocks(const Plan& plan, const Rows& table, size_t i, int64_t begin, int64_t end, int64_t* room) {
  const TensorImpl* const param = plan.found(i).param();
  const int64_t length = plan.starts[i + 1] - plan.starts[i], row = row_of(param), block = plan.block;
  const bool in_order = param->is_contiguous(), flat = in_order && (row % block == 0 || row == length);
  const int64_t unit = flat ? std::max(kAlignment, block) : row * (in_order || plan.tile_rows(param) == 1 ? 1 : kShareRows);
  const auto edge = [&](int64_t at) { return std::min((at + unit - 1) / unit * unit, length); };
  begin = edge(begin), end = edge(end);
  if (begin >= end) return;
  const double* const columns = table.columns(plan.entries[i].row);
  const auto kernel = [&](void** pointers, Piece* piece, int64_t count) {
    pointers[plan.operands] = piece;
    plan.kernel(pointers, columns, count);
  };
  if (!in_order) return run_tiles(plan, i, begin, end, kAllOperands.data(), plan.operands, true, room, kernel);
  void* pointers[kMostTensors + 1];
  for (int k = 0; k < plan.operands; ++k) pointers[k] = block_at(plan, i, k, begin, row);
  run_piece(plan, i, begin, end - begin, flat ? end - begin : row, pointers, kernel);
}

// The new 0-dim states, and the version counters that tell autograd of a write.
void commit_entry(const Plan& plan, const Rows& table, int64_t i) {
  if (!plan.has_gradient(i)) return;
  const Found found = plan.found(i);
  for (int k = 0; k < plan.scalar_states && !plan.device_scalars; ++k)
    write_scalar(found.scalar(k), table.fresh(plan.entries[i].row, k));
  for (int t = 0; t < plan.tensors(); ++t)
    if (t != kGrad) found.tensors[t]->bump_version();
}

void commit_all(const Plan& plan, const Rows& table) {
  for (int64_t i = 0; i < plan.count(); ++i) commit_entry(plan, table, i);
}

// The share [begin, end) of the concatenation of all tensors, piece by piece. A parameter is committed with its last element,
// while its tensors are in the caches still, and those without elements with what stands before them. share: its number,
// 0 where nothing stands before it.
void run_share(const Plan& plan, const Rows& table, int64_t share, int64_t begin, int64_t end) {
  const bool first = share == 0;
  const auto& starts = plan.starts;
  const size_t count = starts.size() - 1;
  size_t i = first ? 0 : std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
  void* pieces[kMostTensors + 1];
  for (; i < count && starts[i] <= end; ++i) {
    const int64_t stop = std::min(end, starts[i + 1]);
    if (plan.block && stop > begin) {
      run_blocks(plan, table, i, begin - starts[i], stop - starts[i], plan.room_of(share));
      begin = stop;
    } else if (stop > begin) {
      if (i + kDataAhead < count && stop - begin < kSmall) fetch_data(plan, i + kDataAhead);
      const int64_t offset = begin - starts[i];
      for (int k = 0; k < plan.operands; ++k) pieces[k] = plan.data(i, k) + offset * plan.itemsize[k];
      const Place& place = plan.places[i];
      int32_t at[] = {static_cast<int32_t>(place.offset + offset), static_cast<int32_t>(place.number)};
      pieces[plan.operands] = at;  // for kernels that read random numbers
      plan.kernel(pieces, table.columns(plan.entries[i].row), stop - begin);
      begin = stop;
    }
    if (stop == starts[i + 1]) commit_entry(plan, table, i);
  }
}

// A parameter as the passes see it: as it lies in memory.
Shape shape_of(const Plan& plan, int64_t i) {
  const TensorImpl* const param = plan.found(i).param();
  const int64_t length = plan.lengths[i];
  const auto sizes = param->sizes();
  const bool matrix = plan.order != kAnyOrder && sizes.size() >= 2;
  int64_t rows = matrix ? sizes[sizes.size() - 2] : 1, columns = matrix ? sizes[sizes.size() - 1] : length;
  if (plan.order == kColumnAfterColumn) std::swap(rows, columns);
  if (plan.outer > 0) {
    rows = 1;
    for (int d = 0; d < plan.outer; ++d) rows *= sizes[d];
    columns = rows ? length / rows : 0;
  }
  return {length ? length / (rows * columns) : 0, rows, columns, row_of(param)};
}

// Between a gather and a launch: what the passes over these parameters keep, which is what asks for memory.
void lay_out(Plan& plan, int most_threads) {
  Passes& passes = plan.passes;
  const Stage stage = std::exchange(plan.stage, kNothing);  // until all is there
  passes.shapes.clear(), passes.places.clear(), passes.pointers.clear(), passes.rows.clear();
  for (int64_t i = 0; i < plan.count(); ++i) {
    if (!plan.has_gradient(i)) continue;
    passes.shapes.push_back(shape_of(plan, i));
    passes.places.push_back(plan.places[i]);
    for (int k = 0; k < plan.operands; ++k) passes.pointers.push_back(plan.data(i, k));
    passes.rows.push_back(plan.entries[i].row);
  }
  const int64_t threads = std::clamp<int64_t>(plan.elements() / kWorkPerThread, 1, std::max(most_threads, 1));
  if (passes.work && passes.threads == threads && passes.shapes == passes.shapes_there && passes.places == passes.places_there) {
    plan.stage = stage;
    return;
  }
  passes.work.reset();
  void* made = nullptr;
  const auto count = static_cast<int64_t>(passes.shapes.size());
  const Outcome outcome = passes.make(passes.rule.data(), count, passes.shapes.data(), passes.places.data(), threads, &made);
  if (outcome == kNoMemory) fail(PyExc_MemoryError, "no memory for what the passes of a rule keep");
  if (outcome != kDone) fail(PyExc_RuntimeError, "the passes of a rule could not be laid out");
  std::unique_ptr<void, void (*)(void*)> work(made, passes.free);
  passes.memory.resize(passes.room(made) + kLine);
  passes.shapes_there = passes.shapes, passes.places_there = passes.places;
  passes.threads = threads, passes.work = std::move(work), plan.stage = stage;
}

void run_passes(const Plan& plan, const Rows& table) {
  const Passes& passes = plan.passes;
  const auto begin = reinterpret_cast<uintptr_t>(passes.memory.data());
  char* const memory = reinterpret_cast<char*>((begin + kLine - 1) / kLine * kLine);
  passes.run(passes.work.get(), passes.pointers.data(), table.numbers, table.width, passes.rows.data(), memory);
  commit_all(plan, table);
}

void run_all(const Plan& plan, const Rows& table, int threads) {
  if (plan.passes) return run_passes(plan, table);
  const int64_t total = plan.elements();
  threads = static_cast<int>(std::min<int64_t>(threads, std::max(total / kWorkPerThread, plan.count() / kEntriesPerThread)));
  if (!plan.room.empty()) threads = std::min<int>(threads, plan.room.size() / plan.room_each);
  if (threads <= 1) return run_share(plan, table, 0, 0, total);
  const auto edge = [&](int64_t k) { return k == threads ? total : total / threads * k / kAlignment * kAlignment; };
  for_each_share(threads, [&](int64_t t) { run_share(plan, table, t, edge(t), edge(t + 1)); });
}

// What a kernel sums over all parameters: which operands it reads, and how many sums it makes of a piece.
struct Sums {
  Kernel kernel = nullptr;
  int reads = 0, count = 1;
  std::array<int, kMostTensors> operands{};
  bool in_blocks = false;         // whether some of those have a value for each block, or are packed
  const double* columns = nullptr;  // rows of `width` numbers that the kernel reads, or null where it reads none
  int64_t width = 0, rows = 1;
};

// The sums of a kernel's results over a block of a parameter; where values share scales, by whole rows and parts of rows, which
// begin and end where blocks do.
void sum_block(const Plan& plan, const Sums& wanted, int64_t i, int64_t begin, double* sums, int64_t* room) {
  const int64_t length = plan.lengths[i];
  int64_t end = std::min(begin + kBlock, length), row = length;
  if (wanted.in_blocks) {
    row = row_of(plan.found(i).param());
    begin = block_edge(begin, row, plan.block), end = block_edge(end, row, plan.block);
  }
  const double* columns = wanted.columns ? wanted.columns + plan.entries[i].row * wanted.width : nullptr;
  const auto kernel = [&](void** pointers, Piece* piece, int64_t count) {
    pointers[wanted.reads] = sums;  // which it adds to
    pointers[wanted.reads + 1] = piece;
    wanted.kernel(pointers, columns, count);
  };
  if (wanted.in_blocks && !plan.found(i).param()->is_contiguous())
    return run_tiles(plan, i, begin, end, wanted.operands.data(), wanted.reads, false, room, kernel);
  for (int64_t n; begin < end; begin += n) {
    const int64_t into = begin % row;
    n = into || end - begin < row ? std::min(row - into, end - begin) : (end - begin) / row * row;
    void* pointers[kMostTensors + 2];
    for (int k = 0; k < wanted.reads; ++k) pointers[k] = block_at(plan, i, wanted.operands[k], begin, row);
    run_piece(plan, i, begin, n, row, pointers, kernel);
  }
}

// For each row of the columns, the sums of a kernel's results over blocks of all parameters of that row. The blocks and the
// order of their sum are the same for every number of threads, so that they are the same bit for bit.
std::vector<double> sums_over_parameters(const Plan& plan, const Sums& wanted, int threads) {
  std::vector<std::pair<int64_t, int64_t>> blocks;
  for (int64_t i = 0; i < plan.count(); ++i)
    for (int64_t offset = 0; offset < plan.lengths[i]; offset += kBlock) blocks.emplace_back(i, offset);
  std::vector<double> sums(blocks.size() * wanted.count), totals(wanted.rows * wanted.count);
  const int64_t total = plan.elements(), count = blocks.size();
  threads = static_cast<int>(std::clamp<int64_t>(std::min<int64_t>(total / kWorkPerThread, count), 1, std::max(threads, 1)));
  if (!plan.room.empty()) threads = std::min<int>(threads, plan.room.size() / plan.room_each);
  const auto run = [&](int64_t share, int64_t begin, int64_t end) {
    for (int64_t b = end - 1; b >= begin; --b)  // backwards: the update begins where the caches are still full of it
      sum_block(plan, wanted, blocks[b].first, blocks[b].second, &sums[b * wanted.count], plan.room_of(share));
  };
  if (threads == 1) {
    run(0, 0, count);
  } else {
    for_each_share(threads, [&](int64_t t) { run(t, count * t / threads, count * (t + 1) / threads); });
  }
  for (int64_t b = 0; b < count; ++b) {
    double* const total = &totals[wanted.columns ? plan.entries[blocks[b].first].row * wanted.count : 0];
    for (int k = 0; k < wanted.count; ++k) total[k] += sums[b * wanted.count + k];
  }
  return totals;
}

// Lets the GIL go, with every tensor held, for as long as it lives.
class WithoutGil {
 public:
  explicit WithoutGil(Plan& plan) : plan_(plan) {
    plan.hold_all();
    plan.busy = true;
    state_ = PyEval_SaveThread();
  }
  WithoutGil(const WithoutGil&) = delete;
  ~WithoutGil() {
    PyEval_RestoreThread(state_);
    plan_.busy = false;
  }

 private:
  Plan& plan_;
  PyThreadState* state_;
};

// Lets the GIL go where the work is long for what that costs: references to every tensor.
template <class F> void run_long(Plan& plan, F&& work) {
  if (!plan.lets_gil_go()) return work();
  const WithoutGil released(plan);
  work();
}

}  // namespace
