// What the checks of packed matrices and their products share; defined in driver.cpp.
#pragma once

#include <vector>

#include "linear.h"
#include "values.h"

void fail(const char* set, const qcpu::Matrix& m, long rows, const char* what, double got, double want);

// Memory for a packed matrix, which begins in it where kernels want it to.
std::vector<uint8_t> memory_for(qcpu::Matrix& m);

// All values that a packed matrix holds.
std::vector<float> values_of(const qcpu::Matrix& m);

// What a row of x is after quantization: with one scale, or one for each group.
std::vector<double> rounded(const qcpu::Matrix& m, const Values& values, long at);

// The product of `m`, whose values are `kept`, against sums in double, for rows drawn at random.
void check_product(const char* set, const qcpu::Matrix& m, const std::vector<float>& kept, int dtype);
