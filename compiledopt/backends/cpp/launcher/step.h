// The steady step of an optimizer.
namespace {

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
  for (Part& part : steady.parts) {
    if (part.elsewhere && part.elsewhere.moved) part.point();
    if (part.elsewhere) part.hand_over(part.elsewhere.take);
  }
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
    if (part.elsewhere && !part.brought(steady.groups, steady.by_driver)) return 0;
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
    const auto pointed = [](Part& one) { return one.pointed(); };
    const auto measured = [](Part& one) { return run(one.elsewhere.before, one.elsewhere.current) == one.elsewhere.before.size(); };
    const auto all = [&](auto done) { return std::all_of(parts.begin(), parts.end(), done); };
    if (steady.by_driver && !(all(pointed) && all(measured))) {
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

}  // namespace
