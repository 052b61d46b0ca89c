// What the launcher, the passes and the Python around them agree on. tests/test_native.py compares the Python side with it.
#include <cstdint>

namespace {

constexpr int kMostTensors = 16;             // of a parameter, its gradient and its states: MOST_TENSORS in gathered.py
constexpr int kMostOperands = 64;            // of a pass: MOST_OPERANDS in kernels.py
// Elements. Inside training torch's threads are awake when a step begins, since the backward pass just used them, and all that a
// step touches comes from memory: two threads were faster from 2^16 elements on (perf/in_situ.py, with this changed), in few
// tensors and in many. It is torch's own grain (at::internal::GRAIN_SIZE).
constexpr int64_t kWorkPerThread = 1 << 15;

// The axes along which a value varies, as rules/program.py numbers them; all of them for most.
enum Axes : int { kNumber = 0, kMatrices = 1, kRows = 2, kColumns = 4, kElements = 7, kBlocks = 8, kPacked = 16 };
// How many values an operand has for the first `length` elements of a row: one for each, for each block, or for each byte of codes.
inline int64_t values_of(int64_t axes, int64_t size, int64_t length) {
  return axes == kBlocks ? (length + size - 1) / size : axes == kPacked ? (length + 1) / 2 : length;
}
// Where a piece of a parameter may begin or end, at element `at` or behind: at whole blocks of a row, and at its end.
inline int64_t block_edge(int64_t at, int64_t row, int64_t block) {
  const int64_t begin = at / row * row, end = begin + row, edge = begin + (at - begin + block - 1) / block * block;
  return edge < end ? edge : end;
}
// What is asked of a parameter's memory: any dense order; row after row; column after column within each matrix.
enum Order : int { kAnyOrder = 0, kRowAfterRow = 1, kColumnAfterColumn = 2 };
// Shifted by so many bits, beside the order: how many dimensions, from the first, make up a row each.
constexpr int kOuter = 2;

// What a gather says: the kernel may run; other rows of the table are needed; the plan no longer fits.
enum Status : int { kReady = 0, kRegroup = 1, kRebuild = 2 };

// Of a pass, as rules/reductions.py numbers them: where an operand lives, and how tiles are reduced.
enum Kind : int { kTensor = 0, kBuffer = 1, kTile = 2, kSlot = 3 };
enum Op : int { kSum = 0, kMean = 1, kAmax = 2, kAmin = 3 };

// Which parameter of its optimizer a tensor is, and which of that one's elements comes first in it: for random numbers.
struct Place {
  int64_t number, offset;

  bool operator==(const Place& other) const { return number == other.number && offset == other.offset; }
};

// A parameter as matrices of rows and columns, and of rows that no block reaches across.
struct Shape {
  int64_t matrices, rows, columns, row;

  int64_t size(int64_t axes) const {
    return (axes & kMatrices ? matrices : 1) * (axes & kRows ? rows : 1) * (axes & kColumns ? columns : 1);
  }
  // How many neighbours in an array over `axes` differ in its last axis alone.
  int64_t run(int64_t axes) const { return axes & kColumns ? columns : axes & kRows ? rows : axes ? matrices : 1; }
  bool operator==(const Shape& other) const {
    return matrices == other.matrices && rows == other.rows && columns == other.columns && row == other.row;
  }
};

// The same of a piece, for kernels: and how many elements no block reaches across, from its beginning.
struct Piece {
  int32_t offset, number;
  int64_t row;
};

// What the functions of passes.cpp return: no exception may leave them.
enum Outcome : int { kDone = 0, kNoMemory = -1, kFailed = -2 };

}  // namespace
