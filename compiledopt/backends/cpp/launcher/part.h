// The steady step of one batch: its numbers, and what goes to where its kernel is launched.
namespace {

// After Python ran, when another thread may have exchanged states: calls f(entry) of those whose tensors are where they were.
template <class F> void for_each_there(Plan& plan, F&& f) {
  for (int64_t i = 0; i < plan.count(); ++i) {
    if (!plan.has_gradient(i)) continue;
    const Found found = plan.found(i);
    std::array<TensorImpl*, kMostTensors> before;
    std::copy(found.tensors, found.tensors + plan.tensors(), before.begin());
    if (find_states(plan, i, true, found) && std::equal(found.tensors, found.tensors + plan.tensors(), before.begin())) f(i);
  }
}

void commit_what_is_there(Plan& plan, const Rows& rows) {
  for_each_there(plan, [&](int64_t i) { commit_entry(plan, rows, i); });
}

// The 0-dim states as they were, where a launch failed after they were committed.
void restore_what_is_there(Plan& plan, const Rows& rows) {
  for_each_there(plan, [&](int64_t i) {
    for (int k = 0; k < plan.scalar_states && !plan.device_scalars; ++k)
      write_scalar(plan.found(i).scalar(k), rows.expected(plan.entries[i].row, k));
  });
}

// What Python does for a batch whose kernel is launched by others: bring its tables to where that is, after a gather that found
// other tensors than the one before, or other numbers; point to other gradients, where nothing else changed; take the table of
// scalars; and launch. Or it prepares what the driver then launches without it, and fills rows of scalars that are no arguments.
struct Elsewhere {
  Owned bring, point, take, launch, prepare, fill;
  // What was brought, and what the last gather found: all but where gradients are; and the pointers of the kernel's table.
  std::vector<int64_t> there, found, pointers_there, pointers;
  int64_t changes = -1;  // of the groups, when it was
  int bound = -1;        // of the groups' numbers, one that tables depend on
  // For the driver, while `is_prepared`.
  bool is_prepared = false, asks = true, fills = false;
  bool moved = false;  // whether the kernel's table lacks `pointers_there` still
  Copy copy;
  Current current;
  std::vector<Launch> before, launches;  // what must be done between preparing and launching; and the batch's

  explicit operator bool() const { return launch.get() != nullptr; }
};

struct Part {
  Owned object;
  Elsewhere elsewhere;
  Plan* plan = nullptr;
  int64_t layout = 0;  // of the plan's rows, when Python looked
  ScalarPart scalars;
  std::vector<std::pair<int, int>> inputs;  // (place in a row, or -1; number of the group, or -1)
  std::vector<int> groups;                  // of each row
  std::vector<double> states;               // of each row
  std::vector<double> sizes;                // of each row: numbers of its parameters
  std::vector<std::vector<int64_t>> shapes;  // of the parameters, where a row has sizes, when Python looked
  std::vector<double> table;
  Kernel squares = nullptr;  // sums those of the gradients, where they are clipped
  double norm = 1.0;         // of all gradients that are
  bool rounded = false;      // whether 0-dim states are float32
  bool calls_python = false;  // in this step, so that another thread may have run

  bool is_as_before() const { return !plan->busy && plan->layout == layout; }

  Rows rows() const {
    Rows found(*plan);
    found.numbers = table.data();
    return found;
  }

  void keep_shapes() {
    for (const Entry& entry : plan->entries) {
      shapes.emplace_back();
      if (!sizes.empty() && is_plain(entry.impl(), plan->dispatch_keys)) shapes.back() = entry.impl()->sizes().vec();
    }
  }

  // After a gather: whether the parameters have the sizes that the rows have.
  bool has_same_shapes() const {
    for (int64_t i = 0; i < plan->count() && !sizes.empty(); ++i)
      if (plan->has_gradient(i) && plan->found(i).param()->sizes() != c10::IntArrayRef(shapes[i])) return false;
    return true;
  }

  // False: Python must take the step. All that a kernel's tables are made of is looked at, and every shape with it; where the
  // device has the scalars, the numbers of the groups too.
  bool brought(const std::vector<Group>& all, bool by_driver) {
    std::vector<int64_t>&found = elsewhere.found, &pointers = elsewhere.pointers;
    found.clear(), pointers.clear();
    int64_t changes = 0;
    for (const Group& group : all) {
      if (plan->device_scalars) changes += group.changes;
      if (elsewhere.bound >= 0) std::memcpy(&found.emplace_back(), &group.numbers[elsewhere.bound], sizeof(double));
      for (PyObject* const tensor : group.placed) {
        const TensorImpl* const impl = tensor_impl(tensor);
        if (!impl || !is_plain(impl, plan->dispatch_keys) || impl->numel() != 1) return false;
        found.push_back(reinterpret_cast<int64_t>(data_of(impl, false)));
        found.push_back(static_cast<int64_t>(impl->dtype().toScalarType()));
      }
    }
    for (int64_t i = 0; i < plan->count(); ++i) {
      if (!plan->has_gradient(i)) continue;
      found.push_back(i);
      for (int k = 0; k < plan->operands; ++k) {
        pointers.push_back(reinterpret_cast<int64_t>(plan->data(i, k)));
        if (k != kGrad) found.push_back(pointers.back());
      }
      for (int k = 0; k < plan->scalar_states && plan->device_scalars; ++k)
        found.push_back(reinterpret_cast<int64_t>(data_of(plan->found(i).scalar(k), true)));
      const auto sizes = plan->found(i).param()->sizes();
      found.insert(found.end(), sizes.begin(), sizes.end());
    }
    const bool same = elsewhere.changes == changes && found == elsewhere.there;
    if (same) {
      if (pointers == elsewhere.pointers_there) return true;
      elsewhere.pointers_there.swap(pointers);
      elsewhere.moved = true;
      if (!by_driver || !elsewhere.copy.call) point();
      return true;
    }
    elsewhere.changes = -1;
    const Owned done = Owned::checked(PyObject_CallNoArgs(elsewhere.bring.get()));
    calls_python = true;
    if (done.get() == Py_False) return false;
    elsewhere.is_prepared &= done.get() == Py_True;  // else what launches are given lies elsewhere now
    elsewhere.there.swap(found);
    elsewhere.pointers_there.swap(pointers);
    elsewhere.moved = false;
    elsewhere.changes = changes;
    return true;
  }

  // Lets Python bring the pointers.
  void point() {
    const std::vector<int64_t>& pointers = elsewhere.pointers_there;
    const auto* const bytes = reinterpret_cast<const char*>(pointers.data());
    const Owned given = Owned::checked(PyByteArray_FromStringAndSize(bytes, pointers.size() * sizeof(int64_t)));
    const Owned done = Owned::checked(PyObject_CallOneArg(elsewhere.point.get(), given.get()));
    calls_python = true;
    elsewhere.is_prepared &= done.get() == Py_True;
    elsewhere.moved = false;
  }

  // Whether the driver brought them, where they moved.
  bool pointed() {
    elsewhere.moved = elsewhere.moved && !elsewhere.copy.run(elsewhere.pointers_there, elsewhere.current.stream);
    return !elsewhere.moved;
  }

  void hand_over(const Owned& taker) const {
    if (plan->device_scalars) return;
    const auto size = static_cast<Py_ssize_t>(table.size() * sizeof(double));
    const Owned bytes = Owned::checked(PyBytes_FromStringAndSize(reinterpret_cast<const char*>(table.data()), size));
    Owned::checked(PyObject_CallOneArg(taker.get(), bytes.get()));
  }

  // Whether the driver launches where it did when Python said what.
  bool goes_by_driver() {
    if (!elsewhere.is_prepared && elsewhere.asks) prepare();
    return elsewhere.is_prepared && elsewhere.current.is_as_before();
  }

  // Asks Python what the driver is to launch: (fills, current, before, launches, copy); None where that is not known now, False where
  // it will not be.
  void prepare() {
    const Owned described = Owned::checked(PyObject_CallNoArgs(elsewhere.prepare.get()));
    calls_python = true;
    elsewhere.asks = described.get() != Py_False;
    if (described.get() == Py_None || described.get() == Py_False) return;
    int fills;
    PyObject *current, *before, *launches, *copy;
    if (!PyTuple_Check(described.get())) fail(PyExc_TypeError, "launches are described by a tuple");
    require(PyArg_ParseTuple(described.get(), "pOO!O!O", &fills, &current, &PyList_Type, &before, &PyList_Type, &launches, &copy));
    elsewhere.fills = fills;
    elsewhere.current = current_of(current);
    elsewhere.copy = copy_of(copy);
    elsewhere.before.clear(), elsewhere.launches.clear();
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(before); ++i)
      elsewhere.before.push_back(launch_of(PyList_GET_ITEM(before, i), plan->columns));
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(launches); ++i)
      elsewhere.launches.push_back(launch_of(PyList_GET_ITEM(launches, i), plan->columns));
    const auto fits = [&](const Launch& one) { return one.rows <= static_cast<int>(groups.size()); };
    if (!std::all_of(elsewhere.launches.begin(), elsewhere.launches.end(), fits)) fail(PyExc_ValueError, "as many rows as there are");
    elsewhere.is_prepared = true;
  }

  // The numbers of this step, for the driver.
  void number() {
    if (elsewhere.fills) {
      hand_over(elsewhere.fill);
      calls_python = true;
    }
    const Rows found = rows();
    for (Launch& one : elsewhere.launches)
      if (one.rows) one.take(found);
  }

  void fill(const std::vector<Group>& all) {
    const int count = plan->scalar_states;
    const int each = groups.empty() ? 0 : static_cast<int>(sizes.size() / groups.size());
    double* out = table.data();
    const double *own = states.data(), *size = sizes.data();
    const auto of_row = [&](int place) {
      return place == 0 ? 0.0 : place <= count ? own[place - 1] : size[place - 1 - count];  // place 0 is `first`
    };
    for (const int group : groups) {
      const std::vector<double>& numbers = all[group].numbers;
      for (size_t i = 0; i < inputs.size(); ++i) {
        const auto [place, number] = inputs[i];
        scalars.values[i] = place >= 0 ? of_row(place) : number < 0 ? norm : numbers[number];
      }
      scalars.evaluate();
      for (const int32_t value : scalars.columns) *out++ = scalars.values[value];
      out = std::copy(own, own + count, out);
      for (const int32_t value : scalars.states)
        *out++ = rounded ? static_cast<float>(scalars.values[value]) : scalars.values[value];
      own += count, size += each;
    }
  }

  // After a launch: the states as they became.
  void advance() {
    if (plan->device_scalars) return;
    const Rows found = rows();
    for (size_t row = 0, at = 0; row < groups.size(); ++row)
      for (int k = 0; k < plan->scalar_states; ++k) states[at++] = found.fresh(static_cast<int32_t>(row), k);
  }
};

}  // namespace
