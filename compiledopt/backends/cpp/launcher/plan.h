// A plan: what one kernel runs over, and what the last gather found of it.
namespace {

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
  // Columns of a tile, and its rows. Where rows follow each other in memory, one: whole where it fits, as of a convolution, so that
  // where its elements lie is known of all rows.
  int64_t tile_columns(int64_t rows, int64_t row) const {
    return (std::min(row, kTileElements / rows) + block - 1) / block * block;
  }
  int64_t tile_rows(const TensorImpl* param) const {
    const auto strides = param->strides();
    return *std::max_element(strides.begin(), strides.end()) == strides[0] ? 1 : kTileRows;
  }
  int64_t* room_of(int64_t thread) const { return const_cast<int64_t*>(room.data()) + thread * room_each; }
  // Takes it, before anything is written.
  void make_room_for_tiles(int64_t threads) {
    const int64_t most = std::max(tile_columns(1, kTileElements), kTileRows * tile_columns(kTileRows, kTileElements));
    const int64_t words = most * operands;
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

}  // namespace
