// For parameters whose values are kept in blocks of a row, and which do not lie in memory row after row (channels_last, transposed
// ones): tile by tile they are copied into that order, updated, and copied back, so that codes do not depend on it.
#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t kTileElements = 1 << 14;  // what a rule reads and writes of so many stays in the second cache
// Where neighbours in memory are of different rows: a column after the other is read, and each begins another page of memory.
constexpr int64_t kTileRows = 256;
constexpr int64_t kShareRows = 64;  // of those, so that threads meet at whole lines of the cache, of bytes
constexpr int64_t kMostDims = 64;   // as in torch

// How the elements of a parameter lie in memory: its first dimension is that of the rows.
struct Strides {
  const int64_t *sizes, *strides;
  int64_t dims;
};

// Where elements [first, first + count) of any row lie, from its beginning.
inline void offsets_in_row(const Strides& given, int64_t first, int64_t count, int64_t* offsets) {
  int64_t at[kMostDims], offset = 0;
  for (int64_t d = given.dims - 1; d >= 1; --d) {
    at[d] = first % given.sizes[d], first /= given.sizes[d];
    offset += at[d] * given.strides[d];
  }
  for (int64_t i = 0; i < count; ++i) {
    offsets[i] = offset;
    for (int64_t d = given.dims - 1; d >= 1; --d) {
      offset += given.strides[d];
      if (++at[d] < given.sizes[d]) break;
      offset -= at[d] * given.strides[d], at[d] = 0;
    }
  }
}

// A part of some rows: columns [first_column, first_column + columns) of `rows` of them.
struct Tile {
  int64_t first_row, rows, first_column, columns;
};

// body(tile) for tiles that cover the elements [begin, end), of which the columns begin and end at those or at whole `step`s.
template <class F> void for_each_tile(int64_t begin, int64_t end, int64_t row, int64_t most_rows, int64_t step, F&& body) {
  while (begin < end) {
    const int64_t into = begin % row, whole = (end - begin) / row, rows = into || !whole ? 1 : std::min(most_rows, whole);
    const int64_t stop = std::min(row, into + end - begin);
    for (int64_t column = into; column < stop; column += step)
      body(Tile{begin / row, rows, column, std::min(step, stop - column)});
    begin += rows * row - into - (row - stop);
  }
}

// Each value is where nothing else is: without that said, bytes might be anything, the numbers of these loops among them.
template <class T, bool back> void move_row(T* __restrict whole, T* __restrict own, const int64_t* __restrict offsets, int64_t count) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t begin = 0; begin < count; begin += line) {
    if (!back) __builtin_prefetch(whole + count + begin);
    for (int64_t c = begin; c < std::min(begin + line, count); ++c) back ? whole[offsets[c]] = own[c] : own[c] = whole[offsets[c]];
  }
}

template <class T, bool back>
void move_rows(T* __restrict whole, T* __restrict own, const int64_t* __restrict offsets, int64_t count, int64_t rows, int64_t stride) {
  for (int64_t c = 0; c < count; ++c)
    for (int64_t r = 0; r < rows; ++r) {
      T &there = whole[r * stride + offsets[c]], &here = own[r * count + c];
      back ? there = here : here = there;
    }
}

template <class T, bool back> void move_elements(const Tile& tile, T* whole, T* own, int64_t row_stride, const int64_t* offsets) {
  whole += tile.first_row * row_stride;
  if (tile.rows == 1) return move_row<T, back>(whole, own, offsets, tile.columns);
  move_rows<T, back>(whole, own, offsets, tile.columns, tile.rows, row_stride);
}

// Between a tensor and a tile of one's own, whose rows lie one after the other.
template <bool back> void move_tile(const Tile& tile, char* whole, char* own, int64_t bytes, int64_t row_stride, const int64_t* offsets) {
  const auto of = [&](auto* own_values) {
    using T = std::remove_pointer_t<decltype(own_values)>;
    move_elements<T, back>(tile, reinterpret_cast<T*>(whole), own_values, row_stride, offsets);
  };
  if (bytes == 1) return of(reinterpret_cast<uint8_t*>(own));
  if (bytes == 2) return of(reinterpret_cast<uint16_t*>(own));
  if (bytes == 4) return of(reinterpret_cast<uint32_t*>(own));
  of(reinterpret_cast<uint64_t*>(own));
}

}  // namespace
