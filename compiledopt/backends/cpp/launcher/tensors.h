// What a plan reads of tensors, by c10 alone.
namespace {

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

// Whether a tensor's storage has all of its elements: one that was resized to nothing, as sharding does, has no memory.
bool has_memory(const TensorImpl* impl) {
  const int64_t end = (impl->storage_offset() + impl->numel()) * static_cast<int64_t>(impl->itemsize());
  return impl->numel() == 0 || static_cast<int64_t>(impl->unsafe_storage().unsafeGetStorageImpl()->nbytes()) >= end;
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
  return is_plain(impl, plain_keys) && impl->numel() == 1 && has_memory(impl) &&
      (impl->dtype() == caffe2::TypeMeta::Make<float>() || impl->dtype() == caffe2::TypeMeta::Make<double>());
}

}  // namespace
