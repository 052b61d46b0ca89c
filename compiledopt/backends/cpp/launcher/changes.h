// The steady step: one call for a step of a plan, for as long as nothing changed since Python looked.
//
// Between two steps of training a model runs through the caches, and then every line of Python of ours is fetched anew. So
// what tells that nothing changed, the numbers of the groups, the scalar part, gather, launch and commit are one call here.
// Where anything is not as it was, it answers false, nothing is written, and Python takes the step.
// What may have changed since Python looked.
namespace {

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

}  // namespace
