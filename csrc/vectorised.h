// Loops that the compiler turns into SIMD code: one build, and the widest instruction set of the running CPU is taken.
// Whole-number arithmetic, so every path gives the same bytes.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && defined(__gnu_linux__)
#define HUATUO_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define HUATUO_CLONES
#endif
