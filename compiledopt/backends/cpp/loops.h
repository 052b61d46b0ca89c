// Stands before either prefix, ours or torch's.
// The turns of a loop over elements do not depend on each other: without this, each needs checks of all pointers first.
#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif
