// A steady step as Python has it, and how it is made from what Python describes.
namespace {

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
