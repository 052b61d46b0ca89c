// Launches of a GPU's kernels by its driver, without Python: what Triton's own launcher hands over, once it has launched them.
//
// Python says what a launch is given, after it asked the compiled kernel for its parameters (backends/triton/prepared.py).
namespace {

// cuLaunchKernel: function, blocks in three dimensions, threads in three, shared memory, stream, parameters, extra.
using LaunchKernel = int (*)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);

struct Launch {
  LaunchKernel call = nullptr;
  void* function = nullptr;
  unsigned blocks = 0, threads = 0, shared = 0;
  std::vector<uint64_t> words;    // the parameters, each from the left
  std::vector<void*> parameters;  // where they are
  std::vector<char> types;        // P: a pointer; i: int32; f: float32; d: float64
  size_t first = 0;               // of the parameters that are numbers of the step
  int rows = 0;                   // of those

  void put(size_t at, double number) {
    const auto single = static_cast<float>(number);
    types[at] == 'f' ? std::memcpy(&words[at], &single, sizeof single) : std::memcpy(&words[at], &number, sizeof number);
  }

  void put(size_t at, PyObject* value) {
    if (types[at] == 'P') {
      words[at] = PyLong_AsUnsignedLongLong(value);
    } else if (types[at] == 'i') {
      const auto number = static_cast<int32_t>(PyLong_AsLong(value));
      std::memcpy(&words[at], &number, sizeof number);
    } else {
      put(at, PyFloat_AsDouble(value));
    }
    require(!PyErr_Occurred());
  }

  void take(const Rows& table) {
    size_t at = first;
    for (int row = 0; row < rows; ++row)
      for (int k = 0; k < table.of_kernel; ++k) put(at++, table.columns(row)[k]);
  }

  // Whether the driver took it. It may wait there for a place in its queue, so the GIL is let go.
  bool run(uint64_t stream) {
    PyThreadState* const state = PyEval_SaveThread();
    const int error = call(function, blocks, 1, 1, threads, 1, 1, shared, reinterpret_cast<void*>(stream), parameters.data(), nullptr);
    PyEval_RestoreThread(state);
    return error == 0;
  }
};

// (address of cuLaunchKernel, function, blocks, threads, shared memory, types, values, first of the numbers of a step, how many
// rows of them). columns: of a row.
Launch launch_of(PyObject* described, int columns) {
  unsigned long long call, function;
  int blocks, threads, shared, rows;
  Py_ssize_t first;
  const char* types;
  PyObject* values;
  if (!PyTuple_Check(described)) fail(PyExc_TypeError, "a launch is described by a tuple");
  require(PyArg_ParseTuple(described, "KKiiisO!ni", &call, &function, &blocks, &threads, &shared, &types, &PyTuple_Type, &values,
                           &first, &rows));
  Launch made;
  made.call = reinterpret_cast<LaunchKernel>(call), made.function = reinterpret_cast<void*>(function);
  made.blocks = blocks, made.threads = threads, made.shared = shared;
  made.types.assign(types, types + std::strlen(types));
  made.first = first, made.rows = rows;
  const auto count = static_cast<Py_ssize_t>(made.types.size());
  const bool fits = PyTuple_GET_SIZE(values) == count && first >= 0 && rows >= 0 && first + Py_ssize_t{rows} * columns <= count;
  if (!call || !function || blocks < 1 || threads < 1 || shared < 0 || !fits) fail(PyExc_ValueError, "no launch that there is");
  for (Py_ssize_t i = 0; i < rows * columns; ++i)
    if (made.types[first + i] != 'f' && made.types[first + i] != 'd') fail(PyExc_ValueError, "the numbers of a step are floats");
  made.words.resize(count);
  for (Py_ssize_t i = 0; i < count; ++i) made.put(i, PyTuple_GET_ITEM(values, i));
  for (uint64_t& word : made.words) made.parameters.push_back(&word);
  return made;
}

// cuMemcpyHtoDAsync: where to, where from, bytes, stream. What is not pinned is read before it returns.
using CopyToDevice = int (*)(uint64_t, const void*, size_t, void*);

// Where a table of pointers is, and what copies to it; or nothing.
struct Copy {
  CopyToDevice call = nullptr;
  uint64_t to = 0;

  // Whether the driver took it; as of a launch.
  bool run(const std::vector<int64_t>& values, uint64_t stream) const {
    if (!call) return false;
    PyThreadState* const state = PyEval_SaveThread();
    const int error = call(to, values.data(), values.size() * sizeof(int64_t), reinterpret_cast<void*>(stream));
    PyEval_RestoreThread(state);
    return error == 0;
  }
};

// (address of cuMemcpyHtoDAsync, where to), or None.
Copy copy_of(PyObject* described) {
  unsigned long long call, to;
  if (described == Py_None) return {};
  if (!PyTuple_Check(described)) fail(PyExc_TypeError, "a copy is described by a tuple");
  require(PyArg_ParseTuple(described, "KK", &call, &to));
  return {reinterpret_cast<CopyToDevice>(call), to};
}

// Where the driver launches, as it was when Python said what to launch: the current device and stream; and who watches launches.
struct Current {
  struct Watcher {
    Owned owner, name, value, calls;  // an attribute, and a list of its own that is empty, or None
  };
  Owned device_of, device, stream_of;
  uint64_t stream = 0;
  std::vector<Watcher> watchers;

  bool is_as_before() const {
    const Owned now = Owned::checked(PyObject_CallNoArgs(device_of.get()));
    const int same = PyObject_RichCompareBool(now.get(), device.get(), Py_EQ);
    require(same >= 0);
    if (!same) return false;
    const Owned there = Owned::checked(PyObject_CallOneArg(stream_of.get(), device.get()));
    const uint64_t is = PyLong_AsUnsignedLongLong(there.get());
    require(!PyErr_Occurred());
    if (is != stream) return false;
    for (const Watcher& one : watchers) {
      const Owned value = Owned::checked(PyObject_GetAttr(one.owner.get(), one.name.get()));
      const bool quiet = one.calls.get() == Py_None || PyList_GET_SIZE(one.calls.get()) == 0;
      if (value.get() != one.value.get() || !quiet) return false;
    }
    return true;
  }
};

// (device_of, device, stream_of, stream, [(owner, name, value, list or None)]).
Current current_of(PyObject* described) {
  PyObject *device_of, *device, *stream_of, *watchers;
  unsigned long long stream;
  if (!PyTuple_Check(described)) fail(PyExc_TypeError, "where the driver launches is described by a tuple");
  require(PyArg_ParseTuple(described, "OOOKO!", &device_of, &device, &stream_of, &stream, &PyList_Type, &watchers));
  Current made{Owned::share(device_of), Owned::share(device), Owned::share(stream_of), stream, {}};
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(watchers); ++i) {
    PyObject *owner, *name, *value, *calls;
    require(PyArg_ParseTuple(PyList_GET_ITEM(watchers, i), "OUOO", &owner, &name, &value, &calls));
    if (calls != Py_None && !PyList_CheckExact(calls)) fail(PyExc_TypeError, "what watches launches is kept in lists");
    made.watchers.push_back({Owned::share(owner), Owned::share(name), Owned::share(value), Owned::share(calls)});
  }
  return made;
}

}  // namespace
