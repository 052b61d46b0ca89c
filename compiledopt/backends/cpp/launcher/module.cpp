// The launcher as a Python module.
namespace {

// Whether the optimizer still has the parameters and the state dicts that its plan was made from.
PyObject* unchanged(PyObject*, PyObject* args) {
  return guarded([&] {
    PyObject *groups, *params, *state, *states, *waiting;
    require(PyArg_ParseTuple(args, "O!O!O!O!O!", &PyList_Type, &groups, &PyList_Type, &params, &PyDict_Type, &state,
                             &PyList_Type, &states, &PyList_Type, &waiting));
    return truth(same_params(groups, params) && same_states(state, states) && no_gradients(waiting));
  });
}

bool finds_tensors_at(size_t offset, PyObject* tensor, unsigned long long address) {
  TensorImpl* const impl = impl_at(tensor, offset);
  if (reinterpret_cast<uintptr_t>(impl) < 4096 || reinterpret_cast<uintptr_t>(impl) % alignof(TensorImpl)) return false;
  return reinterpret_cast<unsigned long long>(impl->data()) == address;
}

// probe(tensor, its data_ptr(), Tensor, Parameter): finds where this build of torch keeps the TensorImpl* in a Python
// tensor. In torch 2.11 to 2.13 it follows the object's head; older ones had a flag before it.
PyObject* probe(PyObject*, PyObject* args) {
  return guarded([&] {
    PyObject *tensor, *base, *parameter;
    unsigned long long address;
    require(PyArg_ParseTuple(args, "OKO!O!", &tensor, &address, &PyType_Type, &base, &PyType_Type, &parameter));
    if (!PyObject_TypeCheck(tensor, reinterpret_cast<PyTypeObject*>(base))) fail(PyExc_TypeError, "probe takes a tensor");
    for (size_t offset : {sizeof(PyObject), sizeof(PyObject) + sizeof(void*)}) {
      if (!finds_tensors_at(offset, tensor, address)) continue;
      tensor_offset = offset;
      plain_keys = impl_at(tensor, offset)->key_set().raw_repr();
      tensor_type = reinterpret_cast<PyTypeObject*>(Py_NewRef(base));
      parameter_type = reinterpret_cast<PyTypeObject*>(Py_NewRef(parameter));
      return truth(true);
    }
    return truth(false);
  });
}

// evaluate(scalar part, inputs) -> (columns, new states), as a steady step computes them.
PyObject* evaluate(PyObject*, PyObject* args) {
  return guarded([&] {
    PyObject *described, *inputs;
    require(PyArg_ParseTuple(args, "OO", &described, &inputs));
    ScalarPart part = scalars_of(described);
    PyObject** const given = items_of(inputs, part.inputs);
    for (int64_t i = 0; i < part.inputs; ++i) part.values[i] = floating(given[i]);
    part.evaluate();
    const auto listed = [&](const std::vector<int32_t>& places) {
      Owned list = Owned::checked(PyList_New(0));
      for (const int32_t place : places)
        require(PyList_Append(list.get(), Owned::checked(PyFloat_FromDouble(part.values[place])).get()) == 0);
      return list;
    };
    const Owned columns = listed(part.columns), states = listed(part.states);
    return Owned::checked(PyTuple_Pack(2, columns.get(), states.get()));
  });
}

// launch(as `prepared` describes it, stream) -> whether the driver took it.
PyObject* launch_once(PyObject*, PyObject* args) {
  return guarded([&] {
    PyObject* described;
    unsigned long long stream;
    require(PyArg_ParseTuple(args, "OK", &described, &stream));
    return truth(launch_of(described, 0).run(stream));
  });
}

PyMethodDef functions[] = {{"unchanged", unchanged, METH_VARARGS, "whether groups, parameters and states are the same"},
                           {"probe", probe, METH_VARARGS, "find the layout of this torch's tensors"},
                           {"launch", launch_once, METH_VARARGS, "launch(described, stream) -> whether the driver took it"},
                           {"evaluate", evaluate, METH_VARARGS, "evaluate(scalar part, inputs) -> (columns, new states)"},
                           {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "compiledopt_launcher", nullptr, -1, functions};

}  // namespace

PyMODINIT_FUNC PyInit_compiledopt_launcher() {
  return guarded([] {
    Owned key = Owned::checked(PyUnicode_InternFromString("params"));
    Owned self = Owned::checked(PyModule_Create(&module));
    Owned type = Owned::checked(PyType_FromSpec(&plan_spec));
    require(PyModule_AddObjectRef(self.get(), "Plan", type.get()) == 0);
    Owned steady = Owned::checked(PyType_FromSpec(&steady_spec));
    require(PyModule_AddObjectRef(self.get(), "Steady", steady.get()) == 0);
    Owned operations = Owned::checked(PyFrozenSet_New(nullptr));
    for (const numbers::Operation& one : numbers::kOperations)
      require(PySet_Add(operations.get(), Owned::checked(PyUnicode_FromString(one.name)).get()) == 0);
    require(PyModule_AddObjectRef(self.get(), "OPERATIONS", operations.get()) == 0);
    require(runs_without_gil(self.get()));
    plan_type_object = reinterpret_cast<PyTypeObject*>(type.release());
    params_key = key.release();
    return self;
  });
}
