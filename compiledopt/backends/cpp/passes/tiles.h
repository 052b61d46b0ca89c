// Tiles: smaller operands are spread to them, and what is reduced is summed of them.
namespace {

// A smaller operand's value for each of n elements, run by run. A memcpy or fill_n of three values takes longer than the three.
template <class T> void spread_runs(const T* data, const Operand& o, int64_t axes, Cursor cursor, int64_t n, T* tile) {
  const bool varies = o.axes & last_axis(axes), row_by_row = o.axes == (axes & ~last_axis(axes));
  const T* from = data + cursor.place(o.axes);
  for (int64_t i = 0, m; i < n; i += m) {
    m = std::min(cursor.left(), n - i);
    if (varies)
      for (int64_t j = 0; j < m; ++j) tile[i + j] = from[j];
    else
      for (int64_t j = 0; j < m; ++j) tile[i + j] = *from;
    cursor.move(m);
    from = row_by_row ? from + 1 : data + cursor.place(o.axes);
  }
}

// The n values that a pass reads of a smaller operand, from the cursor on: as they are, or copied into the tile.
char* spread(char* data, const Operand& o, const Pass& pass, Cursor cursor, int64_t n, char* tile) {
  if (o.axes & last_axis(pass.axes) && n <= cursor.left()) return data + cursor.place(o.axes) * o.bytes;
  const auto run = [&](auto type) {
    using T = decltype(type);
    spread_runs(reinterpret_cast<const T*>(data), o, pass.axes, cursor, n, reinterpret_cast<T*>(tile));
  };
  if (o.bytes == 2) run(uint16_t());
  else if (o.bytes == 4) run(uint32_t());
  else run(uint64_t());
  return tile;
}

template <class A> A larger(A a, A b) { return !(a <= b) & !(b != b) ? a : b; }
template <class A> A smaller(A a, A b) { return !(a >= b) & !(b != b) ? a : b; }

// Many at once so that the compiler vectorizes them; few to each, so that float32 does not round the small away.
template <int64_t lanes, class T, class F> double folded_by(const T* values, int64_t n, T start, F join) {
  T sums[lanes];
  std::fill_n(sums, lanes, start);
  const int64_t whole = n / lanes * lanes;
  for (int64_t i = 0; i < whole; i += lanes)
    for (int64_t j = 0; j < lanes; ++j) sums[j] = join(sums[j], values[i + j]);
  for (int64_t i = whole; i < n; ++i) sums[i - whole] = join(sums[i - whole], values[i]);
  for (int64_t width = lanes / 2; width >= 4; width /= 2)
    for (int64_t j = 0; j < width; ++j) sums[j] = join(sums[j], sums[j + width]);
  return join(join(double(sums[0]), double(sums[1])), join(double(sums[2]), double(sums[3])));
}

template <class T, class F> double folded(const T* values, int64_t n, T start, F join) {
  if (n >= 64) return folded_by<64>(values, n, start, join);
  if (n >= 16) return folded_by<16>(values, n, start, join);
  T total = start;
  for (int64_t i = 0; i < n; ++i) total = join(total, values[i]);
  return total;
}

template <class T, class F> void add_to(double* sums, const T* values, int64_t n, F join) {
  for (int64_t j = 0; j < n; ++j) sums[j] = join(sums[j], double(values[j]));
}

template <class T, class F> void flush(Window& window, int64_t columns, T start, F join) {
  T* const near = static_cast<T*>(window.near);
  if (window.rows > 0) add_to(window.sums + window.at, near, columns, join);
  std::fill_n(near, columns, start);
  window.rows = 0;
}

template <class T, class F>
void reduce(const T* values, const Reduction& r, Cursor cursor, int64_t n, Window& window, T start, F join) {
  const Shape& shape = *cursor.shape;
  double* const sums = window.sums - window.begin;
  const bool varies = r.axes & last_axis(cursor.axes);
  for (int64_t i = 0, m; i < n; i += m, cursor.move(m)) {
    m = r.axes ? std::min(cursor.left(), n - i) : n;
    if (!varies) {
      double& sum = sums[cursor.place(r.axes)];
      sum = join(sum, folded(values + i, m, start, join));
      continue;
    }
    if (shape.rows <= kNear) {  // so few that their doubles cost less than a detour
      add_to(sums + cursor.place(r.axes), values + i, m, join);
      continue;
    }
    if (window.rows == kNear || cursor.matrix != window.matrix) flush(window, shape.columns, start, join);
    window.matrix = cursor.matrix, window.at = cursor.matrix * shape.columns - window.begin;
    T* const near = static_cast<T*>(window.near) + cursor.column;
    for (int64_t j = 0; j < m; ++j) near[j] = join(near[j], values[i + j]);
    window.rows += cursor.column + m == shape.columns;
  }
}

double start_of(int64_t op) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  return op == kAmax ? -infinity : op == kAmin ? infinity : 0.0;
}

// Calls f(start, join) with the operation of a reduction of values of type T.
template <class T, class F> void with_op(int64_t op, F f) {
  if (op == kAmax) f(T(start_of(op)), [](auto a, auto b) { return larger(a, b); });
  else if (op == kAmin) f(T(start_of(op)), [](auto a, auto b) { return smaller(a, b); });
  else f(T(0), [](auto a, auto b) { return a + b; });
}

}  // namespace
