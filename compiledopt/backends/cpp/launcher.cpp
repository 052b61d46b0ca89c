// The launcher: gathers the tensors of a whole model and runs one kernel over all of them.
//
// It is compiled once per machine, beside the imports of Dynamo and Inductor, against c10 alone: torch's own Python header would
// cost 9 s. Written in C++ because a step over 2000 tensors must not cost 2000 Python attribute look-ups: reading
// `p.grad` alone takes 0.11 ms there, the whole step below less than that.
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

// shared.h, runtime.h, numbers.h and tiles.h stand before this file, steady.cpp and module.cpp after it: kernels.py joins them.
namespace {

using c10::TensorImpl;
using Kernel = void (*)(void* const* pointers, const double* scalars, int64_t length);

constexpr int64_t kAlignment = 64;          // elements: a share starts on whole cache lines and whole vectors
// Parameters: likewise (perf/step.py --between emptied --shapes tiny many_small).
constexpr int64_t kEntriesPerThread = 128;
// Of what is launched elsewhere: the threads of the host sleep there, and waking one takes as long as reading some hundred.
constexpr int64_t kEntriesPerSleeper = 1024;
// Elements from which the GIL is let go: of a launch, where its tensors are long enough, and of any launch (2 ms). Holding the
// 1500 tensors of 300 parameters took 70 of the 240 µs of their step.
constexpr int64_t kGilElements = 1 << 18, kGilElementsEach = 1 << 12, kGilElementsAlways = 1 << 22;
constexpr int64_t kLine = 64;               // bytes of a line of the caches
constexpr int64_t kSmall = 256;             // elements
constexpr int64_t kBlock = 1 << 16;         // elements: a sum's parts, however many threads there are
constexpr int64_t kAhead = 4;               // parameters: how early memory is asked for
constexpr int64_t kDataAhead = 4;           // parameters, of their elements

// ---- Python's objects and errors ----

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

// ---- tensors ----

// Where a Python tensor keeps its TensorImpl*, and which dispatch keys a plain CPU tensor has: found by `probe`.
size_t tensor_offset = 0;
uint64_t plain_keys = 0;
PyTypeObject* tensor_type = nullptr;
PyTypeObject* parameter_type = nullptr;
PyObject* params_key = nullptr;

TensorImpl* impl_at(PyObject* object, size_t offset) {
  TensorImpl* impl;
  std::memcpy(&impl, reinterpret_cast<char*>(object) + offset, sizeof impl);
  return impl;
}

TensorImpl* tensor_impl(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  if (type != tensor_type && type != parameter_type && !PyType_IsSubtype(type, tensor_type)) return nullptr;
  return impl_at(object, tensor_offset);
}

TensorImpl* gradient_of(TensorImpl* param) {
  TensorImpl* impl;
  std::memcpy(&impl, static_cast<const void*>(&param->grad()), sizeof impl);
  return impl == c10::UndefinedTensorImpl::singleton() ? nullptr : impl;
}

// A dense tensor with autograd's keys and no others: no sparse, quantized, conjugate, inference or wrapper tensor. Of any
// other, even the sizes may be computed by code that raises.
bool is_plain(const TensorImpl* impl, uint64_t keys) { return impl->key_set().raw_repr() == keys; }

// Written out, because IntArrayRef's == is a call of memcmp, and this runs four times per parameter.
inline __attribute__((always_inline)) bool same_layout(const TensorImpl* a, const TensorImpl* b) {
  const auto sizes = a->sizes(), others = b->sizes();
  if (sizes.size() != others.size()) return false;
  const auto left = a->strides(), right = b->strides();
  bool strides = true;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] != others[d]) return false;
    strides &= sizes[d] == 1 || left[d] == right[d];
  }
  return strides || a->numel() == 0;
}

// Whether a parameter lies in memory as the plan was made for. outer: how many dimensions, from the first, must lie around all
// others, in their order.
bool lies_in(const TensorImpl* param, int order, int outer) {
  const auto sizes = param->sizes(), strides = param->strides();
  const int64_t dims = param->dim();
  if (outer > 0) {
    if (outer >= dims) return false;
    int64_t expected = 1;
    for (int64_t d = outer; d < dims; ++d) expected *= sizes[d];
    for (int64_t d = outer - 1; d >= 0; --d) {
      if (sizes[d] != 1 && strides[d] != expected && param->numel() != 0) return false;
      expected *= sizes[d];
    }
  }
  if (order == kAnyOrder) return true;
  int64_t expected = 1;
  for (int64_t i = 0; i < dims; ++i) {
    int64_t d = dims - 1 - i;
    if (order == kColumnAfterColumn && i < 2 && dims >= 2) d = dims - 2 + i;
    if (sizes[d] != 1 && strides[d] != expected && param->numel() != 0) return false;
    expected *= sizes[d];
  }
  return true;
}

// How many rows no block reaches across, and their length: a vector is one.
int64_t rows_of(const TensorImpl* param) { return param->dim() > 1 ? param->size(0) : 1; }
int64_t row_of(const TensorImpl* param) { return param->numel() / std::max<int64_t>(1, rows_of(param)); }

// Whether a tensor has one value for each row or the like of its parameter, one after the other, with or without dimensions of
// size 1 for the others.
bool is_reduced(const TensorImpl* param, const TensorImpl* impl, int axes, int order, int outer) {
  const auto sizes = param->sizes(), own = impl->sizes();
  const int64_t dims = param->dim();
  if (!impl->is_contiguous()) return false;
  size_t at = 0;
  for (int64_t d = 0; d < dims; ++d) {
    const bool is_row = outer > 0 ? d < outer : (d + 1 == dims) == (order == kColumnAfterColumn);
    const bool is_matrix = outer == 0 && d + 2 < dims;
    if (!(axes & (is_matrix ? kMatrices : is_row ? kRows : kColumns)) || sizes[d] == 1) continue;
    while (at < own.size() && own[at] == 1) ++at;
    if (at == own.size() || own[at++] != sizes[d]) return false;
  }
  while (at < own.size() && own[at] == 1) ++at;
  return at == own.size();
}

// TensorImpl::data() without its out-of-line checks: a plain dense tensor (`is_plain`) has a storage.
void* data_of(const TensorImpl* impl, bool written) {
  const auto* storage = impl->unsafe_storage().unsafeGetStorageImpl();
  if (impl->numel() == 0) return nullptr;
  void* base = written ? const_cast<c10::StorageImpl*>(storage)->mutable_data() : const_cast<void*>(storage->data());
  return static_cast<char*>(base) + impl->storage_offset() * static_cast<int64_t>(impl->itemsize());
}

// Read as what will be written: a storage that is copied at its first write is copied here, where it may still fail.
double read_scalar(const TensorImpl* impl) {
  const void* data = data_of(impl, true);
  if (impl->dtype() == caffe2::TypeMeta::Make<double>()) return *static_cast<const double*>(data);
  return *static_cast<const float*>(data);
}

void write_scalar(const TensorImpl* impl, double value) {
  if (impl->dtype() == caffe2::TypeMeta::Make<double>())
    *static_cast<double*>(data_of(impl, true)) = value;
  else
    *static_cast<float*>(data_of(impl, true)) = static_cast<float>(value);
}

bool is_scalar(const TensorImpl* impl) {
  return is_plain(impl, plain_keys) && impl->numel() == 1 &&
      (impl->dtype() == caffe2::TypeMeta::Make<float>() || impl->dtype() == caffe2::TypeMeta::Make<double>());
}

// ---- a plan ----

struct Entry {
  Owned param, state;
  int32_t row = -1;
  uint64_t version = 0;  // of the state dict, when its tensors were looked up

  TensorImpl* impl() const { return impl_at(param.get(), tensor_offset); }
};

// What keeps a tensor and its memory alive: another thread may give the tensor another storage (`p.data = ...`).
struct Hold {
  c10::intrusive_ptr<TensorImpl> tensor;
  c10::Storage storage;
};

// The tensors of one parameter: the operands of the kernel, which begin with the parameter and its gradient, then the 0-dim
// states.
struct Found {
  TensorImpl** tensors;
  int operands;

  TensorImpl*& param() const { return tensors[0]; }
  TensorImpl*& grad() const { return tensors[1]; }
  TensorImpl*& operand(int k) const { return tensors[k]; }
  TensorImpl*& state(int k) const { return tensors[2 + k]; }
  TensorImpl*& scalar(int k) const { return tensors[operands + k]; }
};

// The operand that is read only.
constexpr int kGrad = 1;
constexpr auto kAllOperands = [] {
  std::array<int, kMostTensors> all{};
  for (int k = 0; k < kMostTensors; ++k) all[k] = k;
  return all;
}();

// What runs a rule that reduces: functions of passes.cpp, which is a library of its own, and what they laid out for the shapes of
// the last gather.
struct Passes {
  Outcome (*make)(const int64_t* rule, int64_t count, const Shape* shapes, const Place* places, int64_t threads, void** made) = nullptr;
  int64_t (*room)(const void* work) = nullptr;
  void (*run)(void* work, void* const* pointers, const double* table, int64_t width, const int64_t* rows, char* memory) = nullptr;
  void (*free)(void* work) = nullptr;
  std::vector<int64_t> rule;  // as reducing.py writes it

  // Of the parameters that have a gradient.
  std::vector<Shape> shapes, shapes_there;
  std::vector<Place> places, places_there;
  std::vector<void*> pointers;
  std::vector<int64_t> rows;
  int64_t threads = 0;
  std::unique_ptr<void, void (*)(void*)> work{nullptr, nullptr};
  std::vector<char> memory;

  explicit operator bool() const { return make != nullptr; }
};

// How far a gather came: nothing; every tensor was read; and the rows of the table fit them as well.
enum Stage : int { kNothing = 0, kSeen = 1, kInRows = 2 };

struct Plan {
  // As it was described.
  Kernel kernel = nullptr;  // null where there are passes, and where the kernel is launched elsewhere
  Passes passes;
  int operands = 0;         // param, grad, states
  int scalar_states = 0;    // 0-dim states: step, ...
  int columns = 0;          // scalars the kernel reads, per row
  int scale = 1;            // 2 where a complex tensor is two reals
  int order = kAnyOrder;
  int outer = 0;            // how many dimensions, from the first, make up a row each; 0: the last two are rows and columns
  bool alike = true;            // all operands have the parameter's shape, and any dense order of it will do
  bool device_scalars = false;  // the 0-dim states live on the device: their pointers are gathered, nothing is read
  uint64_t dispatch_keys = 0;   // of a plain tensor on the plan's device
  c10::Device device{c10::DeviceType::CPU};
  std::array<caffe2::TypeMeta, kMostTensors> types;
  std::array<int, kMostTensors> axes{};
  std::array<int64_t, kMostTensors> itemsize{};
  std::vector<Owned> keys;  // of the state dicts: the scalar states, then the others
  std::vector<Entry> entries;
  std::vector<Place> places;
  int most_row = -1;
  int64_t block = 0;  // elements that share a scale, where values are kept in blocks: the largest of the sizes
  std::array<int64_t, kMostTensors> sizes{};  // elements of a block, of operands that are scales or packed
  int64_t layout = 0;  // another one after each change of the rows

  // What `gather` found, for `launch`.
  Stage stage = kNothing;
  std::vector<int64_t> room;  // for tiles, of each thread; none where all parameters lie row after row
  int64_t room_each = 0;
  std::vector<int64_t> lengths;  // of each entry; -1 without a gradient
  std::vector<int64_t> starts;   // prefix sums of the lengths
  std::vector<Hold> held;        // while the GIL is let go
  bool busy = false;             // a thread has let the GIL go

  bool runs_here() const { return kernel || passes; }
  int tensors() const { return operands + scalar_states; }
  int width() const { return columns + 2 * scalar_states; }  // of a row of the table
  int64_t count() const { return static_cast<int64_t>(entries.size()); }
  int64_t elements() const { return starts.back(); }
  // Columns of a tile, and its rows. Where rows follow each other in memory, one.
  int64_t tile_columns(int64_t rows) const { return (kTileElements / rows + block - 1) / block * block; }
  int64_t tile_rows(const TensorImpl* param) const {
    const auto strides = param->strides();
    return *std::max_element(strides.begin(), strides.end()) == strides[0] ? 1 : kTileRows;
  }
  int64_t* room_of(int64_t thread) const { return const_cast<int64_t*>(room.data()) + thread * room_each; }
  // Takes it, before anything is written.
  void make_room_for_tiles(int64_t threads) {
    const int64_t most = std::max(tile_columns(1), kTileRows * tile_columns(kTileRows)), words = most * operands;
    room_each = most + words;  // offsets, and values of at most 8 bytes
    if (static_cast<int64_t>(room.size()) < threads * room_each) room.resize(threads * room_each);
  }
  bool has_gradient(int64_t entry) const { return lengths[entry] >= 0; }

  Found found(int64_t entry) const { return {const_cast<TensorImpl**>(found_.data()) + entry * tensors(), operands}; }
  void*& data(int64_t entry, int operand) { return data_[entry * operands + operand]; }
  char* data(int64_t entry, int operand) const { return static_cast<char*>(data_[entry * operands + operand]); }
  // Of the last gather, to ask the memory for it early.
  const void*& storage(int64_t entry, int tensor) { return storages_[entry * tensors() + tensor]; }
  // The state's Python objects, which live for as long as the dict has the entry's version.
  PyObject*& object(int64_t entry, int key) { return objects_[entry * (tensors() - 2) + key]; }

  void make_room(size_t entry_count) {
    found_.resize(entry_count * tensors());
    storages_.resize(entry_count * tensors());
    objects_.resize(entry_count * (tensors() - 2));
    data_.resize(entry_count * operands);
    lengths.assign(entry_count, -1);
    starts.reserve(entry_count + 1);
    entries.reserve(entry_count);
  }
  // Called after the launch: what was gathered is out of date.
  void release() {
    held.clear();
    stage = kNothing;
  }
  // A launch that lets the GIL go holds every tensor. The room for that is taken before anything is written.
  bool lets_gil_go() const {
    const int64_t most = std::min(count() * kGilElementsEach, kGilElementsAlways);
    return runs_here() ? elements() >= std::max(kGilElements, most) : device.is_cpu();
  }
  void hold_all() {
    if (!held.empty()) return;
    for (int64_t i = 0; i < count(); ++i)
      for (int t = 0; t < tensors() && has_gradient(i); ++t) {
        TensorImpl* const impl = found(i).tensors[t];
        held.push_back({c10::intrusive_ptr<TensorImpl>::reclaim_copy(impl), impl->unsafe_storage()});
      }
  }

 private:
  std::vector<TensorImpl*> found_;
  std::vector<void*> data_;
  std::vector<const void*> storages_;
  std::vector<PyObject*> objects_;
};

// The scalars of a step. A row is [columns the kernel reads | scalar states as they must be | scalar states as they become].
struct Rows {
  explicit Rows(const Plan& plan) : width(plan.width()), scalars(plan.scalar_states), of_kernel(plan.columns) {}

  const double* columns(int32_t row) const { return numbers + int64_t{row} * width; }
  double expected(int32_t row, int k) const { return columns(row)[of_kernel + k]; }
  double fresh(int32_t row, int k) const { return columns(row)[of_kernel + scalars + k]; }

  const double* numbers = nullptr;
  int width, scalars, of_kernel;
};

// Rows that Python computed.
class Table : public Rows {
 public:
  Table(const Plan& plan, PyObject* object) : Rows(plan) {
    require(PyObject_GetBuffer(object, &view_, PyBUF_SIMPLE) == 0);
    numbers = static_cast<const double*>(view_.buf);
    const int64_t needed = (plan.most_row + int64_t{1}) * width * int64_t{sizeof(double)};
    const bool aligned = reinterpret_cast<uintptr_t>(view_.buf) % alignof(double) == 0;
    if (needed == 0 || (view_.len >= needed && aligned) || (plan.device_scalars && !plan.runs_here())) return;
    PyErr_Format(PyExc_ValueError, "a table of %zd bytes, where %lld rows of %d float64 are needed", view_.len,
                 static_cast<long long>(plan.most_row + int64_t{1}), width);
    PyBuffer_Release(&view_);
    throw PythonError();
  }
  Table(const Table&) = delete;
  ~Table() { PyBuffer_Release(&view_); }

 private:
  Py_buffer view_{};
};

// ---- gather ----

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
          scalar->dtype() != plan.types[plan.operands + k])
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
        (k && alike && !same_layout(param, operand)))
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

// ---- launch ----

// The memory of a tensor, while kernels run on those before it: too short for the processor to see a stream.
void fetch_data(const Plan& plan, size_t i) {
  const int64_t length = std::min(plan.starts[i + 1] - plan.starts[i], kSmall);
  for (int k = 0; k < plan.operands; ++k) {
    const char* data = plan.data(i, k);
    for (int64_t offset = 0; offset < length * plan.itemsize[k]; offset += 64) __builtin_prefetch(data + offset);
  }
}

// What a kernel is given of a parameter whose values are kept in blocks, and how it is told of a piece.
template <class F> void run_piece(const Plan& plan, int64_t i, int64_t at, int64_t count, int64_t row, void** pointers, F&& kernel) {
  const Place& own = plan.places[i];
  Piece piece{static_cast<int32_t>(own.offset + at), static_cast<int32_t>(own.number), row};
  kernel(pointers, &piece, count);
}

// Where such an operand has element `at`, which begins a block.
void* block_at(const Plan& plan, int64_t i, int operand, int64_t at, int64_t row) {
  const auto before = [&](int64_t length) { return values_of(plan.axes[operand], plan.sizes[operand], length); };
  return plan.data(i, operand) + (at / row * before(row) + before(at % row)) * plan.itemsize[operand];
}

// The elements [begin, end) of a parameter that does not lie row after row, which begin and end at blocks: tile by tile in that
// order. operands: those that the kernel is given; room: of this thread.
template <class F>
void run_tiles(const Plan& plan, int64_t i, int64_t begin, int64_t end, const int* operands, int count, bool writes, int64_t* room, F&& kernel) {
  const TensorImpl* const param = plan.found(i).param();
  const Strides strides{param->sizes().data(), param->strides().data(), param->dim()};
  const int64_t row = row_of(param), rows = plan.tile_rows(param), columns = plan.tile_columns(rows), most = rows * columns;
  const auto own = [&](int k) { return reinterpret_cast<char*>(room + most * (1 + k)); };
  const auto is_own = [&](int k) { return plan.axes[operands[k]] == kElements; };
  int64_t first = -1, known = 0;  // the columns whose offsets are known: all rows have the same
  for_each_tile(begin, end, row, rows, columns, [&](const Tile& tile) {
    if (tile.first_column != first || tile.columns > known)
      offsets_in_row(strides, first = tile.first_column, known = tile.columns, room);
    const auto move = [&](int k, auto back) {
      if (is_own(k))
        move_tile<back.value>(tile, plan.data(i, operands[k]), own(k), plan.itemsize[operands[k]], strides.strides[0], room);
    };
    for (int k = 0; k < count; ++k) move(k, std::false_type());
    for (int64_t r = 0; r < tile.rows; ++r) {
      void* pointers[kMostTensors + 2];
      const int64_t at = (tile.first_row + r) * row + tile.first_column;
      for (int k = 0; k < count; ++k)
        pointers[k] = is_own(k) ? own(k) + r * tile.columns * plan.itemsize[operands[k]] : block_at(plan, i, operands[k], at, row);
      run_piece(plan, i, at, tile.columns, tile.columns, pointers, kernel);
    }
    for (int k = 0; k < count && writes; ++k)
      if (operands[k] != kGrad) move(k, std::true_type());
  });
}

// The elements [begin, end) of a parameter whose values are kept in blocks: each end is moved on to where whole blocks, or rows
// that are no whole number of blocks, begin; so the neighbouring share begins there.
void run_blocks(const Plan& plan, const Rows& table, size_t i, int64_t begin, int64_t end, int64_t* room) {
  const TensorImpl* const param = plan.found(i).param();
  const int64_t length = plan.starts[i + 1] - plan.starts[i], row = row_of(param), block = plan.block;
  const bool in_order = param->is_contiguous(), flat = in_order && (row % block == 0 || row == length);
  const int64_t unit = flat ? std::max(kAlignment, block) : row * (in_order ? 1 : plan.tile_rows(param));
  const auto edge = [&](int64_t at) { return std::min((at + unit - 1) / unit * unit, length); };
  begin = edge(begin), end = edge(end);
  if (begin >= end) return;
  const double* const columns = table.columns(plan.entries[i].row);
  const auto kernel = [&](void** pointers, Piece* piece, int64_t count) {
    pointers[plan.operands] = piece;
    plan.kernel(pointers, columns, count);
  };
  if (!in_order) return run_tiles(plan, i, begin, end, kAllOperands.data(), plan.operands, true, room, kernel);
  void* pointers[kMostTensors + 1];
  for (int k = 0; k < plan.operands; ++k) pointers[k] = block_at(plan, i, k, begin, row);
  run_piece(plan, i, begin, end - begin, flat ? end - begin : row, pointers, kernel);
}

// The new 0-dim states, and the version counters that tell autograd of a write.
void commit_entry(const Plan& plan, const Rows& table, int64_t i) {
  if (!plan.has_gradient(i)) return;
  const Found found = plan.found(i);
  for (int k = 0; k < plan.scalar_states && !plan.device_scalars; ++k)
    write_scalar(found.scalar(k), table.fresh(plan.entries[i].row, k));
  for (int t = 0; t < plan.tensors(); ++t)
    if (t != kGrad) found.tensors[t]->bump_version();
}

void commit_all(const Plan& plan, const Rows& table) {
  for (int64_t i = 0; i < plan.count(); ++i) commit_entry(plan, table, i);
}

// The share [begin, end) of the concatenation of all tensors, piece by piece. A parameter is committed with its last element,
// while its tensors are in the caches still, and those without elements with what stands before them. share: its number,
// 0 where nothing stands before it.
void run_share(const Plan& plan, const Rows& table, int64_t share, int64_t begin, int64_t end) {
  const bool first = share == 0;
  const auto& starts = plan.starts;
  const size_t count = starts.size() - 1;
  size_t i = first ? 0 : std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
  void* pieces[kMostTensors + 1];
  for (; i < count && starts[i] <= end; ++i) {
    const int64_t stop = std::min(end, starts[i + 1]);
    if (plan.block && stop > begin) {
      run_blocks(plan, table, i, begin - starts[i], stop - starts[i], plan.room_of(share));
      begin = stop;
    } else if (stop > begin) {
      if (i + kDataAhead < count && stop - begin < kSmall) fetch_data(plan, i + kDataAhead);
      const int64_t offset = begin - starts[i];
      for (int k = 0; k < plan.operands; ++k) pieces[k] = plan.data(i, k) + offset * plan.itemsize[k];
      const Place& place = plan.places[i];
      int32_t at[] = {static_cast<int32_t>(place.offset + offset), static_cast<int32_t>(place.number)};
      pieces[plan.operands] = at;  // for kernels that read random numbers
      plan.kernel(pieces, table.columns(plan.entries[i].row), stop - begin);
      begin = stop;
    }
    if (stop == starts[i + 1]) commit_entry(plan, table, i);
  }
}

// A parameter as the passes see it: as it lies in memory.
Shape shape_of(const Plan& plan, int64_t i) {
  const TensorImpl* const param = plan.found(i).param();
  const int64_t length = plan.lengths[i];
  const auto sizes = param->sizes();
  const bool matrix = plan.order != kAnyOrder && sizes.size() >= 2;
  int64_t rows = matrix ? sizes[sizes.size() - 2] : 1, columns = matrix ? sizes[sizes.size() - 1] : length;
  if (plan.order == kColumnAfterColumn) std::swap(rows, columns);
  if (plan.outer > 0) {
    rows = 1;
    for (int d = 0; d < plan.outer; ++d) rows *= sizes[d];
    columns = rows ? length / rows : 0;
  }
  return {length ? length / (rows * columns) : 0, rows, columns, row_of(param)};
}

// Between a gather and a launch: what the passes over these parameters keep, which is what asks for memory.
void lay_out(Plan& plan, int most_threads) {
  Passes& passes = plan.passes;
  const Stage stage = std::exchange(plan.stage, kNothing);  // until all is there
  passes.shapes.clear(), passes.places.clear(), passes.pointers.clear(), passes.rows.clear();
  for (int64_t i = 0; i < plan.count(); ++i) {
    if (!plan.has_gradient(i)) continue;
    passes.shapes.push_back(shape_of(plan, i));
    passes.places.push_back(plan.places[i]);
    for (int k = 0; k < plan.operands; ++k) passes.pointers.push_back(plan.data(i, k));
    passes.rows.push_back(plan.entries[i].row);
  }
  const int64_t threads = std::clamp<int64_t>(plan.elements() / kWorkPerThread, 1, std::max(most_threads, 1));
  if (passes.work && passes.threads == threads && passes.shapes == passes.shapes_there && passes.places == passes.places_there) {
    plan.stage = stage;
    return;
  }
  passes.work.reset();
  void* made = nullptr;
  const auto count = static_cast<int64_t>(passes.shapes.size());
  const Outcome outcome = passes.make(passes.rule.data(), count, passes.shapes.data(), passes.places.data(), threads, &made);
  if (outcome == kNoMemory) fail(PyExc_MemoryError, "no memory for what the passes of a rule keep");
  if (outcome != kDone) fail(PyExc_RuntimeError, "the passes of a rule could not be laid out");
  std::unique_ptr<void, void (*)(void*)> work(made, passes.free);
  passes.memory.resize(passes.room(made) + kLine);
  passes.shapes_there = passes.shapes, passes.places_there = passes.places;
  passes.threads = threads, passes.work = std::move(work), plan.stage = stage;
}

void run_passes(const Plan& plan, const Rows& table) {
  const Passes& passes = plan.passes;
  const auto begin = reinterpret_cast<uintptr_t>(passes.memory.data());
  char* const memory = reinterpret_cast<char*>((begin + kLine - 1) / kLine * kLine);
  passes.run(passes.work.get(), passes.pointers.data(), table.numbers, table.width, passes.rows.data(), memory);
  commit_all(plan, table);
}

void run_all(const Plan& plan, const Rows& table, int threads) {
  if (plan.passes) return run_passes(plan, table);
  const int64_t total = plan.elements();
  threads = static_cast<int>(std::min<int64_t>(threads, std::max(total / kWorkPerThread, plan.count() / kEntriesPerThread)));
  if (!plan.room.empty()) threads = std::min<int>(threads, plan.room.size() / plan.room_each);
  if (threads <= 1) return run_share(plan, table, 0, 0, total);
  const auto edge = [&](int64_t k) { return k == threads ? total : total / threads * k / kAlignment * kAlignment; };
  for_each_share(threads, [&](int64_t t) { run_share(plan, table, t, edge(t), edge(t + 1)); });
}

// What a kernel sums over all parameters: which operands it reads, and how many sums it makes of a piece.
struct Sums {
  Kernel kernel = nullptr;
  int reads = 0, count = 1;
  std::array<int, kMostTensors> operands{};
  bool in_blocks = false;         // whether some of those have a value for each block, or are packed
  const double* columns = nullptr;  // rows of `width` numbers that the kernel reads, or null where it reads none
  int64_t width = 0, rows = 1;
};

// The sums of a kernel's results over a block of a parameter; where values share scales, by whole rows and parts of rows, which
// begin and end where blocks do.
void sum_block(const Plan& plan, const Sums& wanted, int64_t i, int64_t begin, double* sums, int64_t* room) {
  const int64_t length = plan.lengths[i];
  int64_t end = std::min(begin + kBlock, length), row = length;
  if (wanted.in_blocks) {
    row = row_of(plan.found(i).param());
    begin = block_edge(begin, row, plan.block), end = block_edge(end, row, plan.block);
  }
  const double* columns = wanted.columns ? wanted.columns + plan.entries[i].row * wanted.width : nullptr;
  const auto kernel = [&](void** pointers, Piece* piece, int64_t count) {
    pointers[wanted.reads] = sums;  // which it adds to
    pointers[wanted.reads + 1] = piece;
    wanted.kernel(pointers, columns, count);
  };
  if (wanted.in_blocks && !plan.found(i).param()->is_contiguous())
    return run_tiles(plan, i, begin, end, wanted.operands.data(), wanted.reads, false, room, kernel);
  for (int64_t n; begin < end; begin += n) {
    const int64_t into = begin % row;
    n = into || end - begin < row ? std::min(row - into, end - begin) : (end - begin) / row * row;
    void* pointers[kMostTensors + 2];
    for (int k = 0; k < wanted.reads; ++k) pointers[k] = block_at(plan, i, wanted.operands[k], begin, row);
    run_piece(plan, i, begin, n, row, pointers, kernel);
  }
}

// For each row of the columns, the sums of a kernel's results over blocks of all parameters of that row. The blocks and the
// order of their sum are the same for every number of threads, so that they are the same bit for bit.
std::vector<double> sums_over_parameters(const Plan& plan, const Sums& wanted, int threads) {
  std::vector<std::pair<int64_t, int64_t>> blocks;
  for (int64_t i = 0; i < plan.count(); ++i)
    for (int64_t offset = 0; offset < plan.lengths[i]; offset += kBlock) blocks.emplace_back(i, offset);
  std::vector<double> sums(blocks.size() * wanted.count), totals(wanted.rows * wanted.count);
  const int64_t total = plan.elements(), count = blocks.size();
  threads = static_cast<int>(std::clamp<int64_t>(std::min<int64_t>(total / kWorkPerThread, count), 1, std::max(threads, 1)));
  if (!plan.room.empty()) threads = std::min<int>(threads, plan.room.size() / plan.room_each);
  const auto run = [&](int64_t share, int64_t begin, int64_t end) {
    for (int64_t b = end - 1; b >= begin; --b)  // backwards: the update begins where the caches are still full of it
      sum_block(plan, wanted, blocks[b].first, blocks[b].second, &sums[b * wanted.count], plan.room_of(share));
  };
  if (threads == 1) {
    run(0, 0, count);
  } else {
    for_each_share(threads, [&](int64_t t) { run(t, count * t / threads, count * (t + 1) / threads); });
  }
  for (int64_t b = 0; b < count; ++b) {
    double* const total = &totals[wanted.columns ? plan.entries[blocks[b].first].row * wanted.count : 0];
    for (int k = 0; k < wanted.count; ++k) total[k] += sums[b * wanted.count + k];
  }
  return totals;
}

// Lets the GIL go, with every tensor held, for as long as it lives.
class WithoutGil {
 public:
  explicit WithoutGil(Plan& plan) : plan_(plan) {
    plan.hold_all();
    plan.busy = true;
    state_ = PyEval_SaveThread();
  }
  WithoutGil(const WithoutGil&) = delete;
  ~WithoutGil() {
    PyEval_RestoreThread(state_);
    plan_.busy = false;
  }

 private:
  Plan& plan_;
  PyThreadState* state_;
};

// Lets the GIL go where the work is long for what that costs: references to every tensor.
template <class F> void run_long(Plan& plan, F&& work) {
  if (!plan.lets_gil_go()) return work();
  const WithoutGil released(plan);
  work();
}

// ---- the methods of a plan ----

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

Owned floats_of(const std::vector<double>& values) {
  Owned list = Owned::checked(PyList_New(values.size()));
  for (size_t i = 0; i < values.size(); ++i) PyList_SET_ITEM(list.get(), i, Owned::checked(PyFloat_FromDouble(values[i])).release());
  return list;
}

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

// ---- objects of Python's ----

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
