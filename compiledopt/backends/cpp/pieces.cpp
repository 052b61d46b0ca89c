// Runs a kernel over tensors of one length, for the pieces of rules that are not elementwise (backends/cpp/pieces.py).
//
// shared.h and runtime.h stand before this file: kernels.py joins them.
#include <algorithm>

namespace {

using Kernel = void (*)(void* const* pointers, const double* table, int64_t length);

constexpr int64_t kAlignment = 64;  // elements: a share starts on whole cache lines and whole vectors
constexpr int64_t kMostPieceOperands = 16;

}  // namespace

// pointers: `operands` for each of `count` tensors, one after the other; sizes: bytes of an element, of each operand; table: a row
// of `width` columns for each tensor, or one for all where width is 0. Asks for no memory, and cannot fail.
extern "C" void pieces_run(Kernel kernel, char* const* pointers, const int64_t* sizes, int64_t operands, int64_t count,
                           int64_t length, const double* table, int64_t width, int64_t threads) {
  if (length <= 0 || count <= 0 || operands > kMostPieceOperands) return;
  const int64_t elements = count * length;
  const int64_t shares = std::max<int64_t>(1, std::min(threads, elements / kWorkPerThread));
  const int64_t chunk = ((elements + shares - 1) / shares + kAlignment - 1) / kAlignment * kAlignment;
  const auto share = [&](int64_t number) {
    int64_t at = number * chunk;
    const int64_t end = std::min(elements, at + chunk);
    while (at < end) {
      const int64_t tensor = at / length, first = at % length, many = std::min(length - first, end - at);
      void* places[kMostPieceOperands];
      for (int64_t k = 0; k < operands; ++k) places[k] = pointers[tensor * operands + k] + first * sizes[k];
      kernel(places, table + tensor * width, many);
      at += many;
    }
  };
  if (shares == 1)
    share(0);
  else
    for_each_share(shares, share);
}

extern "C" void run() {}
