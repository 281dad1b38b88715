// What the tests ask of the fake CUDA driver beyond the real one's functions. See fake_cuda.cc.
#pragma once

#include <cstdint>

extern "C" {

// Run kernel(argument) in stream order.
void fakeLaunch(void* stream, void (*kernel)(void*), void* argument);
// Copies so far from or to host memory that was not pinned.
uint64_t fakeUnpinnedCopies();
// Ranges of host memory that are pinned now.
uint64_t fakePinnedRanges();

}  // extern "C"
