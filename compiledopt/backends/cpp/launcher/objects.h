// The launcher: gathers the tensors of a whole model and runs one kernel over all of them.
//
// It is compiled once per machine, beside the imports of Dynamo and Inductor, against c10 alone: torch's own Python header would
// cost 9 s. Written in C++ because a step over 2000 tensors must not cost 2000 Python attribute look-ups: reading
// `p.grad` alone takes 0.11 ms there, the whole step below less than that.
//
// kernels.py joins the files of this folder, in the order that stands there; each may name what stands before it.
#include <Python.h>

#include <c10/core/TensorImpl.h>
#include <c10/core/UndefinedTensorImpl.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using c10::TensorImpl;

struct PythonError {};  // thrown where Python already knows what is wrong

[[noreturn]] void fail(PyObject* type, const char* words) {
  PyErr_SetString(type, words);
  throw PythonError();
}

// A reference of one's own to a Python object.
class Owned {
 public:
  Owned() = default;
  Owned(Owned&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  // Out of line, as `checked` is: in line there would be hundreds of copies to compile, and no step is faster for it.
  __attribute__((noinline)) ~Owned() { Py_XDECREF(object_); }

  // What a function of Python's returned: a new reference, or null with an error set.
  __attribute__((noinline)) static Owned checked(PyObject* made) {
    if (!made) throw PythonError();
    return Owned(made);
  }
  static Owned share(PyObject* object) { return Owned(Py_NewRef(object)); }

  PyObject* get() const { return object_; }
  PyObject* release() { return std::exchange(object_, nullptr); }

 private:
  explicit Owned(PyObject* object) : object_(object) {}
  PyObject* object_ = nullptr;
};

Owned none() { return Owned::share(Py_None); }
Owned truth(bool value) { return Owned::share(value ? Py_True : Py_False); }

Owned floats_of(const std::vector<double>& values) {
  Owned list = Owned::checked(PyList_New(values.size()));
  for (size_t i = 0; i < values.size(); ++i) PyList_SET_ITEM(list.get(), i, Owned::checked(PyFloat_FromDouble(values[i])).release());
  return list;
}

void require(bool done) {
  if (!done) throw PythonError();
}

// Python without a GIL: one thread at a time is in the launcher, as with one. A critical section is let go wherever the GIL would
// be, so that launches of several optimizers run beside each other.
#ifdef Py_GIL_DISABLED
PyObject* turn = nullptr;

class InTurn {
 public:
  InTurn() : taken_(turn != nullptr) {
    if (taken_) PyCriticalSection_Begin(&section_, turn);
  }
  InTurn(const InTurn&) = delete;
  ~InTurn() {
    if (taken_) PyCriticalSection_End(&section_);
  }

 private:
  PyCriticalSection section_;
  bool taken_;
};

bool runs_without_gil(PyObject* module) {
  turn = module;
  return PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED) == 0;
}
#else
struct InTurn {
  InTurn() {}
};

bool runs_without_gil(PyObject*) { return true; }
#endif

// Every entry from Python goes through here: no exception of C++ may cross into Python.
template <class F> PyObject* guarded(F&& body) noexcept {
  const InTurn in_turn;
  try {
    return body().release();
  } catch (const PythonError&) {
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  } catch (...) {
    PyErr_SetString(PyExc_RuntimeError, "an exception of an unknown kind in the launcher");
  }
  return nullptr;
}

// Before Python 3.13 a dict has a number that no other has, and that is another one after each change.
#if PY_VERSION_HEX < 0x030D0000
uint64_t version_of(PyObject* dict) { return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag; }
bool has_version(PyObject* dict, uint64_t version) { return version_of(dict) == version; }
#else
uint64_t version_of(PyObject*) { return 0; }
bool has_version(PyObject*, uint64_t) { return false; }
#endif


template <class T> struct Object {
  PyObject_HEAD
  T value;
};

template <class T> T& value_of(PyObject* self) { return reinterpret_cast<Object<T>*>(self)->value; }

template <class T> Owned object_of(PyTypeObject* type, T&& value) {
  static_assert(std::is_nothrow_move_constructible_v<T>);
  Owned self = Owned::checked(type->tp_alloc(type, 0));
  new (&value_of<T>(self.get())) T(std::move(value));
  return self;
}

template <class T> void dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  value_of<T>(self).~T();
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

template <class T, Owned (*body)(T&, PyObject*)> PyObject* method(PyObject* self, PyObject* args) {
  return guarded([&] { return body(value_of<T>(self), args); });
}

}  // namespace
