// A plan as Python has it: its methods, and how it is made from what Python describes.
namespace {

void require_stage(const Plan& plan, Stage stage, const char* method) {
  if (plan.stage >= stage) return;
  PyErr_Format(PyExc_RuntimeError, "%s without a gather before it that said 0", method);
  throw PythonError();
}

void check_staged(const Plan& plan, PyObject* staged) {
  const char* words = "staged: one gradient or None for each entry, in a list";
  if (!PyList_Check(staged) || PyList_GET_SIZE(staged) != plan.count()) fail(PyExc_TypeError, words);
  for (int64_t i = 0; i < plan.count(); ++i) {
    PyObject* const grad = PyList_GET_ITEM(staged, i);
    if (grad != Py_None && !tensor_impl(grad)) fail(PyExc_TypeError, words);
  }
}

Owned plan_gather(Plan& plan, PyObject* args) {
  PyObject *table, *staged;
  int threads;
  require(PyArg_ParseTuple(args, "OiO", &table, &threads, &staged));
  if (staged != Py_None) check_staged(plan, staged);
  Given given{nullptr, staged == Py_None ? nullptr : staged};
  if (table == Py_None) return Owned::checked(PyLong_FromLong(gather_all(plan, given, threads)));
  const Table rows(plan, table);
  given.table = &rows;
  const Status status = gather_all(plan, given, threads);
  if (status == kReady && plan.passes) lay_out(plan, threads);
  return Owned::checked(PyLong_FromLong(status));
}

Owned plan_launch(Plan& plan, PyObject* args) {
  PyObject* table;
  int threads;
  require(PyArg_ParseTuple(args, "Oi", &table, &threads));
  if (!plan.runs_here()) fail(PyExc_RuntimeError, "launch of a plan without a kernel");
  require_stage(plan, kInRows, "launch");
  const Table rows(plan, table);
  run_long(plan, [&] { run_all(plan, rows, threads); });
  plan.release();
  return none();
}

// A view of a buffer of float64.
class Numbers {
 public:
  explicit Numbers(PyObject* object) { require(PyObject_GetBuffer(object, &view_, PyBUF_SIMPLE) == 0); }
  Numbers(const Numbers&) = delete;
  ~Numbers() { PyBuffer_Release(&view_); }

  const double* data() const { return static_cast<const double*>(view_.buf); }
  int64_t count() const { return view_.len / int64_t{sizeof(double)}; }

 private:
  Py_buffer view_{};
};

void add_reads(const Plan& plan, PyObject* reads, Sums& wanted) {
  for (wanted.reads = 0; wanted.reads < PyTuple_GET_SIZE(reads); ++wanted.reads) {
    const long operand = PyLong_AsLong(PyTuple_GET_ITEM(reads, wanted.reads));
    require(operand != -1 || !PyErr_Occurred());
    if (operand < 0 || operand >= plan.operands || wanted.reads == kMostTensors) fail(PyExc_ValueError, "reads: of the operands");
    wanted.operands[wanted.reads] = static_cast<int>(operand);
    wanted.in_blocks |= plan.axes[operand] >= kBlocks;
  }
}

Owned plan_sums(Plan& plan, PyObject* args) {
  unsigned long long address;
  PyObject *reads, *table;
  int threads, width;
  Sums wanted;
  require(PyArg_ParseTuple(args, "KO!iOii", &address, &PyTuple_Type, &reads, &wanted.count, &table, &width, &threads));
  const bool has_columns = table != Py_None;
  require_stage(plan, has_columns ? kInRows : kSeen, "sums");
  if (wanted.count < 1 || width < 0) fail(PyExc_ValueError, "count or width is none that there is");
  add_reads(plan, reads, wanted);
  wanted.kernel = reinterpret_cast<Kernel>(address);
  Owned empty = has_columns ? Owned() : Owned::checked(PyBytes_FromStringAndSize(nullptr, 0));
  const Numbers columns(has_columns ? table : empty.get());
  if (has_columns) {
    wanted.columns = columns.data(), wanted.width = width, wanted.rows = plan.most_row + int64_t{1};
    if (columns.count() < wanted.rows * width) fail(PyExc_ValueError, "columns: of every row");
  }
  std::vector<double> totals;
  run_long(plan, [&] { totals = sums_over_parameters(plan, wanted, threads); });
  return floats_of(totals);
}

// (index of the entry, its scalar states) for each entry that has a gradient, after a gather.
Owned plan_active(Plan& plan, PyObject*) {
  require_stage(plan, kSeen, "active");
  Owned list = Owned::checked(PyList_New(0));
  for (int64_t i = 0; i < plan.count(); ++i) {
    if (!plan.has_gradient(i)) continue;
    Owned item = Owned::checked(PyTuple_New(1 + plan.scalar_states));
    PyTuple_SET_ITEM(item.get(), 0, Owned::checked(PyLong_FromLongLong(i)).release());
    for (int k = 0; k < plan.scalar_states; ++k) {
      const double value = plan.device_scalars ? 0.0 : read_scalar(plan.found(i).scalar(k));
      PyTuple_SET_ITEM(item.get(), 1 + k, Owned::checked(PyFloat_FromDouble(value)).release());
    }
    require(PyList_Append(list.get(), item.get()) == 0);
  }
  return list;
}

Owned bytes_of(const std::vector<int64_t>& values) {
  const auto* data = reinterpret_cast<const char*>(values.data());
  return Owned::checked(PyBytes_FromStringAndSize(data, values.size() * sizeof(int64_t)));
}

// For a launch elsewhere: (pointers of the operands, lengths, rows, pointers of the 0-dim states) of the entries that
// have a gradient, each as bytes of int64.
Owned plan_tables(Plan& plan, PyObject*) {
  require_stage(plan, kSeen, "tables");
  std::vector<int64_t> pointers, lengths, rows, scalars;
  for (int64_t i = 0; i < plan.count(); ++i) {
    if (!plan.has_gradient(i)) continue;
    for (int k = 0; k < plan.operands; ++k) pointers.push_back(reinterpret_cast<int64_t>(plan.data(i, k)));
    lengths.push_back(plan.lengths[i]);
    rows.push_back(plan.entries[i].row);
    for (int k = 0; k < plan.scalar_states; ++k)
      scalars.push_back(reinterpret_cast<int64_t>(data_of(plan.found(i).scalar(k), true)));
  }
  const Owned parts[] = {bytes_of(pointers), bytes_of(lengths), bytes_of(rows), bytes_of(scalars)};
  return Owned::checked(PyTuple_Pack(4, parts[0].get(), parts[1].get(), parts[2].get(), parts[3].get()));
}

// (length, what no block reaches across, number, offset) of the entries in `tables`; where blocks fill the rows, a row is all.
Owned plan_extents(Plan& plan, PyObject*) {
  require_stage(plan, kSeen, "extents");
  std::vector<int64_t> extents;
  for (int64_t i = 0; i < plan.count(); ++i) {
    if (!plan.has_gradient(i)) continue;
    const int64_t length = plan.lengths[i], row = row_of(plan.found(i).param());
    const bool fills = plan.block == 0 || row % plan.block == 0;
    extents.insert(extents.end(), {length, std::max<int64_t>(1, fills ? length : row), plan.places[i].number, plan.places[i].offset});
  }
  return bytes_of(extents);
}

// For a launch in passes elsewhere: (matrices, rows, columns), as they lie in memory, number and offset, of the entries in `tables`.
Owned plan_shapes(Plan& plan, PyObject*) {
  require_stage(plan, kSeen, "shapes");
  std::vector<int64_t> shapes;
  for (int64_t i = 0; i < plan.count(); ++i) {
    if (!plan.has_gradient(i)) continue;
    const Shape shape = shape_of(plan, i);
    shapes.insert(shapes.end(), {shape.matrices, shape.rows, shape.columns, plan.places[i].number, plan.places[i].offset});
  }
  return bytes_of(shapes);
}

// What `launch` does after its kernel, where the kernel ran elsewhere.
Owned plan_commit(Plan& plan, PyObject* table) {
  require_stage(plan, plan.device_scalars ? kSeen : kInRows, "commit");
  const Table rows(plan, table);
  commit_all(plan, rows);
  plan.release();
  return none();
}

Owned plan_set_row(Plan& plan, PyObject* args) {
  int index, row;
  require(PyArg_ParseTuple(args, "ii", &index, &row));
  if (index < 0 || index >= plan.count() || row < 0) fail(PyExc_IndexError, "no such entry, or a row below 0");
  plan.entries[index].row = row;
  ++plan.layout;
  plan.most_row = std::max(plan.most_row, row);
  return none();
}

// An entry without a row makes `gather` say that the rows differ as soon as it has a gradient.
Owned plan_forget_rows(Plan& plan, PyObject*) {
  for (Entry& entry : plan.entries) entry.row = -1;
  ++plan.layout;
  plan.most_row = -1;
  plan.stage = std::min(plan.stage, kSeen);
  return none();
}

Owned plan_release(Plan& plan, PyObject*) {
  plan.release();
  return none();
}

template <Owned (*body)(Plan&, PyObject*)> Owned alone(Plan& plan, PyObject* args) {
  if (plan.busy) fail(PyExc_RuntimeError, "another thread is in a step of this optimizer; one at a time may step it");
  return body(plan, args);
}

template <Owned (*body)(Plan&, PyObject*)> constexpr PyCFunction plan_method = method<Plan, alone<body>>;

int plan_clear(PyObject* self) {
  const std::vector<Entry> dropped = std::move(value_of<Plan>(self).entries);
  value_of<Plan>(self).entries.clear();
  value_of<Plan>(self).release();
  return 0;
}

int plan_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  for (const Entry& entry : value_of<Plan>(self).entries) {
    Py_VISIT(entry.param.get());
    Py_VISIT(entry.state.get());
  }
  return 0;
}

// ---- making a plan ----

void add_keys(Plan& plan, PyObject* names) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); ++i) {
    PyObject* const name = PyTuple_GET_ITEM(names, i);
    if (!PyUnicode_CheckExact(name)) fail(PyExc_TypeError, "the names of states are strings");
    PyObject* key = Py_NewRef(name);
    PyUnicode_InternInPlace(&key);
    plan.keys.push_back(Owned::checked(key));
  }
}

void add_entries(Plan& plan, PyObject* params, PyObject* states) {
  if (PyList_GET_SIZE(params) != PyList_GET_SIZE(states)) fail(PyExc_ValueError, "as many state dicts as parameters");
  plan.make_room(PyList_GET_SIZE(params));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params); ++i) {
    PyObject *const param = PyList_GET_ITEM(params, i), *const state = PyList_GET_ITEM(states, i);
    if (!tensor_impl(param) || !PyDict_Check(state)) fail(PyExc_TypeError, "a plan takes tensors and their state dicts");
    plan.entries.push_back({Owned::share(param), Owned::share(state)});
  }
}

// places: (number, offset) of each entry, as bytes.
void add_places(Plan& plan, PyObject* places) {
  if (PyBytes_GET_SIZE(places) != plan.count() * int64_t{sizeof(Place)}) fail(PyExc_ValueError, "places: two for each entry");
  plan.places.resize(plan.count());
  if (plan.count()) std::memcpy(plan.places.data(), PyBytes_AS_STRING(places), PyBytes_GET_SIZE(places));
}

void add_axes(Plan& plan, PyObject* axes) {
  if (PyTuple_GET_SIZE(axes) != plan.operands) fail(PyExc_ValueError, "axes: of each operand");
  plan.alike = plan.order == kAnyOrder && plan.outer == 0;
  for (int k = 0; k < plan.operands; ++k) {
    const long value = PyLong_AsLong(PyTuple_GET_ITEM(axes, k));
    require(value != -1 || !PyErr_Occurred());
    if (value < kNumber || value > (plan.sizes[k] > 0 ? kPacked : kElements)) fail(PyExc_ValueError, "axes: of program.py, added");
    plan.axes[k] = static_cast<int>(value);
    plan.alike &= value == kElements;
  }
}

void add_sizes(Plan& plan, PyObject* sizes) {
  if (PyTuple_GET_SIZE(sizes) != plan.operands) fail(PyExc_ValueError, "sizes: of a block, of each operand");
  for (int k = 0; k < plan.operands; ++k) {
    const long value = PyLong_AsLong(PyTuple_GET_ITEM(sizes, k));
    require(value != -1 || !PyErr_Occurred());
    if (value < 0) fail(PyExc_ValueError, "sizes: of a block, not negative");
    plan.sizes[k] = value;
    plan.block = std::max<int64_t>(plan.block, value);
  }
}

// examples: a tensor of the dtype of each operand, and of each 0-dim state on the device.
void add_types(Plan& plan, PyObject* examples) {
  const int tensors = plan.operands + (plan.device_scalars ? plan.scalar_states : 0);
  if (PyTuple_GET_SIZE(examples) != tensors) fail(PyExc_ValueError, "examples: one for each operand");
  for (int k = 0; k < tensors; ++k) {
    TensorImpl* const example = tensor_impl(PyTuple_GET_ITEM(examples, k));
    if (!example) fail(PyExc_TypeError, "examples are tensors");
    plan.types[k] = example->dtype();
    plan.dispatch_keys = example->key_set().raw_repr();
    plan.device = example->device();
    plan.itemsize[k] = static_cast<int64_t>(example->itemsize()) / plan.scale;
  }
}

// passes: None, or the addresses of passes.cpp's functions (make, room, run, free) and the rule, as bytes of int64.
void add_passes(Plan& plan, PyObject* described) {
  if (described == Py_None) return;
  unsigned long long make, room, run, free;
  PyObject* rule;
  if (plan.kernel || !PyTuple_Check(described)) fail(PyExc_TypeError, "passes: a tuple, where there is no kernel");
  require(PyArg_ParseTuple(described, "KKKKS", &make, &room, &run, &free, &rule));
  Passes& made = plan.passes;
  made.make = reinterpret_cast<decltype(made.make)>(make), made.room = reinterpret_cast<decltype(made.room)>(room);
  made.run = reinterpret_cast<decltype(made.run)>(run), made.free = reinterpret_cast<decltype(made.free)>(free);
  made.rule.resize(PyBytes_GET_SIZE(rule) / sizeof(int64_t));
  std::memcpy(made.rule.data(), PyBytes_AS_STRING(rule), made.rule.size() * sizeof(int64_t));
}

Plan described(PyObject* args, PyObject* named) {
  static const char* names[] = {"params", "states", "state_names", "scalar_names", "examples", "axes", "sizes", "places", "order",
                                "kernel", "passes", "columns", "scale", "device_scalars", nullptr};
  PyObject *params, *states, *state_names, *scalar_names, *examples, *axes, *sizes, *places, *passes;
  unsigned long long kernel;
  int device_scalars;
  Plan plan;
  require(PyArg_ParseTupleAndKeywords(args, named, "$O!O!O!O!O!O!O!SiKOiip", const_cast<char**>(names), &PyList_Type, &params,
                                      &PyList_Type, &states, &PyTuple_Type, &state_names, &PyTuple_Type, &scalar_names,
                                      &PyTuple_Type, &examples, &PyTuple_Type, &axes, &PyTuple_Type, &sizes, &places, &plan.order, &kernel,
                                      &passes, &plan.columns, &plan.scale, &device_scalars));
  const Py_ssize_t tensors = 2 + PyTuple_GET_SIZE(state_names) + PyTuple_GET_SIZE(scalar_names);
  if (tensors > kMostTensors) {
    PyErr_Format(PyExc_ValueError, "a plan takes at most %d tensors for each parameter, and got %zd", kMostTensors, tensors);
    throw PythonError();
  }
  plan.outer = plan.order >> kOuter, plan.order &= (1 << kOuter) - 1;
  if (plan.columns < 0 || plan.scale < 1 || plan.scale > 2 || plan.outer < 0 || plan.order < kAnyOrder || plan.order > kColumnAfterColumn)
    fail(PyExc_ValueError, "columns, scale or order is none that there is");
  plan.kernel = reinterpret_cast<Kernel>(kernel);
  add_passes(plan, passes);
  plan.device_scalars = device_scalars;
  plan.operands = 2 + static_cast<int>(PyTuple_GET_SIZE(state_names));
  plan.scalar_states = static_cast<int>(PyTuple_GET_SIZE(scalar_names));
  add_keys(plan, scalar_names);
  add_keys(plan, state_names);
  add_sizes(plan, sizes);
  add_axes(plan, axes);
  add_types(plan, examples);
  add_entries(plan, params, states);
  add_places(plan, places);
  return plan;
}

PyObject* plan_new(PyTypeObject* type, PyObject* args, PyObject* named) {
  return guarded([&] { return object_of(type, described(args, named)); });
}

PyMethodDef plan_methods[] = {
    {"gather", plan_method<plan_gather>, METH_VARARGS,
     "gather(table or None, threads, staged or None) -> 0 ready, 1 rows differ, 2 the plan no longer fits; takes what a launch needs"},
    {"launch", plan_method<plan_launch>, METH_VARARGS, "launch(table, threads): run the kernel over what gather found, and commit"},
    {"active", plan_method<plan_active>, METH_NOARGS, "active() -> [(entry, *scalar states)] of the last gather"},
    {"set_row", plan_method<plan_set_row>, METH_VARARGS, "set_row(entry, row)"},
    {"forget_rows", plan_method<plan_forget_rows>, METH_NOARGS, "forget_rows(): no entry has a row"},
    {"tables", plan_method<plan_tables>, METH_NOARGS,
     "tables() -> pointers, lengths, rows, pointers of 0-dim states, of the last gather"},
    {"extents", plan_method<plan_extents>, METH_NOARGS,
     "extents() -> (length, what no block reaches across, number, offset) of each entry in tables()"},
    {"shapes", plan_method<plan_shapes>, METH_NOARGS, "shapes() -> (matrices, rows, columns, number, offset) of each entry in tables()"},
    {"commit", plan_method<plan_commit>, METH_O, "commit(table): the 0-dim states and version counters, after a launch elsewhere"},
    {"sums", plan_method<plan_sums>, METH_VARARGS,
     "sums(kernel, operands, count, columns or None, width, threads) -> for each row, what the kernel sums of its parameters"},
    {"release", plan_method<plan_release>, METH_NOARGS, "release(): let go what gather held"},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot plan_slots[] = {{Py_tp_new, reinterpret_cast<void*>(plan_new)},
                            {Py_tp_dealloc, reinterpret_cast<void*>(dealloc<Plan>)},
                            {Py_tp_traverse, reinterpret_cast<void*>(plan_traverse)},
                            {Py_tp_clear, reinterpret_cast<void*>(plan_clear)},
                            {Py_tp_methods, plan_methods},
                            {0, nullptr}};
PyType_Spec plan_spec = {"compiledopt_launcher.Plan", sizeof(Object<Plan>), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                         plan_slots};

}  // namespace
