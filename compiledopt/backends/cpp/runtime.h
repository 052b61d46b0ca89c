// The runtimes that torch has loaded, for files that any compiler may compile.
#include <cstdint>
#include <new>
#include <type_traits>

// With LLVM's headers (zig) and GNU's library: these are in the library there, and in the headers here.
#ifdef _LIBCPP_VERSION
std::bad_alloc::bad_alloc() noexcept {}
std::bad_array_new_length::bad_array_new_length() noexcept {}
#endif

// OpenMP through libgomp's C functions and not through pragmas: those become calls of the compiler's own runtime, and clang's
// (__kmpc_*) is not the one that torch brings along. LLVM's and Intel's runtimes have these functions as well.
extern "C" {
void GOMP_parallel(void (*function)(void*), void* data, unsigned threads, unsigned flags);
void GOMP_barrier();
int omp_get_thread_num();
int omp_get_num_threads();
}

namespace {

// f(thread, team) in every thread of a team of `threads` or fewer. A team of one is a team as well: a barrier within must not be
// that of a team around it.
template <class F> void in_team(int64_t threads, F&& f) {
  const auto call = [](void* data) noexcept {
    (*static_cast<std::remove_reference_t<F>*>(data))(int64_t(omp_get_thread_num()), int64_t(omp_get_num_threads()));
  };
  GOMP_parallel(call, &f, static_cast<unsigned>(threads), 0);
}

// f(share) for 0 ≤ share < shares, one for each thread where the runtime grants as many.
template <class F> void for_each_share(int64_t shares, F&& f) {
  in_team(shares, [&](int64_t thread, int64_t team) {
    for (int64_t share = thread; share < shares; share += team) f(share);
  });
}

}  // namespace
