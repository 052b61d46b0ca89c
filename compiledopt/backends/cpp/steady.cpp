// The steady step: one call for a step of a plan, for as long as nothing changed since Python looked.
//
// Between two steps of training a model runs through the caches, and then every line of Python of ours is fetched anew. So
// what tells that nothing changed, the numbers of the groups, the scalar part, gather, launch and commit are one call here.
// Where anything is not as it was, it answers false, nothing is written, and Python takes the step.
namespace {

// ---- what may have changed ----

// Whether the parameters of all groups are these, in this order.
bool same_params(PyObject* groups, PyObject* params) {
  Py_ssize_t at = 0;
  const Py_ssize_t count = PyList_GET_SIZE(params);
  for (Py_ssize_t g = 0; g < PyList_GET_SIZE(groups); ++g) {
    PyObject* group = PyList_GET_ITEM(groups, g);
    PyObject* list = PyDict_Check(group) ? PyDict_GetItemWithError(group, params_key) : nullptr;
    require(list || !PyErr_Occurred());
    if (!list || !PyList_Check(list) || at + PyList_GET_SIZE(list) > count) return false;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i)
      if (PyList_GET_ITEM(list, i) != PyList_GET_ITEM(params, at++)) return false;
  }
  return at == count;
}

bool same_states(PyObject* state, PyObject* states) {
  if (PyDict_GET_SIZE(state) != PyList_GET_SIZE(states)) return false;
  Py_ssize_t position = 0, index = 0;
  PyObject *key, *value;
  while (PyDict_Next(state, &position, &key, &value))
    if (value != PyList_GET_ITEM(states, index++)) return false;
  return true;
}

bool no_gradients(PyObject* params) {
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params); ++i) {
    TensorImpl* const param = tensor_impl(PyList_GET_ITEM(params, i));
    if (!param) fail(PyExc_TypeError, "waiting: parameters without a gradient");
    if (gradient_of(param)) return false;
  }
  return true;
}

// Entries of a dict: the very objects, or nothing (or None) where there is none.
struct Attributes {
  struct Attribute {
    Owned name, value;
  };
  std::vector<Attribute> known;
  uint64_t version = 0;

  bool are_in(PyObject* dict) {
    if (has_version(dict, version)) return true;
    for (const Attribute& one : known) {
      PyObject* const found = PyDict_GetItemWithError(dict, one.name.get());
      require(found || !PyErr_Occurred());
      if (found != one.value.get() && !(one.value.get() == Py_None && !found)) return false;
    }
    version = version_of(dict);
    return true;
  }
};

constexpr int64_t kExact = int64_t{1} << 53;  // integers up to here are floats

// Of Python's own types: an int or a float.
bool number_in(PyObject* object, double& number) {
  if (PyFloat_CheckExact(object)) {
    number = PyFloat_AS_DOUBLE(object);
    return true;
  }
  if (!PyLong_CheckExact(object)) return false;
  int overflow;
  const long long whole = PyLong_AsLongLongAndOverflow(object, &overflow);
  number = static_cast<double>(whole);
  return !overflow && whole <= kExact && whole >= -kExact;
}

// An entry of a group. reads: which numbers are read from it, (element of a tuple or -1, number).
struct Slot {
  Owned name, value;
  bool exchangeable = false;  // whether another number may take the place of a number
  bool branching = false;     // but none on the other side of zero
  std::vector<std::pair<int, int>> reads;
};

struct Group {
  Owned dict, params;
  uint64_t version = 0;
  std::vector<Slot> slots;
  std::vector<double> numbers;
  std::vector<bool> given;  // which of them it has
  std::vector<std::pair<PyObject*, int>> tensors;  // which are read at each step: they may have changed in place
  std::vector<PyObject*> placed;  // which a kernel reads where they are
  int64_t changes = 0;            // how often a number was another one

  bool exchange(Slot& slot, PyObject* value) {
    PyObject* const before = slot.value.get();
    const bool tuple = PyTuple_CheckExact(before);
    if (!slot.exchangeable || tuple != PyTuple_CheckExact(value)) return false;
    const Py_ssize_t count = tuple ? PyTuple_GET_SIZE(before) : 1;
    if (tuple && PyTuple_GET_SIZE(value) != count) return false;
    for (const bool write : {false, true})
      for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject* const old = tuple ? PyTuple_GET_ITEM(before, i) : before;
        PyObject* const now = tuple ? PyTuple_GET_ITEM(value, i) : value;
        double was, is;
        if (old == now) continue;
        if (!number_in(old, was) || !number_in(now, is) || (slot.branching && (was != 0) != (is != 0))) return false;
        for (const auto& [element, number] : slot.reads)
          if (write && (element == i || !tuple)) numbers[number] = is, ++changes;
      }
    slot.value = Owned::share(value);
    return true;
  }

  // Whether the dict still asks for the same; its numbers are read if they changed.
  bool is_as_before() {
    if (!has_version(dict.get(), version)) {
      if (PyDict_GET_SIZE(dict.get()) != static_cast<Py_ssize_t>(slots.size())) return false;
      Py_ssize_t position = 0;
      PyObject *key, *value;
      for (Slot& slot : slots) {
        if (!PyDict_Next(dict.get(), &position, &key, &value) || key != slot.name.get()) return false;
        if (value != slot.value.get() && !exchange(slot, value)) return false;
      }
      version = version_of(dict.get());
    }
    for (const auto& [tensor, number] : tensors) {
      const TensorImpl* const impl = tensor_impl(tensor);
      if (!impl || !is_scalar(impl)) return false;
      const double value = read_scalar(impl);
      changes += value != numbers[number];
      numbers[number] = value;
    }
    return true;
  }
};

// ---- a batch ----

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
  bool brought(const std::vector<Group>& all) {
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
    if (same && pointers == elsewhere.pointers_there) return true;
    elsewhere.changes = -1;
    const auto* const bytes = reinterpret_cast<const char*>(pointers.data());
    const Owned given = same ? Owned::checked(PyByteArray_FromStringAndSize(bytes, pointers.size() * sizeof(int64_t))) : Owned();
    const Owned done = Owned::checked(same ? PyObject_CallOneArg(elsewhere.point.get(), given.get())
                                            : PyObject_CallNoArgs(elsewhere.bring.get()));
    calls_python = true;
    if (done.get() == Py_False) return false;
    elsewhere.is_prepared &= done.get() == Py_True;  // else what launches are given lies elsewhere now
    elsewhere.there.swap(found);
    elsewhere.pointers_there.swap(pointers);
    elsewhere.changes = changes;
    return true;
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

  // Asks Python what the driver is to launch: (fills, current, before, launches); None where that is not known now, False where it
  // will not be.
  void prepare() {
    const Owned described = Owned::checked(PyObject_CallNoArgs(elsewhere.prepare.get()));
    calls_python = true;
    elsewhere.asks = described.get() != Py_False;
    if (described.get() == Py_None || described.get() == Py_False) return;
    int fills;
    PyObject *current, *before, *launches;
    if (!PyTuple_Check(described.get())) fail(PyExc_TypeError, "launches are described by a tuple");
    require(PyArg_ParseTuple(described.get(), "pOO!O!", &fills, &current, &PyList_Type, &before, &PyList_Type, &launches));
    elsewhere.fills = fills;
    elsewhere.current = current_of(current);
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

// ---- a step ----

struct Steady {
  Attributes attributes;                              // of the optimizer
  std::vector<std::pair<Owned, Attributes>> modules;  // of modules' dicts
  std::vector<Owned> empty;                           // dicts that are empty while nobody looks at steps
  std::vector<Owned> quiet;                           // what says no while a step may be taken so
  Owned measure;                                      // called before a launch, or null
  Owned norm;                                         // of sums of squares, the norm that parts are clipped by; or null
  Owned list, params, state, states, waiting, threads;
  uint64_t state_version = 0;
  std::vector<Group> groups;
  std::vector<Part> parts;
  int64_t steps = 0;  // that were taken
  bool busy = false;
  bool by_driver = false;  // whether this one is launched without Python

  bool is_elsewhere() const { return !parts.empty() && parts[0].elsewhere; }  // all of them are, or none
};

// Whether nobody sees more of a step than what it writes: no mode, transform or tracer (each is among the dispatch keys of its
// thread), no profiler, no hook.
bool is_unobserved(const Steady& steady) {
  if (c10::impl::raw_local_dispatch_key_set.included_ != 0) return false;
  if (c10::ThreadLocalDebugInfo::get(c10::DebugInfoKind::PROFILER_STATE)) return false;
  return std::all_of(steady.empty.begin(), steady.empty.end(), [](const Owned& one) { return !PyDict_GET_SIZE(one.get()); });
}

bool has_same_params(const Steady& steady) {
  if (PyList_GET_SIZE(steady.list.get()) != static_cast<Py_ssize_t>(steady.groups.size())) return false;
  Py_ssize_t left = PyList_GET_SIZE(steady.params.get());
  PyObject* const* known = PySequence_Fast_ITEMS(steady.params.get());
  for (size_t g = 0; g < steady.groups.size(); ++g) {
    const Group& group = steady.groups[g];
    if (PyList_GET_ITEM(steady.list.get(), g) != group.dict.get()) return false;
    const Py_ssize_t count = PyList_GET_SIZE(group.params.get());
    if (count > left || !std::equal(known, known + count, PySequence_Fast_ITEMS(group.params.get()))) return false;
    known += count;
    left -= count;
  }
  return left == 0;
}

bool has_same_states(Steady& steady) {
  if (has_version(steady.state.get(), steady.state_version)) return true;
  if (!same_states(steady.state.get(), steady.states.get())) return false;
  steady.state_version = version_of(steady.state.get());
  return true;
}

bool says_yes(const Owned& asked) {
  const Owned answer = Owned::checked(PyObject_CallNoArgs(asked.get()));
  const int yes = PyObject_IsTrue(answer.get());
  require(yes >= 0);
  return yes;
}

bool is_as_before(Steady& steady, PyObject* optimizer) {
  if (steady.busy || !is_unobserved(steady)) return false;
  const Owned dict = Owned::checked(PyObject_GenericGetDict(optimizer, nullptr));
  if (!steady.attributes.are_in(dict.get())) return false;
  for (auto& [module, attributes] : steady.modules)
    if (!attributes.are_in(module.get())) return false;
  for (Group& group : steady.groups)
    if (!group.is_as_before()) return false;
  return has_same_params(steady) && has_same_states(steady) && no_gradients(steady.waiting.get()) &&
      std::all_of(steady.parts.begin(), steady.parts.end(), [](const Part& part) { return part.is_as_before(); }) &&
      std::none_of(steady.quiet.begin(), steady.quiet.end(), says_yes);
}

bool has_many_entries(const Part& part) {
  return part.plan->count() >= 2 * (part.elsewhere ? kEntriesPerSleeper : kEntriesPerThread);
}

// torch's number of threads, asked for where there is work for several.
int threads_for(const Steady& steady, bool gathered) {
  const bool several = std::any_of(steady.parts.begin(), steady.parts.end(), [&](const Part& part) {
    return has_many_entries(part) || (gathered && !part.elsewhere && part.plan->elements() >= 2 * kWorkPerThread);
  });
  if (!several) return 1;
  const Owned number = Owned::checked(PyObject_CallNoArgs(steady.threads.get()));
  const long threads = PyLong_AsLong(number.get());
  require(threads != -1 || !PyErr_Occurred());
  return static_cast<int>(threads);
}

// What Python does between preparing and launching, where the driver is not enough.
void hand_to_python(Steady& steady) {
  for (Part& part : steady.parts)
    if (part.elsewhere) part.hand_over(part.elsewhere.take);
  if (steady.measure.get()) Owned::checked(PyObject_CallNoArgs(steady.measure.get()));
}

// While Python runs, no plan is another thread's.
class Busy {
 public:
  explicit Busy(Steady& steady) : steady_(steady) { set(true); }
  Busy(const Busy&) = delete;
  ~Busy() { set(false); }

 private:
  Steady& steady_;

  void set(bool busy) {
    for (Part& part : steady_.parts) part.plan->busy = busy;
  }
};

// After a gather: the norm of the gradients of all parts that are clipped, and their rows by it.
void clip(Steady& steady, int threads) {
  std::vector<double> squares;
  for (Part& part : steady.parts) {
    if (!part.squares) continue;
    Sums wanted;
    wanted.kernel = part.squares, wanted.reads = 1, wanted.operands[0] = kGrad;
    run_long(*part.plan, [&] { squares.push_back(sums_over_parameters(*part.plan, wanted, threads)[0]); });
  }
  const Owned given = floats_of(squares);
  const Busy busy(steady);
  const Owned found = Owned::checked(PyObject_CallOneArg(steady.norm.get(), given.get()));
  const double norm = PyFloat_AsDouble(found.get());
  require(norm != -1 || !PyErr_Occurred());
  for (Part& part : steady.parts) {
    if (!part.squares) continue;
    part.norm = norm;
    part.fill(steady.groups);
  }
}

// Everything that can fail, and no write. Returns: the threads of the launch, or 0 where Python must take the step.
int prepare(Steady& steady) {
  const int threads = threads_for(steady, false);
  const auto goes_by_driver = [](Part& part) { return part.elsewhere && part.goes_by_driver(); };
  steady.by_driver = std::all_of(steady.parts.begin(), steady.parts.end(), goes_by_driver);
  for (Part& part : steady.parts) {
    part.calls_python = false;
    const bool on_host = !part.plan->device_scalars;
    if (on_host) part.fill(steady.groups);
    const Rows rows = part.rows();
    const int own = has_many_entries(part) ? threads : 1;
    if (gather_all(*part.plan, {on_host ? &rows : nullptr, nullptr}, own) != kReady || !part.has_same_shapes()) return 0;
    if (part.elsewhere && !part.brought(steady.groups)) return 0;
    if (steady.by_driver && !part.elsewhere.is_prepared) steady.by_driver = part.goes_by_driver();
    if (steady.by_driver) part.number();
  }
  const int several = threads_for(steady, true);
  for (Part& part : steady.parts)
    if (part.plan->passes) lay_out(*part.plan, several);
  if (!steady.by_driver) hand_to_python(steady);
  // Another thread may run in the midst of the first launch, and take away what the second was gathered from.
  const auto goes = [](const Part& part) { return !part.elsewhere && part.plan->lets_gil_go(); };
  if (std::any_of(steady.parts.begin(), steady.parts.end(), goes))
    for (Part& part : steady.parts) part.plan->hold_all();
  if (steady.norm.get()) clip(steady, several);
  return several;
}

// How many of them the driver took, up to the first that it refused.
size_t run(std::vector<Launch>& launches, const Current& current) {
  return std::find_if(launches.begin(), launches.end(), [&](Launch& one) { return !one.run(current.stream); }) - launches.begin();
}

// By the driver; what it refuses, Python launches, but not the rest of what is begun: a scalar part would count twice.
void launch_part(Steady& steady, Part& part) {
  const size_t wanted = part.elsewhere.launches.size();
  const size_t taken = steady.by_driver ? run(part.elsewhere.launches, part.elsewhere.current) : 0;
  if (steady.by_driver && taken == wanted) return;
  if (taken) fail(PyExc_RuntimeError, "the driver refused a launch after others of the same step: the device is in no state to go on");
  if (std::exchange(steady.by_driver, false)) hand_to_python(steady);
  Owned::checked(PyObject_CallNoArgs(part.elsewhere.launch.get()));
  part.elsewhere.is_prepared = false;  // Python may have other tables now
}

void restore(Steady& steady, size_t from) {
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  for (size_t i = from; i < steady.parts.size(); ++i) restore_what_is_there(*steady.parts[i].plan, steady.parts[i].rows());
  PyErr_Restore(type, value, trace);
}

// Where nobody else can have run since the gather, what was gathered is committed first: it is in the caches still, and another
// thread cannot take it away while the driver is busy.
void launch_elsewhere(Steady& steady) {
  std::vector<Part>& parts = steady.parts;
  const bool early = steady.by_driver && std::none_of(parts.begin(), parts.end(), [](Part& one) { return one.calls_python; });
  for (size_t i = 0; i < parts.size() && early; ++i) commit_all(*parts[i].plan, parts[i].rows());
  size_t done = 0;
  try {
    const auto measured = [](Part& one) { return run(one.elsewhere.before, one.elsewhere.current) == one.elsewhere.before.size(); };
    if (steady.by_driver && !std::all_of(parts.begin(), parts.end(), measured)) {
      steady.by_driver = false;
      hand_to_python(steady);
    }
    for (; done < parts.size(); ++done) {
      launch_part(steady, parts[done]);
      if (!early) commit_what_is_there(*parts[done].plan, parts[done].rows());
    }
  } catch (...) {
    if (early) restore(steady, done);
    throw;
  }
}

void launch(Steady& steady, int threads) {
  if (steady.is_elsewhere()) launch_elsewhere(steady);
  for (Part& part : steady.parts) {
    if (!part.elsewhere) {
      const Rows rows = part.rows();
      run_long(*part.plan, [&] { run_all(*part.plan, rows, threads); });
    }
    part.plan->release();
    part.advance();
  }
  ++steady.steps;
}

// While Python or another thread may run; what was gathered is let go at the end, however that comes.
class Stepping {
 public:
  explicit Stepping(Steady& steady) : steady_(steady) { steady.busy = true; }
  Stepping(const Stepping&) = delete;
  ~Stepping() {
    for (Part& part : steady_.parts) part.plan->release();
    steady_.busy = false;
  }

 private:
  Steady& steady_;
};

Owned steady_step(Steady& steady, PyObject* optimizer) {
  if (!is_as_before(steady, optimizer)) return truth(false);
  const Stepping stepping(steady);
  const int threads = prepare(steady);
  if (threads == 0) return truth(false);
  launch(steady, threads);
  return truth(true);
}

// ---- as a Python object ----

Owned steady_fits(Steady& steady, PyObject* optimizer) { return truth(is_as_before(steady, optimizer)); }

Owned steady_steps(Steady& steady, PyObject*) { return Owned::checked(PyLong_FromLongLong(steady.steps)); }

PyMethodDef steady_methods[] = {
    {"step", method<Steady, steady_step>, METH_O, "step(optimizer) -> whether it was taken; else nothing was written"},
    {"fits", method<Steady, steady_fits>, METH_O, "fits(optimizer) -> whether nothing but tensors and numbers changed"},
    {"steps", method<Steady, steady_steps>, METH_NOARGS, "steps() -> how many were taken"},
    {nullptr, nullptr, 0, nullptr}};

int visit_all(const Attributes& attributes, visitproc visit, void* arg) {
  for (const auto& one : attributes.known) Py_VISIT(one.value.get());
  return 0;
}

int visit_part(const Part& part, visitproc visit, void* arg) {
  const Elsewhere& own = part.elsewhere;
  for (const Owned* one : {&part.object, &own.bring, &own.point, &own.take, &own.launch, &own.prepare, &own.fill, &own.current.device_of,
                           &own.current.stream_of})
    Py_VISIT(one->get());
  for (const Current::Watcher& one : own.current.watchers) {
    Py_VISIT(one.owner.get());
    Py_VISIT(one.value.get());
    Py_VISIT(one.calls.get());
  }
  return 0;
}

int steady_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  const Steady& steady = value_of<Steady>(self);
  if (const int stopped = visit_all(steady.attributes, visit, arg)) return stopped;
  for (const auto& [module, attributes] : steady.modules) Py_VISIT(module.get());
  for (const Owned& one : steady.empty) Py_VISIT(one.get());
  for (const Owned* one : {&steady.list, &steady.params, &steady.state, &steady.states, &steady.waiting, &steady.threads,
                           &steady.measure, &steady.norm})
    Py_VISIT(one->get());
  for (const Owned& one : steady.quiet) Py_VISIT(one.get());
  for (const Group& group : steady.groups) {
    Py_VISIT(group.dict.get());
    Py_VISIT(group.params.get());
    for (const Slot& slot : group.slots) Py_VISIT(slot.value.get());
  }
  for (const Part& part : steady.parts)
    if (const int stopped = visit_part(part, visit, arg)) return stopped;
  return 0;
}

int steady_clear(PyObject* self) {
  const Steady dropped = std::exchange(value_of<Steady>(self), Steady());
  value_of<Steady>(self).busy = true;  // it takes no step any more
  return 0;
}

// ---- as it is described ----

// The items of a tuple or list, of which there must be `count`, where that is not -1.
PyObject** items_of(PyObject* object, Py_ssize_t count = -1) {
  if (!PyTuple_Check(object) && !PyList_Check(object)) fail(PyExc_TypeError, "a steady step is described by tuples and lists");
  if (count >= 0 && PySequence_Fast_GET_SIZE(object) != count) fail(PyExc_ValueError, "a tuple of another length");
  return PySequence_Fast_ITEMS(object);
}

template <class F> void for_each_item(PyObject* object, F&& f) {
  PyObject** const items = items_of(object);
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(object); ++i) f(items[i]);
}

int integer(PyObject* object, int64_t from, int64_t to) {
  const long value = PyLong_AsLong(object);
  require(value != -1 || !PyErr_Occurred());
  if (value < from || value >= to) fail(PyExc_IndexError, "a steady step names a value that there is not");
  return static_cast<int>(value);
}

double floating(PyObject* object) {
  const double value = PyFloat_AsDouble(object);
  require(value != -1 || !PyErr_Occurred());
  return value;
}

Attributes attributes_of(PyObject* pairs) {
  Attributes made;
  for_each_item(pairs, [&](PyObject* pair) {
    PyObject** const one = items_of(pair, 2);
    if (!PyUnicode_CheckExact(one[0])) fail(PyExc_TypeError, "attributes have names");
    made.known.push_back({Owned::share(one[0]), Owned::share(one[1])});
  });
  return made;
}

// (number of inputs, constants, [(operation, a, b, c)], columns, new states), the latter by the values' places.
ScalarPart scalars_of(PyObject* described) {
  PyObject** const parts = items_of(described, 5);
  ScalarPart made;
  made.inputs = integer(parts[0], 0, INT32_MAX);
  made.values.resize(made.inputs);
  for_each_item(parts[1], [&](PyObject* constant) { made.values.push_back(floating(constant)); });
  for_each_item(parts[2], [&](PyObject* line) {
    PyObject** const words = items_of(line, 4);
    const char* const name = PyUnicode_AsUTF8(words[0]);
    require(name);
    ScalarPart::Line one{numbers::function_of(name), {}};
    if (!one.function) fail(PyExc_LookupError, "an operation that the launcher does not know");
    for (int k = 0; k < 3; ++k) one.from[k] = integer(words[1 + k], 0, made.values.size());
    made.lines.push_back(one);
    made.values.push_back(0.0);
  });
  const int64_t count = made.values.size();
  for_each_item(parts[3], [&](PyObject* value) { made.columns.push_back(integer(value, 0, count)); });
  for_each_item(parts[4], [&](PyObject* value) { made.states.push_back(integer(value, 0, count)); });
  return made;
}

// (dict, [(exchangeable, branching, [(element, number)])] of its entries), and how many numbers there are. Tensors on a device are
// for the kernels there, and no number is read of them.
Group group_of(PyObject* described, int64_t numbers) {
  PyObject** const parts = items_of(described, 2);
  Group made;
  if (!PyDict_Check(parts[0])) fail(PyExc_TypeError, "a group is a dict");
  made.dict = Owned::share(parts[0]);
  made.numbers.resize(numbers);
  made.given.resize(numbers);
  PyObject** const entries = items_of(parts[1], PyDict_GET_SIZE(parts[0]));
  Py_ssize_t position = 0;
  PyObject *key, *value;
  for (Py_ssize_t i = 0; PyDict_Next(parts[0], &position, &key, &value); ++i) {
    PyObject** const words = items_of(entries[i], 3);
    Slot slot{Owned::share(key), Owned::share(value), words[0] == Py_True, words[1] == Py_True, {}};
    for_each_item(words[2], [&](PyObject* read) {
      PyObject** const pair = items_of(read, 2);
      const int element = integer(pair[0], -1, PyTuple_Check(value) ? PyTuple_GET_SIZE(value) : 0);
      const int number = integer(pair[1], 0, numbers);
      PyObject* const object = element < 0 ? value : PyTuple_GET_ITEM(value, element);
      slot.reads.emplace_back(element, number);
      made.given[number] = true;
      const TensorImpl* const tensor = tensor_impl(object);
      if (tensor && tensor->is_cpu())
        made.tensors.emplace_back(object, number);
      else if (tensor)
        made.placed.push_back(object);
      else
        made.numbers[number] = floating(object);
    });
    if (key == params_key || PyObject_RichCompareBool(key, params_key, Py_EQ) == 1) made.params = Owned::share(value);
    made.slots.push_back(std::move(slot));
  }
  if (!made.params.get() || !PyList_CheckExact(made.params.get())) fail(PyExc_TypeError, "a group has its parameters in a list");
  return made;
}

// What Python does for a batch that is launched elsewhere, (bring, point, take, launch, prepare, fill), and which number its tables
// depend on, or -1; or None.
Elsewhere elsewhere_of(PyObject* described, int64_t numbers) {
  Elsewhere made;
  if (described == Py_None) return made;
  PyObject** const calls = items_of(described, 7);
  Owned* const places[] = {&made.bring, &made.point, &made.take, &made.launch, &made.prepare, &made.fill};
  for (int i = 0; i < 6; ++i) {
    if (!PyCallable_Check(calls[i])) fail(PyExc_TypeError, "what Python does for a batch is callable");
    *places[i] = Owned::share(calls[i]);
  }
  made.bound = integer(calls[6], -1, numbers);
  return made;
}

// (plan, scalar part, [(place in a row or -1, number or -1)], [(group, 0-dim states, sizes)], whether the states are float32,
// elsewhere, the address of a kernel that sums the squares of gradients that are clipped, or 0).
// An input that is neither of a row nor a number is the norm: 1 where only a device knows it, and fills it in there.
Part part_of(PyObject* described, PyTypeObject* plan_type, const std::vector<Group>& groups, int64_t numbers) {
  PyObject** const parts = items_of(described, 7);
  Part made;
  if (!PyObject_TypeCheck(parts[0], plan_type)) fail(PyExc_TypeError, "a steady step is made of plans");
  made.object = Owned::share(parts[0]);
  made.plan = &value_of<Plan>(parts[0]);
  const int states = made.plan->scalar_states;
  made.layout = made.plan->layout;
  made.scalars = scalars_of(parts[1]);
  made.squares = reinterpret_cast<Kernel>(PyLong_AsUnsignedLongLong(parts[6]));
  require(!PyErr_Occurred());
  int last = 0;  // of the places
  for_each_item(parts[2], [&](PyObject* input) {
    PyObject** const pair = items_of(input, 2);
    made.inputs.emplace_back(integer(pair[0], -1, 1 + kMostTensors + kMostTensors), integer(pair[1], -1, numbers));
    last = std::max(last, made.inputs.back().first);
    const bool of_row = made.inputs.back().first >= 0, of_group = made.inputs.back().second >= 0;
    if ((of_row && of_group) || (!of_row && !of_group && parts[5] == Py_None && !made.squares))
      fail(PyExc_ValueError, "an input of a row or a number");
  });
  for_each_item(parts[3], [&](PyObject* row) {
    PyObject** const pair = items_of(row, 3);
    const Group& group = groups[integer(pair[0], 0, groups.size())];
    made.groups.push_back(static_cast<int>(&group - groups.data()));
    for (const auto& [place, number] : made.inputs)
      if (number >= 0 && !group.given[number]) fail(PyExc_ValueError, "a group lacks a number that its parameters are updated by");
    items_of(pair[1], states);
    for_each_item(pair[1], [&](PyObject* value) { made.states.push_back(floating(value)); });
    items_of(pair[2], std::max(0, last - states));
    for_each_item(pair[2], [&](PyObject* value) { made.sizes.push_back(floating(value)); });
  });
  made.keep_shapes();
  made.rounded = parts[4] == Py_True;
  made.elsewhere = elsewhere_of(parts[5], numbers);
  const Plan& plan = *made.plan;
  if (plan.runs_here() == bool(made.elsewhere)) fail(PyExc_ValueError, "a plan with a kernel, or one that is launched elsewhere");
  if (plan.device_scalars) return made;
  if (plan.most_row >= static_cast<int64_t>(made.groups.size()) ||
      static_cast<int64_t>(made.inputs.size()) != made.scalars.inputs || static_cast<int>(made.scalars.states.size()) != states ||
      static_cast<int>(made.scalars.columns.size()) != plan.columns)
    fail(PyExc_ValueError, "the scalar part or the rows do not fit the plan");
  made.table.resize(made.groups.size() * plan.width());
  return made;
}

Steady steady_described(PyObject* args, PyObject* named, PyTypeObject* plan_type) {
  static const char* names[] = {"attributes", "modules", "empty", "param_groups", "params", "state", "states",
                                "waiting", "threads", "numbers", "groups", "parts", "quiet", "measure", "norm", nullptr};
  PyObject *quiet, *measure, *norm;
  PyObject *attributes, *modules, *empty, *list, *params, *state, *states, *waiting, *threads, *groups, *parts;
  int numbers;
  Steady made;
  require(PyArg_ParseTupleAndKeywords(args, named, "$OOOO!O!O!O!O!OiOOOOO", const_cast<char**>(names), &attributes, &modules, &empty,
                                      &PyList_Type, &list, &PyList_Type, &params, &PyDict_Type, &state, &PyList_Type, &states,
                                      &PyList_Type, &waiting, &threads, &numbers, &groups, &parts, &quiet, &measure, &norm));
  made.attributes = attributes_of(attributes);
  for_each_item(modules, [&](PyObject* module) {
    PyObject** const pair = items_of(module, 2);
    if (!PyDict_Check(pair[0])) fail(PyExc_TypeError, "modules are given by their dicts");
    made.modules.emplace_back(Owned::share(pair[0]), attributes_of(pair[1]));
  });
  for_each_item(empty, [&](PyObject* dict) {
    if (!PyDict_Check(dict)) fail(PyExc_TypeError, "hooks are kept in dicts");
    made.empty.push_back(Owned::share(dict));
  });
  for_each_item(quiet, [&](PyObject* asked) { made.quiet.push_back(Owned::share(asked)); });
  if (measure != Py_None) made.measure = Owned::share(measure);
  if (norm != Py_None) made.norm = Owned::share(norm);
  made.list = Owned::share(list);
  made.params = Owned::share(params);
  made.state = Owned::share(state);
  made.states = Owned::share(states);
  made.waiting = Owned::share(waiting);
  made.threads = Owned::share(threads);
  for_each_item(groups, [&](PyObject* group) { made.groups.push_back(group_of(group, numbers)); });
  for_each_item(parts, [&](PyObject* part) { made.parts.push_back(part_of(part, plan_type, made.groups, numbers)); });
  const auto is_elsewhere = [&](const Part& one) { return bool(one.elsewhere) == made.is_elsewhere(); };
  if (!std::all_of(made.parts.begin(), made.parts.end(), is_elsewhere)) fail(PyExc_ValueError, "plans with kernels, or none of them");
  const auto is_clipped = [](const Part& one) { return one.squares != nullptr; };
  if (std::any_of(made.parts.begin(), made.parts.end(), is_clipped) && !PyCallable_Check(norm))
    fail(PyExc_TypeError, "what makes a norm of sums of squares is callable");
  return made;
}

PyTypeObject* plan_type_object = nullptr;

PyObject* steady_new(PyTypeObject* type, PyObject* args, PyObject* named) {
  return guarded([&] { return object_of(type, steady_described(args, named, plan_type_object)); });
}

PyType_Slot steady_slots[] = {{Py_tp_new, reinterpret_cast<void*>(steady_new)},
                              {Py_tp_dealloc, reinterpret_cast<void*>(dealloc<Steady>)},
                              {Py_tp_traverse, reinterpret_cast<void*>(steady_traverse)},
                              {Py_tp_clear, reinterpret_cast<void*>(steady_clear)},
                              {Py_tp_methods, steady_methods},
                              {0, nullptr}};
PyType_Spec steady_spec = {"compiledopt_launcher.Steady", sizeof(Object<Steady>), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                           steady_slots};

}  // namespace
