// The launcher: gathers the tensors of a whole model and runs one kernel over all of them.
//
// It is compiled once per machine (1.4 s, beside Inductor's import) against c10 alone: torch's own Python header would
// cost 9 s. Written in C++ because a step over 2000 tensors must not cost 2000 Python attribute look-ups: reading
// `p.grad` alone takes 0.11 ms there, the whole step below less than that.
#include <Python.h>

#include <c10/core/TensorImpl.h>
#include <c10/core/UndefinedTensorImpl.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

// runtime.h stands before this file: cpp.py joins them.
namespace {

using c10::TensorImpl;
using Kernel = void (*)(void* const* pointers, const double* scalars, int64_t length);

constexpr int kMaxOperands = 16;
constexpr int64_t kAlignment = 64;         // elements: a share starts on whole cache lines and whole vectors
constexpr int64_t kWorkPerThread = 1 << 18;   // elements: 0.1 ms of work; waking a thread took up to 0.15 ms
constexpr int64_t kEntriesPerThread = 2048; // parameters: likewise
constexpr int64_t kGilElements = 1 << 18;
constexpr int64_t kSmall = 256;            // elements
constexpr int64_t kBlock = 1 << 16;        // elements: a sum's parts, however many threads there are
constexpr int64_t kAhead = 4;              // parameters whose memory is asked for early

enum Status : int { kReady = 0, kRegroup = 1, kRebuild = 2 };

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

// A dense CPU tensor with autograd's keys and no others: no sparse, quantized, conjugate, inference or wrapper tensor.
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

// The axes along which an operand varies, as program.py numbers them: matrices, rows, columns; all of them for most.
enum Axes : int { kMatrices = 1, kRows = 2, kColumns = 4, kElements = 7 };
// What a plan asks of its parameters' memory: any dense order; row after row; column after column within each matrix.
enum Order : int { kAny = 0, kRowAfterRow = 1, kColumnAfterColumn = 2 };

// Whether a parameter lies in memory as the plan was made for.
bool lies_in(const TensorImpl* param, int order) {
  if (order == kAny) return true;
  const auto sizes = param->sizes(), strides = param->strides();
  const int64_t dims = param->dim();
  int64_t expected = 1;
  for (int64_t i = 0; i < dims; ++i) {
    int64_t d = dims - 1 - i;
    if (order == kColumnAfterColumn && i < 2 && dims >= 2) d = dims - 2 + i;
    if (sizes[d] != 1 && strides[d] != expected && param->numel() != 0) return false;
    expected *= sizes[d];
  }
  return true;
}

// Whether a tensor has one value for each row or the like of its parameter, one after the other.
bool is_reduced(const TensorImpl* param, const TensorImpl* impl, int axes, int order) {
  const auto sizes = param->sizes(), own = impl->sizes();
  const int64_t dims = param->dim();
  if (impl->dim() != dims || !impl->is_contiguous()) return false;
  for (int64_t d = 0; d < dims; ++d) {
    const bool kept = d + 2 < dims || axes & ((d + 1 == dims) == (order == kColumnAfterColumn) ? kRows : kColumns);
    if (own[d] != (kept ? sizes[d] : 1)) return false;
  }
  return true;
}

// TensorImpl::data() without its out-of-line checks: a plain dense tensor (`is_plain`) has a storage.
void* data_of(const TensorImpl* impl, bool written) {
  const auto* storage = impl->unsafe_storage().unsafeGetStorageImpl();
  if (impl->numel() == 0) return nullptr;
  void* base = written ? const_cast<c10::StorageImpl*>(storage)->mutable_data() : const_cast<void*>(storage->data());
  return static_cast<char*>(base) + impl->storage_offset() * static_cast<int64_t>(impl->itemsize());
}

struct Entry {
  PyObject* param;
  PyObject* state;
  int32_t row;
};

struct Plan {
  PyObject_HEAD
  Kernel kernel;
  int operands;       // param, grad, states
  int scalar_states;  // 0-dim states: step, ...
  int columns;        // scalars the kernel reads, per row
  int scale;          // 2 where a complex tensor is two reals
  uint64_t keys_of_operands;  // dispatch keys of a plain tensor on the plan's device
  c10::Device device;
  bool device_scalars;        // the 0-dim states live on the device: their pointers are gathered, nothing is read
  caffe2::TypeMeta types[kMaxOperands];
  int axes[kMaxOperands];
  int order;
  bool alike;  // all operands have the parameter's shape, and any dense order of it will do
  int64_t itemsize[kMaxOperands];
  std::vector<PyObject*>* keys;  // of the state dicts: the scalar states, then the others
  std::vector<Entry>* entries;
  PyObject* staged;  // borrowed, during gather: gradients that stand in for those of the parameters, or None
  // What `gather` found for each entry, for `launch`; an entry without a gradient has length -1.
  std::vector<TensorImpl*>* found;  // operands, then scalar states
  std::vector<void*>* pointers;
  std::vector<const void*>* storages;  // of `found`, remembered to fetch them early next time
  std::vector<int64_t>* lengths;
  std::vector<int64_t>* starts;                          // prefix sums of the lengths
  std::vector<c10::intrusive_ptr<TensorImpl>>* held;  // kept alive while the launch lets the GIL go
};

// For a plan in which operands differ in shape, or that asks for an order in memory.
__attribute__((noinline)) bool fit_each_other(const Plan* plan, TensorImpl* const* found) {
  if (!lies_in(found[0], plan->order)) return false;
  for (int k = 1; k < plan->operands; ++k)
    if (plan->axes[k] == kElements ? !same_layout(found[0], found[k]) : !is_reduced(found[0], found[k], plan->axes[k], plan->order))
      return false;
  return true;
}

int tensors_of(const Plan* plan) { return plan->operands + plan->scalar_states; }

void release(Plan* plan) {
  plan->held->clear();
  plan->starts->clear();
}

double read_scalar(const TensorImpl* impl) {
  return impl->dtype() == caffe2::TypeMeta::Make<double>() ? *static_cast<const double*>(data_of(impl, false))
                                                            : *static_cast<const float*>(data_of(impl, false));
}

void write_scalar(TensorImpl* impl, double value) {
  if (impl->dtype() == caffe2::TypeMeta::Make<double>())
    *static_cast<double*>(data_of(impl, true)) = value;
  else
    *static_cast<float*>(data_of(impl, true)) = static_cast<float>(value);
}

bool is_scalar(const TensorImpl* impl) {
  return is_plain(impl, plain_keys) && impl->numel() == 1 &&
      (impl->dtype() == caffe2::TypeMeta::Make<float>() || impl->dtype() == caffe2::TypeMeta::Make<double>());
}

// The state tensors in the plan's order. A dict filled in that order is walked (12 ns for three tensors); one in
// another order is looked up (40 ns), which is for the thread that holds the GIL alone: a look-up may set an error.
bool find_states(const Plan* plan, const Entry& entry, bool may_look_up, TensorImpl** found) {
  Py_ssize_t position = 0;
  PyObject *key, *value;
  const int scalars = plan->scalar_states, count = scalars + plan->operands - 2;
  for (int i = 0; i < count; ++i) {
    PyObject* wanted = (*plan->keys)[i];
    if (!PyDict_Next(entry.state, &position, &key, &value) || key != wanted) {
      value = may_look_up ? PyDict_GetItemWithError(entry.state, wanted) : nullptr;
      if (!value) return false;
    }
    TensorImpl* impl = tensor_impl(value);
    if (!impl) return false;
    found[i < scalars ? plan->operands + i : 2 + i - scalars] = impl;
  }
  return true;
}

// Asks the memory early for what `gather_entry` will read. Between two steps a whole model ran through the caches, and a
// gather is one long chain of misses: 2000 parameters took 8% longer without this. The addresses are
// those of the last gather; if one is gone by now, fetching it does no harm.
void fetch_entry(const Plan* plan, int64_t index) {
  const Entry& entry = (*plan->entries)[index];
  const auto fetch = [](const void* address, int lines) {
    for (int i = 0; i < lines; ++i) __builtin_prefetch(static_cast<const char*>(address) + 64 * i);
  };
  fetch(entry.param, 1);
  fetch(entry.state, 1);
  for (int k = 0; k < tensors_of(plan); ++k) {
    fetch((*plan->found)[index * tensors_of(plan) + k], 4);
    fetch((*plan->storages)[index * tensors_of(plan) + k], 1);
  }
}

// One parameter: every check that can fail, and no write.
Status gather_entry(Plan* plan, int64_t index, const double* table, int width, bool may_look_up) {
  const Entry& entry = (*plan->entries)[index];
  TensorImpl* const param = impl_at(entry.param, tensor_offset);
  TensorImpl* const grad = plan->staged ? tensor_impl(PyList_GET_ITEM(plan->staged, index)) : gradient_of(param);
  (*plan->lengths)[index] = -1;
  if (!grad) return kReady;
  TensorImpl** found = plan->found->data() + index * tensors_of(plan);
  found[0] = param;
  found[1] = grad;
  if (!find_states(plan, entry, may_look_up, found)) return kRebuild;
  if (!param->is_non_overlapping_and_dense()) return kRebuild;
  const bool alike = plan->alike;
  for (int k = 0; k < plan->operands; ++k)
    if (!is_plain(found[k], plan->keys_of_operands) || found[k]->device() != plan->device || found[k]->dtype() != plan->types[k] || (k && alike && !same_layout(param, found[k])))
      return kRebuild;
  if (!alike && !fit_each_other(plan, found)) return kRebuild;
  if (table && entry.row < 0) return kRegroup;
  for (int k = 0; k < plan->scalar_states; ++k) {
    const TensorImpl* scalar = found[plan->operands + k];
    if (plan->device_scalars) {
      if (!is_plain(scalar, plan->keys_of_operands) || scalar->device() != plan->device || scalar->numel() != 1 ||
          scalar->dtype() != plan->types[plan->operands + k])
        return kRebuild;
      continue;
    }
    if (!is_scalar(scalar)) return kRebuild;
    // A value is compared as bits would be, so that a state that is NaN does not regroup the rows for ever.
    const double is = read_scalar(scalar), expected = table ? table[int64_t(entry.row) * width + plan->columns + k] : is;
    if (is != expected && !(is != is && expected != expected)) return kRegroup;
  }
  for (int k = 0; k < plan->operands; ++k)
    (*plan->pointers)[index * plan->operands + k] = data_of(found[k], k != 1);
  for (int k = 0; k < tensors_of(plan); ++k)
    (*plan->storages)[index * tensors_of(plan) + k] = found[k]->unsafe_storage().unsafeGetStorageImpl();
  (*plan->lengths)[index] = param->numel() * plan->scale;
  return kReady;
}

Status gather_range(Plan* plan, const double* table, int width, bool may_look_up, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    if (i + kAhead < end) fetch_entry(plan, i + kAhead);
    const Status status = gather_entry(plan, i, table, width, may_look_up);
    if (status != kReady) return status;
  }
  return kReady;
}

// Several threads read while this one holds the GIL, so nothing they look at can change.
Status gather_all(Plan* plan, const double* table, int width, int threads) {
  const int64_t count = plan->entries->size();
  threads = static_cast<int>(std::min<int64_t>(threads, count / kEntriesPerThread));
  int worst = kReady;
  if (threads > 1) {
    std::vector<int> found(threads);
    for_each_share(threads, [&](int64_t t) {
      found[t] = gather_range(plan, table, width, false, count * t / threads, count * (t + 1) / threads);
    });
    worst = *std::max_element(found.begin(), found.end());
  }
  if (threads <= 1 || worst == kRebuild) worst = gather_range(plan, table, width, true, 0, count);
  plan->starts->assign(1, 0);
  for (const int64_t length : *plan->lengths) plan->starts->push_back(plan->starts->back() + std::max<int64_t>(0, length));
  return static_cast<Status>(worst);
}

// The memory of the next tensor, while a kernel runs on a small one: too short for the processor to see a stream.
void fetch_data(const Plan* plan, size_t i) {
  const int64_t length = std::min((*plan->starts)[i + 1] - (*plan->starts)[i], kSmall);
  for (int k = 0; k < plan->operands; ++k) {
    const char* data = static_cast<const char*>((*plan->pointers)[i * plan->operands + k]);
    for (int64_t offset = 0; offset < length * plan->itemsize[k]; offset += 64) __builtin_prefetch(data + offset);
  }
}

// The share [begin, end) of the concatenation of all tensors, piece by piece.
void run_share(const Plan* plan, const double* table, int width, int64_t begin, int64_t end) {
  const auto& starts = *plan->starts;
  size_t i = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
  void* pieces[kMaxOperands];
  for (; begin < end; ++i) {
    const int64_t stop = std::min(end, starts[i + 1]);
    if (stop <= begin) continue;
    if (i + 2 < starts.size() && stop - begin < kSmall) fetch_data(plan, i + 1);
    const int64_t offset = begin - starts[i];
    for (int k = 0; k < plan->operands; ++k)
      pieces[k] = static_cast<char*>((*plan->pointers)[i * plan->operands + k]) + offset * plan->itemsize[k];
    plan->kernel(pieces, table + int64_t((*plan->entries)[i].row) * width, stop - begin);
    begin = stop;
  }
}

// The new 0-dim states, and the version counters that tell autograd of a write.
void commit_range(const Plan* plan, const double* table, int width, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    if ((*plan->lengths)[i] < 0) continue;
    TensorImpl* const* found = plan->found->data() + i * tensors_of(plan);
    const double* fresh = table + int64_t((*plan->entries)[i].row) * width + plan->columns + plan->scalar_states;
    for (int k = 0; k < plan->scalar_states && !plan->device_scalars; ++k)
      write_scalar(found[plan->operands + k], fresh[k]);
    for (int k = 0; k < tensors_of(plan); ++k)
      if (k != 1) found[k]->bump_version();
  }
}

void run_all(const Plan* plan, const double* table, int width, int threads) {
  const int64_t total = plan->starts->back(), count = plan->entries->size();
  threads = static_cast<int>(std::min<int64_t>(threads, std::max(total / kWorkPerThread, count / kEntriesPerThread)));
  if (threads <= 1) {
    run_share(plan, table, width, 0, total);
    commit_range(plan, table, width, 0, count);
    return;
  }
  const auto edge = [&](int64_t k) { return k == threads ? total : total / threads * k / kAlignment * kAlignment; };
  for_each_share(threads, [&](int64_t t) {
    run_share(plan, table, width, edge(t), edge(t + 1));
    commit_range(plan, table, width, count * t / threads, count * (t + 1) / threads);
  });
}

void hold_all(Plan* plan) {
  const int per = tensors_of(plan);
  if (!plan->held->empty()) return;
  for (size_t i = 0; i < plan->entries->size(); ++i)
    for (int k = 0; k < per && (*plan->lengths)[i] >= 0; ++k)
      plan->held->push_back(c10::intrusive_ptr<TensorImpl>::reclaim_copy((*plan->found)[i * per + k]));
}

// The sum of a kernel's results over blocks of all gradients. The blocks and the order of their sum are the same for every
// number of threads, so that the norm is the same bit for bit.
double sum_over_gradients(const Plan* plan, Kernel kernel, int threads) {
  std::vector<std::pair<size_t, int64_t>> blocks;
  for (size_t i = 0; i < plan->entries->size(); ++i)
    for (int64_t offset = 0; offset < (*plan->lengths)[i]; offset += kBlock) blocks.emplace_back(i, offset);
  std::vector<double> sums(blocks.size());
  const int64_t total = plan->starts->back(), count = blocks.size();
  threads = static_cast<int>(std::clamp<int64_t>(std::min<int64_t>(total / kWorkPerThread, count), 1, std::max(threads, 1)));
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t b = end - 1; b >= begin; --b) {  // backwards: the update begins where the caches are still full of it
      const auto [i, offset] = blocks[b];
      char* data = static_cast<char*>((*plan->pointers)[i * plan->operands + 1]) + offset * plan->itemsize[1];
      void* const pointers[] = {data, &sums[b]};
      kernel(pointers, nullptr, std::min(kBlock, (*plan->lengths)[i] - offset));
    }
  };
  if (threads == 1) {
    run(0, count);
  } else {
    for_each_share(threads, [&](int64_t t) { run(count * t / threads, count * (t + 1) / threads); });
  }
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

// Below `kGilElements` the work is shorter than what letting the GIL go costs: a reference to every tensor.
void launch_all(Plan* plan, const double* table, int width, int threads) {
  if (plan->starts->back() < kGilElements) return run_all(plan, table, width, threads);
  hold_all(plan);
  Py_BEGIN_ALLOW_THREADS;
  run_all(plan, table, width, threads);
  Py_END_ALLOW_THREADS;
}

// ---- Python's side ----

struct Doubles {
  Py_buffer view{};
  bool valid = false;
  explicit Doubles(PyObject* object) { valid = PyObject_GetBuffer(object, &view, PyBUF_SIMPLE) == 0; }
  ~Doubles() {
    if (valid) PyBuffer_Release(&view);
  }
  const double* data() const { return static_cast<const double*>(view.buf); }
};

// The rows of the table are [columns the kernel reads | scalar states as they must be | scalar states as they become].
int row_width(const Plan* plan) { return plan->columns + 2 * plan->scalar_states; }

PyObject* plan_gather(PyObject* self, PyObject* args) {
  PyObject *table, *staged;
  int threads;
  if (!PyArg_ParseTuple(args, "OiO", &table, &threads, &staged)) return nullptr;
  Plan* plan = reinterpret_cast<Plan*>(self);
  if (staged != Py_None && (!PyList_Check(staged) || size_t(PyList_GET_SIZE(staged)) != plan->entries->size())) {
    PyErr_SetString(PyExc_TypeError, "staged: one gradient or None for each entry, in a list");
    return nullptr;
  }
  plan->staged = staged == Py_None ? nullptr : staged;
  try {
    if (table == Py_None) return PyLong_FromLong(gather_all(plan, nullptr, 0, threads));
    Doubles doubles(table);
    return doubles.valid ? PyLong_FromLong(gather_all(plan, doubles.data(), row_width(plan), threads)) : nullptr;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

PyObject* plan_launch(PyObject* self, PyObject* args) {
  PyObject* table;
  int threads;
  if (!PyArg_ParseTuple(args, "Oi", &table, &threads)) return nullptr;
  Plan* plan = reinterpret_cast<Plan*>(self);
  if (plan->starts->empty()) {
    PyErr_SetString(PyExc_RuntimeError, "launch without a gather before it");
    return nullptr;
  }
  Doubles doubles(table);
  if (!doubles.valid) return nullptr;
  launch_all(plan, doubles.data(), row_width(plan), threads);
  const long long elements = plan->starts->back();
  release(plan);
  return PyLong_FromLongLong(elements);
}

PyObject* plan_sum(PyObject* self, PyObject* args) {
  unsigned long long address;
  int threads;
  if (!PyArg_ParseTuple(args, "Ki", &address, &threads)) return nullptr;
  Plan* plan = reinterpret_cast<Plan*>(self);
  if (plan->starts->empty()) {
    PyErr_SetString(PyExc_RuntimeError, "sum without a gather before it");
    return nullptr;
  }
  const Kernel kernel = reinterpret_cast<Kernel>(address);
  double sum;
  if (plan->starts->back() < kGilElements) {
    sum = sum_over_gradients(plan, kernel, threads);
  } else {
    hold_all(plan);
    Py_BEGIN_ALLOW_THREADS;
    sum = sum_over_gradients(plan, kernel, threads);
    Py_END_ALLOW_THREADS;
  }
  return PyFloat_FromDouble(sum);
}

// (index of the entry, its scalar states) for each entry that has a gradient, after a gather.
PyObject* plan_active(PyObject* self, PyObject*) {
  Plan* plan = reinterpret_cast<Plan*>(self);
  PyObject* list = PyList_New(0);
  if (!list) return nullptr;
  for (size_t i = 0; i < plan->entries->size(); ++i) {
    if ((*plan->lengths)[i] < 0) continue;
    PyObject* item = PyTuple_New(1 + plan->scalar_states);
    PyTuple_SET_ITEM(item, 0, PyLong_FromSize_t(i));
    for (int k = 0; k < plan->scalar_states; ++k)
      PyTuple_SET_ITEM(item, 1 + k, PyFloat_FromDouble(plan->device_scalars ? 0.0 : read_scalar((*plan->found)[i * tensors_of(plan) + plan->operands + k])));
    PyList_Append(list, item);
    Py_DECREF(item);
  }
  return list;
}

PyObject* bytes_of(const std::vector<int64_t>& values) {
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(int64_t));
}

// For a launch elsewhere: (pointers of the operands, lengths, rows, pointers of the 0-dim states) of the entries that
// have a gradient and elements, each as bytes of int64.
PyObject* plan_tables(PyObject* self, PyObject*) {
  Plan* plan = reinterpret_cast<Plan*>(self);
  std::vector<int64_t> pointers, lengths, rows, scalars;
  for (size_t i = 0; i < plan->entries->size(); ++i) {
    if ((*plan->lengths)[i] < 0) continue;
    for (int k = 0; k < plan->operands; ++k)
      pointers.push_back(reinterpret_cast<int64_t>((*plan->pointers)[i * plan->operands + k]));
    lengths.push_back((*plan->lengths)[i]);
    rows.push_back((*plan->entries)[i].row);
    for (int k = 0; k < plan->scalar_states; ++k)
      scalars.push_back(reinterpret_cast<int64_t>(data_of((*plan->found)[i * tensors_of(plan) + plan->operands + k], true)));
  }
  return Py_BuildValue("NNNN", bytes_of(pointers), bytes_of(lengths), bytes_of(rows), bytes_of(scalars));
}

// For a launch in passes: (matrices, rows, columns), as they lie in memory, of the entries in `tables`.
PyObject* plan_shapes(PyObject* self, PyObject*) {
  Plan* plan = reinterpret_cast<Plan*>(self);
  std::vector<int64_t> shapes;
  for (size_t i = 0; i < plan->entries->size(); ++i) {
    const int64_t length = (*plan->lengths)[i];
    if (length < 0) continue;
    const auto sizes = (*plan->found)[i * tensors_of(plan)]->sizes();
    const bool matrix = plan->order != kAny && sizes.size() >= 2;
    int64_t rows = matrix ? sizes[sizes.size() - 2] : 1, columns = matrix ? sizes[sizes.size() - 1] : length;
    if (plan->order == kColumnAfterColumn) std::swap(rows, columns);
    shapes.insert(shapes.end(), {length ? length / (rows * columns) : 0, rows, columns});
  }
  return bytes_of(shapes);
}

// What `launch` does after its kernel, where the kernel ran elsewhere.
PyObject* plan_commit(PyObject* self, PyObject* table) {
  Plan* plan = reinterpret_cast<Plan*>(self);
  Doubles doubles(table);
  if (!doubles.valid) return nullptr;
  commit_range(plan, doubles.data(), row_width(plan), 0, plan->entries->size());
  release(plan);
  Py_RETURN_NONE;
}

PyObject* plan_set_row(PyObject* self, PyObject* args) {
  int index, row;
  if (!PyArg_ParseTuple(args, "ii", &index, &row)) return nullptr;
  Plan* plan = reinterpret_cast<Plan*>(self);
  if (index < 0 || size_t(index) >= plan->entries->size()) {
    PyErr_SetString(PyExc_IndexError, "no such entry");
    return nullptr;
  }
  (*plan->entries)[index].row = row;
  Py_RETURN_NONE;
}

// An entry without a row makes `gather` say that the rows differ as soon as it has a gradient.
PyObject* plan_forget_rows(PyObject* self, PyObject*) {
  for (Entry& entry : *reinterpret_cast<Plan*>(self)->entries) entry.row = -1;
  Py_RETURN_NONE;
}

PyObject* plan_release(PyObject* self, PyObject*) {
  release(reinterpret_cast<Plan*>(self));
  Py_RETURN_NONE;
}

int plan_clear(PyObject* self) {
  Plan* plan = reinterpret_cast<Plan*>(self);
  if (!plan->entries) return 0;
  for (Entry& entry : *plan->entries) {
    Py_CLEAR(entry.param);
    Py_CLEAR(entry.state);
  }
  plan->entries->clear();
  return 0;
}

int plan_traverse(PyObject* self, visitproc visit, void* arg) {
  Plan* plan = reinterpret_cast<Plan*>(self);
  Py_VISIT(Py_TYPE(self));
  if (plan->entries)
    for (Entry& entry : *plan->entries) {
      Py_VISIT(entry.param);
      Py_VISIT(entry.state);
    }
  return 0;
}

void plan_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  Plan* plan = reinterpret_cast<Plan*>(self);
  plan_clear(self);
  if (plan->keys)
    for (PyObject* key : *plan->keys) Py_DECREF(key);
  delete plan->keys;
  delete plan->entries;
  delete plan->found;
  delete plan->pointers;
  delete plan->storages;
  delete plan->lengths;
  delete plan->starts;
  delete plan->held;
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

void add_keys(std::vector<PyObject*>* keys, PyObject* tuple) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i) {
    PyObject* key = Py_NewRef(PyTuple_GET_ITEM(tuple, i));
    PyUnicode_InternInPlace(&key);
    keys->push_back(key);
  }
}

bool add_entries(Plan* plan, PyObject* params, PyObject* states) {
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params); ++i) {
    PyObject* param = PyList_GET_ITEM(params, i);
    PyObject* state = PyList_GET_ITEM(states, i);
    if (!tensor_impl(param) || !PyDict_Check(state)) {
      PyErr_SetString(PyExc_TypeError, "a plan takes tensors and their state dicts");
      return false;
    }
    plan->entries->push_back({Py_NewRef(param), Py_NewRef(state), -1});
  }
  return true;
}

PyObject* plan_new(PyTypeObject* type, PyObject* args, PyObject*) {
  unsigned long long kernel;
  int columns, scale, device_scalars, order;
  PyObject *params, *states, *keys, *scalar_keys, *types, *axes;
  if (!PyArg_ParseTuple(args, "KiipO!O!O!O!O!O!i", &kernel, &columns, &scale, &device_scalars, &PyList_Type, &params,
                        &PyList_Type, &states, &PyTuple_Type, &keys, &PyTuple_Type, &scalar_keys, &PyTuple_Type, &types,
                        &PyTuple_Type, &axes, &order))
    return nullptr;
  const Py_ssize_t operands = PyTuple_GET_SIZE(keys) + 2;
  const Py_ssize_t tensors = operands + (device_scalars ? PyTuple_GET_SIZE(scalar_keys) : 0);
  if (operands + PyTuple_GET_SIZE(scalar_keys) > kMaxOperands || PyTuple_GET_SIZE(types) != tensors || PyTuple_GET_SIZE(axes) != operands ||
      PyList_GET_SIZE(params) != PyList_GET_SIZE(states))
    return PyErr_Format(PyExc_ValueError, "a plan takes at most %d operands, one dtype each", kMaxOperands);
  PyObject* self = type->tp_alloc(type, 0);
  if (!self) return nullptr;
  Plan* plan = reinterpret_cast<Plan*>(self);
  plan->kernel = reinterpret_cast<Kernel>(kernel);
  plan->operands = static_cast<int>(operands);
  plan->device_scalars = device_scalars;
  plan->scalar_states = static_cast<int>(PyTuple_GET_SIZE(scalar_keys));
  plan->columns = columns;
  plan->scale = scale;
  plan->order = order;
  plan->alike = order == kAny;
  for (int k = 0; k < operands; ++k) {
    plan->axes[k] = static_cast<int>(PyLong_AsLong(PyTuple_GET_ITEM(axes, k)));
    plan->alike &= plan->axes[k] == kElements;
  }
  plan->keys = new std::vector<PyObject*>;
  plan->entries = new std::vector<Entry>;
  const size_t count = PyList_GET_SIZE(params);
  plan->found = new std::vector<TensorImpl*>(count * tensors_of(plan));
  plan->pointers = new std::vector<void*>(count * plan->operands);
  plan->storages = new std::vector<const void*>(count * tensors_of(plan));
  plan->lengths = new std::vector<int64_t>(count, -1);
  plan->starts = new std::vector<int64_t>;
  plan->held = new std::vector<c10::intrusive_ptr<TensorImpl>>;
  add_keys(plan->keys, scalar_keys);
  add_keys(plan->keys, keys);
  for (int k = 0; k < tensors; ++k) {
    TensorImpl* example = tensor_impl(PyTuple_GET_ITEM(types, k));
    if (!example) {
      Py_DECREF(self);
      return PyErr_Format(PyExc_TypeError, "dtypes are given by example tensors");
    }
    plan->types[k] = example->dtype();
    plan->keys_of_operands = example->key_set().raw_repr();
    plan->device = example->device();
    plan->itemsize[k] = static_cast<int64_t>(example->itemsize()) / scale;
  }
  if (!add_entries(plan, params, states)) {
    Py_DECREF(self);
    return nullptr;
  }
  return self;
}

PyMethodDef plan_methods[] = {
    {"gather", plan_gather, METH_VARARGS, "gather(table or None, threads, staged or None) -> 0 ready, 1 rows differ, 2 the plan no longer fits"},
    {"launch", plan_launch, METH_VARARGS, "launch(table, threads) -> elements updated"},
    {"active", plan_active, METH_NOARGS, "active() -> [(entry, *scalar states)] of the last gather"},
    {"set_row", plan_set_row, METH_VARARGS, "set_row(entry, row)"},
    {"forget_rows", plan_forget_rows, METH_NOARGS, "forget_rows(): no entry has a row"},
    {"tables", plan_tables, METH_NOARGS, "tables() -> pointers, lengths, rows, pointers of 0-dim states, of the last gather"},
    {"shapes", plan_shapes, METH_NOARGS, "shapes() -> (matrices, rows, columns) of each entry in tables()"},
    {"commit", plan_commit, METH_O, "commit(table): the 0-dim states and version counters, after a launch elsewhere"},
    {"sum", plan_sum, METH_VARARGS, "sum(kernel, threads): of what the kernel makes of each piece of the gradients"},
    {"release", plan_release, METH_NOARGS, "release(): let go what gather held"},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot plan_slots[] = {{Py_tp_new, reinterpret_cast<void*>(plan_new)},
                            {Py_tp_dealloc, reinterpret_cast<void*>(plan_dealloc)},
                            {Py_tp_traverse, reinterpret_cast<void*>(plan_traverse)},
                            {Py_tp_clear, reinterpret_cast<void*>(plan_clear)},
                            {Py_tp_methods, plan_methods},
                            {0, nullptr}};
PyType_Spec plan_spec = {"compiledopt_launcher.Plan", sizeof(Plan), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                         plan_slots};

// Whether the optimizer still has the parameters and the state dicts that its plan was made from.
PyObject* unchanged(PyObject*, PyObject* args) {
  PyObject *groups, *params, *state, *states, *waiting;
  if (!PyArg_ParseTuple(args, "O!O!O!O!O!", &PyList_Type, &groups, &PyList_Type, &params, &PyDict_Type, &state,
                        &PyList_Type, &states, &PyList_Type, &waiting))
    return nullptr;
  Py_ssize_t at = 0;
  const Py_ssize_t count = PyList_GET_SIZE(params);
  for (Py_ssize_t g = 0; g < PyList_GET_SIZE(groups); ++g) {
    PyObject* group = PyList_GET_ITEM(groups, g);
    PyObject* list = PyDict_Check(group) ? PyDict_GetItemWithError(group, params_key) : nullptr;
    if (!list || !PyList_Check(list) || at + PyList_GET_SIZE(list) > count) Py_RETURN_FALSE;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i)
      if (PyList_GET_ITEM(list, i) != PyList_GET_ITEM(params, at++)) Py_RETURN_FALSE;
  }
  if (at != count || PyDict_GET_SIZE(state) != PyList_GET_SIZE(states)) Py_RETURN_FALSE;
  Py_ssize_t position = 0, index = 0;
  PyObject *key, *value;
  while (PyDict_Next(state, &position, &key, &value))
    if (value != PyList_GET_ITEM(states, index++)) Py_RETURN_FALSE;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(waiting); ++i)
    if (gradient_of(impl_at(PyList_GET_ITEM(waiting, i), tensor_offset))) Py_RETURN_FALSE;
  Py_RETURN_TRUE;
}

// probe(tensor, its data_ptr(), Tensor, Parameter): finds where this build of torch keeps the TensorImpl* in a Python
// tensor. In torch 2.11 to 2.13 it follows the object's head; older ones had a flag before it.
PyObject* probe(PyObject*, PyObject* args) {
  PyObject *tensor, *base, *parameter;
  unsigned long long address;
  if (!PyArg_ParseTuple(args, "OKO!O!", &tensor, &address, &PyType_Type, &base, &PyType_Type, &parameter))
    return nullptr;
  for (size_t offset : {sizeof(PyObject), sizeof(PyObject) + sizeof(void*)}) {
    TensorImpl* impl = impl_at(tensor, offset);
    if (reinterpret_cast<uintptr_t>(impl) < 4096 || reinterpret_cast<uintptr_t>(impl) % alignof(TensorImpl)) continue;
    if (reinterpret_cast<unsigned long long>(impl->data()) != address) continue;
    tensor_offset = offset;
    plain_keys = impl->key_set().raw_repr();
    tensor_type = reinterpret_cast<PyTypeObject*>(Py_NewRef(base));
    parameter_type = reinterpret_cast<PyTypeObject*>(Py_NewRef(parameter));
    Py_RETURN_TRUE;
  }
  Py_RETURN_FALSE;
}

PyMethodDef functions[] = {{"unchanged", unchanged, METH_VARARGS, "whether groups, parameters and states are the same"},
                           {"probe", probe, METH_VARARGS, "find the layout of this torch's tensors"},
                           {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "compiledopt_launcher", nullptr, -1, functions};

}  // namespace

PyMODINIT_FUNC PyInit_compiledopt_launcher() {
  params_key = PyUnicode_InternFromString("params");
  PyObject* self = PyModule_Create(&module);
  PyObject* type = PyType_FromSpec(&plan_spec);
  if (!self || !type || PyModule_AddObject(self, "Plan", type) < 0) return nullptr;
  return self;
}
