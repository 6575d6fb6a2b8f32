#pragma once

#include <cstdlib>  // defines __GLIBC__ where there is glibc

// A function marked DCN_TARGET_CLONES is compiled for three levels of x86-64, and when the library
// is loaded the best clone that the processor runs is taken: one build serves every machine. It
// must not be a template, and what it calls is cloned with it only if always inlined. This takes
// GCC and glibc; elsewhere there is the plain code alone.
//
// With -DDCN_PLAIN every choice of this kind falls to the plain code, in the other files too: what
// a machine without the clones, the instructions or the library functions runs is tested that way.
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && defined(__x86_64__) && \
    defined(__GLIBC__) && !defined(DCN_PLAIN)
#define DCN_TARGET_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DCN_TARGET_CLONES
#endif
