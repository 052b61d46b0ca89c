// Gather: every tensor of a plan is read anew and checked against its parameter. Nothing is written.
namespace {

// For a plan in which operands differ in shape, or that asks for an order in memory.
__attribute__((noinline)) bool fit_each_other(const Plan& plan, const Found& found) {
  if (!lies_in(found.param(), plan.order, plan.outer)) return false;
  for (int k = 1; k < plan.operands; ++k) {
    if (plan.axes[k] >= kBlocks) {
      const TensorImpl *const param = found.param(), *const own = found.operand(k);
      const int64_t per_row = values_of(plan.axes[k], plan.sizes[k], row_of(param));
      if (!own->is_contiguous() || own->numel() != rows_of(param) * per_row) return false;
      continue;
    }
    const bool fits = plan.axes[k] == kElements ? same_layout(found.param(), found.operand(k))
                                                : is_reduced(found.param(), found.operand(k), plan.axes[k], plan.order, plan.outer);
    if (!fits) return false;
  }
  return true;
}

// The state tensors in the plan's order. A dict filled in that order is walked (12 ns for three tensors); one in
// another order is looked up (40 ns), which is for the thread that holds the GIL alone: a look-up may set an error.
bool look_up_states(Plan& plan, int64_t index, bool alone) {
  Entry& entry = plan.entries[index];
  PyObject* const state = entry.state.get();
  Py_ssize_t position = 0;
  PyObject *key, *value;
  for (int i = 0; i < plan.tensors() - 2; ++i) {
    PyObject* wanted = plan.keys[i].get();
    if (!PyDict_Next(state, &position, &key, &value) || key != wanted) {
      value = alone ? PyDict_GetItemWithError(state, wanted) : nullptr;
      if (!value) {
        require(!alone || !PyErr_Occurred());
        return false;
      }
    }
    plan.object(index, i) = value;
  }
  entry.version = version_of(state);
  return true;
}

bool find_states(Plan& plan, int64_t index, bool alone, const Found& found) {
  const Entry& entry = plan.entries[index];
  if (!has_version(entry.state.get(), entry.version) && !look_up_states(plan, index, alone)) {
    plan.entries[index].version = 0;
    return false;
  }
  const int scalars = plan.scalar_states;
  for (int i = 0; i < plan.tensors() - 2; ++i) {
    TensorImpl* impl = tensor_impl(plan.object(index, i));
    if (!impl) return false;
    (i < scalars ? found.scalar(i) : found.state(i - scalars)) = impl;
  }
  return true;
}

void fetch(const void* address, int lines) {
  const auto first = reinterpret_cast<uintptr_t>(address);
  for (int i = 0; i < lines; ++i) __builtin_prefetch(reinterpret_cast<const void*>(first + 64 * i));
}

// Asks the memory early for what `gather_entry` will read. Between two steps a whole model ran through the caches, and a
// gather is one long chain of misses. The addresses are those of the last gather; if one is gone by now, fetching it does
// no harm.
void fetch_entry(Plan& plan, int64_t index) {
  const Entry& entry = plan.entries[index];
  fetch(entry.param.get(), 1);
  fetch(entry.state.get(), 1);
  for (int t = 0; t < plan.tensors(); ++t) {
    fetch(plan.found(index).tensors[t], 4);
    fetch(plan.storage(index, t), 1);
    if (t >= 2) fetch(plan.object(index, t - 2), 1);
  }
}

// And what only those tell the addresses of: where a parameter has its gradient, and the entries of a dict that is walked.
void fetch_behind(const Entry& entry) {
  const TensorImpl* const param = entry.impl();
  fetch(param->autograd_meta(), 2);
  if (!entry.version) fetch(reinterpret_cast<PyDictObject*>(entry.state.get())->ma_keys, 3);
}

// Whether the 0-dim states can be used, and are what their row of the table says.
Status check_scalars(const Plan& plan, const Found& found, const Rows* table, int32_t row) {
  for (int k = 0; k < plan.scalar_states; ++k) {
    const TensorImpl* scalar = found.scalar(k);
    if (plan.device_scalars) {
      if (!is_plain(scalar, plan.dispatch_keys) || scalar->device() != plan.device || scalar->numel() != 1 ||
          !has_memory(scalar) || scalar->dtype() != plan.types[plan.operands + k])
        return kRebuild;
      continue;
    }
    if (!is_scalar(scalar)) return kRebuild;
    // A value is compared as bits would be, so that a state that is NaN does not regroup the rows for ever.
    const double is = read_scalar(scalar), expected = table ? table->expected(row, k) : is;
    if (is != expected && !(is != is && expected != expected)) return kRegroup;
  }
  return kReady;
}

// What a gather reads besides the plan. staged: gradients that stand in for those of the parameters, or null.
struct Given {
  const Rows* table;
  PyObject* staged;
};

// One parameter: every check that can fail, and no write. alone: whether no other thread gathers.
Status gather_entry(Plan& plan, int64_t index, const Given& given, bool alone) {
  const Entry& entry = plan.entries[index];
  TensorImpl* const param = entry.impl();
  TensorImpl* const grad = given.staged ? tensor_impl(PyList_GET_ITEM(given.staged, index)) : gradient_of(param);
  plan.lengths[index] = -1;
  if (!grad) return kReady;
  const Found found = plan.found(index);
  found.param() = param;
  found.grad() = grad;
  if (!find_states(plan, index, alone, found)) return kRebuild;
  const bool alike = plan.alike;
  for (int k = 0; k < plan.operands; ++k) {
    const TensorImpl* operand = found.operand(k);
    if (!is_plain(operand, plan.dispatch_keys) || operand->device() != plan.device || operand->dtype() != plan.types[k] ||
        (k && alike && !same_layout(param, operand)) || !has_memory(operand))
      return kRebuild;
  }
  if (!param->is_non_overlapping_and_dense()) return kRebuild;
  if (!alike && !fit_each_other(plan, found)) return kRebuild;
  if (given.table && entry.row < 0) return kRegroup;
  if (const Status status = check_scalars(plan, found, given.table, entry.row); status != kReady) return status;
  for (int k = 0; k < plan.operands; ++k) plan.data(index, k) = data_of(found.operand(k), k != kGrad);
  for (int t = 0; t < plan.tensors(); ++t) plan.storage(index, t) = found.tensors[t]->unsafe_storage().unsafeGetStorageImpl();
  plan.lengths[index] = param->numel() * plan.scale;
  return kReady;
}

Status gather_range(Plan& plan, const Given& given, bool alone, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    if (i + 2 * kAhead < end) fetch_entry(plan, i + 2 * kAhead);
    if (i + kAhead < end) fetch_behind(plan.entries[i + kAhead]);
    const Status status = gather_entry(plan, i, given, alone);
    if (status != kReady) return status;
  }
  return kReady;
}

// Several threads read while this one holds the GIL, so nothing they look at can change. What fails in one of them is done
// again alone, where an exception has somewhere to go.
Status gather_together(Plan& plan, const Given& given, int threads) {
  std::vector<int> found(threads);
  for_each_share(threads, [&](int64_t t) {
    try {
      found[t] = gather_range(plan, given, false, plan.count() * t / threads, plan.count() * (t + 1) / threads);
    } catch (...) {
      found[t] = kRebuild;
    }
  });
  return static_cast<Status>(*std::max_element(found.begin(), found.end()));
}

Status gather_all(Plan& plan, const Given& given, int threads) {
  const int asked = threads;
  plan.release();
  threads = static_cast<int>(std::min<int64_t>(threads, plan.count() / kEntriesPerThread));
  Status status = threads > 1 ? gather_together(plan, given, threads) : kRebuild;
  if (status == kRebuild) status = gather_range(plan, given, true, 0, plan.count());
  if (status != kReady) return status;
  plan.starts.assign(1, 0);
  for (const int64_t length : plan.lengths) plan.starts.push_back(plan.starts.back() + std::max<int64_t>(0, length));
  if (plan.lets_gil_go()) plan.held.reserve(plan.count() * plan.tensors());
  if (plan.block && plan.order == kAnyOrder) {
    const auto apart = [&](int64_t i) { return plan.has_gradient(i) && !plan.found(i).param()->is_contiguous(); };
    int64_t i = 0;
    while (i < plan.count() && !apart(i)) ++i;
    if (i < plan.count()) plan.make_room_for_tiles(std::max(1, asked));
  }
  plan.stage = given.table ? kInRows : kSeen;
  return kReady;
}

}  // namespace
