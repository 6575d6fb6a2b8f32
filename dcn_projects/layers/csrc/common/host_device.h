#pragma once

// Marks the math of one element, which the CPU loops and the CUDA kernels both call.
#if defined(__CUDACC__)
#define DCN_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define DCN_HOST_DEVICE inline __attribute__((always_inline))
#else
#define DCN_HOST_DEVICE inline
#endif
