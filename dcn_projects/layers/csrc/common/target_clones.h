#pragma once

#include <cstdlib>  // defines __GLIBC__ where there is glibc

// A function marked DCN_TARGET_CLONES is compiled for three levels of x86-64, and when the library
// is loaded the best clone that the processor runs is taken: one build serves every machine. It
// must not be a template, and what it calls is cloned with it only if always inlined. This takes
// GCC and glibc; elsewhere, and with -DDCN_NO_TARGET_CLONES, there is the plain code alone.
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && defined(__x86_64__) && \
    defined(__GLIBC__) && !defined(DCN_NO_TARGET_CLONES)
#define DCN_TARGET_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DCN_TARGET_CLONES
#endif
